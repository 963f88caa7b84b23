"""The media front end: recordings enter, views with real time stamps and masks leave. Needs the extra `media`."""

from stf2m_core.data.media.clip import ClipViews, FaceTrack, Stream, read_clip
from stf2m_core.data.media.extraction import Extraction, extract
from stf2m_core.data.media.model_file import ModelFile, read_model_file
from stf2m_core.data.media.settings import MODALITIES, MediaSettings

__all__ = [
    "MODALITIES", "ClipViews", "Extraction", "FaceTrack", "MediaSettings", "ModelFile", "Stream", "extract",
    "read_clip", "read_model_file",
]  # fmt: skip

"""CMU-MOSI utterance features of Poria et al. 2017: an npz archive and its index enter, one-frame views leave.

Zadeh et al. 2016, arXiv 1606.06259. Text and video features come from networks trained on these very labels, so that no
accuracy on them is evidence of anything; they exercise three modalities.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.reading import clip_table, one_frame
from stf2m_core.data.tables import read_table
from stf2m_core.errors import ManifestError

_MODALITIES = ("text", "audio", "video")
_ARRAYS = (*_MODALITIES, "label", "label_names", "video_ids", "video_offsets", "segment")
_COLUMNS = ("utterance_id", "video_id", "segment", "text", "label_name", "split")


def read(source: Path, manifest: Manifest) -> tuple[pd.DataFrame, dict[str, RaggedViews]]:
    """The utterances, with the video as subject: who speaks in two videos is not known.

    Args:
        source: folder with features.npz and index.csv.
        manifest: states the labels.

    Returns:
        One row per utterance, and modality to views of one frame and one node: text (100 channels), audio (73), visual
        (100). Utterances have no duration here; each lasts a nominal second.

    Raises:
        ManifestError: if a file is malformed or the two tell different stories.
    """
    path = source / "features.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS}
    except KeyError as error:
        raise ManifestError(f"{error.args[0]}", expected=", ".join(_ARRAYS), where=str(path)) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ManifestError(f"{path.name} cannot be read: {error}", expected="an npz archive",
                            where=str(path)) from error  # fmt: skip
    rows = read_table(source / "index.csv", _COLUMNS).rows
    _check(arrays, rows, manifest, source)
    clips = clip_table(
        {
            "clip_id": rows["utterance_id"],
            "subject": rows["video_id"],
            "group": rows["video_id"],
            "domain": "cmu_mosi",
            "duration_s": 1.0,
            "label": arrays["label_names"][arrays["label"]],
            "split": rows["split"],
            "text": rows["text"],
        }
    )
    times = np.full(len(rows), 0.5)
    views = {}
    for name in _MODALITIES:
        values = arrays[name]
        channels = [f"{name}{channel:03d}" for channel in range(values.shape[1])]
        views["visual" if name == "video" else name] = one_frame(values[:, None, :], ("utterance",), channels, times)
    return clips, views


def _check(arrays: dict[str, np.ndarray], rows: pd.DataFrame, manifest: Manifest, source: Path) -> None:
    """Refuse two files that do not tell the same utterances in the same order."""
    names = tuple(str(name) for name in arrays["label_names"])
    if names != manifest.labels:
        raise ManifestError(f"label_names are {names}", expected=str(manifest.labels),
                            where=str(source / "features.npz"))  # fmt: skip
    n_clips = len(rows)
    for name in (*_MODALITIES, "label", "segment"):
        if len(arrays[name]) != n_clips:
            raise ManifestError(f"{name} has {len(arrays[name])} rows", expected=f"{n_clips}, as index.csv",
                                where=str(source))  # fmt: skip
    video = np.repeat(arrays["video_ids"], np.diff(arrays["video_offsets"]))
    stated = {"video_id": video, "segment": arrays["segment"].astype(str),
              "label_name": arrays["label_names"][arrays["label"]]}  # fmt: skip
    for column, values in stated.items():
        differs = np.flatnonzero(rows[column].to_numpy(str) != values.astype(str))
        if differs.size:
            row = differs[0]
            raise ManifestError(
                f"{column} of row {row} is {rows[column].iloc[row]!r} in index.csv",
                expected=f"{values[row]!r}, as in features.npz", where=str(source),
            )  # fmt: skip

"""CREMA-D as recordings: wav or flv files and the upstream vote table enter, clips with soft labels leave.

Cao et al. 2014, doi 10.1109/TAFFC.2014.2336244. Names are actor_sentence_emotion_level, as 1001_DFA_ANG_XX.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stf2m_core.data.adapters.crema_d_votes import CONDITIONS, read_votes, vote_clips
from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.reading import Reading
from stf2m_core.data.recordings import MEDIA, find_recordings, read_recordings
from stf2m_core.errors import ManifestError

_VIDEO = (".flv", ".mp4")


def read(
    source: Path, manifest: Manifest, *, work: Path, condition: str = "audiovisual", label: str = "plurality",
    video: bool = False, modalities: Sequence[str] | None = None, n_workers: int | None = None, face_model: str = "",
    time_limit_s: float = 600.0,
) -> Reading:  # fmt: skip
    """The clips of which there are both a recording and votes.

    Args:
        source: folder of the repository, with AudioWAV or VideoFlash, and processedResults.
        manifest: states the labels.
        work: where the front end keeps what it made.
        condition: whose votes are the soft labels: "audiovisual", "voice" or "face".
        label: "plurality" of those votes, or "intended".
        video: read the videos, with their sound, and not the wav files.
        modalities: of the front end; None: audio and prosody, with `video` also visual.
        n_workers: processes of the front end.
        time_limit_s: seconds after which a recording is given up.
        face_model: TOML file that describes a network of your own for faces, as
            `media.model_file.ModelFile`; needs `video`.

    Raises:
        ManifestError: if an option is unknown or the tables are malformed.
    """
    for name, value, legal in (("condition", condition, CONDITIONS), ("label", label, ("plurality", "intended"))):
        if value not in legal:
            raise ManifestError(f"{name} is {value!r}", expected=" or ".join(legal), where=f"import of {manifest.name}")
    found = find_recordings(source, _VIDEO if video else MEDIA - set(_VIDEO) - {".mp3"})
    clips = vote_clips(read_votes(source), condition, label).set_index("clip_id", drop=False)
    left_out = dict(found.left_out)
    left_out |= {name: "it has no votes" for name in found.paths if name not in clips.index}
    left_out |= {name: "its recording is missing" for name in clips.index if name not in found.paths}
    left_out |= {name: why for name, why in manifest.bad_clips.items() if name in found.paths}
    clips = clips[~clips.index.isin(list(left_out))].reset_index(drop=True)
    files = pd.DataFrame({"clip_id": clips["clip_id"], "path": [str(found.paths[name]) for name in clips["clip_id"]]})
    wanted = modalities or (("visual", "audio", "prosody") if video else ("audio", "prosody"))
    return read_recordings(clips, files, work, wanted, left_out=left_out, n_workers=n_workers, face_model=face_model,
                           time_limit_s=time_limit_s)  # fmt: skip

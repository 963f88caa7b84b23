"""RAVDESS as recordings: files with their original names enter, clips of voice and face leave.

Livingstone & Russo 2018, doi 10.1371/journal.pone.0196391. A name is MM-VC-EE-II-SS-RR-AA: modality, channel, emotion,
intensity, statement, repetition, actor. Files of one take (01 both, 02 video alone, 03 voice alone) become one clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.reading import Reading, clip_table
from stf2m_core.data.recordings import find_recordings, read_recordings
from stf2m_core.errors import ManifestError

NAME = (
    r"(?P<modality>0[123])-(?P<take>(?P<channel>0[12])-(?P<emotion>0[1-8])-(?P<intensity>0[12])-(?P<statement>0[12])-"
    r"(?P<repetition>0[12])-(?P<actor>[0-2]\d))"
)
"""Of a file, without its ending."""

_SENTENCES = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
_CHANNELS = {"speech": "01", "song": "02"}
_BOTH, _VIDEO, _VOICE = "01", "02", "03"


def read(
    source: Path, manifest: Manifest, *, work: Path, channel: str = "speech", modalities: Sequence[str] | None = None,
    actors: Sequence[str] = (), n_workers: int | None = None, face_model: str = "",
    time_limit_s: float = 600.0,
) -> Reading:  # fmt: skip
    """The takes in a folder and its subfolders.

    Args:
        source: folder with the files, as Actor_01/03-01-01-01-01-01-01.wav or all in one place.
        manifest: states the labels.
        work: where the front end keeps what it made.
        channel: "speech" or "song".
        modalities: of the front end; None: audio and prosody, and visual where there is video.
        actors: "01" to "24", to read these alone; () reads all that are there.
        n_workers: processes of the front end.
        time_limit_s: seconds after which a recording is given up.
        face_model: TOML file that describes a network of your own for faces; see `media.model_file.ModelFile`.

    Raises:
        ManifestError: if the channel is unknown, or of one of the actors there is no file.
    """
    if channel not in _CHANNELS:
        raise ManifestError(f"channel is {channel!r}", expected="'speech' or 'song'", where=manifest.name)
    found = find_recordings(source)
    names = pd.Series(list(found.paths), dtype=str)
    parts = names.str.extract(f"^{NAME}$").assign(path=[str(path) for path in found.paths.values()])
    strange = names[parts["take"].isna()]
    left_out = {**found.left_out, **{name: "its name is none of RAVDESS" for name in strange}}
    parts = parts.dropna(subset="take")
    parts = _of_actors(parts, actors, source)
    chosen = parts[parts["channel"] == _CHANNELS[channel]]
    takes = _takes(chosen, manifest, left_out)
    if modalities is None:
        modalities = ("visual", "audio", "prosody") if (takes["modality"] != _VOICE).any() else ("audio", "prosody")
    other = len(parts) - len(chosen)
    remarks = [f"{other} files of the other channel were not read"] if other else []
    clips = _clips(takes, manifest)
    files = takes[["clip_id", "path", "audio_path"]].assign(text=clips["text"])
    return read_recordings(clips, files, work, modalities, left_out=left_out, remarks=remarks, n_workers=n_workers,
                           face_model=face_model, time_limit_s=time_limit_s)  # fmt: skip


def _of_actors(files: pd.DataFrame, actors: Sequence[str], source: Path) -> pd.DataFrame:
    there = sorted(set(files["actor"]))
    for actor in actors:
        if actor not in there:
            raise ManifestError(f"of actor {actor!r} there is no file", expected=", ".join(there) or "files of RAVDESS",
                                where=str(source))  # fmt: skip
    return files[files["actor"].isin(list(actors))] if actors else files


def _takes(files: pd.DataFrame, manifest: Manifest, left_out: dict[str, str]) -> pd.DataFrame:
    """One row per take: the file with both if there is one, else the video with the voice beside it, else the voice."""
    files = files.sort_values(["take", "modality"])
    voice = files[files["modality"] == _VOICE].set_index("take")["path"].to_dict()
    takes = files.drop_duplicates("take").rename(columns={"take": "clip_id"}).reset_index(drop=True)
    pairs = zip(takes["clip_id"], takes["modality"] == _VIDEO, strict=True)
    takes["audio_path"] = [voice.get(clip, "") if is_silent else "" for clip, is_silent in pairs]
    bad = takes["clip_id"].isin(list(manifest.bad_clips))
    left_out |= {clip: manifest.bad_clips[clip] for clip in takes["clip_id"][bad]}
    return takes[~bad].reset_index(drop=True)


def _clips(takes: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    return clip_table(
        {
            "clip_id": takes["clip_id"],
            "subject": takes["actor"],
            "group": takes["actor"] + "/" + takes["statement"].map({"01": "kids", "02": "dogs"}),
            "domain": "ravdess",
            "label": [manifest.labels[int(emotion) - 1] for emotion in takes["emotion"]],
            "text": takes["statement"].map(_SENTENCES),
        },
        x_sex=takes["actor"].astype(int).mod(2).map({1: "male", 0: "female"}),
        x_intensity=takes["intensity"].map({"01": "normal", "02": "strong"}),
        x_statement=takes["statement"],
        x_repetition=takes["repetition"],
    )

"""MELD: one of its CSV files, and the clips beside it if there are any, enter; utterances of a dialogue leave.

Poria et al. 2019, doi 10.18653/v1/P19-1050. Clips are called dia<Dialogue_ID>_utt<Utterance_ID>.mp4 and count anew in
each split, so a clip is named by the split as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.reading import Reading, clip_table, spread_words
from stf2m_core.data.recordings import find_recordings, read_recordings
from stf2m_core.data.tables import Table, check_labels, read_table
from stf2m_core.errors import ManifestError

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime")
_SPLITS = {"train": "train", "dev": "val", "test": "test"}
_TIME = r"^\s*(\d+):(\d+):(\d+)[,.](\d+)\s*$"


def read(
    source: Path, manifest: Manifest, *, work: Path, split: str | None = None, media: bool = False,
    modalities: Sequence[str] = ("visual", "audio", "prosody", "text"), n_workers: int | None = None,
    face_model: str = "", sentence_model: str = "", time_limit_s: float = 600.0,
) -> Reading:  # fmt: skip
    """The utterances of the splits whose CSV is in the folder.

    Args:
        source: folder with train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv, or some of them.
        manifest: states the labels, and the clips known to be bad.
        work: where the front end keeps what it made.
        split: "train", "dev" or "test"; None: all that are there.
        media: read the clips in the folder too; without them text is the only modality.
        modalities: of the front end, with `media`.
        n_workers: processes of the front end.
        time_limit_s: seconds after which a recording is given up.
        face_model: TOML file that describes a network of your own for faces, as
            `media.model_file.ModelFile`; needs `media`.
        sentence_model: folder of a model of your own for the package sentence-transformers; needs
            `media`.

    Raises:
        ManifestError: if a table is malformed or tells a label or time that cannot be.
    """
    if split is not None and split not in _SPLITS:
        raise ManifestError(f"split is {split!r}", expected="'train', 'dev' or 'test'", where=manifest.name)
    names = [name for name in _SPLITS if split in (None, name) and (source / f"{name}_sent_emo.csv").is_file()]
    if not names:
        raise ManifestError(f"{split}_sent_emo.csv is missing", expected=f"it in {source}")
    tables = [read_table(source / f"{name}_sent_emo.csv", _COLUMNS) for name in names]
    tables = [table.without_repeats(("Dialogue_ID", "Utterance_ID")) for table in tables]
    remarks = [remark for table in tables for remark in table.remarks]
    parts = [_clips(table, name, manifest) for table, name in zip(tables, names, strict=True)]
    clips = pd.concat(parts, ignore_index=True)
    bad = clips["clip_id"].isin(list(manifest.bad_clips)) & media  # what is wrong is the recording, never the text
    short = clips["duration_s"] <= 0
    left_out = {clip: manifest.bad_clips[clip] for clip in clips["clip_id"][bad]}
    left_out |= {clip: "it ends before it starts" for clip in clips["clip_id"][short]}
    clips = clips[~(bad | short)].reset_index(drop=True)
    if media:
        clips, files = _with_media(source, clips, names, left_out)
        return read_recordings(clips, files, work, modalities, left_out=left_out, remarks=remarks,
                               n_workers=n_workers, face_model=face_model, sentence_model=sentence_model,
                               time_limit_s=time_limit_s)  # fmt: skip
    silent = clips["text"].str.strip() == ""
    left_out |= dict.fromkeys(clips["clip_id"][silent], "it has no text")
    clips = clips[~silent].reset_index(drop=True)
    views = {"text": spread_words(clips["text"].tolist(), clips["duration_s"].to_numpy())}
    return Reading(clips=clips, views=views, left_out=left_out, remarks=remarks)


def _clips(table: Table, split: str, manifest: Manifest) -> pd.DataFrame:
    rows, where = table.rows, table.where
    label = rows["Emotion"].str.strip().str.lower()
    check_labels(label, manifest.labels, where)
    start, end = (_seconds(rows[name], name, where) for name in ("StartTime", "EndTime"))
    dialogue = split + "_dia" + rows["Dialogue_ID"].str.strip()
    return clip_table(
        {
            "clip_id": dialogue + "_utt" + rows["Utterance_ID"].str.strip(),
            "subject": rows["Speaker"].str.strip().replace("", "unknown"),
            "group": dialogue,
            "domain": "meld",
            "duration_s": (end - start).round(3),
            "label": label,
            "split": _SPLITS[split],
            "text": rows["Utterance"],
        },
        x_sentiment=rows["Sentiment"].str.strip(),
    )


def _seconds(cells: pd.Series, column: str, where: str) -> np.ndarray:
    """Times such as 00:20:57,256."""
    parts = cells.str.extract(_TIME)
    bad = np.flatnonzero(parts[0].isna().to_numpy())
    if bad.size:
        raise ManifestError(f"{column} is {cells.iloc[bad[0]]!r} at row {bad[0] + 2}",
                            expected="hours:minutes:seconds,milliseconds", where=where)  # fmt: skip
    hours, minutes, seconds = (parts[column].astype(float) for column in range(3))
    return (hours * 3600 + minutes * 60 + seconds + ("0." + parts[3]).astype(float)).to_numpy()


def _with_media(
    source: Path, clips: pd.DataFrame, splits: Sequence[str], left_out: dict[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The clips with a recording, and its file; what has no partner goes to `left_out`.

    They lie in the folder itself if it has one split, else in folders that begin with the split's name.
    """
    paths = {}
    folders = {name: [p for p in sorted(source.iterdir()) if p.is_dir() and p.name.startswith(name)] for name in splits}
    for name in splits:
        for folder in folders[name] or ([source] if len(splits) == 1 else []):
            found = find_recordings(folder)
            paths |= {f"{name}_{stem}": str(path) for stem, path in found.paths.items()}
            left_out |= found.left_out
    known = {*clips["clip_id"], *left_out}
    left_out |= {clip: "it has no row in the table" for clip in paths if clip not in known}
    missing = ~clips["clip_id"].isin(list(paths))
    left_out |= dict.fromkeys(clips["clip_id"][missing], "its recording is missing")
    clips = clips[~missing].reset_index(drop=True)
    return clips, clips[["clip_id", "text"]].assign(path=clips["clip_id"].map(paths))

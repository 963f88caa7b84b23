"""Acted emotional speech whose file names tell everything: EMO-DB, SAVEE and TESS; wav files enter, clips leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.reading import Reading, clip_table
from stf2m_core.data.recordings import find_recordings, read_recordings
from stf2m_core.errors import ManifestError


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRule:
    """How one data set names its files.

    Attributes:
        pattern: of the name without ending; groups subject, sentence and emotion.
        emotions: what stands in the name, to the label.
        in_folders: whether the speaker is the name of the file's folder.
    """

    pattern: str
    emotions: Mapping[str, str]
    in_folders: bool = False


RULES: Mapping[str, NameRule] = MappingProxyType(
    {
        # Burkhardt et al. 2005: speaker, text, emotion (German initials), version
        "emo_db": NameRule(
            pattern=r"(?P<subject>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])[a-z]",
            emotions={
                "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness",
                "N": "neutral",
            },
        ),
        # Haq & Jackson 2009: emotion and sentence, in a folder for each speaker or with the speaker before it
        "savee": NameRule(
            pattern=r"(?:(?P<subject>DC|JE|JK|KL)_)?(?P<emotion>sa|su|a|d|f|h|n)(?P<sentence>\d\d)",
            emotions={
                "a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "n": "neutral", "sa": "sadness",
                "su": "surprise",
            },
            in_folders=True,
        ),
        # Pichora-Fuller & Dupuis 2020: speaker, word, emotion; one published file has OA for OAF
        "tess": NameRule(
            pattern=r"(?P<subject>OAF|OA|YAF)_(?P<sentence>[a-z]+)_(?P<emotion>angry|disgust|fear|happy|ps|sad|neutral)",
            emotions={
                "angry": "anger", "disgust": "disgust", "fear": "fear", "happy": "happiness",
                "ps": "pleasant surprise", "sad": "sadness", "neutral": "neutral",
            },
        ),
    }
)  # fmt: skip
"""Manifest to the rule of its names."""


def read(
    source: Path, manifest: Manifest, *, work: Path, modalities: Sequence[str] = ("audio", "prosody"),
    n_workers: int | None = None, time_limit_s: float = 600.0,
) -> Reading:  # fmt: skip
    """The wav files in a folder and its subfolders; which rule they follow is told by the manifest's name.

    Args:
        source: folder with the files.
        manifest: states the labels; its name is one of RULES.
        work: where the front end keeps what it made.
        modalities: of the front end.
        n_workers: processes of the front end.
        time_limit_s: seconds after which a recording is given up.

    Raises:
        ManifestError: if no rule has the manifest's name.
    """
    if manifest.name not in RULES:
        raise ManifestError(f"no rule for names of {manifest.name!r}", expected=" or ".join(RULES))
    rule = RULES[manifest.name]
    found = find_recordings(source, by_folder=rule.in_folders)
    names = pd.Series(list(found.paths), dtype=str).str.rsplit("/", n=1)
    parts = names.str[-1].str.extract(f"^{rule.pattern}$").assign(path=[str(path) for path in found.paths.values()])
    left_out = {**found.left_out, **_strangers(found.paths, parts, manifest)}
    if rule.in_folders:
        parts["subject"] = parts["subject"].fillna(names.str[0])
    parts = parts.dropna(subset="emotion").replace({"subject": {"OA": "OAF"}}).reset_index(drop=True)
    clips = _clips(parts, rule, manifest)
    files = pd.DataFrame({"clip_id": clips["clip_id"], "path": parts["path"]})
    return read_recordings(clips, files, work, modalities, left_out=left_out, n_workers=n_workers,
                           time_limit_s=time_limit_s)  # fmt: skip


def _strangers(paths: Mapping[str, Path], parts: pd.DataFrame, manifest: Manifest) -> dict[str, str]:
    strange = parts["emotion"].isna().to_numpy()
    return {name: f"its name is none of {manifest.name}" for name, bad in zip(paths, strange, strict=True) if bad}


def _clips(parts: pd.DataFrame, rule: NameRule, manifest: Manifest) -> pd.DataFrame:
    """A clip is named by speaker, sentence and emotion, and by the name of its file where that tells more."""
    name = parts["path"].map(lambda path: Path(path).stem)
    return clip_table(
        {
            "clip_id": parts["subject"] + "_" + parts["emotion"] + parts["sentence"] if rule.in_folders else name,
            "subject": parts["subject"],
            "group": parts["subject"] + "/" + _group(parts, rule),
            "domain": manifest.name,
            "label": parts["emotion"].map(dict(rule.emotions)),
        },
        x_sentence=parts["sentence"],
    )


def _group(parts: pd.DataFrame, rule: NameRule) -> pd.Series:
    """What must not be on both sides of an episode: the sentence; numbers of SAVEE count anew in each emotion."""
    return parts["emotion"] + parts["sentence"] if rule.in_folders else parts["sentence"]

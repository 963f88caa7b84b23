"""IEMOCAP as its owners give it: evaluation and transcription files, and the sentence wavs, enter; utterances leave.

Busso et al. 2008, doi 10.1007/s10579-008-9076-6. Folders: Session1 to Session5, each with dialog/EmoEvaluation,
dialog/transcriptions and sentences/wav.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.reading import Reading, clip_table, spread_words
from stf2m_core.data.recordings import find_recordings, read_recordings
from stf2m_core.errors import ManifestError

LABELS = ("neutral", "anger", "frustration", "happiness", "sadness", "excitement", "surprise", "fear", "disgust",
          "other")  # fmt: skip
"""As raters chose them; the first of the words they wrote for an utterance counts."""

_CODES = dict(zip(("neu", "ang", "fru", "hap", "sad", "exc", "sur", "fea", "dis", "oth"), LABELS, strict=True))
_WORDS = {"neutral": "neutral", "anger": "anger", "frustration": "frustration", "happiness": "happiness",
          "sadness": "sadness", "excited": "excitement", "surprise": "surprise", "fear": "fear", "disgust": "disgust",
          "other": "other"}  # fmt: skip
_TURN = re.compile(r"^\[(?P<start>[\d.]+) - (?P<end>[\d.]+)\]\t(?P<clip>Ses\d\d[FM]_\S+)\t(?P<code>\w+)\t"
                   r"\[(?P<v>[\d.]+), (?P<a>[\d.]+), (?P<d>[\d.]+)\]")  # fmt: skip
_RATER = re.compile(r"^C-[EFM]\d*:\t(?P<words>[^(]*)")
_LINE = re.compile(r"^(?P<clip>Ses\d\d[FM]_\S+) \[[\d.-]+\]: ?(?P<text>.*)$")
_UNDECIDED = "xxx"


@dataclass(slots=True)
class Turn:
    """One utterance of an evaluation file."""

    clip: str
    start_s: float
    end_s: float
    label: str
    valence: float
    arousal: float
    votes: np.ndarray = field(default_factory=lambda: np.zeros(len(LABELS)))


def read(
    source: Path, manifest: Manifest, *, work: Path, labels: Sequence[str] = LABELS, audio: bool = True,
    modalities: Sequence[str] = ("audio", "prosody", "text"), n_workers: int | None = None, sentence_model: str = "",
    time_limit_s: float = 600.0,
) -> Reading:  # fmt: skip
    """The utterances of all sessions that are there.

    A clip's label is the one the evaluation file states, "" where raters did not agree. Its votes are the first word of
    each rater, the actors' own ratings too. Valence and arousal are means on the scale 1 to 5.

    Args:
        source: folder with Session1, Session2, …
        manifest: not needed; the labels are the option.
        work: where the front end keeps what it made.
        labels: which emotions to keep; utterances of others are left out.
        audio: read the sentence wavs; without them text is the only modality.
        modalities: of the front end, with `audio`.
        n_workers: processes of the front end.
        time_limit_s: seconds after which a recording is given up.
        sentence_model: folder of a model of your own for the package sentence-transformers; needs
            `audio`.

    Raises:
        ManifestError: if a file is malformed or a label unknown.
    """
    unknown = [label for label in labels if label not in LABELS]
    if unknown:
        raise ManifestError(f"label {unknown[0]!r} is unknown", expected=" or ".join(LABELS), where=manifest.name)
    files = sorted(source.glob("Session*/dialog/EmoEvaluation/Ses*.txt"))
    turns = [turn for path in files for turn in read_evaluation(path)]
    texts = {}
    for path in sorted(source.glob("Session*/dialog/transcriptions/Ses*.txt")):
        texts |= read_transcription(path)
    left_out = {turn.clip: f"its label is {turn.label}" for turn in turns if turn.label and turn.label not in labels}
    left_out |= {turn.clip: manifest.bad_clips[turn.clip] for turn in turns if turn.clip in manifest.bad_clips}
    kept = [turn for turn in turns if turn.clip not in left_out]
    clips = _clips(kept, texts, tuple(labels))
    if audio:
        found = find_recordings(source, {".wav"})
        sentences = {name: path for name, path in found.paths.items() if path.parent.parent.name == "wav"}
        missing = ~clips["clip_id"].isin(list(sentences))
        left_out |= dict.fromkeys(clips["clip_id"][missing], "its wav is missing") | dict(found.left_out)
        clips = clips[~missing].reset_index(drop=True)
        table = clips[["clip_id", "text"]].assign(path=[str(sentences[name]) for name in clips["clip_id"]])
        return read_recordings(
            clips, table, work, modalities, left_out=left_out, n_workers=n_workers, labels=tuple(labels),
            sentence_model=sentence_model, time_limit_s=time_limit_s,
        )  # fmt: skip
    silent = clips["text"].str.strip() == ""
    left_out |= dict.fromkeys(clips["clip_id"][silent], "it has no transcript")
    clips = clips[~silent].reset_index(drop=True)
    views = {"text": spread_words(clips["text"].tolist(), clips["duration_s"].to_numpy())} if len(clips) else {}
    return Reading(clips=clips, views=views, labels=tuple(labels), left_out=left_out)


def read_evaluation(path: Path) -> list[Turn]:
    """The utterances of one file of EmoEvaluation.

    Raises:
        ManifestError: naming the line, if it names an emotion that IEMOCAP does not have, or if there is no utterance.
    """
    turns: list[Turn] = []
    for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1):
        turn, rater = _TURN.match(line), _RATER.match(line)
        if turn:
            code = turn["code"]
            if code != _UNDECIDED and code not in _CODES:
                raise ManifestError(f"emotion {code!r} at line {number} is unknown", expected=" ".join(_CODES),
                                    where=str(path))  # fmt: skip
            turns.append(Turn(turn["clip"], float(turn["start"]), float(turn["end"]), _CODES.get(code, ""),
                              float(turn["v"]), float(turn["a"])))  # fmt: skip
        elif rater and turns:
            words = [_WORDS.get(word.strip().lower()) for word in rater["words"].split(";")]
            chosen = next((word for word in words if word), None)
            if chosen:
                turns[-1].votes[LABELS.index(chosen)] += 1
    if not turns:
        raise ManifestError(f"{path.name} has no utterance", expected="lines [start - end] name emotion [V, A, D]",
                            where=str(path))  # fmt: skip
    return turns


def read_transcription(path: Path) -> dict[str, str]:
    """Utterance to what is said in it, from one file of transcriptions; other lines are notes and are skipped."""
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    return {found["clip"]: found["text"].strip() for line in lines if (found := _LINE.match(line))}


def _clips(turns: list[Turn], texts: dict[str, str], labels: tuple[str, ...]) -> pd.DataFrame:
    """Subject is the actor: the session, and the sex of who speaks, which is the letter before the turn's number."""
    clip = pd.Series([turn.clip for turn in turns], dtype=str)
    sex = clip.str.extract(r"_([FM])[^_]*$")[0].fillna("")
    votes = np.array([turn.votes for turn in turns]).reshape(len(turns), len(LABELS))
    return clip_table(
        {
            "clip_id": clip,
            "subject": clip.str[:5] + sex,
            "group": clip.str.rsplit("_", n=1).str[0],
            "domain": "iemocap",
            "duration_s": [round(turn.end_s - turn.start_s, 4) for turn in turns],
            "label": [turn.label for turn in turns],
            "text": clip.map(texts).fillna(""),
        },
        **{f"votes_{label}": votes[:, LABELS.index(label)] for label in labels},
        valence=[turn.valence for turn in turns],
        arousal=[turn.arousal for turn in turns],
        x_kind=np.where(clip.str.contains("impro"), "improvised", "scripted"),
    )

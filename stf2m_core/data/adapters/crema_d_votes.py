"""CREMA-D crowd votes: the upstream tables enter, clips with soft labels and votes of voice and face alone leave.

Cao et al. 2014, doi 10.1109/TAFFC.2014.2336244. Every clip was rated in three conditions, by different people: from the
voice alone, from the face alone, and from both. No signal is read here: the "modalities" are what people heard and saw.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.reading import clip_table, one_frame
from stf2m_core.data.tables import read_columns
from stf2m_core.errors import ManifestError

CONDITIONS = ("voice", "face", "audiovisual")
"""The rating conditions, in the order of the arrays."""

EMOTIONS = ("anger", "disgust", "fear", "happy", "neutral", "sad")
"""The emotions, in the order of the arrays and of the letters below."""

_LETTERS = ("A", "D", "F", "H", "N", "S")
_CODES = {"ANG": 0, "DIS": 1, "FEA": 2, "HAP": 3, "NEU": 4, "SAD": 5}
SENTENCES = {
    "IEO": "It's eleven o'clock.", "TIE": "That is exactly what happened.", "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.", "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.", "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.", "ITS": "I think I've seen this before.", "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}  # fmt: skip
"""Letters in the name of a clip, to what is said in it."""

_NAME = r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(?P<level>LO|MD|HI|XX)"
_VOTES = "tabulatedVotes.csv"
_PLACES = ("", "upstream", "processedResults")
_ROWS_PER_CONDITION = 100_000  # row numbers of the table start with 1, 2 or 3: voice, face, both


@dataclass(frozen=True, slots=True, eq=False)
class Votes:
    """What raters said of each clip in the three conditions; clips in the order of their names.

    Attributes:
        clip_id: (clip,) str, e.g. "1001_DFA_ANG_XX".
        counts: (clip, condition, emotion) int16, votes; conditions as CONDITIONS, emotions as EMOTIONS.
        levels: (clip, condition, emotion) float32, mean intensity 0 to 100 given by those who chose the emotion, NaN
            where nobody did.
        intended: (clip,) int8 index into EMOTIONS: what the actor was asked to show.
        actor: (clip,) int16, 1001 to 1091.
        sentence: (clip,) str, three letters.
        level: (clip,) str, the asked intensity: LO, MD, HI, or XX where none was asked.
    """

    clip_id: np.ndarray
    counts: np.ndarray
    levels: np.ndarray
    intended: np.ndarray
    actor: np.ndarray
    sentence: np.ndarray
    level: np.ndarray


def read_votes(folder: str | Path) -> Votes:
    """The votes of all clips in the three rating conditions, from the original table tabulatedVotes.csv.

    The table is looked for in the folder itself, in `upstream/` and in `processedResults/` (its place in the CREMA-D
    repository). Where the folder also holds votes.npz, the two must agree.

    Args:
        folder: of the data set.

    Raises:
        ManifestError: if the table is missing or malformed, a clip lacks a condition, or votes.npz says otherwise.
    """
    folder = Path(folder)
    path = _find(folder, _VOTES)
    columns = ("fileName", "numResponses", *_LETTERS)
    table = read_columns(path, columns, index_col=0, keep_default_na=False)
    condition = table.index.to_numpy() // _ROWS_PER_CONDITION - 1
    clip_id, row = np.unique(table["fileName"].to_numpy(str), return_inverse=True)
    _check_rows(condition, row, clip_id, path)
    parts = _parse(clip_id, path)
    counts = np.zeros((len(clip_id), len(CONDITIONS), len(EMOTIONS)), np.int16)
    counts[row, condition] = table[list(_LETTERS)].to_numpy()
    levels = np.full(counts.shape, np.nan, np.float32)
    columns = [f"mean{emotion.capitalize()}Resp" for emotion in EMOTIONS]
    if set(columns) <= set(table.columns):
        means = table[columns].to_numpy(np.float32)
        levels[row, condition] = np.where(means < 0, np.nan, means)  # the table writes -1 where nobody chose it
    _check_against_archive(folder / "votes.npz", clip_id, counts)
    return Votes(
        clip_id=clip_id,
        counts=counts,
        levels=levels,
        intended=parts["emotion"].map(_CODES).to_numpy(np.int8),
        actor=parts["actor"].to_numpy(np.int16),
        sentence=parts["sentence"].to_numpy(str),
        level=parts["level"].to_numpy(str),
    )


def votes_file(folder: str | Path) -> Path | None:
    """The table of votes in the folder of the data set, or None if it is not there."""
    paths = [Path(folder) / place / _VOTES for place in _PLACES]
    return next((path for path in paths if path.is_file()), None)


def read(
    source: Path, manifest: Manifest, *, condition: str = "audiovisual", label: str = "plurality", soft: bool = True
) -> tuple[pd.DataFrame, dict[str, RaggedViews]]:
    """Clips whose soft labels are the votes of one condition, and the votes of the other single senses as views.

    Args:
        source: folder of the data set.
        manifest: states the labels, which are EMOTIONS.
        condition: whose votes are the labels: "audiovisual", "voice" or "face". Its own votes are never a view.
        label: "plurality" of those votes, undefined where two emotions tie, or "intended", what the actor was asked.
        soft: whether the votes are labels too; False leaves them out, so that only hard labels can be learned from.

    Returns:
        One row per clip, and modality to views: voice and face, one frame of 6 nodes, the shares of the votes.

    Raises:
        ManifestError: if an option is unknown or the tables are malformed.
    """
    for name, value, legal in (("condition", condition, CONDITIONS), ("label", label, ("plurality", "intended"))):
        if value not in legal:
            raise ManifestError(f"{name} is {value!r}", expected=" or ".join(legal), where=f"import of {manifest.name}")
    return voted_clips(read_votes(source), condition, label, soft=soft)


def voted_clips(
    votes: Votes, condition: str = "audiovisual", label: str = "plurality", *, soft: bool = True
) -> tuple[pd.DataFrame, dict[str, RaggedViews]]:
    """Clips and views as of `read`, from votes that are at hand already."""
    clips = vote_clips(votes, condition, label)
    clips = clips if soft else clips.drop(columns=[f"votes_{emotion}" for emotion in EMOTIONS])
    views = {sense: _shares(votes.counts[:, row]) for row, sense in enumerate(CONDITIONS[:2]) if sense != condition}
    return clips, views


def vote_clips(votes: Votes, condition: str, label: str) -> pd.DataFrame:
    """clips.csv with the votes of one condition; there are no recordings, so every clip lasts a nominal second."""
    counts = votes.counts[:, CONDITIONS.index(condition)]
    names = np.array([*EMOTIONS, ""], object)
    tied = (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) > 1
    plurality = np.where(tied, len(EMOTIONS), counts.argmax(axis=1))
    actor = pd.Series(votes.actor).astype(str)
    return clip_table(
        {
            "clip_id": votes.clip_id,
            "subject": actor,
            "group": actor + "/" + pd.Series(votes.sentence),
            "domain": "crema_d",
            "duration_s": 1.0,
            "label": names[plurality if label == "plurality" else votes.intended],
            "text": pd.Series(votes.sentence).map(SENTENCES).fillna(""),
        },
        **{f"votes_{emotion}": counts[:, column] for column, emotion in enumerate(EMOTIONS)},
        x_intended=names[votes.intended],
        x_level=votes.level,
        x_condition=condition,
    )


def _shares(counts: np.ndarray) -> RaggedViews:
    """One frame of six nodes: the share of each emotion among the votes."""
    total = counts.sum(axis=1, keepdims=True)
    return one_frame((counts / np.maximum(total, 1))[..., None], EMOTIONS, ("share",), np.full(len(counts), 0.5))


def _find(folder: Path, name: str) -> Path:
    for place in _PLACES:
        if (folder / place / name).is_file():
            return folder / place / name
    raise ManifestError(f"{name} is missing", expected=f"it in {folder} or its folder upstream or processedResults")


def _parse(clip_id: np.ndarray, path: Path) -> pd.DataFrame:
    """Actor, sentence, emotion and level in the names of the clips."""
    parts = pd.Series(clip_id).str.extract(f"^{_NAME}$")
    bad = np.flatnonzero(parts["actor"].isna())
    if bad.size:
        raise ManifestError(
            f"clip {str(clip_id[bad[0]])!r} is no name of CREMA-D",
            expected="actor_sentence_emotion_level, e.g. 1001_DFA_ANG_XX",
            where=str(path),
        )
    return parts


def _check_rows(condition: np.ndarray, row: np.ndarray, clip_id: np.ndarray, path: Path) -> None:
    """Refuse a table in which a clip is not rated once in each condition."""
    strange = np.flatnonzero((condition < 0) | (condition >= len(CONDITIONS)))
    if strange.size:
        raise ManifestError(f"data row {strange[0]} has no row number of a condition",
                            expected="numbers from 100001, 200001 and 300001 on", where=str(path))  # fmt: skip
    times = np.bincount(row * len(CONDITIONS) + condition, minlength=len(clip_id) * len(CONDITIONS))
    bad = np.flatnonzero(times != 1)
    if bad.size:
        clip, which = divmod(int(bad[0]), len(CONDITIONS))
        raise ManifestError(f"clip {str(clip_id[clip])!r} has {times[bad[0]]} rows for {CONDITIONS[which]}",
                            expected="1", where=str(path))  # fmt: skip


def _check_against_archive(path: Path, clip_id: np.ndarray, counts: np.ndarray) -> None:
    """Where the same votes also lie in an archive, refuse the pair if they differ."""
    if not path.is_file():
        return
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, votes = archive["clip_id"], archive["votes"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{path.name} cannot be read: {error}", where=str(path)) from error
    order = np.argsort(names)
    same = np.array_equal(names[order], clip_id) and np.array_equal(votes[order], counts)
    if not same:
        raise ManifestError(
            f"{path.name} and {_VOTES} tell different votes",
            expected="the same",
            where=str(path.parent),
            remedy="The files do not belong together; get both from one release",
        )

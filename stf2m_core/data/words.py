"""Words as numbers without any trained model: a sentence enters, one short vector per word leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

N_CHANNELS = 16


def words_of(sentence: str) -> list[str]:
    """The words in lower case, letters and digits only; what holds neither is dropped."""
    words = ("".join(letter for letter in word.lower() if letter.isalnum()) for word in sentence.split())
    return [word for word in words if word]


def hash_words(words: Sequence[str], n_channels: int = N_CHANNELS) -> np.ndarray:
    """(word, channel) float32 of unit length: each word's letter trigrams, signed and hashed into the channels.

    Args:
        words: as `words_of` gives them.
        n_channels: from 1 to 256.

    Source: feature hashing, Weinberger et al. 2009; the hash is SHA-256, so that it is the same everywhere.
    """
    rows = np.zeros((len(words), n_channels), np.float32)
    for row, word in zip(rows, words, strict=True):
        padded = f"<{word}>"
        for start in range(len(padded) - 2):
            digest = hashlib.sha256(padded[start : start + 3].encode()).digest()
            row[digest[0] % n_channels] += 1.0 if digest[1] % 2 else -1.0
        row /= max(float(np.linalg.norm(row)), 1e-12)
    return rows

"""Every error a user can cause, in one sentence: what is wrong, what was expected, where, what to do."""

from __future__ import annotations


class KitError(Exception):
    """Base of all errors of the kit; builds its own sentence so that the wording is the same everywhere.

    Args:
        what: what is wrong, with the offending value.
        expected: what was expected instead.
        where: file, key, row or setting concerned.
        remedy: what the user can do.
    """

    def __init__(self, what: str, *, expected: str | None = None, where: str | None = None, remedy: str | None = None):
        self.what, self.expected, self.where, self.remedy = what, expected, where, remedy
        sentence = what
        if expected:
            sentence += f"; expected {expected}"
        if where:
            sentence += f" (in {where})"
        sentence += "."
        if remedy:
            sentence += f" {remedy.rstrip('.')}."
        super().__init__(sentence)


class ConfigError(KitError):
    """A setting is unknown, ill-typed or makes no sense with the others."""


class ManifestError(KitError):
    """A data manifest or the folder it describes is not as stated."""


class PackError(KitError):
    """A feature pack, or what should become one, is malformed, damaged or too new."""


class MediaError(KitError):
    """A recording, a transcript or a table of them cannot be read, or their features cannot be kept."""


class EpisodeError(KitError):
    """An episode was asked for that the data cannot give."""


class RunError(KitError):
    """A training run cannot start, continue or be read."""


class ResultError(KitError):
    """A record is malformed, or records that differ in provenance were put together."""


class NotebookError(KitError):
    """A notebook, or a parameter given to it, is not as the strict runner demands."""

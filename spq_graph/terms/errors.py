"""Errors for people: what happened, where, and what to do about it."""

from __future__ import annotations


class SpqError(Exception):
    """Base of every error that spq-graph raises on purpose.

    Args:
        what: one sentence that says what is wrong.
        where: the site, node or file concerned.
        remedy: what the reader can do about it.

    Attributes:
        heard: what libraries printed before it, where they did; empty otherwise.
    """

    exit_code = 1
    heard = ""

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.remedy}" if self.remedy else text


class UsageError(SpqError):
    """The request itself is wrong: an unknown key, value or combination of options."""

    exit_code = 2


class SourceError(SpqError):
    """The model cannot be read: a missing or broken config, weights, tokenizer or ONNX file."""


class GraphError(SpqError):
    """The graph is not one that spq-graph can work on: no GLU, already quantized, invalid."""


class DataError(SpqError):
    """Calibration or evaluation data is unusable: empty, too short, ids outside the vocabulary."""


class ActivationError(SpqError):
    """An activation is NaN, infinite, or more than its format holds, so nothing can be measured on it."""

    exit_code = 3


class ClusterError(SpqError):
    """The cluster that is to share the work does not answer, does not fit, or was lost."""


class OutputError(SpqError):
    """The output cannot be written: it exists, or the disk is full."""


class CheckError(SpqError):
    """A check did not hold: what runs is not what was planned."""

    exit_code = 3


class NotFiniteError(CheckError):
    """Logits are NaN or infinite."""

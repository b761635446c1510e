"""What was made of weights, for all graphs that are made of one source: a matrix is scaled and encoded once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Codes: TypeAlias = npt.NDArray[Any]
Keep: TypeAlias = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8] | None]
"""Keeps bytes, in whatever shape, and gives them back to be read; None where there is no room for them."""


@dataclass(slots=True)
class Stock:
    """How weights are stored, each once, and their codes where these are kept.

    A graph that is written needs codes once, and keeps none: memory would hold all of them. Of candidates that are
    measured one after the other most have most codes in common.

    Attributes:
        place: makes a place where codes are kept; None for nowhere. Once one is full, another comes in its place: a
            search leaves factors and channels behind that it has tried, and what it goes on with is made once more.
        storages: how weights are stored, by what they are equal to: scales are worked out once for each.
        tensors: what else stands for constants, by what it is made of: graphs that have it alike have the same, which
            tells that their nodes compute the same, and that codes of it are those of another graph.
    """

    place: Callable[[], Keep] | None = None
    storages: dict[Hashable, Hashable] = field(default_factory=dict)
    tensors: dict[Hashable, Any] = field(default_factory=dict)
    _codes: dict[Hashable, Codes] = field(default_factory=dict)
    _keep: Keep | None = None

    def codes(self, storage: Hashable, make: Callable[[], Codes]) -> Codes:
        """The codes of a weight as they are stored; made where they are not kept."""
        if storage in self._codes:
            return self._codes[storage]
        made = make()
        kept = self._kept(made.view(np.uint8)) if self.place is not None else None
        if kept is None:
            return made
        found = self._codes[storage] = kept.view(made.dtype)
        return found

    def _kept(self, made: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
        assert self.place is not None
        self._keep = self._keep or self.place()
        kept = self._keep(made)
        if kept is None and self._codes:
            self._codes.clear()
            self._keep = self.place()
            kept = self._keep(made)
        return kept

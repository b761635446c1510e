"""What a search asks: the KL of a choice, measured once each. What measures is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spq_graph.decisions.branches import NONE, Branches, changes
from spq_graph.decisions.choices import six
from spq_graph.documents.changes import Peel
from spq_graph.remedies.smooth import UNSCALED, Scales
from spq_graph.terms.errors import GraphError, NotFiniteError
from spq_graph.terms.precision import Precision

Peels = Mapping[str, Peel]
Changes = tuple[()] | tuple[Peels] | tuple[Peels, Scales]


# KL(FP || model), nats a token, where the named sites have the given precisions and the rest is as the graph has it.
# Outlier branches are passed behind them where there are any, by activation value, and factors of channels behind
# those: what measures none is not asked to.
Measure = Callable[..., float]
# What a measure says of several, each as it takes one, or the error that it raises of one; None where it says nothing.
Together = Callable[[Sequence[tuple[Any, ...]]], Sequence[float | NotFiniteError] | None]
# The standard error of what a measure said of the same; None where it is not known.
Stderr = Callable[..., float | None]


_Channels = frozenset[tuple[str, tuple[int, ...]]]
_Key = tuple[frozenset[tuple[str, Precision]], _Channels, _Channels]


@dataclass(slots=True)
class Oracle:
    """Measures every choice once, and counts; one whose logits are not finite is infinitely far away.

    Attributes:
        branches, scales: what all that is measured has; settled in the course of a search.
        further: branches that sites have besides, for the precisions that they are to have.
        together: measures several choices side by side.
    """

    measure: Measure
    stderr_of: Stderr | None
    branches: Branches = field(default_factory=lambda: NONE)
    scales: Scales = field(default_factory=lambda: UNSCALED)
    further: Callable[[Mapping[str, Precision]], Branches] = lambda precisions: NONE
    together: Together | None = None
    known: dict[_Key, float] = field(default_factory=dict)
    errors: dict[_Key, NotFiniteError] = field(default_factory=dict)

    def __call__(self, precisions: Mapping[str, Precision]) -> float:
        """KL of these precisions."""
        if not precisions:
            return 0.0
        key = self._key(precisions)
        if key not in self.known:
            try:
                self.known[key] = self.measure(precisions, *self._changes(precisions))
            except NotFiniteError as error:
                self.known[key], self.errors[key] = math.inf, error
        return self.known[key]

    def foresee(self, choices: Iterable[Mapping[str, Precision]]) -> None:
        """Measure what is sure to be asked next side by side, where something can do that; it counts as if asked."""
        if self.together is None:
            return
        new = {key: one for one in choices if one and (key := self._key(one)) not in self.known}
        found = self.together([(one, *self._changes(one)) for one in new.values()])
        for key, kl in zip(new, found or (), strict=False):
            if isinstance(kl, NotFiniteError):
                self.known[key], self.errors[key] = math.inf, kl
            else:
                self.known[key] = kl

    def stderr(self, precisions: Mapping[str, Precision]) -> float | None:
        """Standard error of the KL of these precisions, to six digits; None where it is not known."""
        if self.stderr_of is None or not precisions:
            return None
        found = self.stderr_of(precisions, *self._changes(precisions))
        return six(found) if found is not None else None

    def settled(self, precisions: Mapping[str, Precision]) -> float:
        """KL of what the plan is to be.

        Raises:
            NotFiniteError: its logits are not finite.
        """
        kl = self(precisions)
        if (error := self.errors.get(self._key(precisions))) is not None:
            raise error
        return kl

    def having(self, precisions: Mapping[str, Precision]) -> Branches:
        """All branches of a plan with these precisions."""
        return {**further, **self.branches} if (further := self.further(precisions)) else self.branches

    def _changes(self, precisions: Mapping[str, Precision]) -> Changes:
        found = changes(self.having(precisions))
        if self.scales:
            return found, self.scales
        return (found,) if found else ()

    def _key(self, precisions: Mapping[str, Precision]) -> _Key:
        branches = frozenset((value, branch.change.channels) for value, branch in self.having(precisions).items())
        factors = frozenset((value, scale.exponents) for value, scale in self.scales.items())
        return frozenset(precisions.items()), branches, factors


def or_infinite(measure: Callable[[Mapping[str, Precision]], float], precisions: Mapping[str, Precision]) -> float:
    """KL of these precisions; infinite where the graph cannot have a format, such as a weight beyond float16."""
    try:
        return measure(precisions)
    except GraphError:
        return math.inf

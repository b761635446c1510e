"""Which row of a ladder, or of a benchmark, a figure belongs to: as a value that can be compared, not as a string.

JSON calls a row by a name, such as `spike_aware_fp8_e4m3`. Those names are written and read here and nowhere else; what
people are shown is made of the value by whatever shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES, Target


class Extent(StrEnum):
    """How much a ladder shows."""

    SHORT = "short"  # what is decided between: the source, everywhere, the plan, and weights alone
    FULL = "full"  # also the controls, other schemes, and kept sites in other formats

    @classmethod
    def of(cls, ladder: bool | str) -> Extent | None:
        """What is asked for by name, or by whether there is to be a ladder: then the full one; None for none.

        Raises:
            UsageError: there is none of this name.
        """
        if isinstance(ladder, bool):
            return cls.FULL if ladder else None
        if ladder not in list(cls):
            raise UsageError(f"there is no ladder '{ladder}'", where="--ladder", remedy="pass short or full")
        return cls(ladder)


class RowKind(StrEnum):
    """What was measured; the values are how names in JSON begin."""

    FP32 = "fp32"  # the source as it is
    EVERYWHERE = "everywhere"  # every site that counts in integers
    SPIKE_AWARE = "spike_aware"  # the plan
    CONTROL_LOWEST = "control_lowest"  # as many sites kept as in the plan, but those of the lowest ratio
    CONTROL_RANDOM = "control_random"  # as many sites kept as in the plan, but drawn by a seed
    CONTROL_CHANNELS = "control_channels"  # the plan with its outlier branches at channels drawn by a seed
    CONTROL_FACTORS = "control_factors"  # the plan with the factors of its channels at others, drawn by a seed
    CONTROL_PREFIX = "control_prefix"  # the plan behind a prefix of as many tokens, drawn by a seed
    WEIGHT_ONLY = "weight_only"  # every weight in 8 bits by block, and no scale of activations settled beforehand
    MODEL = "model"  # a file without a plan, where it is timed
    OTHER = "other"  # what only another version of this program knows


class Scheme(StrEnum):
    """Another way to quantize everywhere than the recipe's."""

    SYMMETRIC = "symmetric"  # activations with zero point 0
    PER_TENSOR_WEIGHTS = "per_tensor_weights"  # one scale for a whole weight


@dataclass(frozen=True, slots=True)
class RowId:
    """One row: its kind, and at most one thing that is other than the kind says.

    Attributes:
        kind: what was measured.
        scheme: of `everywhere`: how, where not as the recipe has it.
        format: of `everywhere`: in what, where not in integers by a range.
        kept_in: of `spike_aware`: the format of its kept sites, where not the plan's own.
        target: of `spike_aware`: what the plan was compiled for, where not for its own target.
        with_remedy: of `fp32` and `everywhere`: the remedy that was applied.
        without_remedy: of `spike_aware`: the remedy of the plan that was left out.
        seed: of controls that are drawn; no part of the name.
        unread: of `other`: its name.
    """

    kind: RowKind
    scheme: Scheme | None = None
    format: Precision | None = None
    kept_in: Precision | None = None
    target: Target | None = None
    with_remedy: str | None = None
    without_remedy: str | None = None
    seed: int | None = None
    unread: str | None = None

    @property
    def name(self) -> str:
        """How JSON calls it."""
        if self.unread is not None:
            return self.unread
        remedy = f"with_{self.with_remedy}" if self.with_remedy else ""
        missing = f"without_{self.without_remedy}" if self.without_remedy else ""
        return "_".join(filter(None, (self.kind, self.scheme, self.format, self.kept_in, self.target, remedy, missing)))

    @property
    def all_in_one(self) -> bool:
        """Whether all sites are in one format that is not integers by a range, so that none is kept in another."""
        return self.kind is RowKind.WEIGHT_ONLY or self.format is not None

    @classmethod
    def read(cls, name: str, seed: int | None = None) -> RowId:
        """The row that JSON calls by a name; one of kind `OTHER` where this version knows none by it."""
        if name in _BY_NAME:
            return replace(_BY_NAME[name], seed=seed)
        for kind in (RowKind.FP32, RowKind.EVERYWHERE):
            remedy = name.removeprefix(f"{kind}_with_")
            if remedy not in ("", name):
                return cls(kind, with_remedy=remedy, seed=seed)
        remedy = name.removeprefix(f"{RowKind.SPIKE_AWARE}_without_")
        if remedy not in ("", name):
            return cls(RowKind.SPIKE_AWARE, without_remedy=remedy, seed=seed)
        return cls(RowKind.OTHER, unread=name, seed=seed)


FP32 = RowId(RowKind.FP32)
EVERYWHERE = RowId(RowKind.EVERYWHERE)
BY_TOKEN = RowId(RowKind.EVERYWHERE, format=Precision.W8A8_TOKEN)
SPIKE_AWARE = RowId(RowKind.SPIKE_AWARE)
WEIGHT_ONLY = RowId(RowKind.WEIGHT_ONLY)
MODEL = RowId(RowKind.MODEL)

# All rows but those with a remedy, which may have any name.
_BY_NAME = {
    row.name: row
    for row in (
        *(RowId(kind) for kind in RowKind if kind is not RowKind.OTHER),
        *(RowId(RowKind.EVERYWHERE, scheme=scheme) for scheme in Scheme),
        *(RowId(RowKind.EVERYWHERE, format=one) for profile in PROFILES.values() for one in profile.everywhere),
        *(RowId(RowKind.SPIKE_AWARE, kept_in=precision) for precision in Precision),
        *(RowId(RowKind.SPIKE_AWARE, target=profile.name) for profile in PROFILES.values()),
    )
}


def with_id(given: Any) -> Any:
    """Fields of a row as JSON has them, with an `id` for its `name` and `seed`; what has no name is left as it is.

    Raises:
        ValueError: the name is no text, or the seed no number.
    """
    if not isinstance(given, dict) or "name" not in given:
        return given
    rest = {key: value for key, value in given.items() if key not in ("name", "seed")}
    name, seed = given["name"], given.get("seed")
    if not isinstance(name, str) or not isinstance(seed, int | None):
        raise ValueError(f"a row is called by a text, with a whole number or null as its seed, not {name!r}, {seed!r}")
    return {"id": RowId.read(name, seed), **rest}

"""A plan as it lies on the disk, and beside its model: what would make no sense, or fits no site, is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spq_graph.documents.model_ref import ModelRef
from spq_graph.documents.strict import AMOUNT, COUNT, FLOAT32, Bounds, read_json
from spq_graph.terms.errors import UsageError
from spq_graph.terms.site import Site

_COUNTS = ("tokens", "sequences", "candidates", "evaluations", "cap", "rank", "layer", "expert")
_AMOUNTS = ("ratio", "sequence_ratio", "max", "median", "threshold", "budget")
_BOUNDS: Bounds = {
    **dict.fromkeys(_COUNTS, COUNT),
    **dict.fromkeys(_AMOUNTS, AMOUNT),
    **dict.fromkeys(("token", "position"), (-1, 2**63 - 1)),
    "shape": (1, 2**31),
    "range": FLOAT32,
}
_ANEW = "make a plan for this model with `spq-graph plan`"


def refuse_senseless(text: bytes) -> None:
    """Hold what a plan's JSON says against itself; which keys it has is for its schema to say.

    Raises:
        ValueError: it is no JSON, a number is out of its bounds, a range is upside down, or a site has two entries. The
            message begins with the place.
    """
    data = read_json(text, _BOUNDS)
    entries = data.get("sites") if isinstance(data, dict) else None
    first: dict[Any, int] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, dict):
            continue
        key, ends = entry.get("key"), entry.get("range")
        if isinstance(key, str) and first.setdefault(key, index) != index:
            raise ValueError(f"sites.{index}.key: '{key:.80}' has an entry already, sites.{first[key]}")
        match ends:
            case [int() | float() as low, int() | float() as high] if low > high:
                raise ValueError(f"sites.{index}.range: the minimum {low:g} is above the maximum {high:g}")


def refuse_other(planned: ModelRef, digest: str, name: str) -> None:
    """Check that a plan is for a model.

    Args:
        planned: the model that the plan names.
        digest: of the model.
        name: as it was given.

    Raises:
        UsageError: it was made for another.
    """
    if planned.digest != digest:
        where = f"{planned.origin} ({planned.digest[:19]}…), not {name} ({digest[:19]}…)"
        raise UsageError("this plan was made for another model", where=where, remedy=_ANEW)


def refuse_misfit(planned: Iterable[Site], sites: Iterable[Site], name: str, tables: Iterable[Site] = ()) -> None:
    """Check that a plan decides every site of its model once, and nothing else.

    Args:
        planned: the sites of the plan's entries.
        sites: of the model.
        name: of the model as it was given.
        tables: its embeddings, which stay as they are where the plan says nothing of them, as earlier ones did not.

    Raises:
        UsageError: naming a site that has no entry or two, or an entry that fits no site.
    """
    optional = {site.key: site for site in tables}
    left = {site.key: site for site in sites} | optional
    for entry in planned:
        site = left.pop(entry.key, None)
        if site is None:
            what = f"the plan has an entry for {entry.key}, which is no site of {name}, or has one already"
            raise UsageError(what, where="sites", remedy=_ANEW)
        for part, said, found in (
            ("node", entry.node, site.node),
            ("role", entry.role.value, site.role.value),
            ("shape", entry.shape, site.shape),
            ("input", entry.input, site.input),
        ):
            if said != found:
                what = f"the plan says {said!r} as {part} of {entry.key}, and {name} has {found!r}"
                raise UsageError(what, where="sites", remedy=_ANEW)
    if left := {key: site for key, site in left.items() if key not in optional}:
        more = f", nor for {len(left) - 1} more" if len(left) > 1 else ""
        what = f"the plan has no entry for {next(iter(left))}{more}, of {name}"
        raise UsageError(what, where="sites", remedy=_ANEW)

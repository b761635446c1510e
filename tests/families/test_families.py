"""Families of transformers: exported, found completely, and quantized; a few always, all with `-m families`."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from tests.families.catalogue import DECODERS, FAMILIES, LIGHT
from tests.families.examine import Examination
from tests.families.family import LAYERS, Family
from tests.families.matrix import recorded

Examined = Callable[[str], Examination]


def each(families: tuple[Family, ...]) -> pytest.MarkDecorator:
    """One test for each family; those that are not light are marked."""
    return pytest.mark.parametrize(
        "family", [pytest.param(f, marks=() if f.name in LIGHT else pytest.mark.families, id=f.name) for f in families]
    )


@each(tuple(FAMILIES.values()))
def test_found(family: Family, examined: Examined) -> None:
    found = examined(family.name).found
    assert {site.key: (site.role.value, site.layer, site.expert) for site in found.sites} == family.roles
    expected = [(kind, layer) for layer in range(LAYERS) for kind in family.kinds]
    assert [(block.kind, block.layer) for block in found.blocks] == expected


@each(tuple(FAMILIES.values()))
def test_nothing_is_left_unexplained(family: Family, examined: Examined) -> None:
    reasons = [entry.reason for entry in examined(family.name).found.unmatched]
    assert len(reasons) == LAYERS * len(family.unmatched)
    for pattern in family.unmatched:
        assert sum(re.fullmatch(f"{pattern}.*", reason) is not None for reason in reasons) == LAYERS


@each(tuple(FAMILIES.values()))
def test_no_glu_is_an_error(family: Family, examined: Examined) -> None:
    assert examined(family.name).no_glu.startswith("" if family.kinds else "no GLU block was found")
    assert bool(examined(family.name).no_glu) is not bool(family.kinds)


@each(tuple(FAMILIES.values()))
def test_refused(family: Family, examined: Examined) -> None:
    assert examined(family.name).refused.startswith(family.refused)
    assert bool(examined(family.name).refused) is bool(family.refused)


@each(DECODERS)
def test_same_logits_as_torch(family: Family, examined: Examined) -> None:
    result = examined(family.name)
    assert result.expected is not None
    assert result.exported is not None
    assert np.abs(result.exported - result.expected).max() <= 1e-4 * np.abs(result.expected).max()


@each(DECODERS)
def test_quantized(family: Family, examined: Examined) -> None:
    """Every site that is not left alone by its role runs in integers, and the model still says much the same."""
    result = examined(family.name)
    assert (
        result.planned
        == result.row.sites
        == sum(role not in ("router", "lm_head") for role, *_ in family.roles.values())
    )
    assert result.expected is not None
    assert result.quantized is not None
    assert np.linalg.norm(result.quantized - result.expected) <= 0.2 * np.linalg.norm(result.expected)


@each(tuple(FAMILIES.values()))
def test_as_recorded(family: Family, examined: Examined) -> None:
    """`python -m tests.families.matrix` writes what is recorded."""
    assert examined(family.name).to_dict() == recorded()[family.name]

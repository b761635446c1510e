"""Configuration and weights say how large a decoder is, or that it is no plain one."""

from __future__ import annotations

from typing import Any

import pytest

from spq_graph.models.layers import Shape
from spq_graph.models.sizes import Sizes
from tests.unit.models.test_layers import ATTENTION, GLU

CONFIG: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES: dict[str, Shape] = {"model.embed_tokens.weight": (96, 32), "model.norm.weight": (32,), "lm_head.bias": (96,)}
SHAPES |= {f"model.layers.{number}.{name}": shape for number in range(3) for name, shape in (ATTENTION | GLU).items()}


def of(config: dict[str, Any] | None = None, more: dict[str, Shape] | None = None) -> Sizes | None:
    return Sizes.of(CONFIG | (config or {}), SHAPES | (more or {}))


def test_of_a_plain_one() -> None:
    found = of(more={"lm_head.weight": (96, 32), "model.embed_positions.weight": (128, 32)})
    assert found is not None
    assert (found.vocabulary, found.width, found.heads, found.groups, found.chosen) == (96, 32, 4, 2, 1)
    assert (found.embedding, found.stack, found.gated, len(found.layers)) == (
        "model.embed_tokens",
        "model.layers",
        3,
        3,
    )
    assert found.sites["model.layers.2.mlp.down_proj"] == (48, 32)
    assert found.sites["lm_head"] == found.head == (32, 96)
    assert len(found.sites) == len(found.counted) + 1 == 22


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({"num_hidden_layers": 4}, {}),
        ({"num_hidden_layers": None}, {}),
        ({"num_hidden_layers": 2**40}, {}),
        ({"num_key_value_heads": 3}, {}),
        ({"num_attention_heads": [4, 4, 8]}, {}),
        ({"num_attention_heads": 32}, {}),
        ({"num_key_value_heads": "2"}, {}),
        ({}, {"model.projector.weight": (32, 64)}),
        ({}, {"vision.layers.0.fc1.weight": (32, 64)}),
        ({}, {"model.embed_more.weight": (96, 32)}),
        ({}, {"model.embed_tokens.weight": (96, 32, 2)}),
        ({}, {"model.embed_tokens.weight": (96, 0)}),
        ({}, {"model.layers.1.mlp.up_proj.weight": (47, 32)}),
    ],
)
def test_of_another_there_is_none(config: dict[str, Any], more: dict[str, Shape]) -> None:
    assert of() is not None
    assert of(config, more) is None


def test_fewer_layers_are_taken_from_all_over_it() -> None:
    """Of which the first are often of another kind."""
    wide = {f"model.layers.0.{name}": (shape[0] * 2, *shape[1:]) for name, shape in GLU.items() if "down" not in name}
    found = of(more=wide | {"model.layers.0.mlp.down_proj.weight": (32, 96)})
    assert found is not None
    reduced = found.reduced()
    assert [layer.feeds[0].out.inputs for layer in reduced.layers] == [96, 48]
    assert reduced.width == 32


def test_a_token_goes_through_no_more_experts_than_there_are() -> None:
    found = of({"num_experts_per_tok": 2**40})
    assert found is not None
    assert found.chosen == 1

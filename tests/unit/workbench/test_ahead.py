"""What a model takes is told from what its stand-in takes: by what each step goes through."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from spq_graph.models.sizes import Sizes
from spq_graph.models.stand_in import StandIn
from spq_graph.workbench import ahead
from spq_graph.workbench.pilot import Pilot
from spq_graph.workbench.rates import Rate
from spq_graph.workbench.tried import Losses, Tried

PLAN: Any = None  # that of the stand-in, of which nothing is made here


def model(layers: int, width: int, *, experts: int = 0, exact: bool = True, packed: bool = False) -> StandIn:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (4 * width, width)}
    for number in range(layers):
        at = f"model.layers.{number}"
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {
            f"{at}.shared.gate_up_proj.weight": (4 * width, width),
            f"{at}.shared.down_proj.weight": (width, 2 * width),
        }
        if experts:
            shapes[f"{at}.mlp.gate.weight"] = (experts, width)
            shapes[f"{at}.mlp.experts.gate_up_proj"] = (experts, 2 * width, width)
            shapes[f"{at}.mlp.experts.down_proj"] = (experts, width, width)
    config = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_experts_per_tok": 2}
    sizes = Sizes.of(config, shapes)
    assert sizes is not None
    numbers = sum(math.prod(shape) for shape in shapes.values())
    return StandIn(sizes, 4 * numbers, ("model.safetensors",), exact, packed, {}, config, {})


ONE = Rate(1.0, 1.0)
LOSSLESS, UNKNOWN = {8: Losses(0.0, 0.0)}, {8: Losses(math.inf, math.inf)}
FLOWN = Pilot(ONE, ONE, Tried(ONE, ONE, 1.0, LOSSLESS), ONE, 1.0, 1.0, 0.5, PLAN, sites=12, candidates=1)


def test_a_large_one_takes_as_many_times_as_long_as_it_has_weights() -> None:
    large = model(layers=30, width=512)
    assert not large.whole
    found = ahead.enlarged(FLOWN, large)
    sizes, written = large.sizes, large.written
    assert (len(written.layers), written.width, written.vocabulary) == (2, 512, 2048)
    # Calibration runs no head: of a stand-in that is little else, its time tells nothing.
    assert found.calibrate.token == pytest.approx(1.2 * found.reference.token)
    assert found.reference.token == pytest.approx(sizes.weights / written.weights)
    assert 10 < found.reference.token < 13
    assert found.tried.everywhere == found.tried.alone == found.row == found.reference
    assert found.build == found.tried.encode == found.reference.fixed
    assert found.compared == 0.5
    assert (found.sites, found.candidates, found.tried.losses) == (180, 25, UNKNOWN)


def test_tokens_go_through_some_experts_and_files_hold_all() -> None:
    found = ahead.enlarged(FLOWN, model(layers=30, width=512, experts=32, exact=False))
    assert found.reference.fixed > 2 * found.reference.token


def test_decisions_on_a_small_one_are_its_own_where_it_is_known_through_and_through() -> None:
    found = ahead.enlarged(FLOWN, model(layers=2, width=32))
    assert (found.sites, found.candidates, found.tried.losses) == (12, 1, LOSSLESS)
    assert found.reference == ONE
    assert found.tried.everywhere.fixed > 1.0
    other = ahead.enlarged(FLOWN, model(layers=2, width=32, exact=False))
    assert (other.sites, other.candidates, other.tried.losses) == (12, 2, UNKNOWN)
    assert replace(other, candidates=1, tried=replace(other.tried, losses=LOSSLESS)) == found


def test_a_gguf_is_unpacked_and_experts_take_longer_to_export() -> None:
    plain, packed, routed = (
        ahead.opening(model(2, 32, **more))
        for more in ({}, {"packed": True}, {"experts": 400})  # type: ignore[arg-type]
    )
    assert plain.keys() == {"export"}
    assert packed.keys() == {"unpack", "export"}
    assert packed["unpack"] > 0.5
    assert routed["export"] > 3 * plain["export"]

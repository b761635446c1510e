"""Names and shapes of weights say which products a layer has, and which of them belong together."""

from __future__ import annotations

import pytest

from spq_graph.models.layers import Layer, Shape, numbers_of

WIDTH = 32
ATTENTION: dict[str, Shape] = {
    "self_attn.q_proj.weight": (32, 32),
    "self_attn.k_proj.weight": (16, 32),
    "self_attn.v_proj.weight": (16, 32),
    "self_attn.o_proj.weight": (32, 32),
    "self_attn.q_proj.bias": (32,),
    "input_layernorm.weight": (32,),
}
GLU: dict[str, Shape] = {
    "mlp.gate_proj.weight": (48, 32),
    "mlp.up_proj.weight": (48, 32),
    "mlp.down_proj.weight": (32, 48),
}
SMALL = {name.replace("mlp.", "mlp.shared_expert."): shape for name, shape in GLU.items()}


def of(shapes: dict[str, Shape]) -> Layer:
    found = Layer.of(shapes, WIDTH)
    assert found is not None
    return found


def test_queries_go_before_keys_and_gates_before_ups() -> None:
    found = of(ATTENTION | GLU)
    assert [product.path for product in found.readers] == [f"self_attn.{part}_proj" for part in "qkv"]
    assert (found.out.path, found.gated, found.experts, found.routers) == ("self_attn.o_proj", 1, (), ())
    [feed] = found.feeds
    assert [product.path for product in feed.products] == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert found.weights == found.run(1) == 3 * 32 * 48 + 2 * 32 * 32 + 2 * 16 * 32


@pytest.mark.parametrize(
    ("shapes", "gated", "paths"),
    [
        ({"mlp.gate_up_proj.weight": (96, 32), "mlp.down_proj.weight": (32, 48)}, 1, ["mlp.gate_up_proj"]),
        ({"fc1.weight": (48, 32), "fc2.weight": (32, 48)}, 0, ["fc1"]),
        ({"mlp.dense_h_to_4h.weight": (128, 32), "mlp.dense_4h_to_h.weight": (32, 128)}, 0, ["mlp.dense_h_to_4h"]),
        # As wide as the stream itself, the names tell.
        ({"mlp.w1.weight": (32, 32), "mlp.w2.weight": (32, 32), "mlp.w3.weight": (32, 32)}, 1, ["mlp.w1", "mlp.w3"]),
    ],
)
def test_packed_products_and_such_without_gates(shapes: dict[str, Shape], gated: int, paths: list[str]) -> None:
    found = of(ATTENTION | shapes)
    assert found.gated == gated
    assert [product.path for product in found.feeds[0].into] == paths


@pytest.mark.parametrize(
    "shapes",
    [
        {
            f"mlp.experts.{number}.{part}.weight": shape
            for number in range(12)
            for part, shape in (("w1", (24, 32)), ("w2", (32, 24)), ("w3", (24, 32)))
        },
        {"mlp.experts.gate_up_proj": (12, 48, 32), "mlp.experts.down_proj": (12, 32, 24)},
        {"mlp.experts.gate_up_proj": (12, 32, 48), "mlp.experts.down_proj": (12, 24, 32)},
        {"mlp.input_linear.weight": (12, 48, 32), "mlp.output_linear.weight": (12, 32, 24)},
        {
            f"mlp.experts.{part}_proj.weight": shape
            for part, shape in (("gate", (12, 24, 32)), ("up", (12, 24, 32)), ("down", (12, 32, 24)))
        },
    ],
    ids=["numbered", "stacked", "turned", "named otherwise", "in three stacks"],
)
def test_experts_are_what_the_export_makes_of_them(shapes: dict[str, Shape]) -> None:
    if "mlp.input_linear.weight" in shapes:
        shapes = {name.replace("mlp", "block_sparse_moe"): shape for name, shape in shapes.items()}
    router: dict[str, Shape] = {"mlp.gate.weight": (12, 32), "mlp.shared_expert_gate.weight": (1, 32)}
    found = of(ATTENTION | shapes | SMALL | router)
    assert (len(found.experts), len(found.feeds), found.gated) == (12, 1, 13)
    assert [(p.path.partition(".")[2], p.inputs, p.outputs) for p in found.experts[10].products] == [
        ("experts.10.gate_up_proj", 32, 48),
        ("experts.10.down_proj", 24, 32),
    ]
    assert [product.path for product in found.routers] == ["mlp.gate", "mlp.shared_expert_gate"]
    apart = 12 * 3 * 24 * 32
    assert found.run(3) == found.weights - apart * 3 / 4


def test_attention_in_two_steps_is_taken_in_its_order() -> None:
    shapes: dict[str, Shape] = {
        "self_attn.q_a_proj.weight": (16, 32),
        "self_attn.q_b_proj.weight": (64, 16),
        "self_attn.kv_a_proj_with_mqa.weight": (24, 32),
        "self_attn.kv_b_proj.weight": (64, 16),
        "self_attn.o_proj.weight": (32, 32),
    }
    found = of(shapes | GLU)
    assert [product.path.removeprefix("self_attn.") for product in found.readers] == [
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        GLU,
        ATTENTION | {"self_attn.out_proj.weight": (32, 32)} | GLU,
        {"self_attn.o_proj.weight": (32, 32)} | GLU,
        ATTENTION | GLU | {"linear_attn.conv1d.weight": (64, 1, 4)},
        ATTENTION | GLU | {"mixer.conv1d.weight": (64, 1, 4)},
        ATTENTION | GLU | {"mixer.in_proj.weight": (64, 24)},
        ATTENTION | GLU | {"per_layer_gate.weight": (8, 32)},
        ATTENTION | GLU | {"mlp.side_proj.weight": (8, 32)},
        ATTENTION | {"mlp.up_proj.weight": (48, 32), "mlp.down_proj.weight": (32, 40)},
        ATTENTION | {"mlp.experts.0.up_proj.weight": (48, 32)},
        ATTENTION | {"mlp.experts.gate_up_proj": (12, 48, 30), "mlp.experts.down_proj": (12, 30, 24)},
        ATTENTION | {"mlp.experts.gate_up_proj": (12, 48, 32), "mlp.experts.down_proj": (11, 32, 24)},
        ATTENTION | {"mlp.experts.gate_up_proj": (12, 48, 32)},
        ATTENTION | {"mlp.experts.gate_up_proj": (2**40, 48, 32), "mlp.experts.down_proj": (2**40, 32, 24)},
    ],
)
def test_of_anything_else_nothing_is_made(shapes: dict[str, Shape]) -> None:
    assert Layer.of(shapes, WIDTH) is None


def test_one_so_many_times_as_narrow_has_products_still() -> None:
    found = of(ATTENTION | GLU).narrowed(40)
    assert {(product.inputs, product.outputs) for product in found.products} == {(1, 1)}


def test_numbers_are_counted() -> None:
    assert numbers_of([(2, 3), (), (4,)]) == 6 + 1 + 4

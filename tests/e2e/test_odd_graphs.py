"""Graphs that are odd and not wrong: quantized, with what stays as it is listed; and those that cannot be run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

from tests.conftest import write_tokenizer
from tests.support.command import Result, contents, done, spq
from tests.support.decoders import VOCABULARY, random_ids, write_decoder, write_ids
from tests.unit.passes.find.test_quantized import embedding, int4

HEAD, QUERY = "lm_head", "layers.0.self_attn.q_proj"


def named(model: onnx.ModelProto, name: str) -> tuple[int, onnx.NodeProto]:
    return next((i, node) for i, node in enumerate(model.graph.node) if node.name == name)


def in_part(model: onnx.ModelProto) -> None:
    int4(model, HEAD)
    embedding(model)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def other_quantizer(model: onnx.ModelProto) -> None:
    model.graph.node.insert(1, helper.make_node("DynamicQuantizeLinear", ["embed_tokens.out"], ["a", "b", "c"]))


def without_shapes(model: onnx.ModelProto) -> None:
    """Not even those of inputs and outputs."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")


def branches(model: onnx.ModelProto) -> None:
    """The head inside of both branches of an If."""
    index, head = named(model, HEAD)
    inner = [
        helper.make_graph(
            [helper.make_node("MatMul", list(head.input), [f"{name}.out"], name=f"{name}.MatMul")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, ["b", "s", VOCABULARY])],
        )
        for name in ("then", "else")
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.insert(
        index, helper.make_node("If", ["condition"], ["logits"], name="if", then_branch=inner[0], else_branch=inner[1])
    )
    model.graph.node.remove(head)


ENDS = ("lm_head", "embedding")


def tricks(model: onnx.ModelProto) -> None:
    """Names that would lead out of a folder, or are no text for a terminal, if they were taken for paths or text."""
    for node in model.graph.node:
        node.name = f"../../../tmp/{node.name}\n<b>[red]\x1b[31m"


def one_name(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "node"


def quantized(folder: Path, edit: Callable[[onnx.ModelProto], None] | None, **more: object) -> tuple[Path, Result]:
    path = write_decoder(folder / "model.onnx", layers=1, **more)  # type: ignore[arg-type]
    model = onnx.load(path)
    if edit is not None:
        edit(model)
        onnx.save(model, path)
    write_ids(folder / "ids.npz")
    arguments = ["--no-eval", "--window", 32, "--calibration", folder / "ids.npz", "--spike-ratio", 1000]
    return path, spq("quantize", path, "-o", folder / "out", *arguments)


@pytest.mark.parametrize(
    ("edit", "sites", "unmatched"),
    [
        (in_part, 7, ["its table is quantized already", "lm_head: its weight is quantized already (MatMulNBits"]),
        (other_quantizer, 9, []),
        (without_shapes, 8, ["it is not known how many axes its ids have"]),
        (branches, 8, ["inside a subgraph of If 'if'"] * 2),
        (tricks, 9, []),
        (one_name, 9, []),
    ],
)
def test_quantized_all_the_same(
    tmp_path: Path, edit: Callable[[onnx.ModelProto], None], sites: int, unmatched: list[str]
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    _, result = quantized(folder, edit)
    assert result.code == 0, result.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["inputs"]
    plan = json.loads((folder / "out" / "plan.json").read_text())
    assert len(plan["sites"]) == sites
    assert [site["precision"] for site in plan["sites"] if site["role"] not in ENDS] == ["int8"] * 7
    for entry, begins in zip(plan["unmatched"], unmatched, strict=True):
        assert entry["reason"].startswith(begins)
    shown = done("inspect", folder / "out", "--unmatched").out
    assert "\x1b" not in shown


def custom(model: onnx.ModelProto) -> None:
    index, head = named(model, HEAD)
    model.graph.node.insert(index, helper.make_node("Magic", [head.input[0]], ["m"], name="magic", domain="acme"))
    head.input[0] = "m"
    model.opset_import.append(helper.make_opsetid("acme", 1))


def dynamic_weight(model: onnx.ModelProto) -> None:
    _, query = named(model, QUERY)
    query.input[1] = "W"
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [32, 32]))


@pytest.mark.parametrize(
    ("edit", "messages", "sites", "unmatched"),
    [
        (custom, ["has no operator acme:Magic", "spq-graph inspect"], 9, ["custom operator acme::Magic"]),
        (
            dynamic_weight,
            ["input 'W' (tensor(float)) is not one that a decoder has"],
            8,
            ["its weight 'W' is an input"],
        ),
    ],
)
def test_what_cannot_be_run_can_be_inspected(
    tmp_path: Path, edit: Callable[[onnx.ModelProto], None], messages: list[str], sites: int, unmatched: list[str]
) -> None:
    path, result = quantized(tmp_path, edit)
    before = contents(tmp_path)
    assert result.code == 1
    assert all(message in " ".join(result.err.split()) for message in messages), result.err
    assert not (tmp_path / "out").exists()
    found = done("inspect", path, "--json").json
    assert (found["glu_blocks"], len(found["sites"])) == (1, sites)
    for entry, begins in zip(found["unmatched"], unmatched, strict=True):
        assert entry["reason"].startswith(begins)
    assert contents(tmp_path) == before


def test_inspecting_other_bits(tmp_path: Path) -> None:
    """A foreign MatMulNBits shows the bits that it has."""
    model = onnx.load(write_decoder(tmp_path / "model.onnx", layers=1))
    in_part(model)
    onnx.save(model, tmp_path / "model.onnx")
    found = done("inspect", tmp_path / "model.onnx", "--json").json
    assert {site["key"]: site["precision"] for site in found["sites"]}[HEAD] == "w4a16"


@pytest.mark.parametrize("batch", [1, 2])
def test_a_cache_for_a_fixed_batch(tmp_path: Path, batch: int) -> None:
    def fix(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        del model.graph.value_info[:]

    path, result = quantized(tmp_path, fix, cache=True, positions=True)
    assert result.code == 0, result.err
    write_decoder(tmp_path / "free.onnx", layers=1, positions=True)
    write_tokenizer(tmp_path)
    np.savez(tmp_path / "text.npz", input_ids=random_ids(3, 32, seed=2))
    arguments = ["--prompt", "w1 w5 w9", "--prompt", "w3", "--tokenizer", tmp_path, "--max-new-tokens", 12, "--json"]
    fixed, free = (done("generate", file, *arguments).json for file in (path, tmp_path / "free.onnx"))
    assert fixed["cache"]
    assert fixed["tokens"] == free["tokens"]
    against = ["--against", tmp_path / "free.onnx", "--text", tmp_path / "text.npz", "--json"]
    assert done("eval", path, *against).json["kl"] == pytest.approx(0, abs=1e-6)


def test_the_runtime_tells_no_name_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A node that ONNX Runtime cannot run: what it says of it comes through us, not past us."""

    def edit(model: onnx.ModelProto) -> None:
        _, query = named(model, QUERY)
        query.name = "\x1b[31mred\x07"
        model.graph.initializer.append(numpy_helper.from_array(np.array([3, 5, 32]), "odd"))
        index, head = named(model, HEAD)
        made = helper.make_node("Reshape", [head.input[0], "odd"], ["turned"], name="\x1b[31modd")
        model.graph.node.insert(index, made)
        head.input[0] = "turned"
        del model.graph.value_info[:]

    _, result = quantized(tmp_path, edit)
    assert result.code == 1
    assert "\\x1b[31modd" in result.err
    assert "\x1b" not in result.err + result.out
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [-1, 1 << 40, (1 << 62) + 1])
def test_sizes_that_no_decoder_takes_are_told(tmp_path: Path, size: int) -> None:
    """Of ids and of a cache: as many rows, or as many heads."""

    def edit(model: onnx.ModelProto) -> None:
        del model.graph.value_info[:]
        for value in model.graph.input:
            dim = value.type.tensor_type.shape.dim
            dim[1 if "past" in value.name else 0].dim_value = size

    path = write_decoder(tmp_path / "model.onnx", layers=1, cache=True, positions=True)
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    write_ids(tmp_path / "ids.npz")
    result = spq("eval", path, "--text", tmp_path / "ids.npz", "--window", 16)
    assert result.code == 1, result.err
    assert "error: " in result.err
    assert "fault of spq-graph" not in result.err

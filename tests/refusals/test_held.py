"""Refusals of what a target cannot hold, each made and put right as it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.passes.canon.lift_old import CHANGES
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import write_decoder
from tests.support.following import Told

follows = pytest.mark.follows


def of_opset(path: Path, opset: int) -> Path:
    """As written for an opset that says the same of its operators, or for one of which nobody knows."""
    model = onnx.load(write_decoder(path, layers=1))
    model.opset_import[0].version = opset
    onnx.save(model, path)
    return path


def plain(path: Path, opset: int) -> Path:
    onnx.save(decoder(Decoder(heads=2, kv_heads=2), opset=opset), path)
    return path


def resized(path: Path, opset: int) -> Path:
    """A decoder whose head reads through an operator that opset 10 says in a way that nothing brings over."""
    model = decoder(Decoder(heads=2, kv_heads=2), opset=max(opset, 12))
    head = model.graph.node[-1]
    reads = [head.input[0], "scales"] if opset < 11 else [head.input[0], "", "scales"]
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Resize", reads, ["same"], name="resize"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "scales"))
    head.input[0] = "same"
    if opset < 12:
        model.opset_import[0].version = opset
        for node in model.graph.node:
            node.op_type = node.op_type.replace("LessOrEqual", "Less")
    onnx.save(model, path)
    return path


def ids_of(path: Path) -> Path:
    np.savez(path, input_ids=np.random.default_rng(0).integers(0, 16, (32, 16)))
    return path


def calibrating(model: Path, ids: Path) -> list[object]:
    return ["calibrate", model, "-o", model.with_name("ranges"), "--calibration", ids, "--window", 16]


def named_opsets(refusal: Told) -> tuple[int, int]:
    """The least that a remedy names, and the one that it says an exporter takes."""
    words = refusal.error.remedy
    return int(words.partition("opset ")[2].split()[0]), int(words.partition("--opset ")[2].partition("`")[0])


def planning(model: Path, made: Made, *more: object) -> list[object]:
    options = ["--calibration", made.data, "--spike-ratio", 50, "--no-eval", "--dry-run", *more]
    return ["quantize", model, "-o", model.with_name("out"), *options]


@follows("passes/canon/lift_old.py:refuse_old")
def test_an_opset_that_is_too_old(refusal: Told, tmp_path: Path) -> None:
    ids = ids_of(tmp_path / "ids.npz")
    refusal.command(*calibrating(resized(tmp_path / "old.onnx", 10), ids))
    for opset in named_opsets(refusal):
        done(*calibrating(resized(tmp_path / f"{opset}.onnx", opset), ids))


@follows("passes/base/wellformed.py:check_nodes", "this graph says that it is of opset")
def test_a_node_that_is_newer_than_its_opset(refusal: Told, tmp_path: Path) -> None:
    """As where only the number was changed; exported again, operators and number go together."""
    ids, old = ids_of(tmp_path / "ids.npz"), plain(tmp_path / "old.onnx", 12)
    model = onnx.load(old)
    model.opset_import[0].version = 9
    onnx.save(model, old)
    refusal.command(*calibrating(old, ids))
    for opset in named_opsets(refusal):
        done(*calibrating(plain(tmp_path / f"{opset}.onnx", opset), ids))


@follows("spq_graph/workbench/holding.py:_refuse_newer")
def test_an_opset_that_is_too_new(refusal: Told, made: Made, tmp_path: Path) -> None:
    refusal.command(*planning(of_opset(tmp_path / "new.onnx", 99), made))
    newest = int(refusal.error.remedy.partition("opset ")[2].split()[0])
    done(*planning(of_opset(tmp_path / "again.onnx", newest), made))


def with_operator(path: Path, domain: str, op_type: str) -> Path:
    """What the head reads, sent through another operator."""
    model = onnx.load(write_decoder(path, layers=1))
    head = model.graph.node[-1]
    odd = helper.make_node(op_type, [head.input[0]], ["odd"], name="odd", domain=domain)
    model.graph.node.insert(len(model.graph.node) - 1, odd)
    head.input[0] = "odd"
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, path)
    return path


@follows("spq_graph/workbench/holding.py:_refusal", "so this model cannot be run")
def test_an_operator_that_nothing_has(refusal: Told, made: Made, tmp_path: Path) -> None:
    model = with_operator(tmp_path / "model.onnx", "acme", "Magic")
    refusal.command(*planning(model, made))
    verb = refusal.error.remedy.partition("`spq-graph ")[2].partition("`")[0]
    assert done(verb, model, "--json").json["graph"]["operators"]["Magic"] == 1
    done(*planning(with_operator(tmp_path / "runs.onnx", "", "Identity"), made))


@follows("spq_graph/workbench/holding.py:_refusal", "has no operators of this graph")
def test_an_operator_that_a_target_has_not(refusal: Told, made: Made, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = with_operator(tmp_path / "model.onnx", "com.microsoft", "ScaledSiLU")
    refusal.command(*planning(model, made, "--target", "openvino"))
    done(*planning(model, made, "--target", refusal.error.remedy.removeprefix("use target ").partition(",")[0]))
    done(*planning(with_operator(tmp_path / "own.onnx", "", "Identity"), made, "--target", "openvino"))


@follows("spq_graph/workbench/holding.py:refuse_unrun")
def test_more_ways_than_a_compiler_follows(refusal: Told, made: Made, tmp_path: Path) -> None:
    pytest.importorskip("openvino")

    def doubled(times: int) -> Path:
        model, path = onnx.load(write_decoder(tmp_path / "model.onnx", layers=1)), tmp_path / f"{times}.onnx"
        head, half = model.graph.node[-1], numpy_helper.from_array(np.float32(0.5), "half")
        model.graph.initializer.append(half)
        for n in range(times):
            read, total, made = head.input[0], f"total.{n}", f"made.{n}"
            for node in (
                helper.make_node("Add", [read, read], [total]),
                helper.make_node("Mul", [total, "half"], [made]),
            ):
                model.graph.node.insert(len(model.graph.node) - 1, node)
            head.input[0] = made
        onnx.save(model, path)
        return path

    refusal.command(*planning(doubled(40), made, "--target", "openvino"))
    done(*planning(doubled(40), made, "--target", refusal.error.remedy.removeprefix("use target ").partition(",")[0]))
    done(*planning(doubled(1), made, "--target", "openvino"))


@pytest.mark.parametrize(
    ("op_type", "change"),
    [
        pytest.param(
            "Softmax",
            lambda _, node: node.attributes.update(axis=ir.AttrInt64("axis", 2)),
            marks=follows("spq_graph/workbench/lifted.py:refuse_changed", "gives other logits"),
        ),
        pytest.param(
            "Unsqueeze",
            lambda _, node: None,
            marks=follows("spq_graph/workbench/lifted.py:refuse_changed", "does not run"),
        ),
    ],
    ids=["other logits", "does not run"],
)
def test_a_lift_that_fails(
    refusal: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    op_type: str,
    change: Callable[[ir.Graph, ir.Node], None],
) -> None:
    """As if an operator were brought over wrongly; exported with a newer opset, nothing is brought over."""
    monkeypatch.setitem(CHANGES, op_type, (13, change))
    ids = ids_of(tmp_path / "ids.npz")

    refusal.command(*calibrating(plain(tmp_path / "old.onnx", 12), ids))
    for opset in named_opsets(refusal):
        done(*calibrating(plain(tmp_path / f"{opset}.onnx", opset), ids))

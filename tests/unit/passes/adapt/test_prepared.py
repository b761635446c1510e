"""One chain from file to graph: read once, copied for everybody, and every pass says what it takes and leaves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from spq_graph.documents.recipe import Recipe
from spq_graph.passes.adapt import prepared as chain
from spq_graph.passes.adapt.bfloat16 import WidenBfloat16
from spq_graph.passes.adapt.lift import LiftOpset
from spq_graph.passes.adapt.prepared import PREPARE, adapting, canonical, prepared
from spq_graph.passes.base.run import run
from spq_graph.passes.canon.canonicalize import CANON, Canonicalize
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.inserting import plan_for


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(decoder(Decoder(layers=1)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def with_constant() -> ir.Model:
    one = helper.make_node("Constant", [], ["one"], value=helper.make_tensor("v", TensorProto.FLOAT, [], [1.0]))
    add = helper.make_node("Add", ["x", "one"], ["y"], name="sum")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([one, add], "g", ends[:1], ends[1:])
    model: ir.Model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    return model


def bytes_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def test_a_copy_is_one_s_own(path: Path) -> None:
    source = prepared(path)
    before = bytes_of(source.graph)
    copy = source.copy()
    assert bytes_of(copy) == before
    plan = plan_for(path, token_feeds(), Precision.INT8)
    InsertPrecisions(plan, plan.recipe.profile)(copy)
    assert bytes_of(copy) != before
    assert bytes_of(source.graph) == before
    again = source.copy().graph.initializers
    assert all(again[name].const_value is value.const_value for name, value in source.graph.graph.initializers.items())


def test_deciding_reads_the_file_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many choices are measured."""
    ids = tmp_path / "ids.npz"
    np.savez(ids, input_ids=np.random.default_rng(0).integers(0, 16, (4, 8)))
    read: Counter[Path] = Counter()
    load = chain.load_graph

    def counting(file: Path) -> ir.Model:
        read[file] += 1
        return load(file)

    monkeypatch.setattr(chain, "load_graph", counting)
    with Opening(path).open() as bench:
        sequences = bench.sequences(ids)
        ranges = bench.calibrate(sequences)
        plan = make_plan(bench, Recipe(candidate_ratio=0.0, kl_budget=1e-9), 8, ranges, sequences)
    assert plan.search.evaluations > 3
    assert read == {path: 1}


def test_the_order_of_a_chain_is_a_value() -> None:
    assert [step.__name__ for step in PREPARE] == ["Canonicalize", "Disown", "WidenBfloat16"]
    assert [step.__name__ for step in CANON] == [
        "InlineFunctions",
        "LiftOld",
        "LiftConstants",
        "RemoveInitializersFromInputsPass",
        "TopologicalSortPass",
        "EinsumAsMatMul",
        "FoldWeights",
        "Unfuse",
        "NameNodes",
        "Modernize",
    ]
    names = [type(step).__name__ for step in adapting(PROFILES["cpu"], 19)]
    assert names == ["LiftOpset", "DivideNorms", "FuseAttention", "FuseRotary", "AppendInAttention", "HeadsSideBySide"]
    assert not adapting(PROFILES["tensorrt"])


def test_a_pass_out_of_order_says_so() -> None:
    model = with_constant()
    with pytest.raises(ir.passes.PreconditionError, match="not canonical: Constant"):
        WidenBfloat16()(model)
    with pytest.raises(CheckError, match="LiftOpset: the graph is not canonical: Constant") as caught:
        run(model, [LiftOpset()])
    assert caught.value.remedy == "please report this"
    run(model, [Canonicalize(), LiftOpset()])
    assert model.graph.opset_imports[""] == 19


def test_nodes_without_a_name_of_their_own(path: Path) -> None:
    plan = plan_for(path, token_feeds(), Precision.INT8)
    model = canonical(path)
    model.graph[1].name = model.graph[0].name
    with pytest.raises(ir.passes.PreconditionError, match="several nodes are called"):
        InsertPrecisions(plan, plan.recipe.profile)(model)

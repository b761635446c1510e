"""Where the numbers of a graph stop being numbers: the first place, in words, with what was seen there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.decisions.variants import Variant
from spq_graph.documents.recipe import Recipe
from spq_graph.passes.adapt.prepared import canonical
from spq_graph.runtime.text.sequences import Sequences, padded_behind
from spq_graph.terms.errors import ActivationError, NotFiniteError
from spq_graph.terms.rows import EVERYWHERE, SPIKE_AWARE
from spq_graph.workbench import faults
from spq_graph.workbench.faults import Fault, first_fault
from spq_graph.workbench.ladder import measure_ladder
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Built
from tests.support.decoders import random_ids, write_decoder
from tests.support.halves import rewritten

IDS = random_ids(4, 16)
UP, DOWN = "layers.0.mlp.up_proj", "layers.0.mlp.down_proj"


def fault(path: Path, memory: int | None = None) -> Fault | None:
    return first_fault(canonical(path), path, IDS, np.ones_like(IDS), memory=memory)


def edited(path: Path, name: str, edit: Callable[[np.ndarray], None]) -> Path:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "model.onnx", layers=2)


@pytest.mark.parametrize("memory", [None, 9000])
def test_a_sound_model_has_none(path: Path, memory: int | None) -> None:
    assert fault(path, memory) is None
    assert fault(rewritten(path), memory) is None


def test_what_float16_does_not_hold(path: Path) -> None:
    found = fault(rewritten(path, factors={f"{UP}.weight": 20_000.0}))
    assert found is not None
    assert found.half
    assert found.what.startswith(f"float16 holds no number beyond 65,504, and the result of {UP} reaches ")
    assert f"in front of the input of {DOWN}" in found.where


def test_what_the_runtime_does_not_hide(path: Path) -> None:
    """An output of the graph is float16 in earnest."""
    found = fault(rewritten(path, factors={"lm_head.weight": 20_000.0}))
    assert found is not None
    assert "the result of lm_head" in found.what


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_constant_that_is_not_finite(path: Path, value: float) -> None:
    found = fault(edited(path, f"{UP}.weight", lambda a: a.__setitem__((3, 4), value)))
    assert found is not None
    assert found.what.startswith(f"the result of {UP} is ")
    assert f"the constant '{UP}.weight' is not finite" in found.what
    assert found.site == UP


def test_what_overflows_float32(path: Path) -> None:
    found = fault(rewritten(path, into=TensorProto.FLOAT, factors={f"{UP}.weight": 2e38}))
    assert found is not None
    assert "is infinite; the largest finite number there or in front of it is " in found.what
    assert not found.half


def test_all_tokens_masked(path: Path) -> None:
    found = fault(edited(path, "causal", lambda a: a.__setitem__(2, -np.inf)))
    assert found is not None
    assert "(Softmax) is NaN, for every score of a row is -inf" in found.what
    assert "a mask of large negative numbers" in found.remedy


def test_padding_moves_behind_and_holes_stay() -> None:
    ids = np.array([[0, 0, 5, 6], [7, 8, 9, 4], [1, 2, 0, 3], [0, 0, 0, 0]])
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]])
    moved, seen = padded_behind(ids, mask)
    assert moved[0].tolist() == [5, 6, 0, 0]
    assert seen.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(moved[1:], ids[1:])


class TestLadder:
    """A row that is not finite is left out; what OUT holds must be finite, and so must the source."""

    text = Sequences(IDS, np.ones_like(IDS), 0, "text")

    def ladder(self, path: Path, row: str, remarks: list[str]) -> list[str]:
        broken = write_decoder(path.with_name("broken.onnx"), layers=2, broken_layer=1)
        with Opening(path).open(Steps(remark=remarks.append)) as bench:
            plan = make_plan(bench, Recipe(spike_ratio=50.0), 8, bench.calibrate(self.text), None)
            lower = make_plan(bench, Recipe(spike_ratio=50.0), 6, bench.calibrate(self.text), None)
            rows = [Variant(EVERYWHERE, 6, lower), Variant(SPIKE_AWARE, 8, plan)]
            place = next(one.place for one in rows if one.id.name == row)
            found = measure_ladder(bench, rows, self.text, {place: Built(broken, 0, 21)})
        return [rung.id.name for rung in found]

    def test_a_row_is_left_out(self, path: Path) -> None:
        remarks: list[str] = []
        assert self.ladder(path, EVERYWHERE.name, remarks) == ["fp32", SPIKE_AWARE.name]
        assert "no row everywhere at 6 bits: once quantized, the logits are NaN or infinite" in remarks[0]

    def test_out_is_not(self, path: Path) -> None:
        with pytest.raises(NotFiniteError, match="once quantized, the logits are NaN or infinite"):
            self.ladder(path, SPIKE_AWARE.name, [])

    def test_nor_is_the_source(self, path: Path) -> None:
        with Opening(rewritten(path, factors={"lm_head.weight": 20_000.0})).open() as bench:
            plan = make_plan(bench, Recipe(spike_ratio=50.0), 8, bench.calibrate(self.text), None)
            with pytest.raises(ActivationError, match="the result of lm_head"):
                measure_ladder(bench, [Variant(SPIKE_AWARE, 8, plan)], self.text, {})


def test_ranges_beyond_float16_are_refused(path: Path) -> None:
    with Opening(rewritten(path)).open() as bench:
        ranges = bench.calibrate(Sequences(IDS, np.ones_like(IDS)))
        seen = ranges.values["layers.0.mlp.product.out"]
        seen.peak.value = seen.high = 473_441.0
        with pytest.raises(ActivationError, match=f"65,504, and the input of {DOWN} reaches 473,441"):
            make_plan(bench, Recipe(), 8, ranges, None)


def test_a_value_that_nan_is_asked_of_is_no_fault(tmp_path: Path) -> None:
    """Where(IsNaN(x), 0, x) is how some graphs write a mask of which a row lets nothing through."""
    path = edited(write_decoder(tmp_path / "model.onnx", layers=1), "causal", lambda a: a.__setitem__(2, -np.inf))
    model = onnx.load(path)
    nodes = list(model.graph.node)
    softmax = next(i for i, node in enumerate(nodes) if node.op_type == "Softmax")
    name = nodes[softmax].output[0]
    nodes[softmax].output[0] = "weights"
    nodes[softmax + 1 : softmax + 1] = [
        helper.make_node("IsNaN", ["weights"], ["none"], name="none"),
        helper.make_node("Where", ["none", "nothing", "weights"], [name], name="some"),
    ]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    assert fault(path) is None


def test_a_deep_chain_is_observed_some_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a session takes to open grows with the square of what is observed in it."""
    depth = 900
    groups: list[int] = []
    model = onnx.load(path)
    reader = next(node for node in model.graph.node if f"{DOWN}.weight" in node.input)
    value = reader.input[0]
    for step in range(depth):  # doubled until float32 does not hold it, behind where the first of them are observed
        factor = "factor.2" if step >= depth // 4 else "factor.1"
        model.graph.node.append(helper.make_node("Mul", [value, factor], [f"chain.{step}"], name=f"chain.{step}"))
        value = f"chain.{step}"
    reader.input[0] = value
    numbers = {"factor.1": 1.0, "factor.2": 2.0}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(n), name) for name, n in numbers.items())
    nodes = [node for node in model.graph.node if not node.name.startswith("chain.")]
    place = nodes.index(reader)
    chain = [node for node in model.graph.node if node.name.startswith("chain.")]
    ordered = [*nodes[:place], *chain, *nodes[place:]]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    onnx.save(model, path)
    observe = faults.ObserveFaults

    def observing(values: list[str]) -> faults.ObserveFaults:
        groups.append(len(values))
        return observe(values)

    monkeypatch.setattr(faults, "ObserveFaults", observing)
    found = fault(path)
    assert found is not None
    assert "is infinite; the largest finite number there or in front of it is " in found.what
    assert len(groups) > 1
    assert max(groups) <= 256
    assert sum(groups) < depth

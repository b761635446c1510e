"""spq::Int8MatMul: library, function and reference evaluator against numpy, with every instruction set."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import Weight
from spq_graph.passes.forms.int8_function import Int8Kind, int8_call, int8_matmul_function
from spq_graph.passes.forms.storages import Int8Panels, Integers
from spq_graph.passes.numbers.int8 import int8_matmul_reference, pack_int8_panels, unpack_int8_panels
from spq_graph.terms.kernels import INTEGER_KERNELS
from tests.support.graphs import Array
from tests.support.operator_files import NEEDS_LIBRARY, SETS, instruction_set, session

KINDS = [Int8Kind(by_token, branch) for by_token in (False, True) for branch in (False, True)]
EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.op_type)
SIZES = [(1, 1, 1), (1, 576, 70), (1, 130, 600), (2, 64, 300), (3, 130, 33), (4, 70, 128), (13, 600, 64), (40, 65, 100)]
SHAPES = pytest.mark.parametrize("shape", SIZES)


@dataclass
class Call:
    kind: Int8Kind
    shape: tuple[int, int, int]
    whole: bool = False
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        rows, depth, columns = self.shape
        random = np.random.default_rng(0)
        self.x = random.standard_normal((rows, depth)).astype(self.dtype)
        self.codes = random.integers(-128, 128, (depth, columns)).astype(np.int8)
        self.channels = np.unique(random.integers(0, depth, 5))
        self.x[:, self.channels] *= 50
        one = np.ones(columns, np.float32)
        self.b_scale = one if self.whole else random.uniform(1e-4, 1e-2, columns).astype(np.float32)
        self.bias = 0 * one if self.whole else random.standard_normal(columns).astype(np.float32)
        self.rows = random.standard_normal((len(self.channels), columns)).astype(np.float16)
        self.a = (np.float32(1 if self.whole else 0.02), np.uint8(120))
        if self.whole:
            self.x = random.integers(-200, 200, self.x.shape).astype(self.dtype)

    @property
    def expected(self) -> Array:
        quantizer = None if self.kind.by_token else self.a
        branch = (self.channels, self.rows) if self.kind.branch else None
        return int8_matmul_reference(self.x, self.codes, self.b_scale, self.bias, quantizer, branch)

    def check(self, y: Array) -> None:
        """A handful of float32 roundings of what is added: the integer part, bias, and each product of the branch."""
        wanted = self.expected
        assert (y.dtype, y.shape) == (wanted.dtype, wanted.shape)
        size = np.abs(wanted).max() + np.abs(self.bias).max() + 4
        if self.kind.branch:
            size += (np.abs(self.x[:, self.channels].astype(np.float64)) @ np.abs(self.rows.astype(np.float64))).max()
        step = 2.0**-10 if self.dtype == np.float16 else 12 * 2.0**-24
        assert np.abs(y.astype(np.float64) - wanted).max() <= step * size

    @property
    def given(self) -> dict[str, Array]:
        """What it reads besides A."""
        every: dict[str, Array] = {
            "B": pack_int8_panels(self.codes),
            "b_scale": self.b_scale,
            "bias": self.bias,
            "a_scale": np.asarray(self.a[0]),
            "a_zero_point": np.asarray(self.a[1]),
            "channels": self.channels,
            "rows": self.rows,
        }
        return {name: every[name] for name in self.kind.inputs[1:]}

    def model(self, opset: int = 21, *, fed: bool = False) -> onnx.ModelProto:
        """A file with the call; what it reads besides A is in it, or is fed as A is."""
        tensors = [numpy_helper.from_array(value, name) for name, value in self.given.items()]
        depth, columns = self.codes.shape
        node = helper.make_node(
            self.kind.op_type, self.kind.inputs, ["Y"], "product", domain=DOMAIN, K=depth, N=columns
        )
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        ends = [helper.make_tensor_value_info(n, kind, ["t", w]) for n, w in (("A", depth), ("Y", columns))]
        others = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors] if fed else []
        graph = helper.make_graph([node], "g", [ends[0], *others], ends[1:], [] if fed else tensors)
        functions = [ir.to_proto(int8_matmul_function(self.kind, opset))]
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)


def test_panels_there_and_back() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (70, 45)).astype(np.int8)
    np.testing.assert_array_equal(unpack_int8_panels(pack_int8_panels(codes), (70, 45)), codes)


def test_a_weight_is_stored_as_it_is_read() -> None:
    weight = np.random.default_rng(0).standard_normal((70, 45)).astype(np.float32)
    operand = Operand(Weight(ir.Value(name="w", const_value=ir.tensor(weight)), ()), flipped=False)
    plain, panels = Integers(operand, 8), Int8Panels(operand, 8)
    stored = np.asarray(panels.tensor("w", "key").numpy())
    assert stored.shape == panels.shape == (2, 2, 2048)
    np.testing.assert_array_equal(panels.unpack(stored), np.asarray(plain.tensor("w", "key").numpy()))


@EACH_KIND
def test_a_node_has_all_inputs_of_its_kind(kind: Int8Kind) -> None:
    values = [ir.Value(name=name) for name in kind.inputs]
    node = int8_call(kind, values, (70, 45), "product")
    assert (node.domain, node.op_type, list(node.inputs)) == (DOMAIN, kind.op_type, values)
    with pytest.raises(ValueError, match="are given"):
        int8_call(kind, values[:-1], (70, 45), "product")


@EACH_KIND
@SHAPES
@pytest.mark.parametrize("opset", [15, 18, 21])
def test_the_function(kind: Int8Kind, shape: tuple[int, int, int], opset: int) -> None:
    call = Call(kind, shape)
    call.check(session(call.model(opset), library=False).run(None, {"A": call.x})[0])
    with np.errstate(over="ignore"):
        [y] = ReferenceEvaluator(call.model(opset)).run(None, {"A": call.x})
    call.check(np.asarray(y))


@NEEDS_LIBRARY
@pytest.mark.parametrize("isa", [*SETS, "avx_vnni", "avx512_vnni"])  # these two are of these operators alone
@SHAPES
class TestTheLibrary:
    @EACH_KIND
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_numbers(self, isa: str, kind: Int8Kind, shape: tuple[int, int, int], dtype: Any) -> None:
        call = Call(kind, shape, dtype=dtype)
        with instruction_set(isa):
            call.check(session(call.model()).run(None, {"A": call.x})[0])

    def test_sums_are_exact(self, isa: str, shape: tuple[int, int, int]) -> None:
        """With scales of 1 the result is the sum itself, below 2^24 as float32 holds it."""
        call = Call(Int8Kind(), shape, whole=True)
        with instruction_set(isa):
            y = session(call.model()).run(None, {"A": call.x})[0]
        np.testing.assert_array_equal(y, call.expected)


@NEEDS_LIBRARY
@EACH_KIND
def test_which_of_them_runs(kind: Int8Kind, tmp_path: Path) -> None:
    call, found = Call(kind, (3, 64, 32)), []
    for library in (True, False):
        of = session(call.model(), library=library, profile=tmp_path / str(library))
        of.run(None, {"A": call.x})
        events = json.loads(Path(of.end_profiling()).read_text(encoding="utf-8"))
        found.append({event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})})
    assert found[0] == {kind.op_type}
    assert found[1] & INTEGER_KERNELS


@NEEDS_LIBRARY
@EACH_KIND
@pytest.mark.parametrize("rows", [1, 40])
def test_threads_and_sessions_agree(kind: Int8Kind, rows: int) -> None:
    call = Call(kind, (rows, 576, 600))
    one, *others = (session(call.model(), threads=count) for count in (1, 2, 2))
    wanted = one.run(None, {"A": call.x})[0].tobytes()
    with ThreadPoolExecutor(8) as pool:
        runs = pool.map(lambda turn: others[turn % 2].run(None, {"A": call.x})[0].tobytes(), range(200))
        assert all(found == wanted for found in runs)


@NEEDS_LIBRARY
@EACH_KIND
def test_what_is_fed_is_read_at_every_call(kind: Int8Kind) -> None:
    calls = [Call(kind, (rows, 130, 70)) for rows in (1, 5)]
    calls[1].codes, calls[1].b_scale = calls[1].codes[::-1].copy(), calls[1].b_scale * 2
    of = session(calls[0].model(fed=True))
    for call in (*calls, calls[0]):
        call.check(of.run(None, {"A": call.x, **call.given})[0])


WRONG: dict[str, tuple[str, Array, str]] = {
    "channel": ("channels", np.array([3, 130]), "channel 130 is not below K = 130"),
    "rows": ("rows", np.zeros((2, 71), np.float16), r"they must be \[C\] and \[C, N\]"),
    "scales": ("b_scale", np.ones(71, np.float32), "it must hold one number or N = 70"),
    "panels": ("B", np.zeros((3, 2, 2048), np.int8), r"not \[3, 3, 2048\]"),
}


@NEEDS_LIBRARY
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_as_soon_as_it_is_known(case: str) -> None:
    name, value, message = WRONG[case]
    call = Call(Int8Kind(by_token=True, branch=True), (2, 130, 70))
    call.channels, call.rows = call.channels[:2], call.rows[:2]
    constant, fed = call.model(), call.model(fed=True)
    [tensor] = [t for t in constant.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    with pytest.raises(Exception, match=message):
        session(constant)
    for given in fed.graph.input:
        given.type.tensor_type.ClearField("shape")
    of = session(fed)
    with pytest.raises(Exception, match=message):
        of.run(None, {"A": call.x, **call.given, name: value})

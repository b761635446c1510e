"""The operator spq::Int8Gather against numpy: library, function, and ONNX's reference evaluator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

pytest.importorskip("onnxruntime")

import onnxruntime as ort

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.forms.gather_function import gather_inputs, gather_name, int8_gather_function
from spq_graph.passes.numbers.int8 import pack_int8_panels
from tests.support.operator_files import NEEDS_LIBRARY, session

Array = npt.NDArray[Any]
EACH_KIND = pytest.mark.parametrize("branch", [False, True], ids=["plain", "branch"])
EACH_IDS = pytest.mark.parametrize("dtype", [np.int64, np.int32])


@dataclass
class Table:
    """A table of 130 rows in panels, of 70 channels of which 5 lie in a branch."""

    branch: bool
    dtype: Any = np.int64
    one_scale: bool = False
    rows: int = 130
    depth: int = 70

    def __post_init__(self) -> None:
        random = np.random.default_rng(0)
        self.codes = random.integers(-127, 128, (self.depth, self.rows)).astype(np.int8)
        self.scale = random.uniform(1e-3, 1e-2, 1 if self.one_scale else self.rows).astype(np.float32)
        self.channels = np.array([69, 0, 3, 41, 12])
        self.numbers = random.standard_normal((5, self.rows)).astype(np.float16)
        if self.branch:
            self.codes[self.channels] = 0
        self.ids = random.integers(-self.rows, self.rows, (3, 7)).astype(self.dtype)

    @property
    def expected(self) -> Array:
        table = self.codes.T.astype(np.float32) * self.scale[:, None]
        if self.branch:
            table[:, self.channels] += self.numbers.T.astype(np.float32)
        return np.asarray(table[self.ids])

    def model(self, opset: int = 21) -> onnx.ModelProto:
        given = {
            "B": pack_int8_panels(self.codes),
            "b_scale": self.scale,
            "channels": self.channels,
            "rows": self.numbers,
        }
        names = gather_inputs(branch=self.branch)
        tensors = [numpy_helper.from_array(given[name], name) for name in names if name != "ids"]
        op_type = gather_name(branch=self.branch)
        node = helper.make_node(op_type, names, ["Y"], "lookup", domain=DOMAIN, K=self.depth, N=self.rows)
        ids = helper.make_tensor_value_info("ids", helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)), ["b", "t"])
        y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["b", "t", self.depth])
        functions = [ir.to_proto(int8_gather_function(opset, branch=self.branch))]
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
        graph = helper.make_graph([node], "g", [ids], [y], tensors)
        return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)


@EACH_KIND
@EACH_IDS
@pytest.mark.parametrize("one_scale", [False, True], ids=["scales", "one scale"])
@pytest.mark.parametrize("opset", [15, 21])
def test_the_function(branch: bool, dtype: Any, one_scale: bool, opset: int) -> None:
    table = Table(branch, dtype, one_scale)
    model = table.model(opset)
    onnx.checker.check_model(model, full_check=True)
    [y] = session(model, library=False).run(None, {"ids": table.ids})
    np.testing.assert_array_equal(y, table.expected)
    [y] = ReferenceEvaluator(model).run(None, {"ids": table.ids})
    np.testing.assert_array_equal(np.asarray(y), table.expected)


@NEEDS_LIBRARY
@EACH_KIND
@EACH_IDS
@pytest.mark.parametrize("one_scale", [False, True], ids=["scales", "one scale"])
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (0, 4)])
def test_the_library(branch: bool, dtype: Any, one_scale: bool, shape: tuple[int, int]) -> None:
    table = Table(branch, dtype, one_scale)
    table.ids = np.resize(table.ids, shape)
    [y] = session(table.model()).run(None, {"ids": table.ids})
    np.testing.assert_array_equal(y, table.expected)


@EACH_KIND
@pytest.mark.parametrize("library", [pytest.param(True, marks=NEEDS_LIBRARY), False], ids=["library", "function"])
@pytest.mark.parametrize("beyond", [130, -131])
def test_an_id_beyond_the_table_is_refused(branch: bool, library: bool, beyond: int) -> None:
    table = Table(branch)
    table.ids[1, 2] = beyond
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match=r"not below N = 130|out of .*bounds"):
        session(table.model(), library=library).run(None, {"ids": table.ids})

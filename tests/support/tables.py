"""Graphs of an embedding and a head and nothing between, and an independent reference of tables in 8 bits by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.plan import ModelRef, Plan, Reason, Search, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.find.identify import Identified, identify
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.graphs import Array, Builder

Head = Literal["own", "transposed", "gemm", "cast"]


@dataclass(frozen=True, slots=True)
class Ends:
    """Ids through a table, a Tanh in place of the layers, and a head.

    Attributes:
        tokens, channels: of the table.
        head: its own weight, or the table: transposed by a node, by a Gemm, or stored in half and widened.
        scale: what the rows are multiplied by, as Gemma does.
        bias, capped: of the head.
        lookups: how many Gathers read the table, each by ids of its own.
        axes: of the ids.
        half: element type of the graph.
    """

    tokens: int = 40
    channels: int = 64
    head: Head = "transposed"
    scale: float | None = None
    bias: bool = False
    capped: bool = False
    lookups: int = 1
    axes: int = 2
    half: ir.DataType = ir.DataType.FLOAT

    @property
    def table(self) -> Array:
        """[tokens, channels] in the type of the graph; some rows are zero, one is large."""
        array = np.random.default_rng(3).standard_normal((self.tokens, self.channels)).astype(np.float32)
        array[1], array[2] = 0.0, array[2] * 50
        return array.astype(self.half.numpy())

    @property
    def weight(self) -> Array:
        """Of the head, [channels, tokens]."""
        if self.head != "own":
            return self.table.T
        return np.random.default_rng(4).standard_normal((self.channels, self.tokens)).astype(self.half.numpy())

    @property
    def offset(self) -> Array:
        """The bias, [tokens]."""
        return np.linspace(-1, 1, self.tokens).astype(self.half.numpy())

    def feeds(self) -> dict[str, Array]:
        """Ids, of which every token comes."""
        ids = np.random.default_rng(5).permutation(self.tokens * 2) % self.tokens
        return {"input_ids": ids.reshape([2, *[1] * (self.axes - 2), -1][-self.axes :])}

    def looked_up(self) -> list[Array]:
        """The ids of every lookup: those that come in, and others that follow from them."""
        return [self.feeds()["input_ids"] % (self.tokens - number) for number in range(self.lookups)]

    def write(self, path: Path) -> Path:
        """The file."""
        b, kind = Builder(naming="dynamo", dtype=np.float32), int(self.half)
        table = self._constant(b, self.table)
        hidden = None
        b.module = "model.embed_tokens"
        for number in range(self.lookups):
            ids = b.op("Mod", "input_ids", b.const(self.tokens - number, np.int64)) if number else "input_ids"
            rows = b.op("Gather", table, ids)
            hidden = rows if hidden is None else b.op("Add", hidden, rows)
        b.module = "model"
        if self.scale is not None:
            hidden = b.op("Mul", hidden, self._constant(b, np.asarray(self.scale, dtype=self.half.numpy())))
        b.op("Tanh", hidden, outputs=["hidden"])
        b.module = "lm_head"
        self._write_head(b, table)
        dims = [f"d{n}" for n in range(self.axes)]
        outputs = {"logits": (kind, [*dims, self.tokens]), "hidden": (kind, [*dims, self.channels])}
        model = b.model(dict.fromkeys(self.feeds(), (TensorProto.INT64, dims)), outputs)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path

    def _constant(self, b: Builder, array: Array) -> str:
        name = f"const_{len(b.initializers)}"
        b.initializers.append(ir.to_proto(ir.tensor(array, dtype=self.half, name=name)))
        return name

    def _write_head(self, b: Builder, table: str) -> None:
        offset = [self._constant(b, self.offset)] if self.bias else []
        if self.head == "gemm":
            product = b.op("Gemm", "hidden", table, *offset, transB=1)
        else:
            weight = self._constant(b, self.weight) if self.head == "own" else b.op("Transpose", table, perm=[1, 0])
            product = b.op("MatMul", "hidden", weight)
            product = b.op("Add", product, *offset) if offset else product
        if self.capped:
            cap = self._constant(b, np.asarray(30, dtype=self.half.numpy()))
            product = b.op("Mul", b.op("Tanh", b.op("Div", product, cap)), cap)
        b.op("Identity", product, outputs=["logits"])

    def reference(self, table: Array, weight: Array) -> tuple[Array, Array]:
        """Hidden states and logits in float64, with another table and another weight in place of its own."""
        rows = sum(table[ids] for ids in self.looked_up()).astype(np.float64)
        hidden = np.tanh(rows * (self.scale if self.scale is not None else 1.0))
        logits = hidden @ weight.astype(np.float64) + (self.offset.astype(np.float64) if self.bias else 0.0)
        return hidden, 30 * np.tanh(logits / 30) if self.capped else logits


def by_block(table: Array, block: int) -> Array:
    """What 8-bit codes by block of channels make of a table [tokens, channels], float32: from the definition."""
    tokens, channels = table.shape
    found = np.zeros((tokens, channels), dtype=np.float32)
    for start in range(0, channels, block):
        part = table[:, start : start + block].astype(np.float32)
        scales = np.abs(part).max(axis=1, keepdims=True) / np.float32(127)
        codes = np.rint(np.divide(part, scales, out=np.zeros_like(part), where=scales > 0))
        found[:, start : start + block] = codes * scales
    return found


def found_in(path: Path) -> Identified:
    """What is found in a file."""
    return identify(prepared(path).graph)


def plan_of(path: Path, precisions: Mapping[Role, Precision], **recipe: Any) -> Plan:
    """A plan that puts sites of these roles into these precisions, and leaves the others."""
    found = found_in(path)
    return Plan(
        model=ModelRef(digest="", origin=""),
        recipe=Recipe(**recipe),
        search=Search(rule="none"),
        budget_met=True,
        calibration=CalibrationRef(digest="", tokens=0, sequences=0),
        sites=[
            SitePlan(site=s, precision=precisions.get(s.role, found.stored[s.key]), reason=Reason.DEFAULT)
            for s in found.every
        ],
    )


def size_of_constants(path: Path) -> int:
    """Bytes of all initializers of a file, each once."""
    return sum(len(ir.from_proto(t).tobytes()) for t in onnx.load(path).graph.initializer)

"""What a whole plan computes, from its definition: the floating-point graph with fake-quantized products, in numpy.

Nothing of the inserting passes is used. Every site is replaced by an operator that rounds its operands as the plan
says and multiplies them in float64; all else runs as ONNX's reference evaluator has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.terms.precision import Precision
from tests.support.graphs import Array
from tests.support.inserting import fake_quantized, fake_quantized_weight

LARGEST = {ml_dtypes.float8_e4m3fn: 448.0, ml_dtypes.float8_e5m2: 57344.0}
FLOATS = {Precision.FP16: np.float16, Precision.BF16: ml_dtypes.bfloat16}


def _eight_bits(values: Array, largest: Array | float, kind: Any) -> Array:
    """Values rounded to an FP8 format whose largest number stands for `largest`."""
    step = np.float32(1.0) * (np.asarray(largest, np.float32) / np.float32(LARGEST[kind]))
    ratio = np.clip(np.asarray(values, np.float32) / step, -LARGEST[kind], LARGEST[kind])
    return np.asarray(ratio.astype(kind).astype(np.float64) * step)


def _in_blocks(weight: Array, block: int) -> Array:
    rows, columns = weight.shape
    split = weight.astype(np.float64).reshape(-1, block, columns)
    step = np.abs(split).max(axis=1, keepdims=True) / 127
    return np.asarray((np.rint(split / step) * step).reshape(rows, columns))


def _integers(x: Array, weight: Array, site: SitePlan, plan: Plan) -> Array:
    bits = site.precision.bits
    assert bits is not None
    assert site.range is not None
    symmetric = plan.recipe.activations == "symmetric"
    bits_of_weight = 7 if plan.recipe.reduce_range and bits == 8 else bits
    peel = plan.peels.get(site.input)
    if peel is None:
        return np.asarray(
            fake_quantized(x, *site.range, bits, symmetric=symmetric) @ fake_quantized_weight(weight, bits_of_weight)
        )
    x_inner, w_inner, outer = _parted(x, weight, peel)
    quantized = fake_quantized(x_inner, peel.low, peel.high, bits, symmetric=symmetric)
    return np.asarray(quantized @ fake_quantized_weight(w_inner, bits_of_weight) + outer)


def _parted(x: Array, weight: Array, peel: Peel) -> tuple[Array, Array, Array]:
    """Activation and weight without the outlier channels, and what these make of their rows in float16."""
    channels = list(peel.channels)
    outer = x[..., channels].astype(np.float64) @ weight[channels].astype(np.float16).astype(np.float64)
    return np.delete(x, channels, axis=-1), np.delete(weight, channels, axis=0), outer


def _by_token(x: Array, weight: Array, site: SitePlan, plan: Plan) -> Array:
    outer = np.zeros(1)
    if (peel := plan.peels.get(site.input)) is not None:
        x, weight, outer = _parted(x, weight, peel)
    rows = x.astype(np.float32).reshape(-1, x.shape[-1])
    quantized = np.stack([fake_quantized(row, row.min(initial=0), row.max(initial=0), 8) for row in rows])
    return np.asarray(quantized.reshape(x.shape) @ fake_quantized_weight(weight, 8) + outer)


def product(x: Array, weight: Array, site: SitePlan, plan: Plan) -> Array:
    """What one site makes of its activation [..., K] and its weight [K, N]."""
    precision, recipe = site.precision, plan.recipe
    if (scale := plan.scales.get(site.input)) is not None:
        factors = np.exp2(np.asarray(scale.exponents, np.float32))
        x, weight = x / factors, weight * factors[:, None]
        site = site.model_copy(update={"range": (scale.low, scale.high)})
    if precision in FLOATS:
        kind = FLOATS[precision]
        rounded = recipe.target in ("cuda", "tensorrt")
        x = x.astype(kind) if rounded else x
        y = x.astype(np.float64) @ weight.astype(kind).astype(np.float64)
        return np.asarray(y.astype(kind) if rounded else y)
    if precision in (Precision.W8A8_BLOCK, Precision.W8A16):
        rows = len(weight)
        block = 64 if rows % 64 == 0 else 32
        # Unless told otherwise, with VNNI OpenVINO rounds activations too where weights alone are integers.
        of_tokens = {"openvino": 32}.get(recipe.target, block if precision is Precision.W8A8_BLOCK else None)
        if of_tokens is None:
            return np.asarray(x.astype(np.float64) @ _in_blocks(weight, block))
        # To int8 in blocks of each token.
        rounded_x = _in_blocks(x.reshape(-1, rows).T, of_tokens).T.reshape(x.shape)
        return np.asarray(rounded_x @ _in_blocks(weight, block))
    if precision.takes_branch:
        return (_by_token if precision is Precision.W8A8_TOKEN else _integers)(x, weight, site, plan)
    if precision.is_fp8:
        largest = np.abs(weight).max(axis=None if recipe.target == "tensorrt" else 0)
        held = _eight_bits(weight, largest, ml_dtypes.float8_e4m3fn)
        if precision is not Precision.W8FP8A16:
            assert site.range is not None
            kind = ml_dtypes.float8_e5m2 if precision is Precision.FP8_E5M2 else ml_dtypes.float8_e4m3fn
            x = _eight_bits(x, max(abs(edge) for edge in site.range), kind)
        return np.asarray(x.astype(np.float64) @ held)
    return np.asarray(x.astype(np.float64) @ weight.astype(np.float64))


class Site(OpRun):
    """One product of the plan; which one is an attribute."""

    op_domain = "reference"
    known: ClassVar[list[tuple[SitePlan, Array, Plan]]] = []

    def _run(self, x: Array, index: int) -> tuple[Array]:
        site, weight, plan = self.known[index]
        return (product(x, weight, site, plan).astype(np.float32),)


def fake_quant_logits(source: Path, plan: Plan, feeds: Mapping[str, Array]) -> Array:
    """Logits of a floating-point decoder whose sites compute as the plan says; weights must be plain initializers."""
    graph = load_graph(source)
    Canonicalize()(graph)
    model = ir.to_proto(graph)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    sites = {site.node: site for site in plan.sites}
    Site.known = []
    for node in model.graph.node:
        site = sites.get(node.name)
        if site is not None:
            Site.known.append((site, weights[node.input[1]], plan))
            node.CopyFrom(
                onnx.helper.make_node(
                    "Site", [node.input[0]], list(node.output), domain="reference", index=len(Site.known) - 1
                )
            )
    assert len(Site.known) == len(plan.sites)
    model.opset_import.append(onnx.helper.make_opsetid("reference", 1))
    found = ReferenceEvaluator(model, new_ops=[Site]).run(["logits"], dict(feeds))
    return np.asarray(found[0])

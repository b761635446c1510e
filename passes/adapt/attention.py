"""Put ONNX's own Attention in the place of softmax(q k^T) v written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from spq_graph.passes.adapt.lift import LiftOpset, obstacle_to
from spq_graph.passes.base.conditions import CanonicalPass, promise
from spq_graph.passes.base.editor import drop_unused
from spq_graph.passes.base.heads import unrepeated
from spq_graph.passes.base.replace import replace_by
from spq_graph.passes.base.run import run
from spq_graph.passes.base.values import all_same, attribute_of, is_standard, made_by, scalar_of, sizes_of, weight_of

ATTENTION_OPSET = 23  # the first that has the operator
_SWAP_LAST = (0, 1, 3, 2)


class FuseAttention(CanonicalPass):
    """Replace softmax(scale * q k^T + mask) v by one Attention, which knows keys and values that several heads share.

    Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, equation 1) with grouped queries (Ainslie et al.,
    arXiv 2305.13245). Written out it takes up to eleven nodes, and copies keys and values once for each query head. The
    graph is lifted to opset 23, which has the operator; where it cannot be, or where something else reads the
    probabilities, or shapes do not tell that the operator takes the mask, all stays as it is.

    Rows whose every key is masked, which are those of padding, become zero instead of the mean of all values.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [core for node in model.graph if (core := _core_of(node)) is not None]
        if not found or obstacle_to(model, ATTENTION_OPSET) is not None:
            return ir.passes.PassResult(model, modified=False)
        run(model, [LiftOpset(ATTENTION_OPSET)])
        for core in found:
            _fuse(model, core)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """The graph has the opset of the operator, where it has the operator."""
        fused = any(node.op_type == "Attention" and is_standard(node) for node in model.graph)
        older = model.graph.opset_imports.get("", 1) < ATTENTION_OPSET
        promise("Attention stands in a graph of an older opset" if fused and older else None)


@dataclass(frozen=True, slots=True)
class _Core:
    """An attention written out.

    Attributes:
        mix: the product of probabilities and values, which is the last node.
        query: [batch, heads, length, size].
        key: [batch, heads that hold keys, keys, size].
        value: [batch, heads that hold keys, keys, size of a value].
        mask: added to the scores, [batch or 1, heads or 1, length, keys].
        scale: of the scores.
    """

    mix: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    scale: float


def _core_of(softmax: ir.Node) -> _Core | None:
    """The attention around a Softmax, where it is one that the operator can take over."""
    mix = _mixed_by(softmax)
    scores = softmax.inputs[0] if mix is not None else None
    if mix is None or scores is None or scores.dtype is not ir.DataType.FLOAT or len(sizes_of(scores)) != 4:
        return None
    for product, mask in _parts(scores):
        core = _products(mix, product, mask)
        if core is not None:
            return core
    return None


def _mixed_by(softmax: ir.Node) -> ir.Node | None:
    """The product that alone reads what a Softmax over the last axis returns."""
    if softmax.op_type != "Softmax" or not is_standard(softmax) or attribute_of(softmax, "axis", -1) not in (-1, 3):
        return None
    probabilities = softmax.outputs[0]
    uses = probabilities.uses()
    if len(uses) != 1 or probabilities.is_graph_output():
        return None
    (use,) = uses
    return use.node if use.idx == 0 and use.node.op_type == "MatMul" and is_standard(use.node) else None


def _parts(scores: ir.Value) -> Iterator[tuple[ir.Value, ir.Value | None]]:
    """Scores and mask, whichever of a sum is which."""
    total = made_by(scores, "Add")
    if total is None:
        yield scores, None
        return
    for product, mask in (total.inputs, total.inputs[::-1]):
        if product is not None and mask is not None and _takes(product, mask):
            yield product, mask


def _takes(product: ir.Value, mask: ir.Value) -> bool:
    """Whether the operator reads a mask as the sum did: it spreads the first two axes alone."""
    sums, added = sizes_of(product), sizes_of(mask)
    if len(sums) != 4 or len(added) != 4:
        return False
    return all(added[n] == 1 or all_same([added[n]], [sums[n]]) for n in (0, 1)) and all_same(added[2:], sums[2:])


def _products(mix: ir.Node, scores: ir.Value, mask: ir.Value | None) -> _Core | None:
    scores, scale = _unscaled(scores)
    product = made_by(scores, "MatMul")
    if product is None or product.inputs[0] is None or product.inputs[1] is None or mix.inputs[1] is None:
        return None
    query, of_query = _unscaled(product.inputs[0])
    key, of_key = _unscaled(product.inputs[1])
    turn = made_by(key, "Transpose")
    turned = turn.attributes.get("perm") if turn is not None else None
    if turn is None or turned is None or tuple(turned.as_ints()) != _SWAP_LAST or turn.inputs[0] is None:
        return None
    key, more_of_key = _unscaled(turn.inputs[0])
    value = mix.inputs[1]
    few = unrepeated(key), unrepeated(value)
    if few[0] is not None and few[1] is not None and sizes_of(few[0])[1] == sizes_of(few[1])[1]:
        key, value = few[0], few[1]
    if not _fit(query, key, value):
        return None
    return _Core(mix, query, key, value, mask, scale * of_query * of_key * more_of_key)


def _fit(query: ir.Value, key: ir.Value, value: ir.Value) -> bool:
    """Whether the operator takes these: of one batch, and with as many heads for the keys as for the values."""
    every = [sizes_of(v) for v in (query, key, value)]
    if any(len(dims) != 4 for dims in every) or any(weight_of(v) is not None for v in (query, key, value)):
        return False
    (batch, heads, *_), of_key, of_value = every
    one_batch = all_same([batch, batch], [of_key[0], of_value[0]])
    shared = of_key[1]
    counted = isinstance(heads, int) and isinstance(shared, int) and heads % shared == 0
    return one_batch and counted and of_value[1] == shared


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """What a value is a multiple of, and how many times it is that."""
    scale = 1.0
    while (node := value.producer()) is not None and node.op_type in ("Mul", "Div") and is_standard(node):
        numbers = [scalar_of(operand) for operand in node.inputs]
        if numbers[1] is not None and node.inputs[0] is not None:
            scale, value = (scale * numbers[1] if node.op_type == "Mul" else scale / numbers[1]), node.inputs[0]
        elif numbers[0] is not None and node.op_type == "Mul" and node.inputs[1] is not None:
            scale, value = scale * numbers[0], node.inputs[1]
        else:
            break
    return value, scale


def _fuse(model: ir.Model, core: _Core) -> None:
    """Put the operator in the place of the last product, with its name, metadata and output."""
    mix = core.mix
    before = [value for value in mix.inputs if value is not None]
    inputs = [core.query, core.key, core.value, *([core.mask] if core.mask is not None else [])]
    attention = ir.node("Attention", inputs, {"scale": core.scale}, name=mix.name, metadata_props=mix.metadata_props)
    replace_by(model.graph, mix, [attention])
    drop_unused(model, before)

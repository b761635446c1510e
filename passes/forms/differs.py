"""How what stands at a site differs from what its plan and its source ask for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds
from spq_graph.passes.forms.encode import Encoded, Storage, unlike
from spq_graph.passes.forms.lookup import LOOKUPS
from spq_graph.passes.forms.reading import level_of, precision_of
from spq_graph.passes.forms.registry import FORM_RULES
from spq_graph.passes.forms.rules import HALF_PRECISIONS, Wanted
from spq_graph.terms.form import Form
from spq_graph.terms.precision import Precision


def differs(node: ir.Node, wanted: Wanted) -> str | None:
    """How a site's product differs from its plan, in words; None where it does not.

    What stands around the product, and what its weight holds, is for `misplaced` and `differing_weight`.
    """
    found, planned = precision_of(node), _read_as(wanted)
    # What is to be computed in fp32 may be stored in half: its weights are widened exactly.
    as_good = planned is Precision.FP32 and found in HALF_PRECISIONS.values()
    if found is not planned and not as_good:
        level = f" (accuracy_level {level_of(node)})" if node.op_type == "MatMulNBits" else ""
        return f"planned {wanted.site.precision}, found {found}{level}"
    if planned.needs_range and wanted.site.range is None:
        return "the plan holds no range"
    return None if as_good or wanted.form in LOOKUPS else FORM_RULES[wanted.form].differs(node, wanted)


def _read_as(wanted: Wanted) -> Precision:
    """What a file says of a precision that was written in a form.

    Every integer grid lies in the same container. MatMulNBits reads as what it is on a CPU, though on other devices its
    kernel does not heed the level.
    """
    if wanted.site.precision.bits is not None:
        return Precision.INT8
    by_block = wanted.form is Form.NBITS
    return Precision.W8A8_BLOCK if by_block else wanted.site.precision


def differing_weight(node: ir.Node, wanted: Wanted, operand: Operand) -> str | None:
    """How what a site's weight is stored as differs from the source's weight and the recipe, in words.

    Args:
        node: the product.
        wanted: what its plan asks for.
        operand: the source's weight.
    """
    rules = FORM_RULES[wanted.form]
    holder = rules.holder(node)
    place = 1 if holder is node else 0
    codes = holder.inputs[place] if len(holder.inputs) > place else None
    storage = rules.storage(wanted, operand)
    return unlike_stored(codes, rules.scales(node), storage, lambda held: rules.expected_scales(held, wanted))


def unlike_stored(
    codes: ir.Value | None,
    scales: ir.Value | None,
    storage: Storage,
    expected_of: Callable[[Storage], npt.NDArray[np.float32] | None],
) -> str | None:
    """How constants differ from the weight that they are to stand for, in words.

    Args:
        codes: the constant with the codes.
        scales: the one with the scales.
        storage: how the weight is to be stored.
        expected_of: what the scales are to be; None where there are to be none.
    """
    held = codes.const_value if codes is not None else None
    if held is None or held.dtype is not storage.dtype or tuple(held.shape.numpy()) != storage.shape:
        return f"its weight is not held as {storage.words}"
    if (text := unlike(storage, held)) is not None:
        return text
    storage = held.storage if isinstance(held, Encoded) else storage
    expected = expected_of(storage)
    if expected is None:
        return None
    found = scales.const_value if scales is not None else None
    if found is None or tuple(found.shape.numpy()) != expected.shape:
        return f"its weight has no scales of shape {list(expected.shape)}"
    if not holds(scales, ir.Tensor(expected)):
        return "its weight has other scales than the source's weight and the recipe ask for"
    return None

"""Decoders in another floating-point type, with some of their weights made larger or smaller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_NUMPY = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16, TensorProto.FLOAT: np.float32}


def rewritten(
    path: Path, *, into: int = TensorProto.FLOAT16, factors: Mapping[str, float] = MappingProxyType({})
) -> Path:
    """Rewrite a decoder that `write_decoder` wrote, in place.

    Args:
        path: the .onnx file.
        into: what everything in it is computed in; its logits are float32 where this cannot be fed.
        factors: of weights, by name.
    """
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor) * np.float32(factors.get(tensor.name, 1.0))
            tensor.CopyFrom(numpy_helper.from_array(array.astype(_NUMPY[into]), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = into
    del model.graph.value_info[:]
    if into == TensorProto.BFLOAT16:
        model.graph.node[-1].output[0] = "narrow"
        model.graph.node.append(helper.make_node("Cast", ["narrow"], ["logits"], name="wide", to=TensorProto.FLOAT))
    else:
        model.graph.output[0].type.tensor_type.elem_type = into
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)
    return path

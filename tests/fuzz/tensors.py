"""What can be wrong with constants: their types, shapes, bytes and places."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.places import HUGE, NAMES, TYPES, Rng, nodes_of, some_tensor, values_of


def tensor_dims(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = some_tensor(rng, model)
    if len(tensor.dims) and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(HUGE)
    elif rng.random() < 0.5:
        tensor.dims[:] = list(tensor.dims)[::-1]
    else:
        tensor.dims.extend([rng.choice(HUGE)])


def tensor_type(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = some_tensor(rng, model)
    tensor.data_type = rng.choice((*TYPES, 99, -1))
    if rng.random() < 0.5 and tensor.data_type == TensorProto.STRING:
        count = min(abs(int(np.prod([float(d) for d in tensor.dims] or [1.0]))), 5000)
        tensor.ClearField("raw_data")
        tensor.string_data.extend([b"a"] * count)


def tensor_data(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = some_tensor(rng, model)
    way = rng.randrange(5)
    if way == 0:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif way == 1:
        tensor.ClearField("raw_data")
    elif way == 2:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([rng.choice((0.0, 1.0, float("nan"), 1e39))] * rng.randint(1, 9))
    elif way == 3:
        tensor.int64_data.extend([rng.choice(HUGE)] * rng.randint(1, 9))
    else:
        kind = np.float32 if tensor.data_type == TensorProto.FLOAT else np.uint8
        array = np.frombuffer(tensor.raw_data, kind).copy() if len(tensor.raw_data) % 4 == 0 else np.zeros(0, kind)
        if array.size:
            array[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, 3e38)) if kind is np.float32 else 255
            tensor.raw_data = array.tobytes()


def odd_number(rng: Rng, model: onnx.ModelProto) -> None:
    """One number of a weight, which stays as large as it was."""
    tensor = some_tensor(rng, model)
    if tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) > 3:
        array = np.frombuffer(tensor.raw_data, np.float32).copy()
        array[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0, 1e6, 7e4))
        tensor.raw_data = array.tobytes()


def tensor_name(rng: Rng, model: onnx.ModelProto) -> None:
    some_tensor(rng, model).name = rng.choice((*NAMES, *values_of(model)))


def external(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = some_tensor(rng, model)
    tensor.data_location = TensorProto.EXTERNAL
    if not tensor.external_data or rng.random() < 0.3:
        tensor.ClearField("raw_data")
        places = ("model.onnx", "model.onnx.data", "nothing", "", ".", "..", "sub/x", "\x00", "a" * 300, *NAMES)
        tensor.external_data.add(key="location", value=rng.choice(places))
    numbers = (*map(str, HUGE), "x", "1e3", "", " 4", "٣", "4096", "9" * 5000)
    entry = rng.choice(list(tensor.external_data))
    if entry.key == "location":
        tensor.external_data.add(key=rng.choice(("offset", "length", "checksum")), value=rng.choice(numbers))
    else:
        entry.value = rng.choice(numbers)


def drop_tensor(rng: Rng, model: onnx.ModelProto) -> None:
    if len(model.graph.initializer):
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def copy_tensor(rng: Rng, model: onnx.ModelProto) -> None:
    made = onnx.TensorProto()
    made.CopyFrom(some_tensor(rng, model))
    if rng.random() < 0.5:
        made.name += ".copy"
    model.graph.initializer.append(made)


def sparse(rng: Rng, model: onnx.ModelProto) -> None:
    if not len(model.graph.initializer):
        return
    index = rng.randrange(len(model.graph.initializer))
    name = model.graph.initializer[index].name
    made = model.graph.sparse_initializer.add(dims=[rng.choice((32, *HUGE)), rng.choice((32, 48, *HUGE))])
    made.values.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), name))
    made.indices.CopyFrom(numpy_helper.from_array(np.array(rng.choices((0, 1, 31, *HUGE), k=rng.choice((2, 3))))))
    del model.graph.initializer[index]


def grow(rng: Rng, model: onnx.ModelProto) -> None:
    """A weight that would be enormous if somebody computed it."""
    products = [n for n in nodes_of(model) if n.op_type in ("MatMul", "Gemm") and len(n.input) > 1]
    if not products:
        return
    node = rng.choice(products)
    size = rng.choice((1 << 12, 1 << 20, 1 << 40))
    model.graph.initializer.append(numpy_helper.from_array(np.array([size, size]), "grown.shape"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([[1.0]], np.float32), "grown.one"))
    op_type = rng.choice(("Expand", "Tile", "ConstantOfShape"))
    inputs = ["grown.shape"] if op_type == "ConstantOfShape" else ["grown.one", "grown.shape"]
    model.graph.node.insert(0, helper.make_node(op_type, inputs, ["grown"], name="grown"))
    node.input[1] = "grown"


CHANGES = (
    *(tensor_dims, tensor_dims, tensor_type, tensor_data, tensor_name, external, external, drop_tensor, copy_tensor),
    *(sparse, grow),
)

"""What can be wrong with an ONNX file: its structure, and its bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

Rng = random.Random
HUGE = (-1, 0, 1, 2, 7, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, -(1 << 63), (1 << 63) - 1)
NAMES = (
    "",
    "x" * 70_000,
    "\x1b[31m\x1b]0;title\x07red",
    "line\nbreak\r\ttab",
    "../../etc/passwd",
    "/etc/passwd",
    "\x00nul",
    "[bold]markup[/]",
    "\u202egnp.exe",
    "\U0001d518\U0001d52b çødé",
    "%s%n{0}{x}$(id)",
    "input_ids",
    "logits",
)
_OPERATORS = (
    *("Add", "Cast", "Clip", "Concat", "Constant", "DequantizeLinear", "Div", "Einsum", "Expand", "Gather", "Gemm"),
    *("Identity", "If", "Loop", "MatMul", "Mul", "Pow", "QuantizeLinear", "ReduceMean", "Reshape", "Scan", "Sigmoid"),
    *("Slice", "Softmax", "Split", "Squeeze", "Sum", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where", "Nonsense"),
    *("MatMulNBits", "FusedMatMul", "FusedGemm", "BiasGelu", "FastGelu", "QuickGelu", "MoE", "QMoE", "Attention"),
    *("GroupQueryAttention", "MultiHeadAttention", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeLinear"),
    *(
        "Sqrt",
        "Neg",
        "Gelu",
        "Swish",
        "Relu",
        "Erf",
        "Exp",
        "RMSNormalization",
        "LayerNormalization",
        "ConstantOfShape",
    ),
    *("Fp8MatMul", "GatherBlockQuantized", "Sequence", "SequenceConstruct", "Optional", "StringConcat"),
)
_DOMAINS = ("", "ai.onnx", "com.microsoft", "local", "spq", "ai.onnx.ml", "x\x1b[0m")
_TYPES = tuple(TensorProto.DataType.values())


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    found = [node for graph in _graphs(model.graph) for node in graph.node]
    return found + [node for function in model.functions for node in function.node]


def _values(model: onnx.ModelProto) -> list[str]:
    return [name for node in _nodes(model) for name in (*node.input, *node.output)] or [""]


def _node(rng: Rng, model: onnx.ModelProto) -> onnx.NodeProto:
    nodes = _nodes(model)
    return rng.choice(nodes) if nodes else model.graph.node.add()


def _tensor(rng: Rng, model: onnx.ModelProto) -> onnx.TensorProto:
    tensors = [tensor for graph in _graphs(model.graph) for tensor in graph.initializer]
    tensors += [a.t for node in _nodes(model) for a in node.attribute if a.HasField("t")]
    return rng.choice(tensors) if tensors else model.graph.initializer.add()


def _drop_node(rng: Rng, model: onnx.ModelProto) -> None:
    holder = rng.choice([*_graphs(model.graph), *model.functions])
    if len(holder.node):
        del holder.node[rng.randrange(len(holder.node))]


def _copy_node(rng: Rng, model: onnx.ModelProto) -> None:
    holder = rng.choice([*_graphs(model.graph), *model.functions])
    if len(holder.node):
        made = onnx.NodeProto()
        made.CopyFrom(rng.choice(list(holder.node)))
        if rng.random() < 0.7 and len(made.output):
            made.output[0] = f"copy.{rng.randrange(1000)}"
        holder.node.insert(rng.randrange(len(holder.node) + 1), made)


def _retype_node(rng: Rng, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    node.op_type = rng.choice((*_OPERATORS, *(n.op_type for n in _nodes(model))))
    if rng.random() < 0.4:
        node.domain = rng.choice(_DOMAINS)


def _domain(rng: Rng, model: onnx.ModelProto) -> None:
    _node(rng, model).domain = rng.choice(_DOMAINS)


def _rename_node(rng: Rng, model: onnx.ModelProto) -> None:
    _node(rng, model).name = rng.choice(NAMES)


def _rename_value(rng: Rng, model: onnx.ModelProto) -> None:
    """Everywhere, so that the graph stays whole."""
    old, new = rng.choice(_values(model)), rng.choice(NAMES)
    for node in _nodes(model):
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        if value.name == old:
            value.name = new


def _drop_inputs(rng: Rng, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    del node.input[rng.randrange(len(node.input) + 1) :]


def _drop_outputs(rng: Rng, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    del node.output[rng.randrange(len(node.output) + 1) :]


def _swap_input(rng: Rng, model: onnx.ModelProto) -> None:
    """Another value in place of one, which may make a cycle, or nothing."""
    node = _node(rng, model)
    if len(node.input):
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "nobody", *_values(model)))


def _more_ends(rng: Rng, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    (node.input if rng.random() < 0.5 else node.output).extend(
        rng.choices(("", "extra", *_values(model)), k=rng.randint(1, 4))
    )


def _drop_attribute(rng: Rng, model: onnx.ModelProto) -> None:
    node = rng.choice([n for n in _nodes(model) if len(n.attribute)] or [_node(rng, model)])
    if len(node.attribute):
        del node.attribute[rng.randrange(len(node.attribute))]


def _attribute(rng: Rng, model: onnx.ModelProto) -> None:
    """An attribute of another value, another type, or one that says another type than it has."""
    node = rng.choice([n for n in _nodes(model) if len(n.attribute)] or [_node(rng, model)])
    names = ["axis", "to", "perm", "alpha", "value", "equation", "bits", "K", "N", "block_size", "transB", "num_heads"]
    name = rng.choice([*names, *(a.name for a in node.attribute)])
    made = _made_attribute(rng, name, model)
    kept = [a for a in node.attribute if a.name != name or rng.random() < 0.05]
    del node.attribute[:]
    node.attribute.extend([*kept, made])


def _made_attribute(rng: Rng, name: str, model: onnx.ModelProto) -> onnx.AttributeProto:
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.initializer[:]
    values: list[Any] = [
        rng.choice(HUGE),
        [rng.choice(HUGE) for _ in range(rng.randint(1, 5))],
        float("nan"),
        1.5,
        b"\xff\xfe",
        rng.choice(NAMES),
        ["a", "b"],
        numpy_helper.from_array(np.zeros(rng.choice([(), (0,), (2, 2)]), np.float32)),
        graph if rng.random() < 0.2 else 3,
    ]
    made = helper.make_attribute(name, rng.choice(values))
    if rng.random() < 0.15:
        made.type = rng.choice(AttributeProto.AttributeType.values())
    if rng.random() < 0.05:
        made.ref_attr_name = "outer"
    return made


def _tensor_dims(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    if len(tensor.dims) and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(HUGE)
    elif rng.random() < 0.5:
        tensor.dims[:] = list(tensor.dims)[::-1]
    else:
        tensor.dims.extend([rng.choice(HUGE)])


def _tensor_type(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    tensor.data_type = rng.choice((*_TYPES, 99, -1))
    if rng.random() < 0.5 and tensor.data_type == TensorProto.STRING:
        count = min(abs(int(np.prod([float(d) for d in tensor.dims] or [1.0]))), 5000)
        tensor.ClearField("raw_data")
        tensor.string_data.extend([b"a"] * count)


def _tensor_data(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
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


def _tensor_name(rng: Rng, model: onnx.ModelProto) -> None:
    _tensor(rng, model).name = rng.choice((*NAMES, *_values(model)))


def _external(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
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


def _drop_tensor(rng: Rng, model: onnx.ModelProto) -> None:
    if len(model.graph.initializer):
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def _copy_tensor(rng: Rng, model: onnx.ModelProto) -> None:
    made = onnx.TensorProto()
    made.CopyFrom(_tensor(rng, model))
    if rng.random() < 0.5:
        made.name += ".copy"
    model.graph.initializer.append(made)


def _sparse(rng: Rng, model: onnx.ModelProto) -> None:
    if not len(model.graph.initializer):
        return
    index = rng.randrange(len(model.graph.initializer))
    name = model.graph.initializer[index].name
    made = model.graph.sparse_initializer.add(dims=[rng.choice((32, *HUGE)), rng.choice((32, 48, *HUGE))])
    made.values.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), name))
    made.indices.CopyFrom(numpy_helper.from_array(np.array(rng.choices((0, 1, 31, *HUGE), k=rng.choice((2, 3))))))
    del model.graph.initializer[index]


def _ends(rng: Rng, model: onnx.ModelProto) -> None:
    """Inputs, outputs and what is said of values: their types, their shapes, their number."""
    values = rng.choice((model.graph.input, model.graph.output, model.graph.value_info))
    if not len(values):
        return
    index = rng.randrange(len(values))
    value = values[index]
    way = rng.randrange(7)
    if way == 0:
        del values[index]
    elif way == 1:
        value.name = rng.choice((*NAMES, *_values(model)))
    elif way == 2:
        value.type.tensor_type.elem_type = rng.choice((*_TYPES, 99))
    elif way == 3:
        value.ClearField("type")
    elif way == 4:
        value.type.sequence_type.elem_type.tensor_type.elem_type = rng.choice(_TYPES)
    elif way == 5:
        del value.type.tensor_type.shape.dim[rng.randrange(len(value.type.tensor_type.shape.dim) + 1) :]
    for dim in value.type.tensor_type.shape.dim if way == 6 else ():
        if rng.random() < 0.5:
            dim.dim_value = rng.choice(HUGE)
        else:
            dim.dim_param = rng.choice(NAMES)


def _more_inputs(rng: Rng, model: onnx.ModelProto) -> None:
    name = rng.choice(("past_key_values.0.key", "inputs_embeds", "position_ids", "mask", "cache", *_values(model)))
    shape = [rng.choice((None, "batch_size", *HUGE)) for _ in range(rng.randint(0, 5))]
    model.graph.input.append(helper.make_tensor_value_info(name, rng.choice(_TYPES[1:]), shape))


def _opsets(rng: Rng, model: onnx.ModelProto) -> None:
    way = rng.randrange(4)
    if way == 0:
        del model.opset_import[:]
    elif way == 1:
        model.opset_import.add(domain=rng.choice(_DOMAINS), version=rng.choice(HUGE))
    elif way == 2 and len(model.opset_import):
        rng.choice(list(model.opset_import)).version = rng.choice((*HUGE, 6, 11, 13, 17, 25, 1000))
    else:
        model.ir_version = rng.choice((*HUGE, 3, 4, 7, 99))


def _functions(rng: Rng, model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", rng.choice((21, 13, 1, 99))), helper.make_opsetid("local", 1)]
    callee = rng.choice(("F", "G", "Sigmoid", "Add", "Silu"))
    body = [helper.make_node(callee, ["x"], ["y"], domain=rng.choice(("local", "")))]
    name, ends = rng.choice(("F", "G", "Sigmoid", "MatMul")), rng.choice((["x"], [], ["x", "x"], ["x", "z"]))
    attributes = rng.choice(([], ["alpha"]))
    made = helper.make_function(
        rng.choice(("local", "")), name, ends, rng.choice((["y"], [])), body, opsets, attributes
    )
    model.functions.append(made)
    model.opset_import.append(helper.make_opsetid("local", 1))
    node = _node(rng, model)
    if rng.random() < 0.8:
        node.op_type, node.domain = name, made.domain


def _nested(rng: Rng, model: onnx.ModelProto) -> None:
    """Subgraphs in subgraphs."""
    inner = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["deep"])], "deep", [], [])
    for level in range(rng.choice((1, 5, 12, 20))):
        node = helper.make_node(
            "If", ["input_ids"], [f"deep.{level}"], then_branch=inner, else_branch=onnx.GraphProto()
        )
        inner = helper.make_graph([node], f"level.{level}", [], [])
    model.graph.node.append(helper.make_node("If", ["input_ids"], ["of_if"], then_branch=inner, else_branch=inner))


def _metadata(rng: Rng, model: onnx.ModelProto) -> None:
    """What we and exporters leave in nodes."""
    node = _node(rng, model)
    key = rng.choice(("pkg.torch.onnx.name_scopes", "spq_graph.precision", "spq_graph.reason", "spq_graph.added"))
    values = ("[" * 3000, "['', 'a', 3]", "int8", "", "\x1b[31m", "9" * 5000, "[1, 2, 3]", "['x'] * 999999999", *NAMES)
    node.metadata_props.add(key=key, value=rng.choice(values))


def _chain(rng: Rng, model: onnx.ModelProto) -> None:
    """Many nodes, one behind the other, in front of what somebody reads."""
    node = _node(rng, model)
    if not len(node.input):
        return
    place, op_type = rng.randrange(len(node.input)), rng.choice(("Identity", "Mul", "Transpose", "Cast", "Add", "Neg"))
    value, count = node.input[place], rng.choice((3, 40, 70, 2000))
    for step in range(count):
        inputs = [value, value] if op_type in ("Mul", "Add") else [value]
        more = {"to": 1} if op_type == "Cast" else {}
        model.graph.node.append(helper.make_node(op_type, inputs, [f"chain.{count}.{step}"], **more))
        value = f"chain.{count}.{step}"
    node.input[place] = value


def _grow(rng: Rng, model: onnx.ModelProto) -> None:
    """A weight that would be enormous if somebody computed it."""
    products = [n for n in _nodes(model) if n.op_type in ("MatMul", "Gemm") and len(n.input) > 1]
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


STRUCTURAL: tuple[Callable[[Rng, onnx.ModelProto], None], ...] = (
    *(_drop_node, _copy_node, _retype_node, _retype_node, _domain, _rename_node, _rename_value, _drop_inputs),
    *(_drop_inputs, _drop_outputs, _swap_input, _more_ends, _drop_attribute, _drop_attribute, _attribute, _attribute),
    *(_tensor_dims, _tensor_dims, _tensor_type, _tensor_data, _tensor_name, _external, _external, _drop_tensor),
    *(_copy_tensor, _sparse, _ends, _ends, _more_inputs, _opsets, _functions, _functions, _nested, _metadata, _chain),
    *(_grow,),
)


def mutate(rng: Rng, model: onnx.ModelProto) -> list[str]:
    """Change a model in place, in one to four ways; returns their names."""
    done = []
    for change in rng.choices(STRUCTURAL, k=rng.choice((1, 1, 1, 2, 2, 3, 4))):
        change(rng, model)
        done.append(change.__name__.removeprefix("_"))
    return done


def damage(rng: Rng, content: bytes, most: int = 8) -> bytes:
    """Flip, cut, insert, repeat or overwrite bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(data) + 1)
        way = rng.randrange(6)
        if way == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1 and rng.random() < 0.3:
            del data[at:]
        elif way == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 16))
        elif way == 3:
            del data[at : at + rng.randint(1, 64)]
        elif way == 4:
            data[at:at] = data[at : at + rng.randint(1, 200)]
        elif at < len(data):
            data[at] = rng.choice((0, 0xFF, 0x7F, 0x80, 0x1B, 0xC3))
    return bytes(data)


def nested(levels: int) -> bytes:
    """A model whose graph has a node with a graph that has a node, and so on, as deep as no parser goes."""
    content = b""
    for _ in range(levels):
        for number in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            content = _message(number, content)
    return b"\x08\x0a" + _message(7, content)


def _message(number: int, content: bytes) -> bytes:
    length, size = len(content), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content

"""What can be wrong with an ONNX file: its structure, and its bytes."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import helper

from tests.fuzz import nodes, tensors
from tests.fuzz.places import DOMAINS, HUGE, NAMES, TYPES, Rng, some_node, values_of


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
        value.name = rng.choice((*NAMES, *values_of(model)))
    elif way == 2:
        value.type.tensor_type.elem_type = rng.choice((*TYPES, 99))
    elif way == 3:
        value.ClearField("type")
    elif way == 4:
        value.type.sequence_type.elem_type.tensor_type.elem_type = rng.choice(TYPES)
    elif way == 5:
        del value.type.tensor_type.shape.dim[rng.randrange(len(value.type.tensor_type.shape.dim) + 1) :]
    for dim in value.type.tensor_type.shape.dim if way == 6 else ():
        if rng.random() < 0.5:
            dim.dim_value = rng.choice(HUGE)
        else:
            dim.dim_param = rng.choice(NAMES)


def _said_of_values(rng: Rng, model: onnx.ModelProto) -> None:
    """Of values between nodes: nothing, or another rank or name of a size."""
    if rng.random() < 0.5 or not len(model.graph.value_info):
        del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output) if rng.random() < 0.5 else ():
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_param = rng.choice(("", *NAMES[2:6], "N"))


def _unused_function(rng: Rng, model: onnx.ModelProto) -> None:
    node = helper.make_node(rng.choice(("Relu", "Nonsense")), ["x"], ["y"])
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("unused", rng.choice(("F", *NAMES[2:5])), ["x"], ["y"], [node], opsets))


def _more_opsets(rng: Rng, model: onnx.ModelProto) -> None:
    model.opset_import.add(domain=rng.choice(("ai.onnx.ml", "acme", *NAMES[2:5])), version=rng.choice((1, 2, 99)))


def _more_inputs(rng: Rng, model: onnx.ModelProto) -> None:
    name = rng.choice(("past_key_values.0.key", "inputs_embeds", "position_ids", "mask", "cache", *values_of(model)))
    shape = [rng.choice((None, "batch_size", *HUGE)) for _ in range(rng.randint(0, 5))]
    model.graph.input.append(helper.make_tensor_value_info(name, rng.choice(TYPES[1:]), shape))


def _opsets(rng: Rng, model: onnx.ModelProto) -> None:
    way = rng.randrange(4)
    if way == 0:
        del model.opset_import[:]
    elif way == 1:
        model.opset_import.add(domain=rng.choice(DOMAINS), version=rng.choice(HUGE))
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
    node = some_node(rng, model)
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


STRUCTURAL: tuple[Callable[[Rng, onnx.ModelProto], None], ...] = (
    *nodes.CHANGES,
    *tensors.CHANGES,
    *(_ends, _ends, _more_inputs, _opsets, _functions, _functions, _nested),
)


# What most graphs survive, so that what is behind the reading is reached too.
GENTLE: tuple[Callable[[Rng, onnx.ModelProto], None], ...] = (
    *(nodes.rename_node, nodes.rename_value, nodes.metadata, nodes.chain, nodes.copy_beside, tensors.odd_number),
    *(tensors.copy_tensor, _said_of_values, _unused_function, _more_opsets),
)


def mutate(rng: Rng, model: onnx.ModelProto) -> list[str]:
    """Change a model in place, in one to four ways; returns their names."""
    done = []
    for change in rng.choices(GENTLE if rng.random() < 0.4 else STRUCTURAL, k=rng.choice((1, 1, 1, 2, 2, 3, 4))):
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

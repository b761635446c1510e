"""What can be wrong with nodes: their operators, names, ends and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from tests.fuzz.places import DOMAINS, HUGE, NAMES, Rng, graphs_of, nodes_of, some_node, values_of

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


def drop_node(rng: Rng, model: onnx.ModelProto) -> None:
    holder = rng.choice([*graphs_of(model.graph), *model.functions])
    if len(holder.node):
        del holder.node[rng.randrange(len(holder.node))]


def copy_node(rng: Rng, model: onnx.ModelProto) -> None:
    holder = rng.choice([*graphs_of(model.graph), *model.functions])
    if len(holder.node):
        made = onnx.NodeProto()
        made.CopyFrom(rng.choice(list(holder.node)))
        if rng.random() < 0.7 and len(made.output):
            made.output[0] = f"copy.{rng.randrange(1000)}"
        holder.node.insert(rng.randrange(len(holder.node) + 1), made)


def copy_beside(rng: Rng, model: onnx.ModelProto) -> None:
    """A node again, whose results nobody reads."""
    index = rng.randrange(len(model.graph.node))
    made = onnx.NodeProto()
    made.CopyFrom(model.graph.node[index])
    made.output[:] = [f"beside.{rng.randrange(1 << 30)}" for _ in made.output]
    model.graph.node.insert(index + 1, made)


def retype_node(rng: Rng, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    node.op_type = rng.choice((*_OPERATORS, *(n.op_type for n in nodes_of(model))))
    if rng.random() < 0.4:
        node.domain = rng.choice(DOMAINS)


def another_domain(rng: Rng, model: onnx.ModelProto) -> None:
    some_node(rng, model).domain = rng.choice(DOMAINS)


def rename_node(rng: Rng, model: onnx.ModelProto) -> None:
    some_node(rng, model).name = rng.choice(NAMES)


def rename_value(rng: Rng, model: onnx.ModelProto) -> None:
    """Everywhere, so that the graph stays whole."""
    old, new = rng.choice(values_of(model)), rng.choice(NAMES)
    for node in nodes_of(model):
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        if value.name == old:
            value.name = new


def drop_inputs(rng: Rng, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    del node.input[rng.randrange(len(node.input) + 1) :]


def drop_outputs(rng: Rng, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    del node.output[rng.randrange(len(node.output) + 1) :]


def swap_input(rng: Rng, model: onnx.ModelProto) -> None:
    """Another value in place of one, which may make a cycle, or nothing."""
    node = some_node(rng, model)
    if len(node.input):
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "nobody", *values_of(model)))


def more_ends(rng: Rng, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    (node.input if rng.random() < 0.5 else node.output).extend(
        rng.choices(("", "extra", *values_of(model)), k=rng.randint(1, 4))
    )


def drop_attribute(rng: Rng, model: onnx.ModelProto) -> None:
    node = rng.choice([n for n in nodes_of(model) if len(n.attribute)] or [some_node(rng, model)])
    if len(node.attribute):
        del node.attribute[rng.randrange(len(node.attribute))]


def another_attribute(rng: Rng, model: onnx.ModelProto) -> None:
    """An attribute of another value, another type, or one that says another type than it has."""
    node = rng.choice([n for n in nodes_of(model) if len(n.attribute)] or [some_node(rng, model)])
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


def metadata(rng: Rng, model: onnx.ModelProto) -> None:
    """What we and exporters leave in nodes."""
    node = some_node(rng, model)
    key = rng.choice(("pkg.torch.onnx.name_scopes", "spq_graph.precision", "spq_graph.reason", "spq_graph.added"))
    values = ("[" * 3000, "['', 'a', 3]", "int8", "", "\x1b[31m", "9" * 5000, "[1, 2, 3]", "['x'] * 999999999", *NAMES)
    node.metadata_props.add(key=key, value=rng.choice(values))


def chain(rng: Rng, model: onnx.ModelProto) -> None:
    """Many nodes, one behind the other, in front of what somebody reads."""
    node = some_node(rng, model)
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


CHANGES = (
    *(
        drop_node,
        copy_node,
        retype_node,
        retype_node,
        another_domain,
        rename_node,
        rename_value,
        drop_inputs,
        drop_inputs,
    ),
    *(
        drop_outputs,
        swap_input,
        more_ends,
        drop_attribute,
        drop_attribute,
        another_attribute,
        another_attribute,
        metadata,
        chain,
    ),
)

"""Quantizing an `.onnx` file with `.npz` calibration needs neither torch nor transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, WIDTH, INNER, LAYERS = 32, 16, 24, 2

# Read by every Python that starts with this folder on its path, the command's own children included.
SITECUSTOMIZE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""

IMPORT_ALL = """
import importlib, pkgutil, spq_graph

names = [module.name for module in pkgutil.walk_packages(spq_graph.__path__, "spq_graph.")]
wanting = ("spq_graph.models", "spq_graph.runtime.harness")  # torch, and lm-evaluation-harness, which is an extra
needed = [n for n in names if not n.startswith(wanting) and not n.endswith("__main__")]
print(*(importlib.import_module(name).__name__ for name in needed))
"""


class Builder:
    """Collects nodes and weights of a graph whose values are named after the node that makes them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        values = self.rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def linear(self, name: str, x: str, inner: int, outer: int) -> str:
        return self.node("MatMul", name, x, self.weight(f"{name}.weight", inner, outer))

    def attention(self, name: str, x: str) -> str:
        """One head, without a mask: what is tested here does not depend on it."""
        q, k, v = (self.linear(f"{name}.{part}_proj", x, WIDTH, WIDTH) for part in "qkv")
        scores = self.node("MatMul", f"{name}.scores", q, self.node("Transpose", f"{name}.k", k, perm=[0, 2, 1]))
        mixed = self.node("MatMul", f"{name}.mix", self.node("Softmax", f"{name}.softmax", scores, axis=-1), v)
        return self.linear(f"{name}.o_proj", mixed, WIDTH, WIDTH)

    def swiglu(self, name: str, x: str) -> str:
        gate, up = (self.linear(f"{name}.{part}_proj", x, WIDTH, INNER) for part in ("gate", "up"))
        silu = self.node("Mul", f"{name}.silu", gate, self.node("Sigmoid", f"{name}.sigmoid", gate))
        return self.linear(f"{name}.down_proj", self.node("Mul", f"{name}.product", silu, up), INNER, WIDTH)


def tiny_decoder() -> onnx.ModelProto:
    """Two layers of attention and SwiGLU over 32 tokens: float32 logits [batch, sequence, 32]."""
    builder = Builder(seed=0)
    x = builder.node("Gather", "embed", builder.weight("embed.weight", VOCABULARY, WIDTH), "input_ids")
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        x = builder.node("Add", f"{layer}.add_1", x, builder.attention(f"{layer}.self_attn", x))
        x = builder.node("Add", f"{layer}.add_2", x, builder.swiglu(f"{layer}.mlp", x))
    builder.nodes.append(
        helper.make_node("MatMul", [x, builder.weight("lm_head.weight", WIDTH, VOCABULARY)], ["logits"], name="lm_head")
    )
    shape = ["batch_size", "sequence_length"]
    graph = helper.make_graph(
        builder.nodes,
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, VOCABULARY])],
        builder.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which importing torch or transformers fails."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def python(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_the_block_holds(without_torch: dict[str, str], name: str) -> None:
    refused = python(["-c", f"import {name}"], without_torch)
    assert refused.returncode != 0
    assert f"{name} is blocked" in refused.stderr


def test_everything_but_models_imports(without_torch: dict[str, str]) -> None:
    done = python(["-c", IMPORT_ALL], without_torch)
    assert done.returncode == 0, done.stderr
    assert {"spq_graph.documents.plan", "spq_graph.passes.find.identify", "spq_graph.runtime.sessions.session"} <= set(
        done.stdout.split()
    )


def test_quantize_needs_neither_torch_nor_transformers(without_torch: dict[str, str], tmp_path: Path) -> None:
    model, ids, out = tmp_path / "tiny.onnx", tmp_path / "ids.npz", tmp_path / "out"
    onnx.save(tiny_decoder(), model)
    np.savez(ids, input_ids=np.random.default_rng(0).integers(0, VOCABULARY, (8, 16), dtype=np.int64))
    source = model.read_bytes()

    command = ["-m", "spq_graph", "quantize", str(model), "--calibration", str(ids), "-o", str(out), "--no-eval"]
    done = python(command, without_torch)

    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    down = {site["key"]: site for site in plan["sites"] if site["role"] == "glu_down"}
    assert len(down) == LAYERS, [site["key"] for site in plan["sites"]]
    assert "int8" in {site["precision"] for site in plan["sites"]}
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(out / "model.onnx").graph.node}
    assert model.read_bytes() == source

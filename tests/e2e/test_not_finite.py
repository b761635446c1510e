"""Numbers that are none, and float16 that is too small: named by site, with the size seen and the limit, status 3."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.command import spq
from tests.support.decoders import random_ids, write_decoder, write_ids
from tests.support.halves import rewritten

UP, DOWN, HEAD = "layers.1.mlp.up_proj", "layers.1.mlp.down_proj", "lm_head"
LARGE = {f"{UP}.weight": 20_000.0, f"{DOWN}.weight": 1 / 20_000.0}
# Logits alone pass what float16 holds.
LOUD = {f"{HEAD}.weight": 20_000.0}


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    return write_ids(tmp_path / "ids.npz")


def decoder(folder: Path, name: str = "model", **keywords: Any) -> Path:
    return rewritten(write_decoder(folder / f"{name}.onnx", layers=2), **keywords)


def quantize(model: Path, ids: Path, *more: object) -> list[object]:
    return ["quantize", model, "-o", model.parent / "out", "--calibration", ids, "--window", 32, *more]


def told(*arguments: object) -> str:
    """What is said by a command that ends with status 3, writes no OUT, and prints no result."""
    result = spq(*arguments)
    assert result.code == 3, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    return " ".join(result.err.split())


def largest(model: Path, value: str, ids: Path) -> float:
    """Largest absolute number of a value, as ONNX Runtime computes it in float32."""
    graph = onnx.load(model)
    graph.graph.node.append(helper.make_node("Cast", [value], ["seen"], name="seen", to=TensorProto.FLOAT))
    graph.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, None))
    rows = np.load(ids)["input_ids"]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (seen,) = session.run(["seen"], {"input_ids": rows, "attention_mask": np.ones_like(rows)})
    return float(np.abs(seen).max())


@pytest.mark.parametrize(
    "more",
    [
        ["--no-eval"],
        ["--no-eval", "--keep", "*", "--high-precision", "fp32"],
        ["--no-eval", "--keep", "*", "--high-precision", "fp16"],
        ["--no-eval", "--spike-ratio", 5],
        ["--no-eval", "--target", "cuda"],
    ],
)
def test_activations_beyond_float16(tmp_path: Path, ids: Path, more: list[object]) -> None:
    """ONNX Runtime's CPU provider computes such a graph in float32: it runs there, and its logits are finite."""
    model = decoder(tmp_path, factors=LARGE)
    assert np.isfinite(largest(model, "logits", ids))
    text = told(*quantize(model, ids, *more))
    assert "65,504" in text
    assert f"the result of {UP} reaches" in text
    assert f"the input of {DOWN}" in text
    up, product = (float(number.replace(",", "")) for number in re.findall(r"\d+,\d{3}(?:,\d{3})*", text)[1:3])
    assert up == pytest.approx(largest(model, f"{UP}.out", ids), rel=1e-2)
    assert product == pytest.approx(largest(model, "layers.1.mlp.product.out", ids), rel=1e-2)
    assert not (tmp_path / "out").exists()


def test_calibrate_says_so_and_writes_nothing(tmp_path: Path, ids: Path) -> None:
    model = decoder(tmp_path, factors=LARGE)
    text = told("calibrate", model, "-o", tmp_path / "r.json", "--calibration", ids, "--window", 32)
    assert DOWN in text
    assert not (tmp_path / "r.json").exists()
    assert DOWN in told("inspect", model, "--calibration", ids, "--window", 32)


@pytest.mark.parametrize("into", [TensorProto.FLOAT, TensorProto.BFLOAT16])
def test_the_remedy_works(tmp_path: Path, ids: Path, into: int) -> None:
    model = decoder(tmp_path, factors=LARGE, into=into)
    assert spq(*quantize(model, ids, "--no-eval")).code == 0
    assert np.isfinite(largest(tmp_path / "out/model.onnx", "logits", ids))


def test_what_float16_holds_is_quantized(tmp_path: Path, ids: Path) -> None:
    assert spq(*quantize(decoder(tmp_path), ids, "--no-eval")).code == 0


def test_a_kept_product_that_gives_more_than_float16_holds_is_computed_in_another_format(
    tmp_path: Path, ids: Path
) -> None:
    """What it reads is small, what it gives is not: float32 holds that, and so does what is made of it."""
    model = decoder(tmp_path, into=TensorProto.FLOAT, factors=LARGE)
    more = ["--no-eval", "--target", "cuda", "--keep", "*", "--high-precision", "fp16", "--json"]
    result = spq(*quantize(model, ids, *more))
    assert result.code == 0, result.err
    plan = spq("inspect", tmp_path / "out", "--json").json
    held = {site["key"]: site["precision"] for site in plan["sites"]}
    assert (held[UP], held[DOWN], held["layers.0.mlp.up_proj"]) == ("bf16", "bf16", "fp16")


def test_a_text_on_which_float16_is_too_small(tmp_path: Path) -> None:
    """Calibration never saw the token that is too large."""
    model = decoder(tmp_path)
    graph = onnx.load(model)
    table = next(t for t in graph.graph.initializer if t.name == "embed_tokens.weight")
    array = numpy_helper.to_array(table).copy()
    array[5] *= 15_000
    table.CopyFrom(numpy_helper.from_array(array, table.name))
    onnx.save(graph, model)
    usual, other = random_ids(16, 32), random_ids(16, 32, seed=9)
    usual[usual == 5], other[:, 3] = 6, 5
    np.savez(tmp_path / "usual.npz", input_ids=usual)
    np.savez(tmp_path / "other.npz", input_ids=other)
    text = told(*quantize(model, tmp_path / "usual.npz", "--text", tmp_path / "other.npz"))
    assert "65,504" in text
    assert not (tmp_path / "out").exists()
    assert spq(*quantize(model, tmp_path / "usual.npz", "--no-eval")).code == 0


@pytest.mark.parametrize("more", [[], ["--spike-ratio", 50]])
def test_logits_beyond_float16(tmp_path: Path, ids: Path, more: list[object]) -> None:
    """No site reads what is too large; calibration does not see it, and who runs the model does."""
    model = decoder(tmp_path, factors=LOUD)
    assert spq("calibrate", model, "-o", tmp_path / "r.json", "--calibration", ids, "--window", 32).code == 0
    for command in (quantize(model, ids, "--no-eval", *more), ["eval", model, "--text", ids, "--window", 32]):
        text = told(*command)
        assert f"the result of {HEAD}" in text
        assert "65,504" in text


def test_who_times_or_continues_says_so_too(tmp_path: Path) -> None:
    model = decoder(tmp_path, factors=LOUD)
    assert "NaN or infinite" in told("bench", model, "--length", 16)


def test_a_mask_that_makes_nan(tmp_path: Path, ids: Path) -> None:
    """0 times infinity where nothing is masked."""
    model = decoder(tmp_path)
    graph = onnx.load(model)
    large = next(t for t in graph.graph.initializer if t.name == "large")
    large.CopyFrom(numpy_helper.from_array(np.array(np.inf, np.float16), "large"))
    onnx.save(graph, model)
    text = told(*quantize(model, ids, "--no-eval"))
    assert "node scaled (Mul) is NaN, for the constant 'large' is not finite" in text
    assert "a mask of large negative numbers" in text


def test_padding_in_front_is_moved_behind(tmp_path: Path) -> None:
    """A row of a mask that lets nothing through makes NaN of -inf, in which no token that is judged has a part."""
    model = decoder(tmp_path)
    graph = onnx.load(model)
    causal = next(t for t in graph.graph.initializer if t.name == "causal")
    infinite = np.where(np.tri(64, dtype=bool), 0, -np.inf).astype(np.float16)
    causal.CopyFrom(numpy_helper.from_array(infinite, "causal"))
    for name, value in (("nothing", 0.0), ("infinite", -np.inf)):
        graph.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float16), name))
    scaled = next(n for n in graph.graph.node if n.name == "scaled")
    place = list(graph.graph.node).index(scaled)
    graph.graph.node.insert(place, helper.make_node("Cast", ["attention_mask"], ["is_text"], name="is_text", to=9))
    scaled.CopyFrom(helper.make_node("Where", ["is_text", "nothing", "infinite"], scaled.output, name="scaled"))
    onnx.save(graph, model)
    rows = random_ids(16, 32)
    mask = np.ones_like(rows)
    mask[:8, :6] = 0
    np.savez(tmp_path / "left.npz", input_ids=rows, attention_mask=mask)
    assert spq(*quantize(model, tmp_path / "left.npz", "--no-eval")).code == 0

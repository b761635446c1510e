"""Head and embedding in 8 bits, from the command line to the file and back: plan, ladder, size, proof, inspection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from tests.support.command import done
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Glu
from tests.support.inserting import run
from tests.support.tables import size_of_constants

VOCABULARY, WIDTH = 300, 64
TIED = Decoder(layers=2, glu=Glu(width=WIDTH, inner=96), vocab=VOCABULARY, tied=True)
ROW = "spike_aware_without_head_8bit"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    for name, tied in (("tied", True), ("apart", False)):
        shape = Decoder(layers=2, glu=Glu(width=WIDTH, inner=96), vocab=VOCABULARY, tied=tied)
        onnx.save(decoder(shape), folder / f"{name}.onnx")
    for name, seed in (("ids", 0), ("text", 1)):
        ids = np.random.default_rng(seed).integers(0, VOCABULARY, (32, 16))
        np.savez(folder / f"{name}.npz", input_ids=ids)
    return folder


def quantized(at: Path, name: str, *options: object, text: bool = True) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """OUT, its ends by role, and its report."""
    out = at / "-".join(["out", name, *(Path(str(option)).name for option in options)])
    given = ["--calibration", at / "ids.npz", "--window", 16, *(["--text", at / "text.npz"] if text else ["--no-eval"])]
    done("quantize", at / f"{name}.onnx", "-o", out, "--force", *given, *options)
    plan = json.loads((out / "plan.json").read_text())
    ends = {s["role"]: s for s in plan["sites"] if s["role"] in ("lm_head", "embedding")}
    return out, ends, json.loads((out / "report.json").read_text()) if text else {}


@pytest.mark.parametrize("name", ["tied", "apart"])
def test_both_ends_are_in_the_plan_the_ladder_and_the_file(at: Path, name: str) -> None:
    out, ends, report = quantized(at, name, "--recipe", _generous(at))
    assert ends["lm_head"]["precision"] == "w8a8_block"
    assert ends["embedding"]["precision"] == "w8a16"
    for end in ends.values():
        assert end["reason"] == "within_budget"
        assert end["evidence"]["kl"] > 0
        assert "of 0.8 allowed" in end["evidence"]["note"]
    rows = {row["name"]: row for row in report["ladder"]}
    saved = rows[ROW]["bytes"] - rows["spike_aware"]["bytes"]
    once = VOCABULARY * (WIDTH + 4)
    table = VOCABULARY * WIDTH * 4
    expected = table - once if name == "tied" else 2 * (table - once)
    assert abs(saved - expected) < 3000  # nodes, and what they say
    assert rows["spike_aware"]["kl"] != rows[ROW]["kl"]
    assert rows["spike_aware"]["executed"]["GatherBlockQuantized"] == 1
    assert rows["spike_aware"]["executed"]["MatMulNBits"] >= 1
    assert "GatherBlockQuantized" not in rows[ROW]["executed"]
    done("verify", out, at / f"{name}.onnx")
    done("eval", out, "--text", at / "text.npz", "--against", at / f"{name}.onnx", "--window", 16)
    page = (out / "report.html").read_text()
    assert "without head_8bit" in page
    assert "within_budget" in page or "within budget" in page


def test_a_tied_model_holds_one_table(at: Path) -> None:
    out, *_ = quantized(at, "tied", "--head", "8bit", "--embedding", "8bit", text=False)
    tables = [t for t in onnx.load(out / "model.onnx").graph.initializer if VOCABULARY in t.dims and len(t.dims) > 1]
    assert [(list(t.dims), t.data_type) for t in tables] == [([VOCABULARY, 1, WIDTH], onnx.TensorProto.UINT8)]
    saved = size_of_constants(at / "tied.onnx") - size_of_constants(out / "model.onnx")
    assert saved > VOCABULARY * WIDTH * 4 - VOCABULARY * (WIDTH + 4)


@pytest.mark.parametrize("name", ["tied", "apart"])
def test_where_all_is_by_token_the_head_is_too(at: Path, name: str) -> None:
    recipe = at / "by_token.toml"
    recipe.write_text('kl_budget = 1.0\nscales = "by_token"\n')
    out, ends, report = quantized(at, name, "--recipe", recipe)
    assert (ends["lm_head"]["precision"], ends["embedding"]["precision"]) == ("w8a8_token", "w8a16")
    assert ends["lm_head"]["reason"] == "within_budget"
    lookup = "Int8Gather" if name == "tied" else "GatherBlockQuantized"
    model = onnx.load(out / "model.onnx")
    lookups = [n.op_type.removesuffix("Branch") for n in model.graph.node if n.domain and "Gather" in n.op_type]
    assert lookups == [lookup]
    tables = [t for t in model.graph.initializer if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)]
    large = [t for t in tables if len(t.raw_data) >= VOCABULARY * WIDTH]
    assert len(large) == (1 if name == "tied" else 2)
    rows = {row["name"]: row for row in report["ladder"]}
    assert rows["spike_aware"]["bytes"] < rows[ROW]["bytes"]
    done("verify", out, at / f"{name}.onnx")
    found = done("inspect", out / "model.onnx", "--json").json
    source = done("inspect", at / f"{name}.onnx", "--json").json
    assert {s["key"]: s["shape"] for s in found["sites"]} == {s["key"]: s["shape"] for s in source["sites"]}


def test_they_stay_where_they_are_asked_to(at: Path) -> None:
    out, ends, _ = quantized(at, "tied", "--head", "as_is", "--embedding", "as_is", text=False)
    assert {(end["precision"], end["reason"]) for end in ends.values()} == {("fp32", "default")}
    operators = {node.op_type for node in onnx.load(out / "model.onnx").graph.node}
    assert "GatherBlockQuantized" not in operators


@pytest.mark.parametrize("target", ["openvino", "portable", "cuda", "tensorrt"])
def test_every_target_verifies(at: Path, target: str) -> None:
    out, ends, _ = quantized(at, "apart", "--target", target, "--recipe", _generous(at), text=False)
    done("verify", out, at / "apart.onnx")
    assert (ends["embedding"]["precision"] == "w8a16") is (target != "tensorrt")
    assert (ends["lm_head"]["precision"] == "w8a16") is (target in ("openvino", "cuda"))


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_a_file_alone_tells_of_both(at: Path, target: str) -> None:
    out, *_ = quantized(at, "apart", "--target", target, "--embedding", "8bit", text=False)
    (out / "plan.json").rename(out / "plan.away")
    try:
        found = done("inspect", out / "model.onnx", "--json").json
    finally:
        (out / "plan.away").rename(out / "plan.json")
    (table,) = (site for site in found["sites"] if site["role"] == "embedding")
    assert (table["key"], table["precision"], table["reason"]) == ("model.embed_tokens", "w8a16", "asked")
    assert table["shape"] == [VOCABULARY, WIDTH]
    assert [site["role"] for site in found["sites"]].count("lm_head") == 1
    source = done("inspect", at / "apart.onnx", "--json").json
    assert {s["key"]: s["role"] for s in found["sites"]} == {s["key"]: s["role"] for s in source["sites"]}


def test_a_plan_of_before_is_still_taken(at: Path) -> None:
    """Which says nothing of the embedding: it stays as it is."""
    out, *_ = quantized(at, "tied", "--head", "as_is", "--embedding", "as_is", text=False)
    plan = json.loads((out / "plan.json").read_text())
    plan["sites"] = [site for site in plan["sites"] if site["role"] != "embedding"]
    del plan["recipe"]["head"], plan["recipe"]["embedding"]
    (at / "before.json").write_text(json.dumps(plan))
    done("apply", at / "tied.onnx", at / "before.json", "-o", at / "again")
    feeds = {"input_ids": np.arange(8).reshape(1, 8), "attention_mask": np.ones((1, 8), np.int64)}
    feeds |= {"position_ids": np.arange(8).reshape(1, 8)}
    logits = [run(folder / "model.onnx", feeds, ["logits"])[0] for folder in (out, at / "again")]
    assert np.array_equal(*logits)


def _generous(at: Path) -> Path:
    """A recipe whose budget a random model meets in integers."""
    path = at / "generous.toml"
    path.write_text("kl_budget = 1.0\n")
    return path

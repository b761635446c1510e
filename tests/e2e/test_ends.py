"""Graphs that give no logits, or those of the last token only, and inputs that token ids do or do not determine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

from tests.conftest import write_tokenizer
from tests.support.command import Result, done, spq
from tests.support.decoders import VOCABULARY, random_ids, write_decoder, write_ids
from tests.support.ends import write_with_end

WINDOW = ["--window", 32]


def words(result: Result) -> str:
    return " ".join((result.out + result.err).replace("│", " ").replace("!", " ").split())


def refused(result: Result, what: str, remedy: str) -> None:
    assert result.code == 1, words(result)
    assert what in words(result)
    assert remedy in words(result)
    assert "Traceback" not in result.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    write_ids(tmp_path / "ids.npz")
    np.savez(tmp_path / "text.npz", input_ids=random_ids(6, 32, seed=9))
    (tmp_path / "model").mkdir()
    return tmp_path


@pytest.fixture
def model(folder: Path) -> Path:
    return folder / "model" / "model.onnx"


class TestNoLogits:
    """Sites are chosen by their ratio, and nothing is said of accuracy but that it cannot be measured."""

    @pytest.mark.parametrize("end", ["hidden", "hidden_as_logits", "pooled"])
    @pytest.mark.parametrize("more", [["--text", "text.npz"], []], ids=["with_text", "without"])
    def test_quantized_by_ratio(self, folder: Path, model: Path, end: str, more: list[str]) -> None:
        write_with_end(model, end, layers=2, spikes={0: 500.0})
        given = [folder / name if name.endswith("npz") else name for name in more]
        out, data = folder / "out", ["--calibration", folder / "ids.npz", *given, *WINDOW]
        result = done("quantize", model, "-o", out, *data)
        plan, report = (json.loads((out / name).read_text()) for name in ("plan.json", "report.json"))
        assert plan["search"]["rule"] == "ratio"
        kept = [site["key"] for site in plan["sites"] if site["reason"] == "spike"]
        assert "layers.0.mlp.down_proj" in kept
        assert report["verdict"]["status"] == "not_measured"
        assert not report["verdict"]["ready"]
        assert report["ladder"] == []
        assert report["text"] is None
        assert (report["logits"]["given"], report["logits"]["output"]) == ("none", None)
        shown = words(result)
        assert "the graph gives no logits" in shown
        assert "sites were chosen by their ratio" in shown
        page = (out / "report.html").read_text()
        for told in (shown, page, json.dumps(report["verdict"])):
            assert "gives no logits" in told
            assert "perplexity" not in told.lower()
            assert "--text" not in told.replace("--text text.npz", "").replace("--text &", "")
        done("verify", out, model)

    def test_ids_beyond_the_hidden_width_are_ids(self, folder: Path, model: Path) -> None:
        """What a token may be is told by the embedding, not by how many channels come out."""
        assert np.load(folder / "ids.npz")["input_ids"].max() >= 32
        write_with_end(model, "hidden", layers=1)
        done("calibrate", model, "-o", folder / "ranges.json", "--calibration", folder / "ids.npz", *WINDOW)
        planned = done(
            "plan", model, folder / "ranges.json", "-o", folder / "plan.json", "--calibration", folder / "ids.npz"
        )
        assert "gives no logits" in words(planned)
        np.savez(folder / "beyond.npz", input_ids=np.full((2, 32), VOCABULARY))
        beyond = spq("calibrate", model, "-o", folder / "r2.json", "--calibration", folder / "beyond.npz", *WINDOW)
        refused(beyond, f"outside the vocabulary of {VOCABULARY}", "tokenizer")

    def test_other_verbs(self, folder: Path, model: Path) -> None:
        write_with_end(model, "hidden_and_pooled", layers=1)
        text, tokens = ["--text", folder / "text.npz", *WINDOW], ["--tokenizer", folder]
        refused(spq("eval", model, *text), "gives no logits: 'token_embeddings' (32", "quantize --calibration FILE")
        plain = write_decoder(folder / "plain.onnx", layers=1)
        refused(spq("eval", plain, *text, "--against", model), "gives no logits", "leave out --against")
        refused(spq("generate", model, "--prompt", "w3", *tokens), "gives no logits", "with its head")
        for verb in ("quantize", "calibrate"):
            sampled = spq(verb, model, "-o", folder / "made", *WINDOW)
            refused(sampled, "gives no logits", "pass --calibration FILE")
            assert not (folder / "made").exists()
        found = done("inspect", model, "--json").json
        assert found["graph"]["logits"] is None
        assert "gives no logits" in done("inspect", model).out
        assert done("inspect", plain, "--json").json["graph"]["logits"] == "logits"
        dry = ["--calibration", folder / "ids.npz", "--dry-run", "--json", *WINDOW]
        assert done("quantize", model, "-o", folder / "made", *dry).json["sites"] == 7
        done("bench", model, "--rounds", 1, "--length", 8)


class TestLastToken:
    """Everything is measured at the last token of each window, and it is said of how many tokens figures tell."""

    def test_quantized_by_kl(self, folder: Path, model: Path) -> None:
        write_with_end(model, "last_undeclared", layers=2, spikes={0: 500.0})
        out, data = folder / "out", ["--calibration", folder / "ids.npz", "--text", folder / "text.npz", *WINDOW]
        shown = words(done("quantize", model, "-o", out, *data))
        plan, report = (json.loads((out / name).read_text()) for name in ("plan.json", "report.json"))
        rows = len(np.load(folder / "ids.npz")["input_ids"])
        assert (plan["search"]["rule"], plan["search"]["tokens"]) == ("auto", rows)
        assert [site["key"] for site in plan["sites"] if site["reason"] == "spike"] == ["layers.0.mlp.down_proj"]
        assert (report["logits"]["given"], report["logits"]["tokens"]) == ("last_token", 6)
        assert "figures are means over 6 tokens, one a window" in shown
        assert "all rungs on the same 6 tokens" in (out / "report.html").read_text()
        found = done("eval", out / "model.onnx", "--text", folder / "text.npz", "--against", model, "--json", *WINDOW)
        assert found.json["tokens"] == 6
        row = next(row for row in report["ladder"] if row["name"] == "spike_aware")
        assert found.json["kl"] == pytest.approx(row["kl"], rel=1e-3)

    def test_generates_the_same(self, folder: Path, model: Path) -> None:
        write_with_end(model, "last", layers=1)
        plain = write_decoder(folder / "plain.onnx", layers=1)
        asked = ["--prompt", "w3 w9 w4", "--prompt", "w5", "--tokenizer", folder, "--max-new-tokens", 8, "--json"]
        one, other = (done("generate", path, *asked).json for path in (model, plain))
        assert one["tokens"] == other["tokens"]

    def test_tasks_ask_about_more(self, folder: Path, model: Path) -> None:
        write_with_end(model, "last", layers=1)
        (folder / "task.jsonl").write_text(json.dumps({"query": "w3", "choices": ["w4", "w5"], "gold": 0}) + "\n")
        result = spq("eval", model, "--tasks", folder / "task.jsonl", "--tokenizer", folder, *WINDOW)
        refused(result, "logits of the last token only, and tasks ask about every token", "pass --text FILE")
        done("eval", model, "--text", folder / "text.npz", *WINDOW)

    def test_nothing_grows_behind_a_fixed_length(self, folder: Path, model: Path) -> None:
        write_with_end(model, "last", layers=1, fixed=(1, 16))
        refused(spq("quantize", model, "-o", folder / "out"), "exactly 16 tokens", "pass --calibration FILE")
        asked = ["--prompt", "w3", "--tokenizer", folder]
        refused(spq("generate", model, *asked), "exactly 16 tokens", "with logits of every token")
        data = ["--calibration", folder / "ids.npz", "--text", folder / "text.npz"]
        done("quantize", model, "-o", folder / "out", *data)
        report = json.loads((folder / "out" / "report.json").read_text())
        assert report["logits"] == {
            "given": "last_token",
            "output": "logits",
            "tokens": 6,
            "note": "the graph gives logits of the last token only: figures are means over 6 tokens, one a window",
        }


GATE = "layers.0.mlp.gate_proj.weight"


def weight_outside(path: Path) -> np.ndarray:
    """Make a weight an input of the graph, and return its values."""
    loaded = onnx.load(path)
    weight = next(t for t in loaded.graph.initializer if t.name == GATE)
    values = numpy_helper.to_array(weight)
    loaded.graph.initializer.remove(weight)
    loaded.graph.input.append(helper.make_tensor_value_info(GATE, TensorProto.FLOAT, values.shape))
    onnx.save(loaded, path)
    return values


class TestInputs:
    @pytest.fixture
    def data(self, folder: Path) -> list[object]:
        return ["--calibration", folder / "ids.npz", "--no-eval", *WINDOW]

    def test_a_weight_from_outside(self, folder: Path, model: Path, data: list[object]) -> None:
        """Listed by inspect, refused before anything is measured, and taken once its values are in the file."""
        values = weight_outside(write_decoder(model, layers=1))
        assert "is an input of the graph" in done("inspect", model, "--unmatched").out
        refused(spq("quantize", model, "-o", folder / "out", *data), f"input '{GATE}'", "store its values in the file")
        graph = (loaded := onnx.load(model)).graph
        graph.initializer.append(numpy_helper.from_array(values, GATE))  # as the remedy has it
        onnx.save(loaded, model)
        done("quantize", model, "-o", folder / "out", *data)

    @pytest.mark.parametrize("version", [3, 10])
    def test_weights_that_could_be_overridden(
        self, folder: Path, model: Path, data: list[object], version: int
    ) -> None:
        """As files before IR version 4 have them all: they are the constants that they are by default."""
        loaded = onnx.load(write_decoder(model, layers=1))
        plain = done("quantize", model, "-o", folder / "plain", *data, "--json").json
        loaded.ir_version = version
        loaded.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in loaded.graph.initializer
        )
        onnx.save(loaded, model)
        assert done("inspect", model, "--json").json["glu_blocks"] == 1
        found = done("quantize", model, "-o", folder / "out", *data, "--json").json
        assert [s["precision"] for s in found["plan"]["sites"]] == [s["precision"] for s in plain["plan"]["sites"]]
        made = onnx.load(folder / "out" / "model.onnx")
        assert [value.name for value in made.graph.input] == ["input_ids", "attention_mask"]

    def test_embeddings_from_outside(self, folder: Path, model: Path, data: list[object]) -> None:
        """Refused, and taken once the embedding is in front of it."""
        loaded = onnx.load(write_decoder(model, layers=1))
        table = next(t for t in loaded.graph.initializer if t.name == "embed_tokens.weight")
        lookup = next(node for node in loaded.graph.node if node.name == "embed_tokens")
        for node in loaded.graph.node:
            for place, name in enumerate(node.input):
                if name == "input_ids" and node is not lookup:
                    node.input[place] = "attention_mask"
                elif name == lookup.output[0]:
                    node.input[place] = "inputs_embeds"
        loaded.graph.node.remove(lookup)
        loaded.graph.initializer.remove(table)
        del loaded.graph.value_info[:]
        whole = helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch_size", "sequence_length", 32])
        loaded.graph.input[0].CopyFrom(whole)
        onnx.checker.check_model(loaded, full_check=True)
        onnx.save(loaded, model)
        assert len(done("inspect", model, "--json").json["sites"]) == 8
        for verb in (["quantize", model, "-o", folder / "out", *data], ["eval", model, "--text", folder / "text.npz"]):
            refused(spq(*verb), "the graph takes 'inputs_embeds'", "onnx.compose.merge_models")
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
        embedding = helper.make_graph(
            [helper.make_node("Gather", [table.name, "input_ids"], ["embedded"], name="embed")],
            "embedding",
            [ids],
            [helper.make_tensor_value_info("embedded", TensorProto.FLOAT, ["batch_size", "sequence_length", 32])],
            [table],
        )
        front = helper.make_model(embedding, opset_imports=loaded.opset_import, ir_version=loaded.ir_version)
        merged = onnx.compose.merge_models(front, loaded, io_map=[("embedded", "inputs_embeds")])
        onnx.save(merged, model)
        done("quantize", model, "-o", folder / "out", *data)

    def test_token_types(self, folder: Path, model: Path, data: list[object]) -> None:
        """All tokens are of the first segment."""
        loaded = onnx.load(write_decoder(model, layers=1))
        table = np.array([[0.0] * 32, [9.0] * 32], np.float32)
        loaded.graph.initializer.append(numpy_helper.from_array(table, "types"))
        loaded.graph.input.append(
            helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
        )
        place = next(i for i, node in enumerate(loaded.graph.node) if node.name == "embed_tokens")
        loaded.graph.node[place].output[0] = "embedded"
        more = [
            helper.make_node("Gather", ["types", "token_type_ids"], ["typed"], name="typed"),
            helper.make_node("Add", ["embedded", "typed"], ["embed_tokens.out"], name="summed"),
        ]
        for node in reversed(more):
            loaded.graph.node.insert(place + 1, node)
        onnx.save(loaded, model)
        plain, text = write_decoder(folder / "plain.onnx", layers=1), ["--text", folder / "text.npz", "--json"]
        one, other = (done("eval", path, *text, *WINDOW).json for path in (model, plain))
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-5)
        done("quantize", model, "-o", folder / "out", *data)

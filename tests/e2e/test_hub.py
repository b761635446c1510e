"""Models by their id: from the cache without a network, or from a Hub that is asked."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.conftest import write_tokenizer
from tests.support.command import done, spq
from tests.support.decoders import write_decoder, write_ids
from tests.support.hub import cached, of_folder, served

TEMPLATE = "{% for m in messages %}w1 {{ m.content }} {% endfor %}w2"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as the Hub has some: a graph, a tokenizer and a card."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_decoder(folder / "model.onnx", layers=1, cache=True, positions=True)
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture
def known(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of that model, which lies in the cache; any way to a network is closed."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    cached(tmp_path / "cache", "org/name", of_folder(model))
    return "org/name"


def test_from_a_name_to_a_model_that_chats(known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = {"messages": [{"role": "user", "content": " ".join(f"w{n % 50}" for n in range(200))}]}
    (tmp_path / "chat.jsonl").write_text("\n".join([json.dumps(talk)] * 4))
    given = ["--calibration", "chat.jsonl", "--window", 32, "--no-eval"]
    done("quantize", known, "--preset", "w8a8-spike", *given, "-o", "out")
    plan = json.loads(Path("out/plan.json").read_text())
    assert (plan["model"]["hub"], plan["model"]["license"]) == ("org/name", "apache-2.0")
    monkeypatch.setattr(sys, "stdin", io.StringIO("w3 w4\n"))
    assert done("chat", "out", "--max-new-tokens", 4).out.strip()
    same = [
        done("generate", place, "--prompt", "w3", "--json", "--max-new-tokens", 4).json["tokens"]
        for place in (known, f"hf://{known}")
    ]
    assert same[0] == same[1]


def test_every_verb_takes_one(known: str, tmp_path: Path) -> None:
    ids = write_ids(tmp_path / "ids.npz")
    done("calibrate", known, "-o", "ranges.json", "--calibration", ids, "--window", 32)
    done("plan", known, "ranges.json", "-o", "plan.json")
    done("apply", "model/model.onnx", "plan.json", "-o", "out")
    assert "layers.0.mlp.down_proj" in done("inspect", known).out
    done("verify", "out", known)
    assert done("eval", "out", "--text", ids, "--window", 32, "--against", f"hf://{known}", "--json").json["kl"] >= 0


def test_a_tokenizer_beside_a_graph_is_its_own(known: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(f"w{n % 50}" for n in range(400)))
    done("calibrate", "model/model.onnx", "-o", "ranges.json", "--calibration", "text.txt", "--window", 32)
    (tmp_path / "model" / "onnx").mkdir()
    (tmp_path / "model" / "model.onnx").rename(tmp_path / "model" / "onnx" / "model.onnx")
    done("calibrate", "model/onnx/model.onnx", "-o", "below.json", "--calibration", "text.txt", "--window", 32)
    assert json.loads(Path("below.json").read_text())["data"] == json.loads(Path("ranges.json").read_text())["data"]


def test_without_a_network_it_is_said_at_once(known: str) -> None:
    failed = spq("quantize", "hf://org/other", "-o", "out")
    assert failed.code == 1
    assert "the Hub cannot be reached" in failed.err
    assert "hf download org/other" in failed.err
    assert not Path("out").exists()


def test_it_is_downloaded_where_that_is_asked_for(model: Path, tmp_path: Path) -> None:
    """By a process of its own, since the Hub's client reads its address once."""
    pytest.importorskip("huggingface_hub")
    asked: list[str] = []
    files = {path: file.read_bytes() for path, file in of_folder(model).items()} | {
        "code.py": b"1",
        "other.msgpack": b"2",
    }

    def run(source: str, url: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "spq_graph", "inspect", source, "--json"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    with served("org/name", files, asked) as url:
        assert run("org/name", url).returncode == 1
        assert asked == []
        first = run("hf://org/name", url)
        assert first.returncode == 0, first.stderr
        assert len(json.loads(first.stdout)["sites"]) > 7
        assert not any("code.py" in path or "msgpack" in path for path in asked)
        asked.clear()
        again = run("org/name", url)
        assert json.loads(again.stdout)["sites"] == json.loads(first.stdout)["sites"]
        assert asked == []
        for source, message in (
            ("hf://org/nothing", "the Hub has no model of this id"),
            ("hf://org/gated", "its licence is gated"),
            ("hf://org/terms", "its licence is gated"),  # what it holds is public, the files are not
            ("hf://org/login", "the Hub refuses this login"),
            ("hf://org/name@v9", "no revision 'v9'"),
        ):
            failed = run(source, url)
            assert (failed.returncode, failed.stdout) == (1, ""), source
            assert message in failed.stderr

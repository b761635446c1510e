"""What docs/serving.md shows of ONNX Runtime and FastAPI runs as it stands there, and says what `generate` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from spq_graph import generate
from tests.support.serving import CONTEXT, program, write_out

PROMPT = "w1 w5 w9"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_out(tmp_path_factory.mktemp("served"))


def said(out: Path, prompt: str, count: int) -> str:
    """The text behind a prompt, as it is."""
    return generate(out, prompt, chat=False, max_new_tokens=count).texts[0]


def run(code: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(out.parent)
    scope: dict[str, Any] = {}
    exec(compile(code, "serving.md", "exec"), scope)
    return scope


def test_onnx_runtime_alone(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = program("print(tokenizer.decode(ids[0]").replace("The river", PROMPT)
    run(code, out, monkeypatch)
    assert capsys.readouterr().out.rstrip("\n") == PROMPT + " " + said(out, PROMPT, 20).lstrip()


class TestFastAPI:
    @pytest.fixture
    def code(self) -> str:
        pytest.importorskip("fastapi", reason="needs fastapi (pip install '.[test]')")
        pytest.importorskip("httpx2", reason="fastapi's TestClient needs httpx2")
        code = program("from fastapi import")
        assert sum(bool(line.strip()) for line in code.splitlines()) <= 30
        return code

    def client(self, code: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        from fastapi.testclient import TestClient

        return TestClient(run(code, out, monkeypatch)["app"])

    def test_it_answers_piece_by_piece(self, code: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        client = self.client(code, out, monkeypatch)
        for prompt, count in ((PROMPT, 20), ("w2", 1), ("w3 w4", 5)):
            with client.stream("POST", "/generate", json={"prompt": prompt, "max_new_tokens": count}) as answer:
                assert answer.status_code == 200
                pieces = list(answer.iter_text())
            assert "".join(pieces).split() == said(out, prompt, count).split()

    def test_it_ends_at_a_stop_token(self, code: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        words = said(out, PROMPT, 8).split()
        scope = run(code, out, monkeypatch)
        scope["about"]["eos_token_id"] = [2, scope["tokenizer"].token_to_id(words[5])]
        first = words.index(words[5])
        assert first > 0
        ids = scope["np"].array([scope["tokenizer"].encode(PROMPT).ids])
        assert "".join(scope["answer"](ids, 20)).split() == words[:first]

    def test_it_refuses_what_the_model_cannot_hold(self, code: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        client = self.client(code, out, monkeypatch)
        refused = client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": CONTEXT})
        assert refused.status_code == 413
        assert "4 tokens and 48 more pass the model's length" in refused.json()["detail"]
        assert client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 0}).status_code == 422

    def test_it_speaks_by_the_template(self, code: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        transformers = pytest.importorskip("transformers")
        line = "    ids = tokenizer.encode(prompt).ids\n"
        assert code.count(line) == 1
        asked = "".join(f"    {one}\n" for one in program("ids = AutoTokenizer").splitlines())
        scope = run(code.replace(line, asked), out, monkeypatch)
        scope["AutoTokenizer"] = transformers.AutoTokenizer
        from fastapi.testclient import TestClient

        answer = TestClient(scope["app"]).post("/generate", json={"prompt": PROMPT, "max_new_tokens": 8})
        assert answer.text.split() == generate(out, PROMPT, chat=True, max_new_tokens=8).texts[0].split()

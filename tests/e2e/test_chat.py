"""`spq-graph chat`, and what `generate` makes of a model with a chat template."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from spq_graph import generate
from spq_graph.cli import chatting
from spq_graph.documents.interrupts import Interrupted
from spq_graph.jobs.chat import chat
from spq_graph.terms.errors import UsageError
from spq_graph.workbench.opening import Opening
from tests.conftest import write_tokenizer
from tests.support.command import Result, done, spq
from tests.support.decoders import write_decoder
from tests.support.serving import TEMPLATE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a decoder, its tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("chatty")
    write_decoder(folder / "model.onnx", positions=True, cache=True)
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 120, "eos_token_id": 2}))
    return folder


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def said(model: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """What is typed, or piped in, and how the chat ends."""

    def run(typed: str, *arguments: object, terminal: bool = False) -> Result:
        monkeypatch.setattr(sys, "stdin", (Terminal if terminal else io.StringIO)(typed))
        return spq("chat", model, "--max-new-tokens", 6, *arguments)

    return run


def continued(model: Path, text: str, most: int = 6) -> str:
    """What the model says behind a text as it is."""
    return generate(model, text, chat=False, max_new_tokens=most).texts[0]


def test_generate_answers_where_there_is_a_template_and_says_so(model: Path) -> None:
    asked = done("generate", model, "--prompt", "w1 w2", "--max-new-tokens", 6, "--system", "w9")
    assert asked.out == continued(model, "w50 w9 w53 w51 w1 w2 w53 w52") + "\n"
    assert "--no-chat" not in asked.err  # it was asked for
    plain = done("generate", model, "--prompt", "w1 w2", "--max-new-tokens", 6)
    assert "by the model's chat template: --no-chat continues text as it is" in plain.err
    assert plain.out == continued(model, "w51 w1 w2 w53 w52") + "\n"
    as_it_is = done("generate", model, "--prompt", "w1 w2", "--max-new-tokens", 6, "--no-chat")
    assert as_it_is.out == f"w1 w2{continued(model, 'w1 w2')}\n"
    assert "template" not in as_it_is.err
    assert (
        "--system: not used with --no-chat"
        in done("generate", model, "--prompt", "w1", "--no-chat", "--system", "w9", "--max-new-tokens", 2).err
    )


def test_several_are_answered_with_their_questions(model: Path) -> None:
    found = done(
        "generate", model, "--chat", "--prompt", "w1", "--prompt", "w2 w3", "--max-new-tokens", 6, "--json"
    ).json
    assert found["chat"] is True
    assert found["prompts"] == ["w1", "w2 w3"]
    assert found["texts"] == [continued(model, f"w51 {text} w53 w52") for text in found["prompts"]]
    shown = done("generate", model, "--prompt", "w1", "--prompt", "w2 w3", "--max-new-tokens", 6).out
    assert shown == f"w1\n{found['texts'][0]}\n\nw2 w3\n{found['texts'][1]}\n"


def test_a_conversation_holds_all_that_was_said(model: Path, said: object) -> None:
    result = said("w1 w2\n\n  w3\n", "--json")  # type: ignore[operator]
    first = continued(model, "w51 w1 w2 w53 w52")
    second = continued(model, f"w51 w1 w2 w53 w52 {first} w53 w51 w3 w53 w52")
    assert result.json["messages"] == [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": second},
    ]
    assert result.json["finish"] == ["length", "length"]
    assert result.json["tokens"] == [6, 6]
    assert said("w1 w2\nw3").out == f"{first}\n{second}\n"  # type: ignore[operator]


def test_commands_begin_again_and_end(model: Path, said: object) -> None:
    alone = continued(model, "w51 w1 w53 w52")
    told = continued(model, "w50 w9 w53 w51 w1 w53 w52")
    result = said("w1\n/reset\nw1\n/system w9\nw1\n/reset\nw1\n/system\nw1\n/exit\nw1\n")  # type: ignore[operator]
    assert result.code == 0
    assert result.out == "".join(f"{text}\n" for text in (alone, alone, told, told, alone))
    helped = said("/help\n/exitt\nw1 /exit\n/usr/bin w1\n/quit\n")  # type: ignore[operator]
    assert "there is no /exitt: /exit" in helped.err
    assert all(name in helped.err for name in chatting._COMMANDS)
    assert helped.out.count("\n") == 2  # a path, and a command inside of a line, are something to say


def test_the_verbs_say_as_many_tokens_by_default() -> None:
    import inspect

    from spq_graph.jobs.chat import MAX_NEW_TOKENS

    assert inspect.signature(chatting.chat).parameters["max_new_tokens"].default == MAX_NEW_TOKENS


def test_a_turn_ends_where_the_tokenizer_ends_one(model: Path, tmp_path: Path) -> None:
    """Of which generation_config.json, which names another token, says nothing."""
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first = generate(model, "w1", max_new_tokens=6).tokens[0]
    word = f"w{first[2] - 3}"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    before = generate(tmp_path, "w1", max_new_tokens=6)
    assert before.tokens[0] == first
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": word}))
    ended = generate(tmp_path, "w1", max_new_tokens=6)
    assert ended.finish == ["stop"]
    assert ended.tokens[0] == first[: first.index(first[2])]
    assert generate(tmp_path, "w1", chat=False, max_new_tokens=6).finish == ["length"]


def test_a_turn_that_is_too_long_ends_nothing_at_a_terminal(said: object) -> None:
    long = " ".join(["w1"] * 130)
    failed = said(f"w1\n{long}\nw2\n")  # type: ignore[operator]
    assert failed.code == 2
    assert "the model takes 120" in failed.err
    went_on = said(f"w1\n{long}\nw2\n", terminal=True)  # type: ignore[operator]
    assert went_on.code == 0
    assert "the model takes 120" in went_on.err
    assert went_on.out.count("\n") == 2
    assert "/help" in went_on.err


def test_an_answer_that_is_cut_short_stays_said(model: Path) -> None:
    pieces: list[str] = []

    def write(text: str) -> None:
        pieces.append(text)
        if text.strip() and len("".join(pieces).split()) == 3:
            raise Interrupted(2)

    with chat(Opening(model), max_new_tokens=6) as talk:
        short = talk.answer("w1", write)
        assert talk.said.finish == ["interrupted"]
        assert continued(model, "w51 w1 w53 w52").startswith(short)
        assert 0 < talk.said.tokens[0] < 6
        again = talk.answer("w2")
    assert again == continued(model, f"w51 w1 w53 w52 {short} w53 w51 w2 w53 w52")


def test_what_is_no_text_is_said_all_the_same(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w1 \xff\n"), encoding="utf-8"))
    assert done("chat", model, "--max-new-tokens", 3).out
    monkeypatch.setattr(sys, "stdin", None)
    assert "nothing was said" in spq("chat", model).err


def test_a_model_that_nothing_says_how_to_talk_with(model: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for asked in ({"chat": True}, {"system": "w9"}):
        with pytest.raises(UsageError, match="no chat template"):
            generate(Opening(model / "model.onnx", tmp_path), "w1", **asked)  # type: ignore[arg-type]
    assert generate(Opening(model / "model.onnx", tmp_path), "w1", max_new_tokens=2).chat is False


def test_calibration_is_a_conversation_where_no_data_is_given(model: Path, tmp_path: Path) -> None:
    given = ["calibrate", model / "model.onnx", "--window", 32, "--calibration-tokens", 640]
    talks = done(*given, "-o", tmp_path / "talks.json")
    assert "conversations by the model's chat template: --no-chat samples plain text" in talks.err
    plain = done(*given, "-o", tmp_path / "plain.json", "--no-chat")
    assert "chat" not in plain.err
    ranges = [json.loads((tmp_path / name).read_text()) for name in ("talks.json", "plain.json")]
    assert ranges[0]["data"] != ranges[1]["data"]
    assert ranges[0]["tokens"] == ranges[1]["tokens"] == 640


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('tools come first') }}", "does not write plain turns of a user and an assistant"),
        ("w1 " * 40 + TEMPLATE, "opens with 43 tokens, and a sequence has 32"),
    ],
)
def test_calibration_is_plain_text_where_no_conversation_can_be_drawn(
    model: Path, tmp_path: Path, template: str, why: str
) -> None:
    shutil.copytree(model, tmp_path / "odd")
    (tmp_path / "odd" / "chat_template.jinja").write_text(template)
    given = ["--window", 32, "--calibration-tokens", 640]
    odd = done("calibrate", tmp_path / "odd" / "model.onnx", "-o", tmp_path / "odd.json", *given)
    assert why in " ".join(odd.err.split())
    done("calibrate", model / "model.onnx", "-o", tmp_path / "plain.json", "--no-chat", *given)
    odd_data, plain_data = (json.loads((tmp_path / f"{name}.json").read_text())["data"] for name in ("odd", "plain"))
    assert odd_data == plain_data

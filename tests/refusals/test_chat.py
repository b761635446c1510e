"""Refusals of conversations, each made and put right as it says."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.following import Told

follows = pytest.mark.follows
TEMPLATE = "{% for m in messages %}w1 {{ m.content }} {% endfor %}w2"


@pytest.fixture
def chatty(made: Made, tmp_path: Path) -> Path:
    folder = tmp_path / "chatty"
    shutil.copytree(made.words, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@follows("spq_graph/workbench/speaking.py:refuse_wordless", "leave out --chat")
def test_an_answer_without_a_template(refusal: Told, made: Made, chatty: Path) -> None:
    given = ["generate", made.model, "--prompt", "w1", "--max-new-tokens", 2]
    refusal.command(*given, "--tokenizer", made.words, "--chat")
    done(*given, "--tokenizer", made.words)
    assert (chatty / refusal.error.remedy.split()[-1]).is_file()
    done(*given, "--tokenizer", chatty, "--chat")


@follows("spq_graph/workbench/speaking.py:refuse_wordless", "spq-graph generate")
def test_a_chat_without_a_template(refusal: Told, made: Made, chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1\n"))
    refusal.command("chat", made.model, "--tokenizer", made.words)
    done("generate", made.model, "--tokenizer", made.words, "--prompt", "w1", "--max-new-tokens", 2)
    assert done("chat", made.model, "--tokenizer", chatty, "--max-new-tokens", 2).out


@follows("spq_graph/workbench/speaking.py:Speaker.turn")
def test_a_template_that_says_nothing(refusal: Told, made: Made, chatty: Path) -> None:
    given = ["generate", made.model, "--tokenizer", chatty, "--prompt", "w1", "--max-new-tokens", 2]
    (chatty / "chat_template.jinja").write_text("{# to be written #}")
    refusal.command(*given)
    done(*given, refusal.error.remedy.rpartition(" ")[2].strip("`"))
    (chatty / "chat_template.jinja").write_text(TEMPLATE)
    done(*given)


@follows("spq_graph/cli/chatting.py:chat")
def test_a_chat_without_a_word(refusal: Told, made: Made, chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["chat", made.model, "--tokenizer", chatty, "--max-new-tokens", 2]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n /reset\n"))
    refusal.command(*given)
    word = refusal.error.remedy.partition("echo ")[2].split()[0]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{word}\n"))
    done(*given)

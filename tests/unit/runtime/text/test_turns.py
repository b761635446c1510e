"""Conversations that are drawn token by token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spq_graph.runtime.text.chat import render
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.runtime.text.turns import Conversation, Turns
from tests.support.words import words

# w20 opens a turn of a user and w21 an answer, </s> ends both: as ids 23, 24 and 2.
TEMPLATE = (
    "{{ bos_token }} w9{% for m in messages %} {{ 'w20' if m.role == 'user' else 'w21' }} {{ m.content }} </s>"
    "{% endfor %}"
)
TURNS = Turns(opening=(1, 12, 23), to_answer=(2, 24), to_ask=(2, 23), stops=frozenset({30}))


def tokenizer(folder: Path, template: str | None, post_processing: str | None = "<s> $A") -> TextTokenizer:
    words(post_processing).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": template}))
    return TextTokenizer.load(folder)


@pytest.mark.parametrize("post_processing", ["<s> $A", None])
@pytest.mark.parametrize("bos", [False, True])
def test_what_stands_around_turns(tmp_path: Path, post_processing: str | None, bos: bool) -> None:
    assert Turns.of(tokenizer(tmp_path, TEMPLATE, post_processing), bos=bos, stops=frozenset({30})) == TURNS


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('no') }}",
        "w1 {% for m in messages %}{{ m.content | upper }} {% endfor %}",  # not as it was said
        "w1 {% for m in messages %}{{ m.content }} w2 {{ m.content }} {% endfor %}",  # twice
        "w1 {{ messages[0].content }}",  # only the first
        "{% for m in messages %}{{ m.content }} w2 {% endfor %}",  # nothing before the first
    ],
)
def test_templates_without_plain_turns(tmp_path: Path, template: str | None) -> None:
    assert Turns.of(tokenizer(tmp_path, template, None), bos=False, stops=frozenset()) is None


def test_turns_end_where_the_model_ends_them_or_a_question_grows_long() -> None:
    drawn = [
        (99, 99, 5, 6, 2, 99, 7, 7, 7, 7, 7, 2, 99, 8),  # ends both by itself
        (99, 99, 5, 30, 99, 9, 30, 99, 8, 8, 8, 8, 99, 9),  # by a stop token; a second question of three tokens
        (99, 99, 5, 6, 7, 8, 99, 2, 99, 5, 6, 7, 8, 99),  # never a question, and an empty answer
    ]
    stand = [
        (12, 23, 5, 6, 2, 24, 7, 7, 7, 7, 7, 2, 23, 8),
        (12, 23, 5, 2, 24, 9, 2, 23, 8, 8, 8, 2, 24, 9),
        (12, 23, 5, 6, 7, 2, 24, 2, 23, 5, 6, 7, 2, 24),
    ]
    stands = Conversation(TURNS, rows=3, longest=3)
    found = [stands(np.array(column)) for column in zip(*drawn, strict=True)]
    assert [one.dtype for one in found[:1]] == ["int64"]
    assert np.stack(found, axis=1).tolist() == [list(row) for row in stand]


def test_a_conversation_is_what_the_template_writes(tmp_path: Path) -> None:
    """Of one that is drawn, the text is that of the same messages as data."""
    text = tokenizer(tmp_path, TEMPLATE)
    turns = Turns.of(text, bos=False, stops=frozenset())
    assert turns is not None
    said = {"user": "w1 w2 w3", "assistant": "w4 w5"}
    messages = [{"role": role, "content": said[role]} for role in ("user", "assistant", "user", "assistant")]
    whole = text.encode(render(messages, tmp_path))
    stands = Conversation(turns, rows=1, longest=99)
    # A model that would draw what the template writes is let do so.
    assert [whole[0], *(int(stands(np.array([token]))[0]) for token in whole[1:])] == whole

"""A conversation reads as transformers writes it, by templates as they are published."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from spq_graph.runtime.text.chat import has_template, render, to_answer
from spq_graph.runtime.text.documents import read_documents
from spq_graph.terms.errors import DataError

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if tools is not none %}
    {{- raise_exception("tools were given") }}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# The block that trainers ask for, jinja's loop controls, and JSON with characters that HTML would escape.
TRAINED = """{%- for message in messages %}
    {%- if message.role == 'skipped' %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
{{ message.content }}<|end|>
        {%- endgeneration %}
    {%- else %}
<|{{ message.role }}|>{{ message | tojson(indent=2) }}{{ documents is none }}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "gemma": GEMMA, "trained": TRAINED}
QUESTION = {"role": "user", "content": " What is 1 < 2 & 'three'? é "}
CONVERSATION = [QUESTION, {"role": "assistant", "content": "True."}, {"role": "user", "content": "Sure?\nReally?"}]


def folder_with(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    return folder


def by_transformers(template: str, messages: list[Any], *, answer: bool) -> str:
    rendering = pytest.importorskip("transformers.utils.chat_template_utils")
    (text,), _ = rendering.render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=answer, bos_token="<s>", eos_token="</s>"
    )
    return str(text)


@pytest.mark.parametrize("messages", [[QUESTION], CONVERSATION], ids=["one", "more"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_is_asked_for_as_transformers_asks(tmp_path: Path, name: str, messages: list[Any]) -> None:
    template = TEMPLATES[name]
    asked = to_answer(messages, folder_with(tmp_path, template))
    assert asked == by_transformers(template, messages, answer=True)
    assert len(asked) > 40


@pytest.mark.parametrize("name", ["chatml", "gemma", "trained"])
def test_data_is_the_same_and_has_bos_where_nobody_else_puts_it(tmp_path: Path, name: str) -> None:
    """Of a template that tells the day, data is that of one day for ever."""
    folder = folder_with(tmp_path, TEMPLATES[name])
    whole = by_transformers(TEMPLATES[name], CONVERSATION, answer=False)
    assert render(CONVERSATION, folder) == whole
    assert render(CONVERSATION, folder, led=True) == whole.removeprefix("<s>")


def test_data_does_not_change_by_the_day_and_an_answer_does(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, LLAMA)
    assert "Today: 01 Jan 2025" in render(CONVERSATION, folder)
    assert datetime.now().strftime("Today: %d %b %Y") in to_answer(CONVERSATION, folder)


def test_who_has_a_template(tmp_path: Path) -> None:
    assert not has_template(None)
    assert not has_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    assert has_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "rag", "template": "x"}]}))
    assert not has_template(tmp_path)


def test_a_prompt_and_its_answer_are_a_conversation_where_there_is_a_template(tmp_path: Path) -> None:
    pair, file = {"prompt": "w1?", "response": "w2."}, tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, [pair, {"prompt": "w3 "}, {"prompt": "w4 ", "completion": "w5"}])))
    assert read_documents(file, lambda messages: "") == ["w1?w2.", "w3 ", "w4 w5"]
    folder = folder_with(tmp_path, CHATML)
    said = read_documents(file, lambda messages: render(messages, folder), templated=True)
    talk = [{"role": "user", "content": "w1?"}, {"role": "assistant", "content": "w2."}]
    assert said[0] == by_transformers(CHATML, talk, answer=False)
    assert said[1] == "w3 "
    assert "<|im_start|>assistant\nw5<|im_end|>" in said[2]


def test_a_conversation_goes_before_a_prompt_that_it_begins_with(tmp_path: Path) -> None:
    """As rows of UltraChat are: the prompt alone would be calibrated on, and no answer."""
    turns, file = [{"role": "user", "content": "w1?"}, {"role": "assistant", "content": "w2."}], tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "w1?", "prompt_id": "x", "messages": turns}))
    assert read_documents(file, lambda messages: f"{len(messages)} turns") == ["2 turns"]
    file.write_text(json.dumps({"prompt": "w1?", "response": "w2.", "messages": turns}))
    assert read_documents(file, lambda messages: "turns") == ["w1?w2."]
    file.write_text(json.dumps({"prompt": "w1?", "messages": turns[1:]}))
    with pytest.raises(DataError, match="no turn of a user"):
        read_documents(file, lambda messages: "turns")

"""The programs of docs/serving.md, and an OUT folder for them: a decoder of a few kilobytes that chats."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.conftest import ROOT, write_tokenizer
from tests.support.command import done
from tests.support.decoders import VOCABULARY, write_decoder, write_ids

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
CONTEXT = 48
# Every turn between two words of its own, and a word where the model's begins.
TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ {'system': 'w50', 'user': 'w51', 'assistant': 'w52'}[m.role] }}"
TEMPLATE += " {{ m.content }} w53{% endfor %}{% if add_generation_prompt %} w52{% endif %}"


def program(first: str) -> str:
    """The one program of docs/serving.md that holds a line which begins like this."""
    (found,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if f"\n{first}" in f"\n{code}")
    return str(found)


def write_out(folder: Path, *options: object) -> Path:
    """Quantizes a decoder in a folder, sites kept by ratio; returns OUT."""
    source = folder / "source"
    source.mkdir()
    model = write_decoder(source / "model.onnx", positions=True, cache=True, spikes={1: 1000.0}, external=True)
    write_tokenizer(source)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    config = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 1}
    more = {"max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2}
    (source / "config.json").write_text(json.dumps(config | more))
    calibration = write_ids(folder / "calibration.npz")
    arguments = ["--calibration", calibration, "--no-eval", "--spike-ratio", 30, *options]
    done("quantize", model, "-o", folder / "out", *arguments)
    return folder / "out"

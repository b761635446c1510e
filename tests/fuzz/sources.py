"""What is exported before it is read, spoiled: Hugging Face folders with their companions, adapters and GGUF files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.conftest import WORDS, write_tokenizer
from tests.fuzz.mutations import damage
from tests.fuzz.papers import SPOILED, spoil_json
from tests.fuzz.places import HUGE, Rng

_TEMPLATES = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "{{ messages[0] }}" * 3,
    "{% for",
    "{{ raise_exception('\x1b[31mno') }}",
    "{{ ''.__class__.__mro__ }}",
    "{% for a in range(99999999) %}{% for b in range(99999999) %}x{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 'x' * 10 ** 12 }}",
    "",
)
_MODELS = ("llama", "gpt2", "t5", "bert", "mamba", "clip", "nobody", "mixtral", "gemma3", "qwen2_moe", "", "\x1b[31m")
_SCALINGS = (
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 0},
    {"rope_type": "yarn", "factor": -1},
    {"rope_type": "longrope", "short_factor": [1], "long_factor": "x"},
    {"type": "linear", "factor": float("nan")},
    {"rope_type": "nobody"},
    {"rope_type": None},
    3,
    "linear",
)

_FILES = (
    *("config.json", "config.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("generation_config.json", "chat_template.jinja", "model.safetensors.index.json", "pytorch_model.bin"),
    *("../llama.gguf", "../llama.gguf", "../llama.gguf"),
    *("../adapter/adapter_config.json", "../adapter/adapter_config.json", "../adapter/adapter_model.safetensors"),
)


def write_sources(folder: Path) -> None:
    """A LLaMA of 2 layers as a folder, a LoRA beside it, and the same as GGUF. For a process of its own: torch has
    threads.
    """
    import torch
    from safetensors.numpy import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support.gguf_files import write_llama

    held = folder / "llama"
    held.mkdir(parents=True)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, **shape
        )
    ).eval()
    model.save_pretrained(held)
    write_tokenizer(held)
    (held / "chat_template.jinja").write_text(_TEMPLATES[0])
    (held / "text.txt").write_text("w1 w2 w3 w9 w7 \n" * 60)
    write_llama(folder / "llama.gguf", model)
    adapter = folder / "adapter"
    adapter.mkdir()
    keys = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(keys | {"base_model_name_or_path": "../llama"}))
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{stem}A.weight": np.ones((2, 32), np.float32), f"{stem}B.weight": np.ones((32, 2), np.float32)},
        adapter / "adapter_model.safetensors",
    )


def spoil_source(rng: Rng, inputs: Path, out: Path, base: Path) -> tuple[str, list[str]]:
    """Spoil one file of a source, and say what is called on it.

    Args:
        rng: of the case.
        inputs, out: folders of the case.
        base: what `write_sources` wrote.

    Returns:
        The file, and arguments of the command.
    """
    for name in ("llama", "adapter"):
        shutil.copytree(base / name, inputs / name)
    shutil.copy(base / "llama.gguf", inputs)
    source = inputs / "llama"
    name = rng.choice(_FILES)
    file = (source / name).resolve()
    if name == "config.json":
        file.write_bytes(_config(rng, file.read_bytes()))
    elif name == "chat_template.jinja":
        file.write_text(rng.choice(_TEMPLATES))
        (source / "text.txt").write_text('{"messages": [{"role": "user", "content": "w1 w2 w3"}]}\n' * 30)
    elif name == "../llama.gguf":
        file.write_bytes(_gguf(rng, file.read_bytes()))
        source = file
    elif name == "model.safetensors.index.json":
        (source / "model.safetensors").rename(source / "part.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": "part.safetensors"}}
        file.write_bytes(spoil_json(rng, json.dumps(index).encode()))
    elif name == "pytorch_model.bin":
        (source / "model.safetensors").unlink()
        file.write_bytes(
            rng.choice((rng.randbytes(200), b"", b"\x80\x02c__builtin__\neval\nX\x011\x85R.", b"PK\x03\x04"))
        )
    else:
        file.write_bytes(SPOILED[file.suffix](rng, file.read_bytes()))
    if file.parent.name == "adapter":
        source = file.parent
    return name, _verb(rng, str(source), str(inputs / "llama" / "text.txt"), str(inputs / "llama"), out)


def _verb(rng: Rng, source: str, text: str, words: str, out: Path) -> list[str]:
    small = ["--window", "16", "--calibration", text, "--calibration-tokens", "64", "--tokenizer", words]
    ways = (
        ["quantize", source, "-o", str(out / "OUT"), "--no-eval", "--spike-ratio", "20", *small],
        ["quantize", source, "-o", str(out / "OUT"), "--dry-run", "--json", *small],
        ["export", source, "-o", str(out / "exported")],
        ["inspect", source, "--json"],
        ["eval", source, "--text", text, "--window", "16", "--max-eval-tokens", "64", "--json"],
        ["generate", source, "--prompt", "w1 w5", "--max-new-tokens", "3"],
        ["calibrate", source, "-o", str(out / "ranges.json"), *small],
    )
    return rng.choice(ways)


def _config(rng: Rng, content: bytes) -> bytes:
    """Other values for what decides shapes and code, or anything at all."""
    if rng.random() < 0.4:
        return spoil_json(rng, content)
    parsed = json.loads(content)
    numbers = (*HUGE, 3, 0.5, -2, float("nan"), "32", None, True, [32], 10**30)
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.random()
        if kind < 0.25:
            parsed[rng.choice(("rope_scaling", "rope_parameters"))] = rng.choice(_SCALINGS)
        elif kind < 0.4:
            parsed["model_type"] = rng.choice(_MODELS)
        elif kind < 0.5:
            key = rng.choice(("auto_map", "quantization_config", "torch_dtype", "dtype", "hidden_act", "architectures"))
            parsed[key] = rng.choice(
                ({"AutoModelForCausalLM": "code.Model"}, {"quant_method": "gptq"}, "x", 3, [], None)
            )
        else:
            parsed[rng.choice([key for key, value in parsed.items() if isinstance(value, int)])] = rng.choice(numbers)
    return json.dumps(parsed).encode()


def _gguf(rng: Rng, content: bytes) -> bytes:
    """Cut, flipped at the head, counted wrongly, or not what it says."""
    way = rng.randrange(5)
    if way == 0:
        return content[: rng.randrange(len(content))]
    if way == 1:
        return damage(rng, content[:4096]) + content[4096:]
    if way == 2:
        at = rng.choice((4, 8, 16))  # version, count of tensors, count of keys
        size = 4 if at == 4 else 8
        return content[:at] + (rng.choice(HUGE) % (1 << 8 * size)).to_bytes(size, "little") + content[at + size :]
    if way == 3:
        at = rng.randrange(24, 4096)
        return content[:at] + (rng.choice(HUGE) % (1 << 64)).to_bytes(8, "little") + content[at + 8 :]
    return damage(rng, content)

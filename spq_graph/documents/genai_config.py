"""What onnxruntime-genai has to know to run our output as it is: genai_config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spq_graph.documents.json_text import json_text
from spq_graph.documents.parsed import parse_json

NAME = "genai_config.json"
# Types that onnxruntime-genai runs as any decoder. Others it may treat in a way of its own (phi3: two graphs in turns),
# which is not how they are exported here; "decoder" is its name for one of which nothing more is known.
_PLAIN = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "phi", "qwen2", "qwen3", "smollm3"}
)
_SEARCH: dict[str, tuple[type, ...]] = {
    "do_sample": (bool,),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
}

Shape = Sequence[int | str | None]
_TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")


def write(
    out: Path, model: str, inputs: Mapping[str, Shape], outputs: Sequence[str], options: Mapping[str, str]
) -> bool:
    """Write genai_config.json into a folder that holds a model and its config.json.

    Args:
        out: the folder.
        model: the file in it.
        inputs: the graph's inputs by name, with their shapes.
        outputs: the names of its outputs.
        options: entries of the session options that it is run with.

    Returns:
        False where there is none to write: the graph has no cache of one shape for all layers, as that client wants
        it, or inputs and outputs with other names than ours, or no config.json lies beside it.
    """
    config, generation = (_read(out / name) for name in ("config.json", "generation_config.json"))
    found = describe(config, generation, model, inputs, outputs)
    if found is None:
        return False
    found["model"]["decoder"]["session_options"] |= options
    _save(out, found)
    return True


def adopt(source: Path, out: Path, model: str, options: Mapping[str, str]) -> bool:
    """Take over the genai_config.json that lies beside a source graph: quantizing changes no input and no output.

    Args:
        source: the graph.
        out: the folder.
        model: the file in it.
        options: entries of the session options that it is run with, besides those that it has.

    Returns:
        False where there is none, or none that names a decoder.
    """
    found = _read(source.with_name(NAME))
    decoder = found.get("model", {}).get("decoder") if isinstance(found.get("model"), dict) else None
    if not isinstance(decoder, dict):
        return False
    decoder["filename"] = model
    asked = decoder.get("session_options")
    decoder["session_options"] = {**options, **(asked if isinstance(asked, dict) else {})}
    _save(out, found)
    return True


def _save(out: Path, found: Mapping[str, Any]) -> None:
    text = json_text(found, NAME, ascii_only=True, sort_keys=True, remedy="correct it beside the source")
    (out / NAME).write_text(text + "\n", encoding="utf-8")


def describe(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    model: str,
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
) -> dict[str, Any] | None:
    """The content of genai_config.json; None where this model cannot be described."""
    cache = _cache(inputs, outputs)
    length = config.get("max_position_embeddings") or config.get("n_positions")
    names = ("hidden_size", "num_attention_heads", "vocab_size")
    if cache is None or not isinstance(length, int) or any(not isinstance(config.get(name), int) for name in names):
        return None
    layers, heads, width = cache
    eos = _first(generation.get("eos_token_id"), config.get("eos_token_id"))
    one = eos[0] if isinstance(eos, list) else eos
    asked = {key: value for key, kind in _SEARCH.items() if isinstance(value := generation.get(key), kind)}
    return {
        "model": {
            "type": config["model_type"] if config.get("model_type") in _PLAIN else "decoder",
            "context_length": length,
            "vocab_size": config["vocab_size"],
            "bos_token_id": _first(generation.get("bos_token_id"), config.get("bos_token_id"), one),
            "eos_token_id": eos,
            "pad_token_id": _first(generation.get("pad_token_id"), config.get("pad_token_id"), one),
            "decoder": {
                "filename": model,
                "session_options": {"provider_options": []},
                "hidden_size": config["hidden_size"],
                "head_size": width,
                "num_attention_heads": config["num_attention_heads"],
                "num_hidden_layers": layers,
                "num_key_value_heads": heads,
                "inputs": {
                    **{name: name for name in _TOKEN_INPUTS if name in inputs},
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        # The graph grows its cache by concatenation: past and present are never one buffer.
        "search": {"do_sample": False, **asked, "max_length": length, "past_present_share_buffer": False},
    }


def _cache(inputs: Mapping[str, Shape], outputs: Sequence[str]) -> tuple[int, int, int] | None:
    """Layers, heads and width of the cache, where all names are ours and all its parts have one shape."""
    shapes = [shape for name, shape in inputs.items() if name.startswith("past_key_values.")]
    layers = len(shapes) // 2
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    names = {f"past_key_values.{part}" for part in parts}
    sizes = {(shape[1], shape[3]) for shape in shapes if len(shape) == 4}
    if not layers or inputs.keys() - set(_TOKEN_INPUTS) != names or "input_ids" not in inputs or len(sizes) != 1:
        return None
    if not {"logits", *(f"present.{part}" for part in parts)} <= set(outputs):
        return None
    ((heads, width),) = sizes
    return (layers, heads, width) if isinstance(heads, int) and isinstance(width, int) else None


def _first(*values: Any) -> Any:
    """The first that is a token, or some; 0 where none is."""
    return next((value for value in values if isinstance(value, int) or (isinstance(value, list) and value)), 0)


def _read(path: Path) -> dict[str, Any]:
    """The object in a file, empty where it is absent; what the source was loaded from needs no check any more."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

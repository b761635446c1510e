"""Graphs that are no decoder of their own, which the names of their inputs tell, and what to pass in their place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spq_graph.terms.errors import GraphError

EXPORT_AGAIN = "export the model again: `spq-graph export FOLDER -o DIR`, where FOLDER is its Hugging Face folder"
_PARTS = ("decoder_model.onnx", "decoder_with_past_model.onnx", "model.onnx")


def refuse_halves(names: Iterable[str], path: Path) -> None:
    """Refuse a merged decoder, and half of an encoder-decoder model.

    Args:
        names: of the graph's inputs.
        path: the file, beside which what was merged may lie.

    Raises:
        GraphError: saying what it is, and what to pass in its place.
    """
    names = list(names)
    if "use_cache_branch" in names:
        raise GraphError(
            "this is a merged decoder: its forms without and with a cache lie in the two branches of one If, "
            "which 'use_cache_branch' chooses, and nothing inside of them is read",
            where=str(path),
            remedy=instead_of_merged(path),
        )
    telling = [name for name in names if "encoder" in name.lower().replace(".", "_").split("_")]
    own = [name for name in names if name.startswith("decoder_input")]
    if telling or own:
        what = "reads what an encoder gives" if telling else "takes the ids of a decoder beside those of an encoder"
        raise GraphError(
            f"this graph {what} ({', '.join([*telling, *own][:3])}): it is of an encoder-decoder model",
            where=str(path),
            remedy="pass a decoder-only model, such as LLaMA, Mistral, Qwen2, Gemma2 or Phi3",
        )


def instead_of_merged(path: Path) -> str:
    """Which of the files that were merged into one lie beside it, and how to make one where none does."""
    rest = path.stem.partition("_merged")[2]
    names = dict.fromkeys([f"decoder_model{rest}.onnx", f"decoder_with_past_model{rest}.onnx", *_PARTS])
    there = [file for name in names if (file := path.with_name(name)).is_file() and file != path]
    if not there:
        return f"{EXPORT_AGAIN}; or let optimum export it with `--no-post-process`, and pass decoder_model.onnx"
    more = f"; {', '.join(file.name for file in there[1:])} lies beside it, too" if there[1:] else ""
    return f"pass {there[0]}{more}"

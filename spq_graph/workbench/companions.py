"""What lies beside a model for other clients: tokenizer and generation files, and onnxruntime-genai's own."""

from __future__ import annotations

from pathlib import Path

from spq_graph.documents import artifact, genai_config
from spq_graph.models.source import Source
from spq_graph.passes.files.read import ends_of
from spq_graph.runtime.sessions.sums import exact_sums


def companions(source: Source) -> Path:
    """The folder that holds a source's tokenizer and generation files."""
    if source.kind == "folder":
        return source.base or source.path
    return source.tokenizer or source.path.parent


def _folders(source: Source) -> list[Path]:
    """Where companions lie, the more particular ones last: an adapter may have a tokenizer of its own."""
    return [companions(source), *([source.path] if source.base is not None else [])]


def check_companions(source: Source) -> None:
    """Refuse, before anything is done, what could not be copied in the end.

    Raises:
        SourceError: a file is a link to outside of its folder.
    """
    if source.kind == "gguf":  # whose files are written by us
        return
    for folder in _folders(source):
        artifact.companions_in(folder)


def add_companions(source: Source, staging: Path) -> None:
    """Put beside a model what other clients need: tokenizer and generation files, and onnxruntime-genai's own."""
    for folder in _folders(source):
        artifact.copy_companions(folder, staging)
    model = staging / artifact.MODEL
    options = exact_sums(model)
    if source.kind != "onnx" or not genai_config.adopt(source.path, staging, model.name, options):
        genai_config.write(staging, model.name, *ends_of(model), options)

"""Which ONNX file a folder means: OUT, what `export` or another exporter wrote, or neither of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from spq_graph.documents.content import refuse_special
from spq_graph.models.adapter import ADAPTER_CONFIG
from spq_graph.terms.errors import SourceError

_MODEL: Final = "model.onnx"
_WEIGHTS: Final = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)


def onnx_in(folder: Path) -> Path | None:
    """The ONNX file in a folder that holds no weights for transformers: `model.onnx`, or the only one.

    Raises:
        SourceError: there are several, and none has that name.
    """
    if any((folder / name).is_file() for name in _WEIGHTS):
        return None
    if (folder / _MODEL).is_file():
        return folder / _MODEL
    files = sorted(folder.glob("*.onnx"))
    if len(files) > 1:
        raise SourceError(
            f"the folder holds {len(files)} .onnx files, and none is named {_MODEL}: "
            + ", ".join(file.name for file in files[:4]),
            where=str(folder),
            remedy=f"Pass the one that is meant, such as {min(files, key=_likely)}.",
        )
    return files[0] if files else None


def needs_export(path: Path) -> bool:
    """Whether a path is a GGUF, or a folder of transformers or with a GGUF and no ONNX file in it.

    Raises:
        SourceError: as `onnx_in`.
    """
    if not path.is_dir():
        return path.suffix == ".gguf"
    if (path / _MODEL).is_file() or onnx_in(path) is not None:
        return False
    return any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)) or any(path.glob("*.gguf"))


def onnx_below(folder: Path) -> Path | None:
    """A file to name to somebody who passed a folder: in it, or one below, as the Hub's `onnx/`."""
    files = [*folder.glob("*.onnx"), *folder.glob("*/*.onnx")]
    return min(files, key=_likely, default=None)


def onnx_of(path: Path) -> Path:
    """The ONNX file that a path means, which nothing is exported for: itself, or what lies in a folder.

    Raises:
        SourceError: there is none.
    """
    refuse_special(path)
    if not path.is_dir():
        if not path.is_file():
            raise SourceError("no such file", where=str(path), remedy="Check the spelling and the working directory.")
        return path
    if (path / _MODEL).is_file():
        return path / _MODEL
    if (file := onnx_in(path)) is not None:
        return file
    if (below := onnx_below(path)) is not None:
        remedy = f"Pass the file itself, {below}."
    elif (path / "config.json").is_file():
        remedy = f"Export it first: spq-graph export {path} -o OUT, and pass OUT."
    else:
        remedy = f"Pass an .onnx file, or a folder with {_MODEL}, such as quantize and export write."
    raise SourceError("the folder holds no .onnx file", where=str(path), remedy=remedy)


def _likely(file: Path) -> tuple[bool, bool, bool, str]:
    """Those first that are likely to be meant: optimum's merged decoder has its model inside of an If."""
    none = "merged" in file.stem or file.stem.startswith("encoder")
    return file.name != _MODEL, none, "with_past" in file.stem, str(file)

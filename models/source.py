"""What the word SOURCE of a command stands for: a Hugging Face folder, a GGUF or ONNX file, or the embedded model.

Everything that can be known to be wrong without loading a weight is refused here, in milliseconds and by name, instead
of after a minute inside a loader. Nothing in this module needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from spq_graph.documents.content import refuse_special
from spq_graph.documents.parsed import parse_json
from spq_graph.models import gguf
from spq_graph.models.adapter import base_of, check_adapter
from spq_graph.models.config import check_config, check_held, check_limits
from spq_graph.models.headers import check_safetensors
from spq_graph.models.hub import HubId, fetched, place_of
from spq_graph.models.onnx_folder import onnx_below, onnx_in
from spq_graph.models.provenance import Provenance, provenance
from spq_graph.terms.errors import SourceError

REFERENCE: Final = Path(__file__).resolve().parent / "reference"
"""Folder of the embedded reference model."""

_LFS_POINTER = b"version https://git-lfs"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Source:
    """A model that exists, with what its configuration says about it.

    Attributes:
        kind: `folder` for a Hugging Face folder, `onnx` or `gguf` for a single file.
        path: the folder or the file.
        origin: how plans and reports name it; never an absolute path, so that they do not depend on the machine.
        tokenizer: the folder that holds `tokenizer.json`, or None; that of a GGUF shows when it is unpacked.
        bos_token_id: what a sequence starts with, where the configuration says so.
        eos_token_id: what a sequence ends with; the first one where there are several.
        max_length: longest sequence that the positions cover.
        vocab_size: number of token ids.
        came: whose model it is, as far as its files tell.
        base: of a folder that holds an adapter alone the folder of its base model, which has the configuration.
    """

    kind: Literal["folder", "onnx", "gguf"]
    path: Path
    origin: str
    tokenizer: Path | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    max_length: int | None = None
    vocab_size: int | None = None
    came: Provenance = field(default_factory=Provenance)
    base: Path | None = None


def embedded_text(source: str) -> Path | None:
    """The text beside the embedded model, which it is evaluated on where no other is named; None for any other model.

    Args:
        source: the word `reference`, or a path, be it that of the embedded model itself.
    """
    embedded = source == "reference" or Path(source).expanduser() == REFERENCE
    return REFERENCE / "evaluation.txt" if embedded else None


def resolve(source: str, tokenizer: Path | None = None) -> Source:
    """Finds out what `source` is and checks that it can be read.

    Args:
        source: the word `reference`, a folder with config.json and weights, an adapter's folder, a GGUF or ONNX file, a
            folder that holds one, or an id on the Hub, which is downloaded where it begins with hf://.
        tokenizer: a folder with tokenizer.json, where none lies beside the source or another one is wanted.

    Returns:
        The source, checked as far as that is possible without loading it.

    Raises:
        SourceError: nothing is there; the configuration, the weights or the tokenizer are missing or broken; or the
            model is not a causal language model.
    """
    path = REFERENCE if source == "reference" else place_of(source)
    _check_text(path)
    if not path.exists():
        if (named := HubId.of(source)) is None:
            raise _not_found(source)
        path = fetched(named, source)
    refuse_special(path)
    if path.is_dir():
        return _folder(path, tokenizer)
    if path.suffix == ".onnx":
        return _onnx_file(path, tokenizer)
    if path.suffix == ".gguf":
        return _gguf_file(path, tokenizer)
    raise SourceError(
        "neither a model folder nor an .onnx or .gguf file",
        where=source,
        remedy="Pass the folder that holds config.json and the weights, or a file that ends in .onnx or .gguf.",
    )


def _check_text(path: Path) -> None:
    """Refuse a path that is no text: no runtime can be told of it."""
    try:
        known = b"\0" not in str(path.absolute()).encode()
    except UnicodeEncodeError:
        known = False
    if not known:
        what, remedy = "the path is not UTF-8, and ONNX Runtime takes no other", "Rename it and its folders with mv."
        raise SourceError(what, where=str(path), remedy=remedy)


def _not_found(source: str) -> SourceError:
    if source == "reference":
        return SourceError(
            "the embedded reference model is missing", where=source, remedy="Reinstall spq-graph, or pass a model."
        )
    return SourceError("no such file or folder", where=source, remedy="Check the spelling and the working directory.")


def _folder(path: Path, tokenizer: Path | None) -> Source:
    if not (path / "config.json").is_file() and (files := sorted(path.glob("*.gguf"))):
        return _gguf_file(gguf.only_one(files), tokenizer)
    base = base_of(path)
    own = next((folder for folder in (path, base) if (folder / "tokenizer.json").is_file()), None)
    if (file := onnx_in(base)) is not None:
        return _onnx_file(file, tokenizer or own, beside=base)
    config = _config(base)
    check_config(config, base)
    weights = weight_files(base)
    counts: dict[Path, int] = {}
    for file in (*weights, *check_adapter(path)):
        _check_not_empty(file)
        if file.suffix == ".safetensors":
            counts[file] = check_safetensors(file)
    check_held(config, base, sum(map(counts.__getitem__, weights)) if counts.keys() >= set(weights) else None)
    return _source("folder", path, _tokenizer(tokenizer or own), config, base)


def _onnx_file(path: Path, tokenizer: Path | None, beside: Path | None = None) -> Source:
    _check_not_empty(path)
    # On the Hub graphs lie in a folder `onnx` below it.
    near = (path.parent, path.parent.parent) if path.parent.name == "onnx" else (path.parent,)
    home = _tokenizer(tokenizer or next((place for place in near if (place / "tokenizer.json").is_file()), None))
    # A bare ONNX file says nothing of special tokens; the tokenizer's folder often lies beside a config that does.
    places = [place for place in (home, beside) if place is not None and (place / "config.json").is_file()]
    config = _read_object(places[0] / "config.json") if places else {}
    if places:
        check_limits(config, places[0] / "config.json")
    return _source("onnx", path, home, config)


def _gguf_file(path: Path, tokenizer: Path | None) -> Source:
    """What a GGUF holds shows when it is unpacked; here, whether it is one at all."""
    _check_not_empty(path)
    gguf.check_start(path)
    return _source("gguf", path, _tokenizer(tokenizer), {})


def _source(
    kind: Literal["folder", "onnx", "gguf"],
    path: Path,
    tokenizer: Path | None,
    config: dict[str, Any],
    base: Path | None = None,
) -> Source:
    came = provenance(path)
    named = "reference" if path == REFERENCE else came.hub if kind == "folder" else None
    return Source(
        kind=kind,
        path=path,
        origin=named or _name_of(path),
        tokenizer=tokenizer,
        bos_token_id=_first_int(config.get("bos_token_id")),
        eos_token_id=_first_int(config.get("eos_token_id")),
        max_length=_first_int(config.get("max_position_embeddings")),
        vocab_size=_first_int(config.get("vocab_size")),
        came=came,
        base=base if base != path else None,
    )


def _name_of(path: Path) -> str:
    """As it was named: what a link of a Hub cache leads to is called by its digest."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if path.is_file():
        return _read_object(path)
    if (file := onnx_below(folder)) is not None:
        remedy = f"The folder holds ONNX: pass the file itself, {file}."
    else:
        remedy = "Pass the folder that save_pretrained wrote: config.json, weights and tokenizer side by side."
    raise SourceError("no config.json", where=str(folder), remedy=remedy)


def weight_files(folder: Path) -> list[Path]:
    """The weight files in `folder` that transformers loads.

    Raises:
        SourceError: their set is not complete.
    """
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    whole = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    files = whole[:1] or (_shards(index) if index else sorted(folder.glob("*.safetensors")))
    if not files:
        raise SourceError(
            "no weights: neither *.safetensors nor pytorch_model.bin",
            where=str(folder),
            remedy=f"The folder holds ONNX: pass the file itself, {file}."
            if (file := onnx_below(folder)) is not None
            else "Download the weights into this folder.",
        )
    return files


def _shards(index: Path) -> list[Path]:
    shards = _read_object(index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        raise SourceError(
            "weight_map is missing or empty, or names what is no file of this folder",
            where=str(index),
            remedy="Download the index again.",
        )
    files = [index.parent / name for name in sorted(set(names))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise SourceError(
            f"{len(missing)} of {len(files)} shards are missing: {', '.join(missing)}",
            where=str(index.parent),
            remedy="Download the missing shards.",
        )
    return files


def _check_not_empty(file: Path) -> None:
    again = "Download or write the file again."
    if not file.stat().st_size:
        raise SourceError("the file is empty", where=str(file), remedy=again)
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise SourceError("a Git LFS pointer, not the file itself", where=str(file), remedy="Run git lfs pull.")


def _tokenizer(folder: Path | None) -> Path | None:
    """Returns the folder itself if its tokenizer.json is readable JSON."""
    if folder is None:
        return None
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise SourceError(
            "no tokenizer.json",
            where=str(folder),
            remedy="Pass the folder that holds tokenizer.json; a slow tokenizer is converted by loading it with "
            "AutoTokenizer and saving it with save_pretrained.",
        )
    _read_object(file)
    return folder


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"not readable as JSON: {error}", where=str(path), remedy="Download or write the file again."
        ) from error
    if not isinstance(content, dict):
        raise SourceError(
            f"a JSON object is expected, not a {type(content).__name__}",
            where=str(path),
            remedy="Download or write the file again.",
        )
    return content


def _first_int(value: object) -> int | None:
    """Token ids come alone or, where there are several, as a list; the first one counts."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None

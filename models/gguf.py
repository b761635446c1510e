"""GGUF files: unpacked into the Hugging Face folder that one was converted from, as far as it tells.

Reading is transformers' own, with the `gguf` package: which tensor is which, how a head's rows are permuted, how blocks
of 4 bits become numbers. What that reader leaves out without a word is checked here.
"""

from __future__ import annotations

import struct
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from spq_graph.models.chatter import Heard, quiet, said
from spq_graph.models.gguf_head import plain, read_head
from spq_graph.models.gguf_rope import restore_rope, restore_scale, value_of
from spq_graph.models.gguf_weights import read_once, write_model
from spq_graph.models.loading import require_torch
from spq_graph.terms.errors import OutputError, SourceError, SpqError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PretrainedConfig


def only_one(files: list[Path]) -> Path:
    """The one GGUF file of a folder.

    Raises:
        SourceError: there are several.
    """
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4]) + (", ..." if len(files) > 4 else "")
        raise SourceError(
            f"the folder holds {len(files)} GGUF files: {names}",
            where=str(files[0].parent),
            remedy=f"Pass the one that is meant, for example {files[0]}.",
        )
    return files[0]


def check_start(file: Path) -> None:
    """Refuse what does not begin as a GGUF does, which needs no package to tell.

    Raises:
        SourceError: it is another file, or of a version that is not read.
    """
    with file.open("rb") as stream:
        start = stream.read(8)
    version = struct.unpack("<I", start[4:])[0] if len(start) == 8 else 0
    if start[:4] != b"GGUF" or version not in (2, 3):
        what = f"a GGUF of version {version}, and 2 and 3 are read" if start[:4] == b"GGUF" else "not a GGUF file"
        raise SourceError(what, where=str(file), remedy="Download the file again, or take a newer one of the model.")


def unpack(file: Path, out: Path, *, tokenizer: bool = True, heard: Heard | None = None) -> None:
    """Writes the Hugging Face folder that a GGUF file holds: configuration, weights in float32, tokenizer.

    Args:
        file: the GGUF file; it is only read.
        out: the folder to write, which exists; tokenizer files and a chat template go into it as far as the file has
            them.
        tokenizer: whether to write them; without, another one is used.
        heard: is told what libraries printed.

    Raises:
        SourceError: a package is missing, or the file cannot be read: truncated, one of several parts, an adapter or a
            projector and not a decoder, or of an architecture or a weight type that transformers does not read.
        OutputError: there is no room for the folder.
    """
    _require_packages()
    head = _head(file)
    _check_whole(file, head)
    try:
        with quiet(heard), read_once(file, head):
            config = _config(file, head)
            _write(file, head, config, out)
            if tokenizer and head.get_field("tokenizer.ggml.tokens") is not None:
                _write_tokenizer(file, config, out)
    except SpqError:
        raise
    except Exception as error:
        raise SourceError(
            f"transformers cannot read this GGUF: {said(error)}",
            where=str(file),
            remedy="Pass the Hugging Face folder that it was converted from.",
        ) from error


def _require_packages() -> None:
    """Raises SourceError with the command that helps where something that reading needs is not installed."""
    remedy = 'pip install "spq-graph[gguf]", or pass the Hugging Face folder that it was converted from.'
    require_torch()
    for name in ("accelerate", "gguf"):
        if find_spec(name) is None:
            raise SourceError(f"a GGUF needs the package {name}, which is not installed", remedy=remedy)
    if find_spec("transformers.integrations.gguf") is None:
        raise SourceError(f"transformers {version('transformers')} is too old to read a GGUF", remedy=remedy)


def _head(file: Path) -> GGUFReader:
    """The metadata and the table of tensors; the weights stay in the file, which is mapped."""
    try:
        return read_head(file)
    except Exception as error:  # of numpy, unicode or enum, by where the file ends or what it holds
        raise SourceError(
            f"not a whole GGUF, or one with weights of an unknown type: {said(error)}",
            where=str(file),
            remedy="Download the file again, or take one with weights of another type, such as Q8_0.",
        ) from error


def _check_whole(file: Path, head: GGUFReader) -> None:
    """Raises unless this is one whole decoder."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if (parts := value_of(head, "split.count", 1)) > 1:
        raise SourceError(
            f"part {value_of(head, 'split.no', 0) + 1} of {parts} of a model",
            where=str(file),
            remedy="Join the parts first, with llama.cpp: llama-gguf-split --merge FIRST_PART WHOLE.gguf.",
        )
    if (kind := value_of(head, "general.type", "model")) != "model":
        raise SourceError(
            f"this GGUF is of type {kind}, not a model",
            where=str(file),
            remedy="Pass the GGUF of the model itself; an adapter is merged into it first.",
        )
    architecture = value_of(head, "general.architecture", "none")
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *_packed_architectures()}
    if plain(architecture) not in map(plain, known):
        raise SourceError(
            f"transformers does not read GGUF files of the architecture {architecture}",
            where=str(file),
            remedy="Pass the Hugging Face folder that it was converted from.",
        )


def _packed_architectures() -> set[str]:
    from transformers.integrations.gguf import GGUF_ARCHS

    return set(GGUF_ARCHS)


def _config(file: Path, head: GGUFReader) -> PretrainedConfig:
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    # The reader files the name that the model was given under the path that it was loaded from.
    config.__dict__.pop("_model_name_or_path", None)
    config.name_or_path = ""
    restore_rope(file, config, head)
    restore_scale(config, value_of(head, "general.architecture", ""))
    return config


def _write(file: Path, head: GGUFReader, config: PretrainedConfig, out: Path) -> None:
    try:
        write_model(file, head, config, out)
    except OSError as error:
        raise OutputError(
            f"the unpacked model cannot be written: {error.strerror or error}",
            where=str(out),
            remedy="Make room for the weights in float32, or set TMPDIR to a folder on another disk.",
        ) from error


def _write_tokenizer(file: Path, config: PretrainedConfig, out: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, config=config, local_files_only=True
        )
    except Exception as error:
        raise SourceError(
            f"transformers cannot make the tokenizer of this GGUF: {said(error)}",
            where=str(file),
            remedy="Pass the folder of its tokenizer: --tokenizer DIR.",
        ) from error
    tokenizer.save_pretrained(out)

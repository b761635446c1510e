"""The weights of a GGUF, written as a Hugging Face folder keeps them, one tensor in memory at a time.

Which tensor is which, and how its rows lie, is transformers' to say: its map of names and its processors are asked for
each tensor. Its loader would hold all of them twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from spq_graph.documents.json_text import json_text
from spq_graph.models.gguf_rope import ROPE_FACTORS, value_of
from spq_graph.terms.errors import SourceError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import PretrainedConfig, PreTrainedModel

_SHARD: Final = 1 << 28
"""Bytes after which a file of weights is full; a tensor that is larger has one of its own."""


@contextmanager
def read_once(file: Path, head: GGUFReader) -> Iterator[None]:
    """Has transformers parse the file, and its names of tensors, once: it does for each question, and each module."""
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map

    def again(path: Any, *rest: Any) -> GGUFReader:
        return head if Path(path) == file else reader(path, *rest)

    # transformers imports both anew in each of its functions.
    vars(gguf).update(GGUFReader=again, get_tensor_name_map=cache(names))
    try:
        yield
    finally:
        vars(gguf).update(GGUFReader=reader, get_tensor_name_map=names)


def write_model(file: Path, head: GGUFReader, config: PretrainedConfig, out: Path) -> None:
    """Writes configuration and weights of a GGUF, in float32.

    Args:
        file: the GGUF file.
        head: its metadata and tensors, mapped.
        config: what it says of the model.
        out: the folder to write into.

    Raises:
        SourceError: the model has weights that the file lacks, or the file numbers that find no place in the model.
        OSError: there is no room.
        Exception: whatever transformers and gguf raise where they cannot read it.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    if is_gguf_arch_supported(value_of(head, "general.architecture", "")):
        _write_converted(file, head, config, out)
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    shapes = _shapes(model)
    written = _write_shards(_checked(_tensors(head, model), shapes), out)
    _check_all(file, head, shapes, written)
    _write_config(model, out)


def _write_converted(file: Path, head: GGUFReader, config: PretrainedConfig, out: Path) -> None:
    """Writes one of the architectures whose tensors transformers converts while it loads, and reads one by one itself.

    A model that came from a GGUF refuses to be saved, so that a fresh one with its weights is.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    loaded, info = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=config,
        quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    shapes = _shapes(loaded)
    _check_all(file, head, shapes, shapes.keys() - info["missing_keys"])
    with torch.device("meta"):
        fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(out)


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, of those that are one tensor under the first of their names."""
    held: dict[int, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        held.setdefault(id(tensor), (name, tuple(tensor.shape)))
    return dict(held.values())


def _tensors(head: GGUFReader, model: PreTrainedModel) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every tensor of the file that has a place in the model, by the name that it has there.

    A processor that keeps a tensor joins it with others to one, such as the gates and ups of experts, which is whole
    when as many numbers as it has were handed over.
    """
    from gguf import dequantize
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = value_of(head, "general.architecture", "")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    kept: dict[str, Any] = {}
    filled: Counter[str] = Counter()
    for tensor in head.tensors:
        made = processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters={"tensors": kept},
        )
        if made.name in names:
            yield names[made.name], made.weights
        elif (joined := _joined(tensor, names)) in kept:
            filled[joined] += int(tensor.n_elements)
            if filled[joined] == kept[joined].numel():
                yield joined, kept.pop(joined).numpy()
    yield from ((name, weights.numpy()) for name, weights in kept.items())


def _joined(tensor: ReaderTensor, names: dict[str, str]) -> str:
    """The name of what a tensor was joined into, which the map has without the tensor's suffix."""
    return names.get(tensor.name.removesuffix(".weight"), "")


def _checked(
    tensors: Iterator[tuple[str, npt.NDArray[Any]]], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The tensors that the model has, in float32.

    Raises:
        ValueError: one has another shape in the model.
    """
    for name, weights in tensors:
        if name not in shapes:
            continue
        if weights.shape != shapes[name]:
            raise ValueError(f"{name} is {list(weights.shape)}, and the model's is {list(shapes[name])}")
        yield name, np.ascontiguousarray(weights, dtype=np.float32)


def _write_shards(tensors: Iterator[tuple[str, npt.NDArray[np.float32]]], out: Path) -> set[str]:
    """Writes files of a few tensors each and the index of them; returns the names that are in them."""
    files: dict[str, str] = {}
    shard: dict[str, npt.NDArray[np.float32]] = {}
    total = 0
    for name, weights in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + weights.nbytes > _SHARD:
            _write_shard(shard, files, out)
        shard[name] = weights
        total += weights.nbytes
        del weights  # else it lives while the next one is made
    _write_shard(shard, files, out)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    name = "model.safetensors.index.json"
    (out / name).write_text(json_text(index, name, indent=2) + "\n", encoding="utf-8")
    return set(files)


def _write_shard(shard: dict[str, npt.NDArray[np.float32]], files: dict[str, str], out: Path) -> None:
    """Writes one file, notes down what is in it, and empties it."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    file = out / f"model-{len(set(files.values())) + 1:05d}.safetensors"
    try:
        save_file(shard, file, metadata={"format": "pt"})
    except SafetensorError as error:  # what the library makes of an error of the system, which it names in the text
        raise OSError(str(error)) from error
    files.update(dict.fromkeys(shard, file.name))
    shard.clear()


def _check_all(file: Path, head: GGUFReader, shapes: dict[str, tuple[int, ...]], found: set[str]) -> None:
    """Raises unless the file has every weight of the model, and nothing else: the reader drops what it cannot name."""
    if missing := sorted(shapes.keys() - found):
        raise SourceError(
            f"the file lacks {len(missing)} of the model's tensors: {', '.join(missing[:4])}",
            where=str(file),
            remedy="Pass the Hugging Face folder that it was converted from.",
        )
    total = sum(int(tensor.n_elements) for tensor in head.tensors if tensor.name != ROPE_FACTORS)
    if total != (read := sum(int(np.prod(shape)) for shape in shapes.values())):
        raise SourceError(
            f"transformers makes {read} weights of the {total} in this file, so the model would be another one",
            where=str(file),
            remedy="Pass the Hugging Face folder that it was converted from.",
        )


def _write_config(model: PreTrainedModel, out: Path) -> None:
    """Writes what `save_pretrained` writes beside the weights."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(out)

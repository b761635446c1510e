"""Whether the tensors of the weight files are those of the model: the loader fills what is missing with random numbers.

What transformers itself knows to be of no use (`_keys_to_ignore_on_load_unexpected`: frequencies of rotary positions,
layers that predict further tokens) is not among what it reports, and is not spoken of here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from spq_graph.documents.json_text import json_text
from spq_graph.models.chatter import clipped
from spq_graph.terms.errors import SourceError

_SHOWN: Final = 4
# What older versions wrote beside the weights and computed anew; no model of today reads it.
_HARMLESS: Final = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|(^|\.)position_ids)$")
_ADAPTER: Final = re.compile(r"\.(lora_|base_layer\.|modules_to_save\.|hada_|oft_|ia3_)|^base_model\.model\.")
_QUANTIZED: Final = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|nested_absmax|weight_packed|weight_scale|weight_scale_inv"
    r"|weight_zero_point|input_scale|quant_state\.\w+|\w+_proj_(blocks|scales))$"
)
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_MERGE: Final = (
    "They are of an adapter that was not merged: call merge_and_unload() of peft where it was trained, save that with "
    "save_pretrained, and pass the folder."
)
_SAME_PLACE: Final = (
    "Take config.json and the weights from the same place: these do not belong together, or are incomplete."
)
_WRAPPERS: Final = ("_orig_mod.", "module.", "_forward_module.")  # torch.compile, DataParallel, DeepSpeed


def listed(names: Iterable[str], shown: int = _SHOWN) -> str:
    """The first few names, and how many more there are."""
    every = sorted(names)
    first = ", ".join(clipped(name, 150) for name in every[:shown])
    return f"{first} and {len(every) - shown} more" if len(every) > shown else first


def refuse_quantized_names(names: Iterable[str], where: str) -> None:
    """Refuse weights that are codes and scales: of GPTQ, AWQ, bitsandbytes, compressed-tensors or FP8.

    Older ones say so in no config.json.

    Args:
        names: of the tensors in a weight file.
        where: that file, or its folder.

    Raises:
        SourceError: some are names that only such weights have.
    """
    if name := next(filter(_QUANTIZED.search, names), None):
        raise quantized_already(f"there is {listed([name])}", where)


def quantized_already(how: str, where: str) -> SourceError:
    """The refusal of a model that another tool quantized."""
    return SourceError(
        f"the weights are quantized already ({how})", where=where, remedy="Pass the original floating-point model."
    )


def refuse_other_tensors(model: Any, info: dict[str, Any], folder: Path, remark: Callable[[str], None]) -> None:
    """Refuse a model that is not what the weight files hold.

    Args:
        model: as transformers loaded it.
        info: what it says of that: `missing_keys`, `unexpected_keys`, and `mismatched_keys` (name, shape in the file,
            shape in the model).
        folder: that of the model.
        remark: is told of tensors that belong to no part of the decoder, such as another head; they change nothing.

    Raises:
        SourceError: the files lack tensors, hold others of the decoder, or ones of other shapes or that are not finite.
    """
    unexpected = [name for name in info["unexpected_keys"] if not _HARMLESS.search(name)]
    refuse_quantized_names(unexpected, str(folder))
    _refuse_missing(sorted(info["missing_keys"]), unexpected, folder)
    _refuse_shapes(sorted(info["mismatched_keys"]), folder)
    parts = {name for owner in (model, model.base_model) for name, _ in owner.named_children()}
    beside = [name for name in unexpected if name.partition(".")[0] not in parts and not _ADAPTER.search(name)]
    if inside := sorted(set(unexpected).difference(beside)):
        raise _left_out(inside, model.config, folder)
    if beside:
        remark(f"left out, since no part of the decoder: {len(beside)} tensors of the weight files ({listed(beside)})")
    if getattr(model.config, "tie_word_embeddings", False) and not _is_tied(model):
        remark("config.json ties head and embedding, but the weight files hold two that differ: taken as they are")
    _refuse_not_finite(model, folder)


def _is_tied(model: Any) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return not hasattr(head, "weight") or head.weight.data_ptr() == embedding.weight.data_ptr()


def _refuse_missing(missing: Sequence[str], unexpected: Sequence[str], folder: Path) -> None:
    if not missing:
        return
    what = f"the weight files lack {len(missing)} of the model's tensors: {listed(missing)}"
    remedy = _SAME_PLACE
    if missing == ["lm_head.weight"]:
        remedy = f'If the head is the embedding, write "tie_word_embeddings": true into config.json. {_SAME_PLACE}'
    for prefix in _WRAPPERS:
        if any(f"{prefix}{name}" in unexpected for name in missing):
            what += f"; there is {listed([prefix + missing[0]])} and the like"
            remedy = f"It was saved inside of a wrapper. Take '{prefix}' off the names: {_renaming(prefix, folder)}"
    if any(_ADAPTER.search(name) for name in unexpected):
        remedy = _MERGE
    raise SourceError(what, where=str(folder), remedy=remedy)


def _renaming(prefix: str, folder: Path) -> str:
    """A command that takes a prefix off the names in every file of weights, and in their index."""
    how, files, more = "torch import load, save", "pytorch_model*.bin", ""
    if any(folder.glob("*.safetensors")):
        how, files = "safetensors.torch import load_file as load, save_file as save", "*.safetensors"
        more = ', {"format": "pt"}'
    # Copies: what was read may be the file itself, mapped, which is written over.
    renamed = f'{{k.removeprefix("{prefix}"): v.clone() for k, v in load(f).items()}}'
    program = shlex.quote(
        f"import pathlib; from {how}; d = pathlib.Path({json_text(str(folder), 'the command', indent=None)}); "
        f'[save({renamed}, f{more}) for f in d.glob("{files}")]; '
        f'[i.write_text(i.read_text().replace("\\"{prefix}", "\\"")) for i in d.glob("*.index.json")]'
    )
    return f"python -c {program}"


def _refuse_shapes(mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]], folder: Path) -> None:
    if mismatched:
        each = [f"{listed([name])} is {list(there)} and not {list(wanted)}" for name, there, wanted in mismatched]
        raise SourceError(
            f"the model cannot be loaded: {len(each)} tensors of the weight files have other shapes than config.json "
            f"says: {listed(each, 2)}",
            where=str(folder),
            remedy="Correct the sizes in config.json, or take it and the weights from the same place.",
        )


def _left_out(names: Sequence[str], config: Any, folder: Path) -> SourceError:
    """What the files hold and the decoder has no place for.

    Refused and not only warned of: such tensors were trained with the rest. A model without its biases or its last
    layer is another one, whose figures would be taken for those of the first.
    """
    if any(_ADAPTER.search(name) for name in names):
        remedy = _MERGE
    else:
        remedy = (
            f"{_layers(names, config) or _biases(names, config)}To go on without them, save what transformers makes of "
            f"the folder, AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('NEW'), and pass NEW."
        )
    what = f"the weight files hold {len(names)} tensors that the model has no place for: {listed(names)}"
    return SourceError(what, where=str(folder), remedy=remedy)


def _layers(names: Sequence[str], config: Any) -> str:
    """More layers than the configuration counts; nothing where the names are of layers that the model has."""
    most = max((int(found[1]) for name in names if (found := _LAYER.search(name))), default=-1)
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int) or most < count:
        return ""
    return f'If they belong to the model, write "num_hidden_layers": {most + 1} into config.json. '


def _biases(names: Sequence[str], config: Any) -> str:
    """The flags of the configuration that leave such biases out."""
    biases = [name for name in names if name.endswith(".bias")]
    flags = [key for key, value in config.to_dict().items() if key.endswith("bias") and value is False]
    parts = {flag: "mlp" if "mlp" in flag else "attn" if "att" in flag or "qkv" in flag else "" for flag in flags}
    each = " and ".join(f'"{flag}": true' for flag, part in parts.items() if any(part in name for name in biases))
    return f"If they belong to the model, write {each} into config.json. " if each else ""


def _refuse_not_finite(model: Any, folder: Path) -> None:
    import torch

    def finite(value: Any) -> bool:
        return not value.numel() or all(bool(end.isfinite()) for end in torch.aminmax(value.detach()))

    if broken := [name for name, value in model.named_parameters() if not finite(value)]:
        raise SourceError(
            f"{len(broken)} tensors of the model hold NaN or infinity: {listed(broken)}",
            where=str(folder),
            remedy="Download or convert the weights again.",
        )

"""What attention needs and transformers' reader passes over: how a GGUF scales rotary positions, and queries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from spq_graph.terms.errors import SourceError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PretrainedConfig

ROPE_FACTORS: Final = "rope_freqs.weight"
"""The tensor of factors that divide the rotary frequencies, which Llama 3.1 has."""
# What llama.cpp's converter takes from a config of type llama3, whose file keeps only the factors that follow from it.
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

_LARGEST_GEMMAS: Final = {"gemma2": 46, "gemma3": 62}
"""Architecture and layers of the Gemmas of 27 billion parameters, by which llama.cpp knows them."""


def value_of(head: GGUFReader, key: str, default: Any) -> Any:
    """A value of the metadata, or the default where the file has no such key."""
    field = head.get_field(key)
    return default if field is None else field.contents()


def restore_rope(file: Path, config: PretrainedConfig, head: GGUFReader) -> None:
    """Sets what the file says of its rotary positions.

    Args:
        file: for messages.
        config: is changed.
        head: metadata and tensors.

    Raises:
        SourceError: positions are scaled by a formula whose parameters the file does not hold.
    """
    _restore_scaling(file, config, head)
    factors = next((tensor.data for tensor in head.tensors if tensor.name == ROPE_FACTORS), None)
    if factors is not None:
        _restore_llama3(file, config, factors)


def restore_scale(config: PretrainedConfig, architecture: str) -> None:
    """Sets by what the queries of the largest Gemmas are scaled: as in llama.cpp, since no file holds it.

    The others have `head_dim` there, which transformers takes; these have `hidden_size / num_attention_heads`.

    Args:
        config: is changed.
        architecture: what the file says that it is.
    """
    if config.num_hidden_layers == _LARGEST_GEMMAS.get(architecture):
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads


def _restore_scaling(file: Path, config: PretrainedConfig, head: GGUFReader) -> None:
    """Sets the scaling of rotary positions that the metadata names, and that the reader passes over.

    Raises:
        SourceError: it is of a type whose parameters the file does not hold.
    """
    prefix = f"{value_of(head, 'general.architecture', '')}.rope.scaling"
    kind = value_of(head, f"{prefix}.type", "none")
    rope = getattr(config, "rope_parameters", None)
    if kind == "none" or not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        return
    scaling: dict[str, Any] = {"rope_type": kind, "factor": value_of(head, f"{prefix}.factor", 1.0)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = value_of(head, f"{prefix}.original_context_length", 0)
    if kind not in ("linear", "yarn") or not all(scaling.values()):
        raise SourceError(
            f"the rotary positions are scaled as {kind}, which cannot be told from the file",
            where=str(file),
            remedy="Pass the Hugging Face folder that it was converted from: its config.json names the formula.",
        )
    config.rope_parameters = {**rope, **scaling}


def _restore_llama3(file: Path, config: PretrainedConfig, held: npt.NDArray[Any]) -> None:
    """Sets the rotary embedding whose factors the file holds, which is that of Llama 3.1 or none that is known.

    Raises:
        SourceError: the factors are not those that its formula gives.
    """
    factor = float(held.max())
    theta = float(config.rope_parameters["rope_theta"])
    if not np.allclose(_llama3_factors(theta, 2 * held.size, factor), held, rtol=1e-4):
        raise SourceError(
            f"{ROPE_FACTORS} scales the rotary frequencies, and not by the formula of Llama 3.1",
            where=str(file),
            remedy="Pass the Hugging Face folder that it was converted from: its config.json names the formula.",
        )
    config.rope_parameters = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **_LLAMA3}


def _llama3_factors(theta: float, width: int, factor: float) -> npt.NDArray[np.float64]:
    """What divides each rotary frequency, float64 [width / 2].

    With the wavelength `w = 2 pi theta^(2i / width)` and the original length L: 1 below `L / high`, `factor` above
    `L / low`, and between them `1 / ((1 - s) / factor + s)` with `s = (L / w - low) / (high - low)`.
    """
    low, high, length = _LLAMA3.values()
    waves = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    smooth = np.clip((length / waves - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)

"""Graphs that others make: sources, the families that each is asked for, and what must be found in every graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tests.families.catalogue import FAMILIES
from tests.families.family import LAYERS

NAMES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "olmo2", "granite", "gpt2")
WIDTH, HEADS = 64, 4
# Heads of 16 channels, since fused attention takes no narrower ones. The builder takes for the head whatever has as
# many channels as there are tokens, so that no other size may equal that.
_SIZES: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 112}
_CHANGES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": WIDTH},
    # The builder drops Mistral's window, and has another graph for a Phi-3 whose positions were stretched.
    "mistral": _SIZES | {"sliding_window": None},
    "phi3": _SIZES | {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
    "qwen3": _SIZES | {"head_dim": 16},
    "gemma2": _SIZES | {"head_dim": 16, "sliding_window": 8},
}
Naming = Literal["modules", "builder", "none"]
Outcome = Literal["runs", "found", "refused", "broken", "absent"]


def settings_of(name: str) -> dict[str, Any]:
    """Of a family's configuration."""
    return FAMILIES[name].configuration | _CHANGES.get(name, _SIZES)


@dataclass(frozen=True, slots=True)
class Source:
    """One way to come by a graph.

    Attributes:
        name, title: for tests, and for people.
        environment: where it is made.
        job: for produce.py; `{source}` is the folder, or the graph of the source that `of` names.
        of: the source whose graphs it takes; empty where it takes folders.
        folders: environment that made the folders, whose torch is compared with.
        families: that it is asked for.
        naming: what names tell: module paths, those of the builder's own modules, or nothing.
        cached: whether the graph has a cache; None where that is its source's.
        half: whether it computes in half precision.
        packed: whether q, k and v are one projection.
        outcomes: by family, where it is not that everything runs.
        notes: why, by family.
    """

    name: str
    title: str
    environment: str
    job: dict[str, Any]
    of: str = ""
    folders: str = "here"
    families: tuple[str, ...] = NAMES
    naming: Naming = "none"
    cached: bool = True
    half: bool = False
    packed: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def roles_of(source: Source, family: str) -> dict[str, tuple[str, int | None]]:
    """Role and layer of every site that must be found, by key; keys count only where the source keeps names."""
    if source.naming == "builder" or source.packed:
        modules = {"attn.qkv_proj": "attn_qkv", "attn.o_proj": "attn_o"}
        modules |= {f"mlp.{part}_proj": f"glu_{part}" for part in ("gate", "up", "down")}
        found: dict[str, tuple[str, int | None]] = {
            f"model.layers.{layer}.{path}": (role, layer) for layer in range(LAYERS) for path, role in modules.items()
        }
        return found | {"lm_head": ("lm_head", None)}
    return {key: (role, layer) for key, (role, layer, _) in FAMILIES[family].roles.items()}  # none has experts


_BUILT = tuple(name for name in NAMES if name not in ("olmo2", "gpt2"))
_NO_BUILDER: dict[str, Outcome] = {"olmo2": "absent", "gpt2": "absent"}
_CUDA_ONLY = "its norms of q and k are inside of GroupQueryAttention, which only CUDA has"
_ONE_ROW = "fuses rotary embedding so that it takes one sequence only"
_BROKEN = "makes a scalar of the axes of a ReduceSum, which nothing runs"
_EXPORT = "torch.export"
_LIGHT = ("llama", "gemma2", "phi3", "qwen3")

SOURCES: tuple[Source, ...] = (
    *(
        Source(
            f"export-{opset}",
            f"{_EXPORT}, opset {opset}",
            "here",
            {"do": "export", "opset": opset},
            naming="modules",
            families=_LIGHT if opset in (18, 24) else ("llama",),
        )
        for opset in range(18, 25)
    ),
    *(
        Source(
            f"export-{opset}-plain",
            f"{_EXPORT}, opset {opset}, no cache",
            "here",
            {"do": "export", "opset": opset, "cache": False},
            naming="modules",
            cached=False,
            families=("llama", "gemma2"),
        )
        for opset in (18, 24)
    ),
    Source(
        "export-4.57",
        f"{_EXPORT}, transformers 4.57",
        "optimum",
        {"do": "export"},
        folders="optimum",
        naming="modules",
        families=_LIGHT,
    ),
    Source(
        "optimum",
        "optimum-onnx",
        "optimum",
        {"do": "optimum", "task": "text-generation-with-past"},
        folders="optimum",
        naming="modules",
    ),
    Source(
        "optimum-plain",
        "optimum-onnx, no cache",
        "optimum",
        {"do": "optimum", "task": "text-generation"},
        folders="optimum",
        naming="modules",
        cached=False,
    ),
    Source(
        "genai-fp32",
        "onnxruntime-genai builder, fp32 for CPU",
        "genai",
        {"do": "genai", "precision": "fp32", "provider": "cpu"},
        naming="builder",
        outcomes=_NO_BUILDER,
    ),
    Source(
        "genai-fp16",
        "onnxruntime-genai builder, fp16 for CUDA",
        "genai",
        {"do": "genai", "precision": "fp16", "provider": "cuda"},
        naming="builder",
        half=True,
        outcomes=_NO_BUILDER | {"qwen3": "found"},
        notes={"qwen3": _CUDA_ONLY},
    ),
    Source(
        "genai-int4",
        "onnxruntime-genai builder, int4",
        "genai",
        {"do": "genai", "precision": "int4", "provider": "cpu"},
        naming="builder",
        outcomes=_NO_BUILDER | dict.fromkeys(_BUILT, "refused"),
    ),
    *(
        Source(
            f"ort-{level}-export",
            f"ONNX Runtime's optimizer ({level}), of {_EXPORT}",
            "here",
            {"do": "runtime", "level": level},
            of="export-18",
            families=_LIGHT,
        )
        for level in ("basic", "extended", "layout", "all")
    ),
    *(
        Source(
            f"ort-{level}-optimum",
            f"ONNX Runtime's optimizer ({level}), of optimum",
            "here",
            {"do": "runtime", "level": level},
            of="optimum",
            folders="optimum",
            naming="modules",
        )
        for level in ("basic", "all")
    ),
    *(
        Source(
            f"ort-all-genai-{kind}",
            f"ONNX Runtime's optimizer (all), of the builder's {kind}",
            "here",
            {"do": "runtime", "level": "all"},
            of=f"genai-{kind}",
            naming="builder",
            half=kind == "fp16",
            outcomes=_NO_BUILDER | more,
            notes=notes,
        )
        for kind, more, notes in (("fp32", {}, {}), ("fp16", {"qwen3": "found"}, {"qwen3": _CUDA_ONLY}))
    ),
    Source(
        "fused-optimum",
        "onnxruntime.transformers.optimizer, of optimum",
        "here",
        {"do": "transformers_optimizer", "heads": HEADS, "width": WIDTH},
        of="optimum",
        folders="optimum",
        outcomes={"gemma2": "found"},
        notes={"gemma2": _ONE_ROW},
    ),
    *(
        Source(
            f"{tool}-{of}",
            f"onnx{tool}, of {title}",
            "slim",
            {"do": tool},
            of=of,
            folders=folders,
            # onnxsim joins products with their biases under names of its own.
            naming="none" if (tool, of) == ("sim", "optimum") else naming,
            outcomes=outcomes,
            notes=notes,
            families=_LIGHT if of == "export-18" else NAMES,
        )
        for tool in ("slim", "sim")
        for of, title, folders, naming, outcomes, notes in (
            ("export-18", _EXPORT, "here", "none", {}, {}),
            ("optimum", "optimum", "optimum", "modules", {}, {}),
            (
                "genai-fp32",
                "the builder's fp32",
                "here",
                "builder",
                _NO_BUILDER | (dict.fromkeys(_BUILT, "broken") if tool == "sim" else {}),
                dict.fromkeys(_BUILT, _BROKEN) if tool == "sim" else {},
            ),
        )
    ),
)
BY_NAME = {source.name: source for source in SOURCES}
CELLS = tuple((source.name, family) for source in SOURCES for family in source.families)

"""Loading a folder with transformers: quietly, in float32, and only if its weights are the model's, all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spq_graph.models.adapter import ADAPTER_CONFIG, base_of, check_adapter, merged
from spq_graph.models.chatter import Hush, quiet, said
from spq_graph.models.config import check_held
from spq_graph.models.leftover import refuse_other_tensors
from spq_graph.terms.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where transformers is to look for an adapter: with peft it would load one beside the weights, and leave it unmerged.
_NO_ADAPTER: Final = "no-adapter-here"


def require_torch() -> None:
    """Raises SourceError with the command that helps where torch or transformers is not installed."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise SourceError(
            f"a model folder needs torch and transformers, and {error.name or 'one of them'} is not installed",
            remedy='pip install "spq-graph[export]", or pass an .onnx file, which needs neither.',
        ) from error


def load_causal_lm(folder: Path, *, hush: Hush = quiet, remark: Callable[[str], None] | None = None) -> PreTrainedModel:
    """Loads the causal language model in `folder`, and merges the adapter where one lies there.

    Args:
        folder: a Hugging Face folder. Nothing is downloaded and no code from the folder is run. Where it holds an
            adapter alone, its base model is loaded from where the adapter says.
        hush: holds back what libraries print.
        remark: is told what of the weight files is left out, and of an adapter that is merged.

    Returns:
        The model in float32, in evaluation mode, without gradients and with eager attention, which every exporter
        understands.

    Raises:
        SourceError: torch or transformers is missing, the folder cannot be loaded, or the weight files and the model
            differ: tensors that either lacks, of other shapes, or with numbers that are none. The loader would go on
            with random numbers, or without what is there, and only warn. Or the adapter cannot be merged.
    """
    require_torch()
    base = base_of(folder)
    config = _config(base, hush)
    # What config.json leaves out is the family's: of those that are asked for more than text, models of gigabytes.
    check_held(config.get_text_config(decoder=True).to_dict(), base)
    model, info = _loaded(base, config, hush)
    told = remark or (lambda _: None)
    refuse_other_tensors(model, info, base, told)
    check_adapter(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        with hush():
            model = merged(model, folder)
        told(f"the adapter in {folder.name} is merged into the weights")
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def about(folder: Path, config: Any, *more: str) -> str:
    """A folder, and what of its model may be what an exporter or loader stumbles over: rotary positions above all."""
    from spq_graph.models.rope import rope_types

    ropes = [f"rope_type '{kind}'" for kind in rope_types(config) if kind != "default"]
    return f"{folder} ({', '.join((*more, *ropes))})" if more or ropes else str(folder)


def _config(folder: Path, hush: Hush) -> Any:
    """The configuration by itself, so that what is wrong in it is looked for in no other file."""
    from transformers import AutoConfig

    try:
        with hush():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise SourceError(
            f"the model cannot be loaded: transformers refuses its configuration: {said(error)}",
            where=str(folder / "config.json"),
            remedy="spq-graph runs no code from a folder: export it with what it came with, and pass the .onnx file."
            if "custom code" in str(error)
            else "Correct what is named in config.json, or take the file of the original model.",
        ) from error


def _loaded(folder: Path, config: Any, hush: Hush) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of tensors that model or files lack."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with hush():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused by us: transformers has the names in its log alone
                adapter_kwargs={"subfolder": _NO_ADAPTER},
            )
    except Exception as error:
        raise SourceError(
            f"the model cannot be loaded: {_named(error, config) or said(error)}",
            where=about(folder, config),
            remedy="Correct what is named, or download config.json and the weights again; --verbose shows all that "
            "transformers said.",
        ) from error
    return model, info


def _named(error: BaseException, config: Any) -> str | None:
    """Of a KeyError over a value of the configuration, such as an activation that nobody knows: key and value."""
    from spq_graph.models.rope import rope_types

    if not isinstance(error, KeyError) or not error.args:
        return None
    value = error.args[0]
    keys = [key for key, given in config.to_dict().items() if given == value]
    keys += ["rope_type"] if value in rope_types(config) else []
    return f"{keys[0]} '{value}' in config.json is unknown to transformers" if keys else None

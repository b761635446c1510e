"""Loading a folder with transformers: quietly, in float32, and only if every weight really came from the file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from spq_graph.terms.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text that says something, or else its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back prints to standard output, warnings, logging and the loader's progress bars.

    Standard error stays as it is: the caller's own progress may be running there. What matters arrives as an exception.
    """
    from transformers.utils import logging as chatter

    bars, level = chatter.is_progress_bar_enabled(), logging.root.manager.disable
    chatter.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if bars:
            chatter.enable_progress_bar()


def load_causal_lm(folder: Path) -> PreTrainedModel:
    """Loads the causal language model in `folder`.

    Args:
        folder: a Hugging Face folder. Nothing is downloaded and no code from the folder is run.

    Returns:
        The model in float32, in evaluation mode, without gradients and with eager attention, which every exporter
        understands.

    Raises:
        SourceError: torch or transformers is missing, the folder cannot be loaded, or the weight files leave parameters
            out. The loader would initialise those at random and only warn.
    """
    require_torch()
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:
        raise SourceError(
            f"the model cannot be loaded: {first_line(error)}",
            where=str(folder),
            remedy="Check that AutoModelForCausalLM.from_pretrained loads this folder.",
        ) from error
    if missing := sorted(info["missing_keys"]):
        names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise SourceError(
            f"the weight files lack {len(missing)} of the model's tensors: {names}",
            where=str(folder),
            remedy="The weights do not belong to this config.json, or are incomplete.",
        )
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded

"""What lm-evaluation-harness and the libraries below it print and show is kept to themselves."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Standard output is for --json, and progress is told by whoever calls.

    The harness prints, shows bars, and warns of tasks and sets that nobody asked for; to estimate an error it would
    fork beside the threads of an open session.
    """
    import datasets
    import tqdm
    from lm_eval.api import model, task

    class Silent(tqdm.tqdm):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named | {"disable": True})

    harness, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level, said = harness.level, datasets.utils.logging.get_verbosity()
    with ExitStack() as stack:
        for module in (model, task, tqdm):
            stack.callback(setattr, module, "tqdm", module.tqdm)
            module.tqdm = Silent
        stack.callback(harness.setLevel, level)
        harness.setLevel(logging.ERROR)
        stack.callback(datasets.utils.logging.set_verbosity, said)
        datasets.utils.logging.set_verbosity_error()
        if not bars:
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        if "DISABLE_MULTIPROC" not in os.environ:
            stack.callback(os.environ.pop, "DISABLE_MULTIPROC")
            os.environ["DISABLE_MULTIPROC"] = "1"
        stack.enter_context(redirect_stdout(io.StringIO()))
        yield

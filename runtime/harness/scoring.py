"""What a model scores on tasks of lm-evaluation-harness, in the words of the project."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from traceback import extract_tb
from typing import Any

from spq_graph.documents.results import TaskScore
from spq_graph.runtime.harness.adapter import OnnxLM
from spq_graph.runtime.harness.quiet import quiet
from spq_graph.terms.errors import DataError, SpqError

# Standard errors of what is no mean are drawn so often; a hundred times that, as is the harness's habit, takes minutes.
_DRAWS = 1_000
# What the harness calls to have the model answer.
_ASKED = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def score_tasks(
    tasks: Mapping[str, Any],
    model: OnnxLM,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    remark: Callable[[str], None] = lambda _: None,
) -> dict[str, TaskScore]:
    """Score a model.

    Args:
        tasks: as `load_tasks` gives them.
        model: the model.
        limit: only so many examples of each, the first ones.
        num_fewshot: solved examples before each question; None for what a task says, and 0 where it says nothing.
        chat: whether a question is what a user says, and each solved example a turn, by the model's chat template.
        remark: is told of what is done otherwise than asked.

    Returns:
        By name of the task, and of groups that have a figure of their own.

    Raises:
        DataError: a task does not fit its data.
        SpqError: what the model cannot do.
    """
    from lm_eval.evaluator import evaluate

    for name, task in tasks["tasks"].items():
        _settle(name, task, num_fewshot, remark)
    with quiet():
        try:
            found = evaluate(
                model,
                dict(tasks),
                limit=limit,
                bootstrap_iters=_DRAWS,
                log_samples=False,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                confirm_run_unsafe_code=False,
            )
        except (SpqError, KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:  # of templates, functions and columns that tasks are made of
            if any(frame.name in _ASKED for frame in extract_tb(error.__traceback__)):
                raise  # that is no fault of a task
            raise DataError(
                f"a task does not fit its data: {type(error).__name__}: {error}",
                where="--tasks",
                remedy="pass one task at a time to see which, and mend its file or take another",
            ) from error
    if model.cut:
        remark(f"{model.cut} texts were longer than the model takes, and lost their beginning; see --window")
    rows = found["results"] | found.get("groups", {})
    return {name: _score(row, found["versions"].get(name), found["n-shot"].get(name)) for name, row in rows.items()}


def _settle(name: str, task: Any, num_fewshot: int | None, remark: Callable[[str], None]) -> None:
    """Set what stands before a question, and from which seed it is drawn, as lm_eval's own command line does."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own == 0 != num_fewshot:
        remark(f"{name} takes no solved examples before a question: --num-fewshot is not used")
    elif num_fewshot is not None or own is None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _score(row: Mapping[str, Any], version: object, num_fewshot: object) -> TaskScore:
    figures = {
        name: float(value)
        for name, value in row.items()
        if "," in name and isinstance(value, int | float) and math.isfinite(value)
    }

    def of(*metrics: str) -> tuple[float | None, float | None]:
        """The first of these that there is, of the first filter that has it, and its standard error."""
        for metric in metrics:
            for name, value in figures.items():
                if name.startswith(f"{metric},"):
                    return value, figures.get(f"{metric}_stderr,{name.partition(',')[2]}")
        return None, None

    (share, error), (normalized, its_error) = of("acc", "exact_match"), of("acc_norm")
    return TaskScore(
        accuracy=share,
        n=int(row.get("sample_len", 0)),
        accuracy_normalized=normalized,
        accuracy_stderr=error,
        accuracy_normalized_stderr=its_error,
        metrics=figures,
        version=None if version in (None, "Yaml") else str(version),  # "Yaml" is said of files that say none
        num_fewshot=num_fewshot if isinstance(num_fewshot, int) else None,
    )

"""Tasks of lm-evaluation-harness for a model that is open."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spq_graph.documents.results import TaskScore
from spq_graph.runtime.harness.loading import is_task_file, load_tasks
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.errors import UsageError
from spq_graph.terms.targets import Profile
from spq_graph.workbench.speaking import stop_ids
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench

_OURS = (".jsonl", ".json", ".ndjson", ".gz")


def told_apart(tasks: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Files of our own form, and what lm-evaluation-harness is asked for, of which several may stand between commas."""
    ours: list[Path] = []
    named: list[str] = []
    for given in map(str, tasks):
        for one in [given] if Path(given).is_file() else filter(None, map(str.strip, given.split(","))):
            is_file = Path(one).is_file() or one.endswith(_OURS) or os.sep in one
            if is_file and not is_task_file(one):
                ours.append(Path(one))
            else:
                named.append(one)
    return ours, named


def asked_of_harness(names: Sequence[str], profile: Profile, steps: Steps) -> dict[str, Any]:
    """The tasks with their data, read before the model is opened.

    Raises:
        UsageError: a task has the model write, and it is to run elsewhere than on ONNX Runtime.
        SpqError: as `load_tasks`.
    """
    with steps.step("tasks", f"Loading {_listed(names)}"):
        found = load_tasks(names)
    writing = [name for name, task in found["tasks"].items() if task.OUTPUT_TYPE == "generate_until"]
    if writing and profile.name != "cpu":
        raise UsageError(
            f"{', '.join(writing)}: text is generated on ONNX Runtime alone",
            where=f"--target {profile.name}",
            remedy="leave out --target, or these tasks",
        )
    return found


def on_harness(
    bench: Workbench,
    runner: Runner,
    tasks: Mapping[str, Any],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
) -> dict[str, TaskScore]:
    """Score a model that is open on tasks of the harness.

    Args:
        bench: the model, with a tokenizer.
        runner: runs it; its logits are of every token.
        tasks: as `asked_of_harness` gives them.
        limit: only so many examples of each.
        num_fewshot: solved examples before each question; None for what a task says.
        chat: whether a question is what a user says, in the words of the model's chat template.

    Raises:
        SpqError: as `score_tasks`.
    """
    # Loaded now: the harness is an extra.
    from spq_graph.runtime.harness.adapter import OnnxLM
    from spq_graph.runtime.harness.scoring import score_tasks

    assert bench.tokenizer is not None  # `evaluate` asked for one
    with bench.steps.step("harness", f"Scoring {_listed(list(tasks['tasks']))}") as tick:
        model = OnnxLM(
            runner,
            bench.tokenizer,
            max_length=bench.sequence_length,
            bos=bench.bos,
            stop_ids=stop_ids(bench, bench.tokenizer, chat=False),
            tick=tick,
        )
        return score_tasks(tasks, model, limit=limit, num_fewshot=num_fewshot, chat=chat, remark=bench.steps.remark)


def _listed(names: Sequence[str]) -> str:
    """Names in a line; of a group of dozens how many they are."""
    return ", ".join(names) if len(names) <= 5 else f"{len(names)} tasks"

"""Tasks of lm-evaluation-harness by name or by file, with their data: from the cache first, then from the Hub."""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from spq_graph.runtime.harness.quiet import quiet
from spq_graph.runtime.text.hub_data import from_cache_alone, is_absent, why_unreachable
from spq_graph.terms.errors import DataError, SpqError, UsageError

_FILES = (".yaml", ".yml")


def is_task_file(name: str) -> bool:
    """Whether what stands for a task is a task file of lm-evaluation-harness."""
    return name.endswith(_FILES)


def refuse_absent_harness(name: str) -> None:
    """Refuse a task that the harness is needed for where it is not installed.

    Args:
        name: of the task, for the error.

    Raises:
        UsageError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise UsageError(
            "tasks by name are those of lm-evaluation-harness, which is not installed",
            where=f"--tasks {name}",
            remedy="pip install 'spq-graph[eval]', or pass a FILE.jsonl, which needs nothing more",
        )


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Tasks with their data, in the form that the harness's `evaluate` takes.

    Args:
        names: of tasks, groups and tags, globs of them, and task files.

    Raises:
        UsageError: the harness, or what a task needs besides, is not installed; there is no such task; or it is of a
            kind that is not run here.
        DataError: the data of a task are neither here nor to be had, or its file cannot be used.
    """
    refuse_absent_harness(names[0])
    for name in names:
        if is_task_file(name) and not Path(name).is_file():
            raise DataError("no such task file", where=name, remedy="check the spelling and the folder")
    with quiet():
        found = _found(names)
    for name, task in found["tasks"].items():
        unsafe, pictures = (getattr(task, mark, False) for mark in ("UNSAFE_CODE", "MULTIMODAL"))
        _refuse_unrun(name, unsafe=unsafe, pictures=pictures)
    return found


def _found(names: Sequence[str]) -> dict[str, Any]:
    # As lm_eval itself seeds: some tasks draw their examples while they are loaded.
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    manager = _manager(names)
    parts: list[Any] = []
    for name in names:
        specs = [_group_in(name) or name] if is_task_file(name) else _matching(name, manager.all_tasks)
        parts += (part for spec in specs for part in _loaded(manager, spec))
    try:
        found: dict[str, Any] = manager.load(parts)
    except ValueError as error:  # one task in two groups
        raise UsageError(
            f"a task is asked for twice: {error}", where="--tasks", remedy="name it, or one group that it is in, once"
        ) from error
    return found


def _manager(names: Iterable[str]) -> Any:
    """What knows all tasks, or none where plain task files are all that is asked for: to find them takes seconds.

    A group in a file is made of tasks that are known, or lie beside it.
    """
    from lm_eval.tasks import TaskManager

    groups = [Path(name) for name in names if is_task_file(name) and _group_in(name) is not None]
    return TaskManager(
        include_path=sorted({str(file.resolve().parent) for file in groups}) or None,
        include_defaults=bool(groups) or not all(map(is_task_file, names)),
    )


def _group_in(file: str) -> str | None:
    """The name of the group that a task file makes, by which it has to be asked for; None where it makes none."""
    found = re.search(r"^group: *(\S+)", Path(file).read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[1] if found is not None else None


def _matching(name: str, known: Sequence[str]) -> list[str]:
    """The tasks that a name or glob means.

    Raises:
        UsageError: there is none.
    """
    if found := fnmatch.filter(known, name) if any(mark in name for mark in "*?[") else [name] * (name in known):
        return found
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    raise UsageError(
        f"lm-evaluation-harness has no task '{name}'" + (f": did you mean {', '.join(near)}?" if near else ""),
        where="--tasks",
        remedy="pass one that `lm-eval ls tasks` lists, or a task file of your own, FILE.yaml",
    )


def _loaded(manager: Any, spec: str) -> list[Any]:
    """The tasks, or the group, that a name or file stands for, with data: from the cache, else from the Hub.

    Raises:
        SpqError: as `load_tasks`.
    """
    entry = manager.task_index.get(spec)
    if entry is not None and entry.cfg:  # before anything is downloaded
        _refuse_unrun(spec, unsafe=entry.cfg.get("unsafe_code", False), pictures=False)
    try:
        with from_cache_alone():
            return _build(manager, spec)
    except Exception as error:
        if not is_absent(error):
            raise _told(spec, error) from error
        _require_hub(spec, error)
    try:
        return _build(manager, spec)
    except Exception as error:
        raise _told(spec, error) from error


def _build(manager: Any, spec: str) -> list[Any]:
    found = manager.load([spec])
    groups = found.get("groups", {})
    inside = {name for group in groups.values() for name in group.child_names}
    return [groups[name] for name in groups if name not in inside] or list(found["tasks"].values())


def _require_hub(spec: str, cause: Exception) -> None:
    """Refuse a task whose data are not here where the Hub cannot be reached.

    Raises:
        DataError: it cannot.
    """
    why = why_unreachable()
    if why is not None:
        named = re.search(r"[\w.-]+/[\w.-]+|(?<=')\w+(?=')", str(cause))
        data = named[0] if named is not None else "its data"
        raise DataError(
            f"{data} is not in the cache of `datasets`, and the Hub cannot be reached: {why}",
            where=f"--tasks {spec}",
            remedy="run it once where there is a network, and take HF_HOME along; or bring a copy of that repository, "
            "in a folder of its name below the one that this runs in",
        ) from cause


def _told(spec: str, error: Exception) -> SpqError:
    """What went wrong while a task was loaded, for people."""
    from datasets.exceptions import DatasetNotFoundError

    said, where = (str(error).splitlines() or [type(error).__name__])[0][:300], f"--tasks {spec}"
    if isinstance(error, SpqError):
        return error
    if isinstance(error, ImportError):
        return UsageError(
            f"the task needs a package that is not installed: {said}",
            where=where,
            remedy="install it with pip, and run this again",
        )
    if isinstance(error, DatasetNotFoundError):
        return DataError(
            f"the Hub does not hand out the data of the task: {said}",
            where=where,
            remedy="check `dataset_path` in the task file; a gated set wants its terms accepted, and `hf auth login`",
        )
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"the data of the task are not there: {said}",
            where=where,
            remedy="check `data_files` in the task file: they are seen from the folder that the command runs in",
        )
    return DataError(
        f"the task cannot be loaded: {type(error).__name__}: {said}",
        where=where,
        remedy="mend the task file as lm-evaluation-harness wants them, or take another task",
    )


def _refuse_unrun(name: str, *, unsafe: bool, pictures: bool) -> None:
    """Refuse tasks that run what a model writes, and those that ask about pictures.

    Raises:
        UsageError: it is one of them.
    """
    if unsafe or pictures:
        what = "runs code that the model writes" if unsafe else "asks about more than text"
        raise UsageError(f"the task '{name}' {what}", where="--tasks", remedy="leave it out")

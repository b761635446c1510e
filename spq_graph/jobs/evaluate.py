"""Perplexity, agreement and zero-shot accuracy of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from spq_graph.documents.results import Evaluation, TaskScore
from spq_graph.models.source import embedded_text
from spq_graph.runtime.measures.asked import Stream, gives_last_only
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.measures.tasks import Task, load_task, score_task
from spq_graph.runtime.proof.held import refuse_absent, runner_on
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.errors import GraphError, UsageError
from spq_graph.terms.targets import PROFILES, Profile, target_named
from spq_graph.workbench.answers import require_logits
from spq_graph.workbench.data import check_measured, data_file
from spq_graph.workbench.harness import asked_of_harness, on_harness, told_apart
from spq_graph.workbench.holding import refuse_unrun
from spq_graph.workbench.naming import in_source
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.speaking import refuse_wordless
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench

WITHOUT_LOGITS = "export the model with its head; `spq-graph quantize --calibration FILE` decides without one by ratio"


def evaluate(
    model: Openable,
    *,
    text: str | Path | None = None,
    max_tokens: int | None = None,
    against: Openable | None = None,
    tasks: Sequence[str | Path] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    target: str | None = None,
    steps: Steps | None = None,
) -> Evaluation:
    """Measure a model.

    Args:
        model: an .onnx file, an OUT folder, a Hugging Face folder, or "reference".
        text: what perplexity is measured on; the embedded text for "reference".
        max_tokens: limit of the text.
        against: floating-point model, for KL and top-1 agreement; a plain source is opened as `model` is.
        tasks: names of tasks of lm-evaluation-harness, groups and globs of them, its task files (.yaml), and zero-shot
            tasks in jsonl.
        limit: examples of each task.
        num_fewshot: solved examples before each question of the harness's tasks; None for what a task says.
        chat: whether the harness's tasks are asked by the model's chat template.
        target: whose runtime runs it; ONNX Runtime's CPU provider by default. `against` always runs on that.
        steps: times and shows what is done.

    Raises:
        SpqError: what is wrong, where, and what to do.
    """
    opening = Opening.of(model)
    profile = _runs_on(target)
    if text is None and not tasks:
        text = embedded_text(opening.name)
    if text is None and not tasks:
        raise UsageError("there is nothing to measure on", remedy="pass --text FILE, or --tasks FILE.jsonl or NAME")
    if against is not None and text is None:
        raise UsageError("--against compares on a text", remedy="pass --text FILE")
    own, named = told_apart(tasks)
    other, loaded = _like(opening, against), [load_task(Path(task)) for task in own]
    _check(opening, other, text, tasks, chat=chat and bool(named))
    steps = steps or Steps()
    asked = asked_of_harness(named, profile, steps) if named else None
    found = Evaluation()
    with opening.open(steps, find_sites=False) as bench:
        require_logits(bench, "perplexity and no accuracy", WITHOUT_LOGITS)
        if tasks:
            _require_every(bench)
        if profile.name != "cpu":
            refuse_unrun(bench.prepared.graph, profile, opening.name)
        runner = runner_on(profile, bench.model, logits=bench.logits) if profile.name != "cpu" else None
        if text is not None:
            file = data_file(text, judged=True)
            found = _on_text(bench, runner or bench.reference, file, max_tokens, other)
        scores = dict(_on_task(bench, runner or bench.runner, task, limit) for task in loaded)
        if asked is not None:
            scores |= on_harness(bench, runner or bench.runner, asked, limit=limit, num_fewshot=num_fewshot, chat=chat)
    return replace(found, tasks=scores)


def _runs_on(target: str | None) -> Profile:
    """The profile of what is to run the model.

    Raises:
        UsageError: models are not measured there, or its runtime is not here.
    """
    profile = PROFILES[target_named(target or "cpu")]
    if profile.name not in ("cpu", "openvino"):
        raise UsageError(
            f"models are measured on cpu or openvino, not on {target}", where="--target", remedy="pass one of them"
        )
    refuse_absent(profile, "--target")
    return profile


def _check(
    opening: Opening, other: Opening | None, text: str | Path | None, tasks: Sequence[str | Path], *, chat: bool
) -> None:
    """Refuse what can be known to be wrong before a model is opened.

    Raises:
        SpqError: a model or file is not there or cannot be read, or nothing makes tokens of text, or says how to talk.
    """
    source = opening.resolve(find_sites=False)
    check_measured(source, data_file(text, judged=True) if text is not None else None)
    if other is not None:
        other.resolve(find_sites=False)
    if tasks and source.tokenizer is None and source.kind != "gguf":
        raise UsageError("tasks need a tokenizer", where=str(tasks[0]), remedy="pass --tokenizer DIR")
    if chat and source.tokenizer is not None:
        refuse_wordless(source.tokenizer, opening.name, "leave out --apply-chat-template")


def _like(opening: Opening, other: Openable | None) -> Opening | None:
    """How to open the other model: as it says, or as the one beside it; its text comes in that one's windows."""
    if other is None or isinstance(other, Opening):
        return other
    return replace(opening, source=other, window=None)


def _on_text(
    bench: Workbench, stream: Stream, text: Path, max_tokens: int | None, against: Opening | None
) -> Evaluation:
    sequences = bench.sequences(text, max_tokens=max_tokens, judged=True)
    if gives_last_only(stream):
        bench.steps.remark("the graph gives logits of the last token only: one token a window is measured")
    with bench.steps.step("evaluate", f"Evaluating on {sequences.tokens} tokens") as tick:
        if against is None:
            with _named(bench, bench):
                own, _ = score_text(stream, [], sequences, tick)
            return _found(own)
        with against.open(bench.steps, find_sites=False) as reference, _named(reference, bench):
            require_logits(reference, "comparison with it", "leave out --against")
            _, (own,) = score_text(reference.reference, [stream], sequences, tick)
    return replace(_found(own), kl=own.kl, kl_stderr=own.kl_stderr, top1=own.top1)


@contextmanager
def _named(reference: Workbench, model: Workbench) -> Iterator[None]:
    """Say where in which of the two graphs it begins that logits are not finite."""
    try:
        yield
    except LogitsNotFiniteError as error:
        raise in_source(error, reference if error.number is None else model) from error


def _found(score: Score) -> Evaluation:
    return Evaluation(
        score.perplexity,
        score.nll,
        score.tokens,
        perplexity_stderr=score.perplexity_stderr,
        nll_stderr=score.nll_stderr,
    )


def _require_every(bench: Workbench) -> None:
    """Refuse tasks where they cannot be scored: they ask about every token of an answer."""
    if gives_last_only(bench.reference):
        raise GraphError(
            "the graph gives logits of the last token only, and tasks ask about every token of an answer",
            where=bench.source.origin,
            remedy="leave out --tasks and pass --text FILE, which is measured at the last token of each window",
        )


def _on_task(bench: Workbench, runner: Runner, task: Task, limit: int | None) -> tuple[str, TaskScore]:
    assert bench.tokenizer is not None  # `_check` asked for one
    with bench.steps.step(task.name, f"Scoring {task.name}") as tick:
        result = score_task(
            task,
            bench.tokenizer,
            runner.logits,
            max_length=bench.sequence_length,
            limit=limit,
            bos=bench.bos,
            progress=tick,
        )
    return task.name, TaskScore(**asdict(result))

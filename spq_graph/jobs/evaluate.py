"""Perplexity, agreement and zero-shot accuracy of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spq_graph.documents.results import Evaluation, TaskScore
from spq_graph.models.source import embedded_text
from spq_graph.runtime.measures.evaluate import Stream, score_text
from spq_graph.runtime.measures.tasks import load_task, score_task
from spq_graph.runtime.proof.held import runner_on
from spq_graph.terms.errors import UsageError
from spq_graph.terms.targets import PROFILES, target_named
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench


def evaluate(
    model: Openable,
    *,
    text: str | Path | None = None,
    max_tokens: int | None = None,
    against: Openable | None = None,
    tasks: Sequence[str | Path] = (),
    limit: int | None = None,
    target: str | None = None,
    steps: Steps | None = None,
) -> Evaluation:
    """Measure a model.

    Args:
        model: an .onnx file, an OUT folder, a Hugging Face folder, or "reference".
        text: what perplexity is measured on; the embedded text for "reference".
        max_tokens: limit of the text.
        against: floating-point model, for KL and top-1 agreement; a plain source is opened as `model` is.
        tasks: zero-shot tasks in jsonl.
        limit: examples of each task.
        target: whose runtime runs it; ONNX Runtime's CPU provider by default. `against` always runs on that.
        steps: times and shows what is done.

    Raises:
        SpqError: what is wrong, where, and what to do.
    """
    opening = Opening.of(model)
    profile = PROFILES[target_named(target or "cpu")]
    if profile.name not in ("cpu", "openvino"):
        raise UsageError(
            f"models are measured on cpu or openvino, not on {target}",
            where="--target",
            remedy="leave out --target, or pass --target openvino",
        )
    if text is None and not tasks:
        text = embedded_text(opening.name)
    if text is None and not tasks:
        raise UsageError("there is nothing to measure on", remedy="pass --text FILE, or --tasks FILE.jsonl")
    if against is not None and text is None:
        raise UsageError("--against compares on a text", remedy="pass --text FILE")
    found = Evaluation()
    with opening.open(steps, find_sites=False) as bench:
        if text is not None:
            stream = bench.reference if profile.name == "cpu" else runner_on(profile, bench.model)
            found = _on_text(bench, stream, Path(text), max_tokens, _like(opening, against))
        scores = dict(_on_task(bench, Path(task), limit) for task in tasks)
    return replace(found, tasks=scores)


def _like(opening: Opening, other: Openable | None) -> Opening | None:
    """How to open the other model: as it says, or as the one beside it; its text comes in that one's windows."""
    if other is None or isinstance(other, Opening):
        return other
    return replace(opening, source=other, window=None)


def _on_text(
    bench: Workbench, stream: Stream, text: Path, max_tokens: int | None, against: Opening | None
) -> Evaluation:
    sequences = bench.sequences(text, max_tokens=max_tokens)
    with bench.steps.step("evaluate", f"Evaluating on {sequences.tokens} tokens") as tick:
        if against is None:
            own, _ = score_text(stream, [], sequences, tick)
            return Evaluation(own.perplexity, own.nll, own.tokens)
        with against.open(bench.steps, find_sites=False) as reference:
            _, (own,) = score_text(reference.reference, [stream], sequences, tick)
    return Evaluation(own.perplexity, own.nll, own.tokens, own.kl, own.top1)


def _on_task(bench: Workbench, path: Path, limit: int | None) -> tuple[str, TaskScore]:
    if bench.tokenizer is None:
        raise UsageError("tasks need a tokenizer", where=str(path), remedy="pass --tokenizer DIR")
    task = load_task(path)
    with bench.steps.step(task.name, f"Scoring {task.name}") as tick:
        result = score_task(
            task,
            bench.tokenizer,
            bench.runner.logits,
            max_length=bench.sequence_length,
            limit=limit,
            bos=bench.bos,
            progress=tick,
        )
    return task.name, TaskScore(result.accuracy, result.n, result.accuracy_normalized)

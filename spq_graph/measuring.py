"""Perplexity, agreement and zero-shot accuracy of one model, as `eval` prints them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from spq_graph import artifact
from spq_graph.errors import UsageError
from spq_graph.models.source import REFERENCE
from spq_graph.pipeline import opened
from spq_graph.progress import Steps
from spq_graph.runtime.evaluate import Stream
from spq_graph.runtime.evaluate import evaluate as score
from spq_graph.runtime.proof import runner_on
from spq_graph.runtime.tasks import load_task, score_task
from spq_graph.targets import PROFILES, target_named
from spq_graph.workbench import Workbench


def evaluate(
    path: str,
    steps: Steps,
    *,
    text: Path | None = None,
    against: str | None = None,
    tasks: tuple[Path, ...] = (),
    limit: int | None = None,
    tokenizer: Path | None = None,
    max_tokens: int | None = None,
    bos: bool = False,
    window: int | None = None,
    target: str | None = None,
) -> dict[str, Any]:
    """Measure a model.

    Args:
        path: an .onnx file, an OUT folder, a Hugging Face folder, or "reference".
        steps: times and shows what is done.
        text: what perplexity is measured on; the embedded text for "reference".
        against: floating-point model, for KL and top-1 agreement; in the same forms as `path`.
        tasks: zero-shot tasks in jsonl.
        limit: examples of each task.
        tokenizer: folder with tokenizer.json, where `path` holds none.
        max_tokens: limit of the text.
        bos: prepend BOS even where the tokenizer does not.
        window: tokens in a sequence.
        target: whose runtime runs it; ONNX Runtime's CPU provider by default. The reference always runs on that.

    Raises:
        SpqError: what is wrong, where, and what to do.
    """
    profile = PROFILES[target_named(target or "cpu")]
    if profile.name not in ("cpu", "openvino"):
        raise UsageError(f"models are measured on cpu or openvino, not on {target}", where="--target")
    if text is None and path == "reference" and not tasks:
        text = REFERENCE / "evaluation.txt"
    if text is None and not tasks:
        raise UsageError("there is nothing to measure on", remedy="pass --text FILE, or --tasks FILE.jsonl")
    if against is not None and text is None:
        raise UsageError("--against compares on a text", remedy="pass --text FILE")
    found: dict[str, Any] = {}
    with open_model(path, tokenizer, steps, bos, window) as bench:
        if text is not None:
            stream = bench.reference if profile.name == "cpu" else runner_on(profile, bench.model)
            found |= _on_text(bench, stream, text, against, max_tokens, steps, tokenizer, bos)
        if tasks:
            found["tasks"] = dict(_on_task(bench, task, limit, steps) for task in tasks)
    return found


def open_model(
    path: str, tokenizer: Path | None, steps: Steps, bos: bool, window: int | None
) -> AbstractContextManager[Workbench]:
    """A workbench over an .onnx file, OUT, a Hugging Face folder, or "reference", whose sites are not sought."""
    place = Path(path)
    if place.is_dir() and (place / artifact.MODEL).is_file():
        beside = place if (place / "tokenizer.json").is_file() else None
        path, tokenizer = str(place / artifact.MODEL), tokenizer or beside
    return opened(path, steps, tokenizer=tokenizer, bos=bos, window=window, find_sites=False)


def _on_text(
    bench: Workbench,
    stream: Stream,
    text: Path,
    against: str | None,
    max_tokens: int | None,
    steps: Steps,
    tokenizer: Path | None,
    bos: bool,
) -> dict[str, Any]:
    sequences = bench.sequences(text, max_tokens=max_tokens)
    with steps.step("evaluate", f"Evaluating on {sequences.tokens} tokens") as tick:
        if against is None:
            own, _ = score(stream, [], sequences, tick)
            return {"perplexity": own.perplexity, "nll": own.nll, "tokens": own.tokens}
        with open_model(against, tokenizer, steps, bos, None) as reference:
            _, (own,) = score(reference.reference, [stream], sequences, tick)
    return {"perplexity": own.perplexity, "nll": own.nll, "tokens": own.tokens, "kl": own.kl, "top1": own.top1}


def _on_task(bench: Workbench, path: Path, limit: int | None, steps: Steps) -> tuple[str, dict[str, Any]]:
    if bench.tokenizer is None:
        raise UsageError("tasks need a tokenizer", where=str(path), remedy="pass --tokenizer DIR")
    task = load_task(path)
    with steps.step(task.name, f"Scoring {task.name}") as tick:
        result = score_task(
            task,
            bench.tokenizer,
            bench.runner.logits,
            max_length=bench.sequence_length,
            limit=limit,
            bos=bench.bos,
            progress=tick,
        )
    facts: dict[str, Any] = {"accuracy": result.accuracy, "n": result.n}
    if result.accuracy_normalized is not None:
        facts["accuracy_normalized"] = result.accuracy_normalized
    return task.name, facts

"""What came of a job, in words: what verbs print for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from spq_graph.documents.findings import Forecast
from spq_graph.documents.plan import Reason
from spq_graph.documents.preset import Preset
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.results import Applied, Evaluation, Exported, Generation, Outcome, TaskScore, Verified
from spq_graph.views import words
from spq_graph.views.made import ladder_table, spike_table, summary


def show_outcome(outcome: Outcome, console: Console) -> None:
    """Print what `quantize` made: the ladder where there is one, the spikes, and a summary."""
    if outcome.report.ladder:
        console.print(ladder_table(outcome.report, outcome.plan))
    console.print(spike_table(outcome.plan))
    console.print(summary(outcome.plan, outcome.report, outcome.out))


def forecast_in_words(found: Forecast) -> Iterator[str]:
    """A line for each fact: its name, and its value."""
    for name, value in found.to_dict().items():
        said = value
        if "mb" in name.split("_"):
            said = words.megabytes(round(value * 1e6))
        elif name in ("expected_time", "of_which_ladder"):
            said = words.duration(value)
        elif name == "seconds":
            said = ", ".join(f"{step} {words.duration(seconds)}" for step, seconds in value.items())
        elif name in ("based_on", "unchecked"):
            said = words.printable("; ".join(value)) or "nothing"
        yield f"{name.replace('_', ' ')}: {said}"


def exported_in_words(found: Exported) -> list[str]:
    """Where an export lies."""
    return [f"exported to {found.model}"]


def ranges_in_words(ranges: Ranges) -> list[str]:
    """Over how much ranges were measured, and where they lie."""
    remark = [f"! {ranges.remark}"] if ranges.remark is not None else []
    return [f"{len(ranges.values)} values over {ranges.tokens} tokens, written to {ranges.file}", *remark]


def applied_in_words(found: Applied) -> list[str]:
    """What ran, or why nothing did, what the target could not run as planned, and where it lies."""
    profile = found.plan.recipe.profile
    if found.absent is not None:
        lines = [f"not executed here: {found.absent}", f"the graph follows the rules of {profile.device}"]
    else:
        ran = f"{found.integer_kernels} sites run as integer kernels on {profile.ran_on}"
        lines = [", ".join([ran, *words.operator_sites(found)])]
    lines += words.folded(found.folded)
    replaced = [s for s in found.plan.sites if s.reason is Reason.UNSUPPORTED and s.evidence.note]
    lines += [f"{words.printable(s.key)} is {s.precision}: {words.why(s)}" for s in replaced]
    return [*lines, f"written to {found.out}"]


def verified_in_words(found: Verified) -> Iterator[str]:
    """What was held against what."""
    out, source = words.printable(str(found.out)), words.printable(found.source)
    yield f"{out} is what its plan makes of {source} for {found.target}"
    yield f"held against it: {found.sites} sites, {found.constants} constants, {found.nodes} nodes"


def evaluation_in_words(found: Evaluation) -> Iterator[str]:
    """A line for each figure, with its standard error where it has one, and each task."""
    figures = found.to_dict()
    figures.pop("tasks", None)
    for name, value in figures.items():
        if name.endswith("_stderr"):
            continue
        beside = f" {words.error(figures[f'{name}_stderr'])}" if f"{name}_stderr" in figures else ""
        yield f"{name}: {value:.6g}{beside}" if isinstance(value, float) else f"{name}: {value}"
    for name, score in found.tasks.items():
        yield _task_in_words(name, score)


def _task_in_words(name: str, score: TaskScore) -> str:
    """A task's accuracy, normalized too where it has that, and how many examples; of others what they measure."""
    shares = [
        f"{said}{share:.4f}" + (f" {words.error(error)}" if error is not None else "")
        for said, share, error in (
            ("", score.accuracy, score.accuracy_stderr),
            ("normalized ", score.accuracy_normalized, score.accuracy_normalized_stderr),
        )
        if share is not None
    ]
    shares = shares or [f"{metric} {value:.6g}" for metric, value in score.metrics.items() if "_stderr," not in metric]
    return f"{name}: {', '.join(shares)} of {score.n}"


def generation_in_words(found: Generation) -> str:
    """How it went, in a line."""
    tokens, speed = sum(map(len, found.tokens)), found.tokens_per_second
    parts = [f"{tokens} tokens" + ("" if speed is None else f", {speed:.1f} a second")]
    if not found.cache:
        parts.append("this graph has no KV cache, so every token ran all of the text again")
    if found.reached_model_length:
        parts.append("the model's length is reached")
    return "; ".join(parts)


def presets_in_words(found: Sequence[Preset]) -> Iterator[str]:
    """A line for each: its name, and what it is for."""
    width = max(len(one.name) for one in found)
    yield from (f"{one.name:<{width}}  {one.about}" for one in found)
    yield "use one: spq-graph quantize MODEL --preset NAME; change one: spq-graph presets NAME > recipe.toml"

"""What came of a job, as a program gets it and as --json prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spq_graph.documents.plan import Plan
from spq_graph.documents.report import OperatorRun, Report
from spq_graph.terms.kernels import INTEGER_KERNELS


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `quantize` made.

    Attributes:
        out: the folder that was written.
        plan, report: as they lie in it.
    """

    out: Path
    plan: Plan
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """What `quantize --json` prints."""
        return {"out": str(self.out), "plan": self.plan.to_dict(), "report": self.report.to_dict()}


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export` wrote: a model's ONNX file."""

    model: Path

    def to_dict(self) -> dict[str, Any]:
        """What `export --json` prints."""
        return {"model": str(self.model)}


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of applying a plan.

    Attributes:
        out: the folder that was written.
        plan: as it was applied: its sites say what another target could not run.
        absent: why nothing was executed; None where the target is here.
        executed: how many nodes of each operator type ran.
        providers: how many nodes ran on each provider.
        fp8: how the sites in FP8 ran; None without any, and where nothing was executed.
        folded: sites that a runtime need not run, by key, and why, as in report.json.
        by_token: how the sites in `w8a8_token` ran, likewise.
        with_branch: how those in `int8` with an outlier branch ran, where one operator has both, likewise.
    """

    out: Path
    plan: Plan
    absent: str | None
    executed: Mapping[str, int]
    providers: Mapping[str, int]
    fp8: OperatorRun | None
    folded: Mapping[str, str] = field(default_factory=dict)
    by_token: OperatorRun | None = None
    with_branch: OperatorRun | None = None

    @property
    def integer_kernels(self) -> int:
        """How many products ran in integers."""
        return sum(count for op, count in self.executed.items() if op in INTEGER_KERNELS)

    def to_dict(self) -> dict[str, Any]:
        """What `apply --json` prints."""
        return {
            "out": str(self.out),
            "target": self.plan.recipe.target,
            "absent": self.absent,
            "executed": dict(self.executed),
            "providers": dict(self.providers),
            **{
                name: run.model_dump(mode="json") if run is not None else None
                for name, run in (("fp8", self.fp8), ("by_token", self.by_token), ("with_branch", self.with_branch))
            },
            "folded": dict(self.folded),
        }


@dataclass(frozen=True, slots=True)
class Verified:
    """A folder that is what its plan makes of its source; one that is not raises.

    Attributes:
        out: the folder.
        source: what it was held against, as it was named.
        target: of the plan.
        plan: its digest.
        sites, constants, nodes: how many there are in the graph, each held against plan or source.
    """

    out: Path
    source: str
    target: str
    plan: str
    sites: int
    constants: int
    nodes: int

    def to_dict(self) -> dict[str, Any]:
        """What `verify --json` prints."""
        return asdict(self) | {"out": str(self.out)}


@dataclass(frozen=True, slots=True)
class TaskScore:
    """What came of a task.

    Attributes:
        accuracy: share of examples that were right; None of a task of lm-evaluation-harness that measures something
            else.
        n: how many there were.
        accuracy_normalized: by log-likelihood per byte; None for tasks that have none.
        accuracy_stderr, accuracy_normalized_stderr: standard errors of the two; None of one example too.
        metrics: of a task of lm-evaluation-harness everything that it measures, by its own names, such as `acc,none`
            and `acc_stderr,none`; empty for others.
        version: of the task, as it says; None where it says none.
        num_fewshot: how many solved examples stood before each question; None for others.
    """

    accuracy: float | None
    n: int
    accuracy_normalized: float | None = None
    accuracy_stderr: float | None = None
    accuracy_normalized_stderr: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    version: str | None = None
    num_fewshot: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Under the task's name in what `eval --json` prints; what is not known or empty is left out."""
        return {name: value for name, value in _known(asdict(self)).items() if value != {}}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` measured; None is what was not asked for.

    Attributes:
        perplexity: exp(nll).
        nll: mean negative log likelihood, nats a token.
        tokens: how many were predicted.
        kl: mean KL(other model || this one), nats a token.
        perplexity_stderr, nll_stderr, kl_stderr: standard errors, clustered by window; None of one window too, which
            tells nothing of how windows differ.
        top1: share of tokens where both rank the same token first.
        tasks: by name.
    """

    perplexity: float | None = None
    nll: float | None = None
    tokens: int | None = None
    kl: float | None = None
    top1: float | None = None
    perplexity_stderr: float | None = None
    nll_stderr: float | None = None
    kl_stderr: float | None = None
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What `eval --json` prints; the error of what was measured is null where it is not known."""
        figures = {}
        for name in ("perplexity", "nll", "tokens", "kl", "top1"):
            if (value := getattr(self, name)) is not None:
                figures[name] = value
                if name in ("perplexity", "nll", "kl"):
                    figures[f"{name}_stderr"] = getattr(self, f"{name}_stderr")
        tasks = {name: score.to_dict() for name, score in self.tasks.items()}
        return figures | ({"tasks": tasks} if tasks else {})


@dataclass(frozen=True, slots=True)
class Generation:
    """Text that continues prompts; each list is by prompt.

    Attributes:
        model: as it was named.
        prompts: as they were given.
        prompt_tokens: how many each has.
        texts: what was added.
        tokens: its ids.
        finish: why it ended: stop, length, or model_length, where the model takes no more.
        cache: whether the graph's cache was used.
        chat: whether prompts were put into the words of the model's chat template.
        sampling: how tokens were chosen: `temperature`, `top_k`, `top_p` and `seed`.
        prefill_seconds: until the first token of each was known.
        decode_seconds: from there to the end.
        tokens_per_second: of decoding; None where all there was came with the prefill.
        load_seconds: until the model's session was open.
    """

    model: str
    prompts: list[str]
    prompt_tokens: list[int]
    texts: list[str]
    tokens: list[list[int]]
    finish: list[str]
    cache: bool
    chat: bool
    sampling: dict[str, float | int | None]
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float | None
    load_seconds: float

    @property
    def reached_model_length(self) -> bool:
        """Whether the model took no more of one of the texts."""
        return "model_length" in self.finish

    def to_dict(self) -> dict[str, Any]:
        """What `generate --json` prints."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said in a chat.

    Attributes:
        model: as it was named.
        messages: each with `role` (system, user or assistant) and `content`.
        finish: why each answer ended: stop, length, model_length, or interrupted.
        tokens: how many each answer has.
    """

    model: str
    messages: list[dict[str, str]]
    finish: list[str]
    tokens: list[int]

    def to_dict(self) -> dict[str, Any]:
        """What `chat --json` prints."""
        return asdict(self)


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}

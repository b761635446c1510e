"""What came of a plan. The ladder, sizes, what really ran, and where."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from spq_graph.documents.drawing import LayerDrawing
from spq_graph.documents.json_text import json_text
from spq_graph.documents.speed import Speed
from spq_graph.documents.staging import written
from spq_graph.documents.strict import AMOUNT, COUNT, Bounds, Strict, first_problem, read_json
from spq_graph.documents.tables import html_table, to_frame
from spq_graph.documents.verdict import Verdict
from spq_graph.terms.errors import UsageError
from spq_graph.terms.logits import Given
from spq_graph.terms.rows import Extent, RowId, with_id

if TYPE_CHECKING:
    from pandas import DataFrame


# Numbers of a report that are counts, amounts or shares, wherever they stand.
_BOUNDS: Bounds = {
    **dict.fromkeys(("tokens", "bytes", "source_bytes", "peak_rss_bytes", "opset"), COUNT),
    **dict.fromkeys(("perplexity", "seconds", "expected_seconds"), AMOUNT),
    **dict.fromkeys(("executed", "providers", "placed"), COUNT),
    "top1": (0, 1),
}


class Rung(Strict):
    """One row of the ladder; all rows are measured on the same tokens.

    Attributes:
        id: which row it is; JSON has its `name` and its `seed`.
        bits: bits of weights and activations at integer sites; None for fp32.
        nll: mean negative log likelihood, nats a token; perplexity is its exponential.
        perplexity_stderr, nll_stderr, kl_stderr: standard errors, clustered by window; None of one window, which tells
            nothing of how windows differ, and in reports that have none.
        kl: KL(FP32 || this), nats a token; top1: share of tokens with the same best guess as FP32.
        bytes: size of the weights in the file.
        kept: keys of the sites kept in high precision.
        executed: how often each operator type runs, from the optimized graph.
    """

    id: RowId = Field(exclude=True)
    bits: int | None
    perplexity: float
    perplexity_stderr: float | None = None
    nll: float
    nll_stderr: float | None = None
    kl: float
    kl_stderr: float | None = None
    top1: float
    bytes: int
    kept: list[str]
    executed: dict[str, int]

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, given: Any) -> Any:
        return with_id(given)

    @model_serializer(mode="wrap")
    def _write_name(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.id.name, **write(self), "seed": self.id.seed}


class TextRef(Strict):
    """The text that the ladder was measured on."""

    digest: str
    tokens: int
    origin: str = ""


class OperatorRun(Strict):
    """How the sites of one of our operators ran.

    Attributes:
        sites: how many there are.
        kernels: how many ran in the operator library; the others ran as the function that the file carries.
        library: version and instruction set of the library; None where there is none.
    """

    sites: int
    kernels: int
    library: str | None = None


class TargetRun(Strict):
    """What the artifact was compiled for, and whether that was run.

    Attributes:
        name: the target; device: what it stands for.
        opset: of ONNX, that the file has.
        executed_here: whether the file ran on the target; `executed` and `providers` are empty where it did not.
        absent: why it did not.
        measured_on: the runtime that the ladder was measured on.
    """

    name: str
    device: str
    opset: int
    executed_here: bool
    absent: str | None = None
    measured_on: str = "ONNX Runtime"


class Sample(Strict):
    """A beginning of the text, and how it goes on where each next token is the likeliest.

    Attributes:
        prompt: the beginning.
        fp32, quantized: what follows, by the source and by what was made of it.
        tokens: how many the source added; alike: how many of them both begin with.
    """

    prompt: str
    fp32: str
    quantized: str
    tokens: int
    alike: int

    @property
    def shared(self) -> int:
        """How many characters both begin with, whole words of them where they part within one."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.fp32, self.quantized, strict=False)))
        return same if self.fp32 == self.quantized else self.fp32.rfind(" ", 0, same) + 1


class LogitsRef(Strict):
    """For which tokens the source gives logits.

    Attributes:
        given: every token, the last one of each window, or none; None where nothing was measured that tells.
        output: that holds them; None where there are none.
        tokens: how many tokens the ladder's figures are means over, where that is one a window.
        note: what follows from it, in words; empty where logits are those of every token.
    """

    given: Given | None
    output: str | None = None
    tokens: int | None = None
    note: str = ""


class Report(Strict):
    """What came of a plan.

    Attributes:
        verdict: ready or not, and what speaks against it.
        ladder: the rungs; empty where nothing was measured.
        extent: how much of the ladder was measured; None without one, and where an older version wrote the report.
        text: what the ladder was measured on.
        executed: how often each operator type ran, after ONNX Runtime's own fusions.
        providers: how many nodes ran on each provider.
        placed: `executed` apart by provider.
        kernels: what each site of the plan ran as, by key.
        folded: sites that a runtime need not run, by key, and why: "constant", or the node that gives the same.
        fp8: how the sites in FP8 ran; None without any.
        by_token: how those in `w8a8_token` ran; None without any. As the function in the file they are MatMulInteger.
        with_branch: how those in `int8` with an outlier branch ran, where one operator has both; likewise.
        layer: one decoder layer before and after, drawn from the files.
        speed: what was timed of the artifact, or what `bench --report` measured; None before that.
        samples: how beginnings of the text go on; empty where nothing tells which text tokens are.
        tokens: texts of the tokens that lead the profiles in the ranges, by id.
        seconds: wall time by step.
        expected_seconds: what was told before they began, by step; empty where nobody listened.
        peak_rss_bytes: largest memory of the process.
        bytes, source_bytes: size of the artifact and of the source, in bytes.
        environment: versions and machine.
        command: as it was given, with the names of files elsewhere instead of their places.
        logits: for which tokens the source gives logits; None where an older version wrote the report.
    """

    verdict: Verdict
    ladder: list[Rung]
    extent: Extent | None = None
    text: TextRef | None
    executed: dict[str, int]
    providers: dict[str, int]
    target: TargetRun | None = None
    placed: dict[str, dict[str, int]] = Field({})
    kernels: dict[str, str] = Field({})
    folded: dict[str, str] = Field({})
    fp8: OperatorRun | None = None
    by_token: OperatorRun | None = None
    with_branch: OperatorRun | None = None
    layer: LayerDrawing | None = None
    speed: Speed | None = None
    samples: list[Sample] = Field([])
    tokens: dict[int, str] = Field({})
    seconds: dict[str, float]
    expected_seconds: dict[str, float] = Field({})
    peak_rss_bytes: int
    bytes: int
    source_bytes: int
    environment: dict[str, str]
    command: str
    logits: LogitsRef | None = None

    def rung(self, row: RowId, bits: int | None = None) -> Rung | None:
        """The row of the ladder at so many bits, if it was measured; None for those that have no bits."""
        return next((rung for rung in self.ladder if rung.id == row and rung.bits == bits), None)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return self.model_dump(mode="json")

    def to_pandas(self) -> DataFrame:
        """The ladder, one row for each rung, by name.

        Raises:
            UsageError: pandas is not installed.
        """
        rows = [rung.model_dump(exclude={"kept", "executed"}) | {"kept": len(rung.kept)} for rung in self.ladder]
        return to_frame(rows, "name")

    def _repr_html_(self) -> str:
        standing = self.verdict.status.replace("_", " ").capitalize()
        columns = ("rung", "bits", "seed", "perplexity", "±", "KL", "±", "top-1", "MB", "kept")
        figures = ("perplexity", "perplexity_stderr", "kl", "kl_stderr", "top1")
        rows = [
            (r.id.name, r.bits, r.id.seed, *(getattr(r, name) for name in figures), r.bytes / 1e6, len(r.kept))
            for r in self.ladder
        ]
        return html_table(f"{standing}: {self.verdict.summary}", columns, rows)

    def to_json(self, name: str = "report.json") -> str:
        """The report as text, of a file of this name."""
        return json_text(self.to_dict(), name) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        path = Path(path)
        written({path: self.to_json(path.name).encode()})

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report.

        Raises:
            UsageError: the file is missing or not a report.
        """
        try:
            text = Path(path).read_bytes()
            read_json(text, _BOUNDS)
            return cls.model_validate_json(text)
        except (OSError, ValueError) as cause:
            raise UsageError(
                f"the report cannot be read ({first_problem(cause)})",
                where=str(path),
                remedy="make it again with `spq-graph quantize --force`",
            ) from cause

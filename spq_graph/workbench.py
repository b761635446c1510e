"""Workbench: one source model on disk, its sites, and what can be done with them: calibrate, build, measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spq_graph import artifact
from spq_graph.decide import Measure
from spq_graph.errors import ActivationError, DataError, GraphError, UsageError
from spq_graph.models.source import Source
from spq_graph.passes.apply import DATA_SUFFIX, apply_plan, save_model
from spq_graph.passes.graph import Canonicalize, digest_of, load_graph
from spq_graph.passes.identify import Identified, require_glu
from spq_graph.passes.observe import FINITE_CHECK, Observe, ObserveFinite
from spq_graph.passes.quantized import identify_floating, refuse_quantized
from spq_graph.plan import CalibrationRef, ModelRef, Plan, Reason, Search, SitePlan
from spq_graph.progress import Steps
from spq_graph.ranges import Ranges
from spq_graph.recipe import Precision, Recipe
from spq_graph.runtime.calibrate import calibrate, first_not_finite
from spq_graph.runtime.decoding import cache_pairs
from spq_graph.runtime.evaluate import KlMeter
from spq_graph.runtime.sequences import Ids, Sequences
from spq_graph.runtime.session import Executed, Runner, check_integer_sites, execute_once
from spq_graph.runtime.text import load_sequences
from spq_graph.runtime.tokenizer import TextTokenizer

LONGEST_WINDOW = 2048
# Text sampled from the model is as slow as generation: this much of it settles ranges, and more is there on request.
SAMPLED_TOKENS = 8_192
SAMPLED_TOKENS_WITHOUT_CACHE = 4_096


@dataclass(slots=True)
class Built:
    """One model with a plan applied, as a file."""

    path: Path
    bytes: int


@dataclass(slots=True)
class Workbench:
    """One source model, opened.

    Attributes:
        source: what the user named.
        work: folder for intermediate files.
        steps: times and shows what is done.
        bos: prepend BOS even where the tokenizer does not.
        window: tokens in a sequence; None for the model's length, at most 2048.
        model: the ONNX file.
        digest: of that file and its weights.
        found: sites, GLU blocks and products that are no sites.
        tokenizer: where the source has one.
    """

    source: Source
    work: Path
    steps: Steps
    bos: bool = False
    window: int | None = None
    model: Path = field(init=False)
    digest: str = field(init=False)
    found: Identified = field(init=False)
    tokenizer: TextTokenizer | None = field(init=False, default=None)
    _count: int = 0
    _runner: Runner | None = None

    @property
    def runner(self) -> Runner:
        """The floating-point model, in a session that is opened once."""
        if self._runner is None:
            self._runner = Runner(self.model)
        return self._runner

    def open(self, *, allow_no_glu: bool = False, find_sites: bool = True) -> None:
        """Export where needed, read the graph and find its sites; without, any decoder will do, quantized or not.

        Raises:
            SourceError: the model cannot be read or exported.
            GraphError: it is quantized already, or holds no GLU.
        """
        if self.source.tokenizer is not None:
            self.tokenizer = TextTokenizer.load(self.source.tokenizer)
        self.model = self.source.path
        if self.source.kind == "folder":
            from spq_graph.models.export import export_folder

            # Named as `export` names it, so that both have one digest.
            self.model = self.work / artifact.MODEL
            with self.steps.step("export", f"Exporting {self.source.origin}"):
                export_folder(self.source.path, self.model)
        if not find_sites:
            return
        with self.steps.step("identify", "Finding GLU blocks and projections"):
            graph = self.load()
            refuse_quantized(graph, self.source.path)
            self.found = identify_floating(graph)
            self.digest = digest_of(self.model)
        if not allow_no_glu:
            require_glu(self.found, self.source.origin)
        if not self.found.sites:
            raise GraphError("no MatMul or Gemm with a constant weight was found", where=self.source.origin)
        if any(site.stored == "bf16" for site in self.found.sites):
            raise UsageError("bfloat16 graphs do not run on ONNX Runtime's CPU provider", remedy="export it in float32")

    def load(self) -> ir.Model:
        """The source graph, canonical, ready to be edited."""
        graph = load_graph(self.model)
        Canonicalize()(graph)
        return graph

    @property
    def stored(self) -> dict[str, str]:
        """Floating-point format of every site's weight in the graph, by key."""
        return {site.key: site.stored for site in self.found.sites}

    @property
    def ref(self) -> ModelRef:
        """How plans refer to this model."""
        return ModelRef(digest=self.digest, origin=self.source.origin)

    @property
    def sequence_length(self) -> int:
        """Tokens in a sequence.

        Raises:
            UsageError: a window was asked for that is longer than the model.
        """
        longest = self.source.max_length or LONGEST_WINDOW
        if self.window is not None and self.source.max_length is not None and self.window > self.source.max_length:
            raise UsageError(f"the model has {self.source.max_length} positions", where=f"--window {self.window}")
        return self.runner.fixed_shape[1] or self.window or min(longest, LONGEST_WINDOW)

    def sequences(self, path: Path, *, max_tokens: int | None = None) -> Sequences:
        """Read text or ids as this model's sequences."""
        found = load_sequences(
            path, self.tokenizer, window=self.sequence_length, bos=self.bos,
            vocab_size=self.source.vocab_size or self.runner.vocabulary, max_tokens=max_tokens,
        )  # fmt: skip
        return replace(found, origin=path.name)  # where the file lies is not part of what was decided

    def sampled(self, tokens: int | None, seed: int) -> Sequences:
        """Sequences sampled from the model itself, for calibration without data."""
        folder = self.source.kind == "folder"
        wanted = tokens or (SAMPLED_TOKENS if folder or cache_pairs(self.runner) else SAMPLED_TOKENS_WITHOUT_CACHE)
        length = min(self.sequence_length, 256)
        count = max(1, wanted // length)
        bos = self.tokenizer.bos_id if self.tokenizer is not None else None
        bos = self.source.bos_token_id if bos is None else bos
        origin = f"{count} sequences of {length} tokens sampled from the model, seed {seed}"
        with self.steps.step("sample", "Sampling calibration text from the model itself") as tick:
            if folder:
                from spq_graph.models.sample import sample_ids

                try:
                    ids = sample_ids(self.source.path, sequences=count, length=length, seed=seed, bos=bos)
                except ActivationError as cause:
                    first = np.array([[bos or 0]], dtype=np.int64)
                    where = self._name_not_finite(first, np.ones_like(first))
                    raise ActivationError(cause.what, where=where, remedy=cause.remedy) from cause
            else:
                from spq_graph.runtime.sample import sample_ids as sample_onnx

                ids = sample_onnx(self.runner, sequences=count, length=length, seed=seed, bos=bos, progress=tick)
        return Sequences(ids, np.ones_like(ids), 1, origin)

    def calibrate(self, sequences: Sequences) -> Ranges:
        """Collect the ranges of every site's input.

        Raises:
            ActivationError: an activation is NaN or infinite, named by site.
        """
        graph = self.load()
        observe = Observe([site.input for site in self.found.sites])
        observe(graph)
        path = self.work / "observing.onnx"
        save_model(graph, path)
        with self.steps.step("calibrate", f"Calibrating on {sequences.tokens} tokens") as tick:
            return calibrate(
                path, [(p.value, p.outputs) for p in observe.probes], FINITE_CHECK, sequences, self.digest,
                self._name_not_finite, tick,
            )  # fmt: skip

    def _name_not_finite(self, ids: Ids, mask: Ids) -> str:
        graph = self.load()
        values = list(dict.fromkeys(site.input for site in self.found.sites))
        check = ObserveFinite(values)
        check(graph)
        path = self.work / "finite.onnx"
        save_model(graph, path)
        index = first_not_finite(path, [v.name or "" for v in graph.graph.outputs], ids, mask)
        if index is None:
            return self.source.origin
        site = next(s for s in self.found.sites if s.input == values[index])
        return f"input of {site.key} (value '{site.input}')"

    def build(self, plan: Plan, path: Path | None = None) -> Built:
        """Apply a plan and save the result; beside the intermediate files where no path is given."""
        if path is None:
            self._count += 1
            path = self.work / f"variant-{self._count}.onnx"
        return Built(path, save_model(apply_plan(self.model, plan), path))

    def prove(self, built: Built, plan: Plan) -> Executed:
        """Run once and check that every planned integer site ran as an integer kernel.

        Raises:
            CheckError: naming those that did not.
        """
        executed = execute_once(built.path, self._probe_ids())
        check_integer_sites(executed, [(s.key, s.node) for s in plan.integer_sites], str(built.path))
        return executed

    def _probe_ids(self) -> Ids:
        batch, length = self.runner.fixed_shape
        return np.zeros((batch or 1, length or min(8, self.sequence_length)), dtype=np.int64)

    def meter(
        self, sequences: Sequences, recipe: Recipe, ranges: Ranges, tick: Callable[[], None]
    ) -> tuple[Measure, int]:
        """A measure for `decide`, and how many tokens it runs on."""
        few = spread(sequences, recipe.sensitivity_tokens)
        meter = KlMeter(self.runner, few)
        base = self._skeleton(ranges, recipe)
        stored = self.stored

        def measure(precisions: Mapping[str, Precision]) -> float:
            plan = base.with_precisions(lambda s: precisions.get(s.key, Precision(stored[s.key])))
            built = self.build(plan)
            result = meter.kl(Runner(built.path))
            discard(built)
            tick()
            return result

        return measure, meter.tokens

    def check_ranges(self, ranges: Ranges) -> None:
        """Check that ranges were measured on this model.

        Raises:
            DataError: they were measured on another.
        """
        if ranges.model_digest != self.digest:
            raise DataError(
                "these ranges were measured on another model", remedy="run `spq-graph calibrate` on this one"
            )

    def _skeleton(self, ranges: Ranges, recipe: Recipe) -> Plan:
        """A plan with every measured site as the graph has it, from which those to be measured are made."""
        sites = [
            SitePlan(
                key=s.key, node=s.node, role=s.role, layer=s.layer, expert=s.expert, shape=s.shape, input=s.input,
                precision=Precision(s.stored), reason=Reason.DEFAULT,
                range=(ranges.values[s.input].low, ranges.values[s.input].high),
            )
            for s in self.found.sites
            if s.input in ranges.values
        ]  # fmt: skip
        calibration = CalibrationRef(digest=ranges.data_digest, tokens=ranges.tokens, sequences=ranges.sequences)
        return Plan(
            model=self.ref, recipe=recipe, calibration=calibration, search=Search(rule="none"), sites=sites,
            budget_met=True,
        )  # fmt: skip


def spread(sequences: Sequences, tokens: int) -> Sequences:
    """So many tokens' worth of rows, evenly spread over all of them."""
    rows = max(1, tokens // max(1, sequences.ids.shape[1]))
    return sequences.shard(0, max(1, len(sequences) // rows)).take(tokens)


def discard(built: Built) -> None:
    """Remove an intermediate model."""
    built.path.unlink(missing_ok=True)
    built.path.with_name(built.path.name + DATA_SUFFIX).unlink(missing_ok=True)

"""One source model on disk, its sites, and what can be done with them: calibrate, build, measure."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from spq_graph.decisions.enough import too_few
from spq_graph.documents.changes import Prefix
from spq_graph.documents.checkpoint import Checkpoint
from spq_graph.documents.model_ref import ModelRef
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.models.source import Source
from spq_graph.models.stand_in import StandIn
from spq_graph.passes.adapt.prepared import Prepared
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.read import digest_of
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.identify import Identified
from spq_graph.passes.find.logits import find_logits
from spq_graph.passes.pieces.split import signature
from spq_graph.runtime.measures.asked import Stream, gives_last_only
from spq_graph.runtime.measures.calibrate import Guard, Measure, collect_ranges
from spq_graph.runtime.proof.held import runner_on, why_absent
from spq_graph.runtime.sessions.executed import Executed
from spq_graph.runtime.sessions.session import Decoder, Runner
from spq_graph.runtime.text.reading import load_sequences
from spq_graph.runtime.text.sequences import Ids, Sequences
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import ActivationError
from spq_graph.terms.logits import Logits
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import CPU_PROVIDER, Profile
from spq_graph.workbench.built import Built
from spq_graph.workbench.cluster import Cluster
from spq_graph.workbench.faults import first_fault
from spq_graph.workbench.looked import Looked, read_graph
from spq_graph.workbench.not_finite import not_finite, too_large
from spq_graph.workbench.observing import observed
from spq_graph.workbench.placed import Placed
from spq_graph.workbench.proving import Opened, Then, check_ran, run_on
from spq_graph.workbench.shared_calibration import SharedCalibration
from spq_graph.workbench.steps import Steps, Tick
from spq_graph.workbench.streams import open_stream, open_whole

LONGEST_WINDOW = 2048


@dataclass(slots=True)
class Workbench:
    """One source model, opened by `Opening.open`.

    Attributes:
        source: what the user named.
        work: folder for intermediate files.
        steps: times and shows what is done.
        model: the ONNX file.
        tokenizer: where the source has one.
        looked: its graph and sites; None where no sites were sought.
        bos: prepend BOS even where the tokenizer does not.
        window: tokens in a sequence; None for the model's length, at most 2048.
        memory: bytes that the weights in a session may take; None for the default of `pieces.split`.
        stand_in: of a folder that is not exported, what is open in its place.
        cluster: whose workers share the work; None where this process does all of it.
    """

    source: Source
    work: Path
    steps: Steps
    model: Path
    tokenizer: TextTokenizer | None = None
    looked: Looked | None = None
    bos: bool = False
    window: int | None = None
    memory: int | None = None
    stand_in: StandIn | None = None
    cluster: Cluster | None = None
    _digest: Future[str] | None = field(init=False, default=None)
    _count: int = field(init=False, default=0)
    _runner: Runner | None = field(init=False, default=None)
    _reference: Stream | None = field(init=False, default=None)
    _prepared: Prepared | None = field(init=False, default=None)
    _logits: Logits | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.looked is not None:
            self._prepared = self.looked.prepared
            self._digest = ThreadPoolExecutor(max_workers=1).submit(digest_of, self.model)

    @property
    def found(self) -> Identified:
        """Sites, GLU blocks and products that are no sites.

        Raises:
            LookupError: none were sought: an error of the program, not of who uses it.
        """
        if self.looked is None:
            raise LookupError("this model was opened with find_sites=False")
        return self.looked.found

    @property
    def digest(self) -> str:
        """Of the model's file and its weights; where it is sure to be asked for, it is computed beside other work."""
        return self._digest.result() if self._digest is not None else digest_of(self.model)

    @property
    def placed(self) -> Placed:
        """The model as the workers of a cluster find it."""
        return Placed(self.model.resolve(), self.digest, self.memory)

    @property
    def runner(self) -> Runner:
        """The model in one session, which is opened once; `reference` takes less memory where that will do.

        Raises:
            UsageError: the machine has less memory than it takes.
        """
        if self._runner is None:
            whole = self.reference
            if isinstance(whole, Runner):
                self._runner = whole
            else:
                self._runner = open_whole(self.prepared, whole.bytes, self.work, self.logits)
        return self._runner

    @property
    def reference(self) -> Stream:
        """The model, to be run on one batch after the other."""
        if self._reference is None:
            self._reference = open_stream(self.prepared, self.memory, self.logits)
        return self._reference

    @property
    def decoder(self) -> Decoder:
        """What the model takes and gives; once the graph was read, no session is opened to know it."""
        if self.looked is None:
            return self.reference
        return Decoder(self.model, *signature(self.looked.prepared.graph), logits=self.logits)

    @property
    def logits(self) -> Logits:
        """Where the model says which token comes next, if it does."""
        if self._logits is None:
            self._logits = find_logits(self.prepared.graph)
        return self._logits

    @property
    def prepared(self) -> Prepared:
        """The source graph, read once; who edits it takes a copy."""
        if self._prepared is None:
            self._prepared = read_graph(self.model)
        return self._prepared

    @property
    def stored(self) -> Mapping[str, Precision]:
        """Floating-point format of every site's weight in the graph, by key."""
        return self.found.stored

    @property
    def ref(self) -> ModelRef:
        """How plans refer to this model."""
        return self.source.came.ref(self.digest, self.source.origin)

    @property
    def sequence_length(self) -> int:
        """Tokens in a sequence."""
        longest = self.source.max_length or LONGEST_WINDOW
        return self.decoder.fixed_shape[1] or self.window or min(longest, LONGEST_WINDOW)

    @property
    def known_length(self) -> int:
        """Tokens in a sequence, where the model or who runs it says so; 0 where it is our default."""
        says = self.window or self.source.max_length or self.decoder.fixed_shape[1]
        return self.sequence_length if says is not None else 0

    def sequences(self, path: Path, *, max_tokens: int | None = None, judged: bool = False) -> Sequences:
        """Read text or ids as this model's sequences; it may be judged by the token behind the length it insists on."""
        fixed, sizes = self.decoder.fixed_shape[1], (self.source.vocab_size, self.decoder.vocabulary)
        one_more = judged and fixed is not None and gives_last_only(self.reference)
        found = load_sequences(
            path,
            self.tokenizer,
            window=self.sequence_length + one_more,
            bos=self.bos,
            vocab_size=min((size for size in sizes if size), default=None),
            max_tokens=max_tokens,
        )
        ids = found.ids[found.mask == 1]
        unknown = self.tokenizer.unknown_among(ids) if self.tokenizer is not None else 0
        if unknown:  # a text of another language, often
            share = f"{unknown / ids.size:.2%} of the tokens of {path.name}"
            self.steps.remark(f"{share} are unknown to the tokenizer: {unknown:,} of {ids.size:,}")
        return replace(found, origin=path.name)  # where the file lies is not part of what was decided

    def calibrate(
        self, sequences: Sequences, checkpoint: Checkpoint | None = None, prefix: Prefix | None = None
    ) -> Ranges:
        """Collect the ranges of every site's input, as a step; as `observed`."""
        shared = self.cluster if prefix is None else None  # workers know the source
        label, measure = f"Calibrating on {sequences.tokens} tokens", None
        if shared is not None:
            label, measure = label + shared.words, SharedCalibration(shared, self.placed).seen
        with self.steps.step("calibrate", label) as tick:
            found = self.observed(sequences, tick, checkpoint, prefix, measure)
        found.remark = too_few(found.tokens, self.known_length)
        return found

    def observed(
        self,
        sequences: Sequences,
        tick: Tick | None = None,
        checkpoint: Checkpoint | None = None,
        prefix: Prefix | None = None,
        measure: Measure | None = None,
    ) -> Ranges:
        """The ranges of every site's input.

        Args:
            sequences: what to run.
            tick: is told how much is done, and of how much.
            checkpoint: to go on where an interrupted run stopped.
            prefix: what every sequence follows; nothing of it is observed.
            measure: runs the batches elsewhere; None for here.

        Raises:
            ActivationError: an activation is NaN or infinite, named by site.
        """
        model = observed(self.prepared, self.found.sites, self.model, self.digest, self.memory, prefix)
        guard = Guard(lambda ids, mask: self.not_finite(ids, mask, "calibration data"), self.too_large)
        return collect_ranges(model, sequences, guard, tick, checkpoint, measure)

    def not_finite(self, ids: Ids, mask: Ids, on: str) -> ActivationError:
        """What to raise of a batch, int64 [batch, length] both, on which the source is not finite."""
        sites = self.looked.found.sites if self.looked is not None else None
        fault = first_fault(self.prepared.graph, self.model, ids, mask, sites, self.memory)
        return not_finite(on, self.source.origin, fault)

    def too_large(self, sizes: Mapping[str, float]) -> ActivationError | None:
        """What to raise of float16 values of these sizes, by name; None where float16 holds them."""
        return too_large(self.prepared.graph, self.found.sites, sizes, self.source.origin)

    def build(self, plan: Plan, path: Path | None = None, profile: Profile | None = None) -> Built:
        """Apply a plan and save the result.

        Args:
            plan: what was decided.
            path: the file; None for one beside the intermediate files.
            profile: what runs it; by default the plan's target.
        """
        if path is None:
            self._count += 1
            path = self.work / f"variant-{self._count:04}.onnx"  # of one length: it is part of the file
        model = apply_plan(self.prepared, plan, profile)
        return Built(path, save_model(model, path), model.graph.opset_imports[""])

    def prove(self, built: Built, plan: Plan, stream: Stream | None = None, then: Then | None = None) -> Executed:
        """Run once on the plan's target, where it is at hand, and check that every site ran as planned.

        Args:
            built: what was made.
            plan: what was decided.
            stream: a session that is open already, which serves where the runtime can tell of it afterwards.
            then: is given what ran, as long as it is open.

        Raises:
            CheckError: naming those that did not.
        """
        opened = Opened(stream, self.memory, self.logits, then)
        executed = run_on(plan, built.path, self.probe_ids(), opened)
        check_ran(executed, plan, self.prepared.graph, built.path)
        return executed

    def measured_as(self, plan: Plan) -> Profile:
        """What a plan is measured on: its target where that is at hand, and otherwise the target's emulation."""
        profile = plan.recipe.profile
        elsewhere = profile.runtime == "onnxruntime" or why_absent(profile) is not None
        return profile.emulation if elsewhere else profile

    def emulates(self, plan: Plan) -> bool:
        """Whether figures of a plan are those of its quantizers on ONNX Runtime's CPU provider, not of its target."""
        return self.measured_as(plan) is not plan.recipe.profile

    def stream_for(self, plan: Plan, built: Built) -> Stream:
        """What to measure a built plan in."""
        profile = self.measured_as(plan)
        if profile.provider == CPU_PROVIDER:
            return open_stream(built.path, self.memory, self.logits)
        return runner_on(profile, built.path, logits=self.logits)

    def probe_ids(self) -> Ids:
        """A short row of token 0, as many as the graph insists on: int64 [batch, length]."""
        batch, length = self.decoder.fixed_shape
        return np.zeros((batch or 1, length or min(8, self.sequence_length)), dtype=np.int64)

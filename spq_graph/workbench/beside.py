"""The measure of whatever is tried on a model: KL of a candidate graph, run from where it first differs."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.pieces.stages import cuts_of, staged
from spq_graph.runtime.measures.asked import gives_last_only
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.measures.kl_meter import KlMeter
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.staged import Origin, StagedRunner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.segment import Staged
from spq_graph.workbench.naming import in_source
from spq_graph.workbench.workbench import Workbench


class Beside:
    """KL of candidate graphs against the floating-point graph on the same tokens, each from where it first differs.

    Log-probabilities of the floating-point graph, and the values between its layers, are computed once. A candidate is
    any graph made of the same source whose values kept their names; what it has in common with the floating-point
    graph is run in the latter's sessions, and what lies in front of the first difference is not run at all. The figures
    are to the bit those of a whole run of the same graph in the same stages.

    Args:
        bench: the source.
        floating: the floating-point graph, canonical and adapted as candidates are; edited for running.
        sequences: what to measure on.

    Raises:
        ActivationError: its logits are not finite.
    """

    def __init__(self, bench: Workbench, floating: ir.Model, sequences: Sequences) -> None:
        output = bench.logits.output or ""
        self._bench, self._output = bench, output
        self._cuts = cuts_of(floating, output)
        self._origin, runner = self._begun(floating)
        try:
            self.meter = KlMeter(runner, sequences, folder=bench.work)
        except LogitsNotFiniteError as error:
            raise in_source(error, bench) from error

    def _staged(self, graph: ir.Model) -> Staged:
        return staged(graph, self._bench.model, self._output, self._cuts)

    def _begun(self, graph: ir.Model) -> tuple[Origin, StagedRunner]:
        """A graph that others are begun beside, and what runs it."""
        origin = Origin(self._staged(graph), self._bench.logits, self._bench.work, self._bench.memory)
        runner = origin.runner()
        runner.last_only = gives_last_only(self._bench.reference)
        return origin, runner

    def origin_of(self, alike: ir.Model, batches: int) -> Origin:
        """Another graph that computes what the floating-point graph does, to be begun beside; it is run once.

        Candidates that are made of it have more in common with it.

        Args:
            alike: canonical and adapted, such as the source with factors for channels; edited for running.
            batches: on how many of the batches.
        """
        origin, runner = self._begun(alike)
        self.meter.run(runner, batches)
        return origin

    def score(self, candidate: ir.Model, batches: int | None = None, origin: Origin | None = None) -> Score:
        """KL of a candidate, which is edited for running, with its standard error.

        Args:
            candidate: canonical and adapted.
            batches: how many of the batches to measure on; None for all.
            origin: what it begins beside, which has seen these batches; None for the floating-point graph.

        Raises:
            LogitsNotFiniteError: its logits are not finite.
        """
        return self.meter.score((origin or self._origin).beside(self._staged(candidate)), batches)

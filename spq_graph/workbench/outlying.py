"""What is extreme in an open model on one prompt, and the search for the weights that make it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from spq_graph.decisions import outliers as rules
from spq_graph.decisions.outliers import Coordinate, Floats
from spq_graph.documents.outliers import DownOutliers, Outliers, Peak, PromptToken, SuperWeight, Unexplained
from spq_graph.runtime.measures.kept import Kept, Place
from spq_graph.terms.errors import DataError, UsageError
from spq_graph.terms.site import Role
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.revealing import Around, DownPlace, Eye, Look
from spq_graph.workbench.steps import Tick
from spq_graph.workbench.workbench import Workbench

# That of arXiv 2411.07191. Any will do: where massive activations are, the first token has them.
PROMPT = "Apple Inc. is a worldwide tech company."
MOST_TOKENS = 128  # what goes through all down projections is held at once
_IDS = re.compile(r"\s*[0-9]{1,9}(?:[\s,]+[0-9]{1,9})*\s*")


def require_prompt(opening: Opening, prompt: str) -> None:
    """Whether a prompt can be read, before anything that takes long.

    Raises:
        UsageError: it is text, and nothing makes tokens of it.
    """
    source = opening.resolve(find_sites=False)
    if source.tokenizer is None and source.kind != "gguf" and not _IDS.fullmatch(prompt):
        raise UsageError(
            "the prompt is text, and the model has no tokenizer",
            where=opening.name,
            remedy="pass --tokenizer DIR, the folder with tokenizer.json, or token ids: --prompt '1 2 3'",
        )


def find_outliers(bench: Workbench, prompt: str, keys: Collection[str]) -> Outliers:
    """Look at the down projections of GLUs on one prompt, and seek the weights that make their spikes.

    As arXiv 2411.07191 does it: the weight from the channel of the largest input to that of the spike is set to zero in
    memory, and the model is run again, until no spike is left. The first spike of the graph goes first: those behind it
    may follow from it.

    Args:
        bench: the model, with its sites; quantized or not, and never changed.
        prompt: text, or token ids as numbers where the model has no tokenizer.
        keys: of the sites that are looked at; those that are no down projections are left out.

    Raises:
        UsageError: the prompt is empty.
        DataError: it has tokens that the model does not know.
        ActivationError: an activation is NaN or infinite.
        SpqError: as `SegmentedRunner`.
    """
    ids = _ids_of(bench, prompt)
    kept = ids[: min(MOST_TOKENS, bench.sequence_length)]
    downs = [s for s in bench.found.sites if s.role in (Role.GLU_DOWN, Role.EXPERT_DOWN) and s.key in keys]
    search = _Search(Eye(bench, downs, kept))
    if downs:
        with bench.steps.step("outliers", f"Looking for outliers on {len(kept)} tokens") as tick:
            search.run(tick)
    texts = [bench.tokenizer.token_text(one) if bench.tokenizer is not None else None for one in kept]
    return Outliers(
        prompt=prompt if bench.tokenizer is not None else None,
        tokens=[PromptToken(*one) for one in zip(kept, texts, strict=True)],
        left_out=len(ids) - len(kept),
        downs=search.downs,
        super_weights=search.super_weights,
        unexplained=search.unexplained,
        runs=search.runs,
        complete=search.complete,
    )


def _ids_of(bench: Workbench, prompt: str) -> list[int]:
    if bench.tokenizer is not None:
        ids = [*bench.tokenizer.prepended(bench.bos), *bench.tokenizer.encode(prompt)]
    else:
        ids = [int(one) for one in re.findall("[0-9]+", prompt)]
    if not ids:
        raise UsageError("the prompt has no tokens", where="--prompt", remedy="leave it out, or give it some text")
    most = bench.decoder.vocabulary or bench.source.vocab_size
    if most is not None and max(ids) >= most:
        raise DataError(
            f"the prompt has token {max(ids)}, and the vocabulary ends at {most - 1}",
            where=bench.source.origin,
            remedy=f"pass token ids below {most}, or this model's own tokenizer: --tokenizer DIR",
        )
    return ids


@dataclass(frozen=True, slots=True)
class _Guess:
    """The weight that a spike is put down to, and which part of the spike it makes."""

    at: Coordinate
    weight: float
    share: float


@dataclass(slots=True)
class _Search:
    """Seeks super weights, and keeps what was seen before any was zeroed."""

    eye: Eye
    downs: list[DownOutliers] = field(default_factory=list)
    super_weights: list[SuperWeight] = field(default_factory=list)
    unexplained: list[Unexplained] = field(default_factory=list)
    runs: int = 0
    complete: bool = True
    _zeroed: dict[str, list[Coordinate]] = field(default_factory=dict)

    def run(self, tick: Tick) -> None:
        """Run the model once, and again for every weight that is zeroed."""
        seen = self._look(tick)
        said = _Said(seen.logits)
        self.downs = [self._described(place, seen) for place in self.eye.places]
        waiting = list(self.eye.places)
        while (found := self._first_spike(waiting, seen)) is not None:
            place, spike = found
            guess = self._put_down(place, spike, seen)
            if isinstance(guess, Unexplained):
                self.unexplained.append(guess)
                waiting.remove(place)
                continue
            if self.runs > rules.MOST_ZEROED:
                self.complete = False
                return
            self._zeroed.setdefault(place.site.key, []).append(guess.at)
            seen = self._look(tick)
            self.super_weights.append(self._shown(place, spike, guess, seen, said))

    def _look(self, tick: Tick) -> Look:
        self.runs += 1
        found = self.eye.look(self._zeroed)
        tick(self.runs, self.runs)
        return found

    def _peaks(self, place: DownPlace, seen: Look) -> Around[Peak | None]:
        def peak(values: Floats | None) -> Peak | None:
            return rules.peak_of(values, tokens=len(values) == self.eye.tokens) if values is not None else None

        return Around(*map(peak, seen.values[place.site.key]))

    def _described(self, place: DownPlace, seen: Look) -> DownOutliers:
        peaks, site = self._peaks(place, seen), place.site
        column = rules.sharpest_column(place.operand.blocks()) if place.operand is not None else None
        return DownOutliers(
            site.key, site.layer, site.expert, peaks.takes, peaks.gives, peaks.leaves, column, place.unread
        )

    def _first_spike(self, places: Iterable[DownPlace], seen: Look) -> tuple[DownPlace, Peak] | None:
        """In the order of the graph."""
        for place in places:
            peak = self._peaks(place, seen).gives
            if peak is not None and rules.spikes(peak):
                return place, peak
        return None

    def _put_down(self, place: DownPlace, spike: Peak, seen: Look) -> _Guess | Unexplained:
        """The weight that makes a spike, or why none does."""
        site, inputs, why = place.site, seen.values[place.site.key].takes, place.unread
        if inputs is not None and place.operand is not None:
            at = rules.coordinate_of(inputs, spike.channel, self._zeroed.get(site.key, ()))
            weight = float(place.operand.rows([at.column])[0, at.row])
            share = rules.share_of(inputs, at, weight, spike)
            if share >= rules.LEAST_SHARE:
                return _Guess(at, weight, share)
            why = f"the weight [{at.row}, {at.column}] of its largest input makes {share:.0%} of it"
        why = why or "what it takes is no value of the graph"
        return Unexplained(site.key, site.layer, spike.value, spike.position, spike.channel, why)

    def _shown(self, place: DownPlace, spike: Peak, guess: _Guess, after: Look, said: _Said) -> SuperWeight:
        left = self._peaks(place, after).gives
        return SuperWeight(
            key=place.site.key,
            layer=place.site.layer,
            expert=place.site.expert,
            row=guess.at.row,
            column=guess.at.column,
            weight=guess.weight,
            spike=spike.value,
            position=spike.position,
            share=guess.share,
            after=left.value if left is not None else 0.0,
            kl=said.kl(after.logits),
        )


class _Said:
    """What the model said of the prompt before anything was zeroed."""

    def __init__(self, logits: Floats | None) -> None:
        self._kept = Kept(Place()) if logits is not None and np.isfinite(logits).all() else None
        if self._kept is not None and logits is not None:
            self._kept.add(logits.copy())
            self._kept.finish()

    def kl(self, logits: Floats | None) -> float | None:
        """Mean KL(before || now) over the tokens of the prompt, nats; None where there are no logits."""
        if self._kept is None or logits is None or not np.isfinite(logits).all():
            return None
        return float(self._kept.kl(0, logits.copy()).mean())

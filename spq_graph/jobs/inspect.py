"""What is in a file, ours or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from spq_graph.decisions.choices import evidence_of
from spq_graph.documents import artifact
from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.findings import (
    GraphFacts,
    InspectedSite,
    Inspection,
    SeenProfile,
    SeenStretch,
    SeenToken,
    known,
)
from spq_graph.documents.outliers import Outliers
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.token_profile import TokenProfile
from spq_graph.models.onnx_folder import needs_export, onnx_of
from spq_graph.passes.adapt.prepared import prepare
from spq_graph.passes.base.marks import PREFIX
from spq_graph.passes.base.own_calls import refuse_wrong_calls
from spq_graph.passes.base.run import run
from spq_graph.passes.base.values import attribute_of
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.functions import refuse_other_functions
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.identify import Identified, identify
from spq_graph.passes.find.logits import find_logits
from spq_graph.passes.find.nested import refuse_nested
from spq_graph.passes.find.quantized import QUANTIZED_OPS
from spq_graph.passes.find.unquantize import LookThroughQuantization
from spq_graph.passes.forms.reading import precision_of
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import GraphError, UsageError
from spq_graph.terms.naming import matches, nearest
from spq_graph.terms.precision import Precision, today
from spq_graph.workbench.data import calibration_data, check_measured
from spq_graph.workbench.looked import Looked
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.outlying import PROMPT, find_outliers, require_prompt
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench


def inspect(
    model: Openable,
    only: str | None = None,
    *,
    calibration: str | Path | None = None,
    tokens: int | None = None,
    outliers: bool | str = False,
    steps: Steps | None = None,
) -> Inspection:
    """What an ONNX file or OUT folder holds, or a Hugging Face folder once it is exported, which is done aside.

    Nothing is changed. Sites of OUT come from its plan; those of a bare file have no evidence unless they are measured.

    Args:
        model: an .onnx file, a folder that holds one, such as OUT, or a Hugging Face folder.
        only: key, node name or glob of the sites to list.
        calibration: run the file on this, as `calibrate` takes it, and report what its sites' inputs hold.
        tokens: how much of it; None for as much as calibration takes.
        outliers: look for outliers of its down projections and for super weights on one prompt: True for that of the
            paper, text, or token ids as numbers where the model has no tokenizer.
        steps: times and shows what is done.

    Raises:
        SourceError: the file cannot be read.
        UsageError: `only` fits no site, or the prompt is text without a tokenizer.
        SpqError: as `calibrate`, where the file is measured, and as `find_outliers`.
    """
    opening = Opening.of(model)
    prompt = (PROMPT if outliers else None) if isinstance(outliers, bool) else outliers
    asked = _Asked(only, calibration, tokens, prompt)
    if calibration is not None:
        check_measured(opening.resolve(find_sites=False), calibration)
    if asked.prompt is not None:
        require_prompt(opening, asked.prompt)
    path = opening.place
    if path.exists() and not needs_export(path):
        opened = partial(opening.open, steps, find_sites=False)
        return _inspect(path, onnx_of(path), lambda found: opened(looked=found), asked)
    with opening.open(steps, find_sites=False) as bench:
        at_hand = partial(replace, bench)
        path = path if path.exists() else opening.place  # it was downloaded
        return _inspect(path, bench.model, lambda found: nullcontext(at_hand(looked=found)), asked)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of a file: of which sites, to be measured on what, and on which prompt outliers are sought."""

    only: str | None
    calibration: str | Path | None
    tokens: int | None
    prompt: str | None

    @property
    def runs(self) -> bool:
        """Whether the model is run for it."""
        return self.calibration is not None or self.prompt is not None


def _inspect(
    path: Path, file: Path, opened: Callable[[Looked], AbstractContextManager[Workbench]], asked: _Asked
) -> Inspection:
    """The same, of the ONNX file that a path means, and with what opens it to be measured."""
    graph = load_graph(file)
    refuse_wrong_calls(graph, str(file))
    refuse_other_functions(graph, str(file))
    facts = _facts(graph)
    whole = prepare(file, graph.clone()) if asked.runs else None
    found, in_graph = _look(graph, str(file))
    told = find_logits(graph)
    facts = replace(facts, logits=told.output, no_logits=told.words)
    recorded = Plan.load(path / artifact.PLAN) if (path / artifact.PLAN).is_file() else None
    planned = [InspectedSite.planned(site) for site in recorded.sites] if recorded is not None else in_graph
    sites, seen = _chosen(planned, asked.only, path), _Seen()
    if whole is not None:
        with opened(Looked(whole, found)) as bench:
            seen = _look_while_it_runs(bench, asked, {site.key for site in sites})
    if asked.calibration is not None and seen.ranges is not None:
        sites = [_with_evidence(site, seen.ranges, seen.tokenizer) for site in sites]
    elif asked.only is not None and recorded is not None:
        seen = replace(_measured_before(path), outliers=seen.outliers)
    return Inspection(
        path=str(path),
        glu_blocks=len(found.blocks),
        sites=sites,
        unmatched=list((found if recorded is None else recorded).unmatched),
        graph=facts,
        measured=seen.measured,
        profiles=_profiles(sites, seen.ranges, seen.tokenizer) if asked.only is not None else {},
        note=_note(graph, found, file),
        outliers=seen.outliers,
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen of a model that ran, and what names its tokens."""

    ranges: Ranges | None = None
    tokenizer: TextTokenizer | None = None
    measured: CalibrationRef | None = None
    outliers: Outliers | None = None


def _look_while_it_runs(bench: Workbench, asked: _Asked, keys: Collection[str]) -> _Seen:
    seen = _Seen(tokenizer=bench.tokenizer)
    if asked.calibration is not None:
        ranges, measured = _measure(bench, asked.calibration, asked.tokens)
        seen = replace(seen, ranges=ranges, measured=measured)
    if asked.prompt is not None:
        seen = replace(seen, outliers=find_outliers(bench, asked.prompt, keys))
    return seen


def _look(graph: ir.Model, where: str) -> tuple[Identified, list[InspectedSite]]:
    """What is found in a graph as it was read, which is edited for it, and its sites as the file has them."""
    run(graph, [Canonicalize()])
    refuse_wrong_calls(graph, where)  # some may have stood in a function
    precisions = {node.name: _precision(node) for node in graph.graph}
    if any(node.op_type in QUANTIZED_OPS for node in graph.graph):
        run(graph, (LookThroughQuantization(),))
    found = identify(graph)
    nodes = {node.name: node for node in graph.graph}
    return found, [InspectedSite(s, precisions[s.node], _reason(nodes[s.node])) for s in found.every]


def _note(graph: ir.Model, found: Identified, file: Path) -> str | None:
    """What the other verbs refuse this graph for, and what they say to pass instead."""
    try:
        refuse_nested(graph, found, file)
    except GraphError as error:
        return f"{error.what}; {error.remedy}"
    return None


def _chosen(sites: list[InspectedSite], only: str | None, path: Path) -> list[InspectedSite]:
    if only is None:
        return sites
    chosen = [site for site in sites if matches(only, site.key, site.node)]
    if not chosen:
        near, listed = nearest(only, (site.site.key for site in sites)), "leave out --site to list all of them"
        remedy = f"did you mean '{near}'? Or {listed}" if near is not None else listed
        raise UsageError(f"'{only}' fits no site", where=str(path), remedy=remedy)
    return chosen


def _facts(model: ir.Model) -> GraphFacts:
    """What the file says of itself, before anything is brought into our form."""
    return GraphFacts(
        opset=model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx")),
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        plan=model.metadata_props.get(f"{PREFIX}plan"),
        version=model.metadata_props.get(f"{PREFIX}version"),
        operators=dict(sorted(Counter(node.op_type for node in model.graph).items())),
    )


def _precision(node: ir.Node) -> str:
    """As the file records it, or as it is there: somebody else may have quantized to bits that we have no name for."""
    if (recorded := _recorded(node, "precision")) is not None:
        return today(recorded)
    found = precision_of(node)
    bits = int(attribute_of(node, "bits", 4)) if node.op_type == "MatMulNBits" else 8
    if bits == 8:
        return found.value
    return f"w{bits}a16" if found is Precision.W8A16 else f"w{bits}a8"


def _reason(node: ir.Node) -> Reason | str | None:
    """As the file records it: one of ours, or whatever else somebody wrote there."""
    recorded = _recorded(node, "reason")
    return Reason(recorded) if recorded in set(Reason) else recorded


def _recorded(node: ir.Node, what: str) -> str | None:
    return node.metadata_props.get(f"{PREFIX}{what}")


def _measure(bench: Workbench, calibration: str | Path, tokens: int | None) -> tuple[Ranges, CalibrationRef]:
    """Ranges of every site's input, with the file as it is: quantized where it is quantized."""
    data = calibration_data(bench, calibration, tokens)
    found = bench.calibrate(data)
    return found, CalibrationRef(
        digest=found.data_digest,
        tokens=found.tokens,
        sequences=found.sequences,
        origin=data.origin,
        remark=found.remark,
    )


def _measured_before(out: Path) -> _Seen:
    """The ranges beside a plan, and what names their tokens, where OUT holds them."""
    if not (out / artifact.RANGES).is_file():
        return _Seen()
    tokenizer = TextTokenizer.load(out) if (out / "tokenizer.json").is_file() else None
    return _Seen(Ranges.load(out / artifact.RANGES), tokenizer)


def _with_evidence(site: InspectedSite, ranges: Ranges, tokenizer: TextTokenizer | None) -> InspectedSite:
    """Add what was measured; where a plan is recorded its evidence stays what the decision was made on."""
    seen = ranges.values.get(site.site.input)
    if seen is None:
        return site
    measured = evidence_of(seen, tokenizer.token_text if tokenizer is not None else None)
    return replace(site, measured=measured, evidence=site.evidence if known(site.evidence) else measured)


def _profiles(
    sites: Sequence[InspectedSite], ranges: Ranges | None, tokenizer: TextTokenizer | None
) -> dict[str, SeenProfile]:
    """Where in the sequence each site's input is large, and on which tokens, as far as that is known."""
    values = ranges.values if ranges is not None else {}
    seen = {site.key: values[site.site.input].profile for site in sites if site.site.input in values}
    return {key: _profile(profile, tokenizer) for key, profile in seen.items() if profile is not None}


def _profile(profile: TokenProfile, tokenizer: TextTokenizer | None) -> SeenProfile:
    def text(token: int) -> str | None:
        return tokenizer.token_text(token) if tokenizer is not None else None

    return SeenProfile(
        positions=[SeenStretch(s.first, s.last, s.peak.value, s.typical) for s in profile.stretches()],
        tokens=[SeenToken(p.token, text(p.token), p.value, p.position) for p in profile.leaders],
    )

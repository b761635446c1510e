"""Experts that get only their tokens: who saw how many, who is trusted, and what runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

from spq_graph.views.words import integer_kernels

pytest.importorskip("onnxruntime")

from spq_graph.decisions.verdict import judge
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.ranges import Ranges, merge_all
from spq_graph.documents.recipe import Override, Recipe
from spq_graph.runtime.sessions.library import OVERRIDE
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.terms.targets import PROFILES
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.workbench import Workbench
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Naming
from tests.support.samples import sample_report

EXPERTS = 4


def routed(path: Path, naming: Naming = "dynamo") -> Path:
    """A decoder of two layers where a token goes to two of four experts, and the last one gets none."""
    onnx.save(decoder(Decoder(experts=EXPERTS, routed=True), naming=naming), path)
    return path


@contextmanager
def workbench(path: Path) -> Iterator[Workbench]:
    with Opening(path, window=32).open() as bench:
        yield bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    with workbench(routed(tmp_path_factory.mktemp("routed") / "decoder.onnx")) as bench:
        yield bench


@pytest.fixture(scope="module")
def ids() -> Sequences:
    rows = np.random.default_rng(1).integers(0, 16, (16, 32))
    return Sequences(rows, np.ones_like(rows))


def downs(plan: Plan, layer: int) -> dict[int | None, Reason]:
    return {s.expert: s.reason for s in plan.sites if s.role is Role.EXPERT_DOWN and s.layer == layer}


@pytest.mark.parametrize("naming", ["dynamo", "torchscript", "anonymous"])
def test_found(tmp_path: Path, naming: Naming) -> None:
    with workbench(routed(tmp_path / "decoder.onnx", naming)) as bench:
        found = bench.found
    assert found.unmatched == []
    assert [block.layer for block in found.blocks] == [0] * EXPERTS + [1] * EXPERTS
    for role in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN):
        numbers = [(site.layer, site.expert) for site in found.sites if site.role is role]
        assert numbers == [(layer, expert) for layer in (0, 1) for expert in range(EXPERTS)]
    assert [site.layer for site in found.sites if site.role is Role.ROUTER] == [0, 1]


def test_an_expert_counts_its_own_tokens(bench: Workbench, ids: Sequences, tmp_path: Path) -> None:
    ranges = bench.calibrate(ids)
    inputs = {site.input: site for site in bench.found.sites if site.role is Role.EXPERT_DOWN}
    model = onnx.load(bench.model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inputs)
    onnx.save(model, tmp_path / "fetching.onnx")
    arrays = Runner(tmp_path / "fetching.onnx", outputs=list(inputs)).run(ids.ids, ids.mask)
    for (name, site), array in zip(inputs.items(), arrays, strict=True):
        if site.expert == EXPERTS - 1:
            assert len(array) == 0
            assert name not in ranges.values
        else:
            assert ranges.values[name].tokens == len(array)
            assert ranges.values[name].high == pytest.approx(array.max(), rel=1e-5)
    assert sum(map(len, arrays)) == 2 * 2 * ids.tokens  # two experts a token, two layers


def test_an_expert_that_saw_too_few_tokens_stays_as_it_is(bench: Workbench, ids: Sequences) -> None:
    ranges = bench.calibrate(ids)
    tokens = {
        (site.layer, site.expert): ranges.values[site.input].tokens
        for site in bench.found.sites
        if site.role is Role.EXPERT_DOWN and site.input in ranges.values
    }
    fewest, least = min((count, expert) for (layer, expert), count in tokens.items() if layer == 0)
    recipe = Recipe(max_kept=0.0, min_expert_tokens=fewest + 1)
    plan = make_plan(bench, recipe, 8, ranges, None)
    assert downs(plan, 0)[least] is downs(plan, 0)[EXPERTS - 1] is Reason.TOO_FEW_TOKENS
    assert sum(reason is Reason.TOO_FEW_TOKENS for reason in downs(plan, 0).values()) == 2
    notes = [s.evidence.note or "" for s in plan.sites if s.reason is Reason.TOO_FEW_TOKENS and s.layer == 0]
    assert any(f"saw {fewest} tokens" in note and "calibrate on more text" in note for note in notes)
    assert any("saw 0 tokens" in note for note in notes)
    warnings = judge(plan.model_copy(update={"budget_met": True}), sample_report()).warnings
    assert any(f"fewer than {fewest + 1} calibration tokens" in warning for warning in warnings)


@pytest.mark.parametrize("count", [5, 16])
def test_shards_merge_to_the_bytes_of_one_run(bench: Workbench, tmp_path: Path, count: int) -> None:
    """Which tokens an expert gets together depends on the batch; what is noted of them does not."""
    rows = np.random.default_rng(2).integers(0, 16, (24, 8))
    mask = (np.arange(8) < np.random.default_rng(3).integers(1, 9, (24, 1))).astype(np.int64)
    ragged = Sequences(rows, mask)

    def saved(ranges: Ranges, name: str) -> tuple[bytes, bytes]:
        ranges.save(tmp_path / f"{name}.json")
        return (tmp_path / f"{name}.json").read_bytes(), (tmp_path / f"{name}.safetensors").read_bytes()

    whole = bench.calibrate(ragged)
    shards = [bench.calibrate(ragged.shard(index, count)) for index in range(count)]
    downs = [site.input for site in bench.found.sites if site.role is Role.EXPERT_DOWN and site.expert != EXPERTS - 1]
    # Otherwise nothing would be shown: in some shard an expert got all tokens, as if it were no expert.
    assert any(shard.values[name].sequences for shard in shards for name in downs if name in shard.values)
    assert {whole.values[name].sequences for name in downs} == {0}
    assert saved(merge_all(shards), "merged") == saved(merge_all(shards[::-1]), "reversed") == saved(whole, "whole")


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("precision", ["int8", "int4_in_8", *(p.value for p in PROFILES["cpu"].high if p != "fp32")])
def test_an_expert_without_a_token(
    bench: Workbench, ids: Sequences, tmp_path: Path, precision: str, library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token goes to two experts: the others multiply no rows, in every arithmetic."""
    if not library:
        monkeypatch.setenv(OVERRIDE, "")
    recipe = Recipe(max_kept=0.0, overrides=(Override(pattern="*.experts.[012].*", precision=precision),))
    plan = make_plan(bench, recipe, 8, bench.calibrate(ids), None)
    assert {site.precision for site in plan.sites if site.expert in range(EXPERTS - 1)} == {Precision(precision)}
    built = bench.build(plan, tmp_path / "model.onnx")
    for token in range(4):
        row = np.full((1, 1), token)
        whole, quantized = (Runner(path).logits(row, np.ones_like(row)) for path in (bench.model, built.path))
        limit = 0.4 if precision == "int4_in_8" else 0.15
        assert np.linalg.norm(quantized - whole) <= limit * np.linalg.norm(whole)


def test_experts_run_as_integer_kernels(bench: Workbench, ids: Sequences) -> None:
    """Also where one of them gets no token of a batch."""
    ranges = bench.calibrate(ids)
    plan = make_plan(bench, Recipe(max_kept=0.0), 8, ranges, None)
    built = bench.build(plan)
    executed = bench.prove(built, plan)
    assert integer_kernels(executed.ops) == len(plan.integer_sites) == 2 * (4 + 3 * (EXPERTS - 1))
    whole, quantized = (Runner(path).logits(ids.ids[:2], ids.mask[:2]) for path in (bench.model, built.path))
    assert np.linalg.norm(quantized - whole) <= 0.1 * np.linalg.norm(whole)

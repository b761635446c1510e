from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from spq_graph.decisions.decide import decide
from spq_graph.decisions.ends import allowance
from spq_graph.decisions.retarget import retarget
from spq_graph.decisions.variants import WITHOUT_HEAD, variants
from spq_graph.documents.plan import Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.errors import GraphError, UsageError
from spq_graph.terms.held import Held
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import SPIKE_AWARE
from spq_graph.terms.site import Role, Site
from tests.support.deciding import MODEL, make

HEAD = Site(key="lm_head", node="n_head", role=Role.LM_HEAD, layer=None, shape=(64, 1000), input="in_lm_head")
TABLE = Site(key="embed", node="n_embed", role=Role.EMBEDDING, layer=None, shape=(1000, 64), input="input_ids")
TIED = {"lm_head": Held("W", 256_000, 68_000), "embed": Held("W", 256_000, 68_000)}
APART = {"lm_head": Held("H", 256_000, 68_000), "embed": Held("E", 256_000, 68_000)}
FAST, FINE, COARSE = Precision.W8A16, Precision.W8A8_BLOCK32, Precision.W8A8_BLOCK
BLOCKS = (COARSE, FINE, FAST)


class Costs:
    """KL of the rest, and of head and embedding by precision; the sum, and what was asked."""

    def __init__(self, head: Mapping[Precision, float], table: float, rest: float = 0.0) -> None:
        self.costs = {("lm_head", p): cost for p, cost in head.items()} | {("embed", FAST): table}
        self.rest, self.asked = rest, list[dict[str, Precision]]()

    def __call__(self, precisions: Mapping[str, Precision]) -> float:
        self.asked.append(dict(precisions))
        ends = math.fsum(self.costs.get(item, 0.0) for item in precisions.items())
        return ends + (self.rest if "s0" in precisions else 0.0)


def run(costs: Costs | None, held: Mapping[str, Held] = TIED, **recipe: object) -> tuple[Plan, SitePlan, SitePlan]:
    sites, ranges = make({"s0": 1.0}, HEAD)
    made = decide([TABLE, *sites], ranges, Recipe.model_validate(recipe), MODEL, held=held, measure=costs)
    by_key = {site.key: site for site in made.sites}
    return made, by_key["lm_head"], by_key["embed"]


def test_both_go_into_8_bits_where_the_budget_holds_and_say_what_that_cost() -> None:
    made, head, table = run(Costs({COARSE: 0.001}, 0.0001, rest=0.002))
    assert (head.precision, table.precision) == (COARSE, FAST)
    assert head.reason is table.reason is Reason.WITHIN_BUDGET
    assert (head.evidence.kl, table.evidence.kl) == (0.001, 0.0001)
    assert "KL 0.0031, of 0.004 allowed" in (head.evidence.note or "")
    assert made.search.kl == pytest.approx(0.0031)
    assert made.budget_met
    assert table.range is None


BY_TOKEN = Precision.W8A8_TOKEN


@pytest.mark.parametrize(
    ("token", "coarse", "found"),
    [(0.001, 0.001, BY_TOKEN), (0.9, 0.001, COARSE), (0.9, 0.9, Precision.FP32)],
    ids=["by token", "by block", "as it is"],
)
def test_where_all_is_by_token_the_head_is_tried_so_first(token: float, coarse: float, found: Precision) -> None:
    costs = {BY_TOKEN: token, COARSE: coarse, FINE: coarse, FAST: coarse}
    _, head, table = run(Costs(costs, 0.0001), scales="by_token")
    assert head.precision is found
    assert table.precision is (FAST if found is not Precision.FP32 else Precision.FP32)
    _, head, _ = run(Costs(costs, 0.0001))
    assert head.precision is not BY_TOKEN


def test_what_blocks_of_64_cost_too_much_for_goes_into_blocks_of_32() -> None:
    _, head, table = run(Costs({COARSE: 0.003, FINE: 0.001}, 0.0001, rest=0.002))
    assert (head.precision, table.precision) == (FINE, FAST)


def test_it_counts_against_the_same_budget() -> None:
    _, head, table = run(Costs({COARSE: 0.003, FINE: 0.0025}, 0.0001, rest=0.002))
    assert head.reason is Reason.OVER_BUDGET
    assert head.precision is Precision.FP32
    assert "as w8a8_block32 the plan has KL 0.0045, of 0.004 allowed" in (head.evidence.note or "")
    # On its own it would be stored a second time.
    assert table.precision is Precision.FP32


def test_a_table_of_its_own_goes_into_8_bits_where_the_head_does_not() -> None:
    _, head, table = run(Costs({COARSE: 1.0, FINE: 1.0}, 0.0001), APART)
    assert (head.precision, table.precision) == (Precision.FP32, FAST)
    assert (head.reason, table.reason) == (Reason.OVER_BUDGET, Reason.WITHIN_BUDGET)


def test_a_head_goes_into_8_bits_where_the_table_does_not() -> None:
    costs = Costs({COARSE: 0.001, FINE: 0.001}, 1.0)
    made, head, table = run(costs)
    assert (head.precision, table.precision) == (FINE, Precision.FP32)
    assert (head.reason, table.reason) == (Reason.WITHIN_BUDGET, Reason.OVER_BUDGET)
    assert made.search.kl == pytest.approx(0.001)


@pytest.mark.parametrize(("as_is", "allowed"), [(0.001, 0.004), (0.0045, 0.005), (0.06, 0.061)])
def test_the_allowance(as_is: float, allowed: float) -> None:
    assert allowance(as_is, Recipe()) == pytest.approx(allowed)


class Shared(Costs):
    """The rest costs something by site, which keeping it takes away."""

    def __call__(self, precisions: Mapping[str, Precision]) -> float:
        ends = super().__call__({key: p for key, p in precisions.items() if key not in PARTS})
        return ends + math.fsum(PARTS[key] for key, p in precisions.items() if key in PARTS and p.bits is not None)


PARTS = {f"s{n}": 0.0009 for n in range(10)}


@pytest.mark.parametrize(
    ("fine", "kept", "reason"),
    [
        (0.0010, 7, Reason.WITHIN_BUDGET),  # 3 x 0.0009 and 0.0011 are within 0.004
        (0.0014, 6, Reason.OVER_BUDGET),  # more than a quarter of the budget: nothing makes room for it
    ],
)
def test_the_rest_leaves_room_for_ends_that_cost_little(fine: float, kept: int, reason: Reason) -> None:
    sites, ranges = make(dict.fromkeys(PARTS, 100.0), HEAD)
    costs = Shared({COARSE: 1.0, FINE: fine}, 0.0001)
    made = decide([TABLE, *sites], ranges, Recipe(max_kept=1.0), MODEL, held=TIED, measure=costs)
    by_key = {site.key: site for site in made.sites}
    assert (len(made.kept), by_key["lm_head"].reason) == (kept, reason)
    assert made.search.kl == pytest.approx(0.0009 * (10 - kept) + (fine + 0.0001 if kept == 7 else 0.0))
    assert made.budget_met


def test_where_the_budget_is_not_met_they_may_cost_its_margin() -> None:
    assert run(Costs({COARSE: 0.0005}, 0.0001, rest=0.5), max_kept=0.0)[1].reason is Reason.WITHIN_BUDGET
    assert run(Costs({COARSE: 0.0015, FINE: 0.0012}, 0.0, rest=0.5), max_kept=0.0)[1].reason is Reason.OVER_BUDGET


@pytest.mark.parametrize(("asked", "precision"), [("8bit", COARSE), ("as_is", Precision.FP32)])
def test_the_recipe_settles_it_without_measuring(asked: str, precision: Precision) -> None:
    costs = Costs(dict.fromkeys(BLOCKS, 1.0), 1.0)
    made, head, table = run(costs, head=asked, embedding=asked)
    assert head.precision is precision
    assert table.precision is (FAST if asked == "8bit" else Precision.FP32)
    assert head.reason is (Reason.ASKED if asked == "8bit" else Reason.DEFAULT)
    assert f"head = {asked}" in (head.evidence.note or "")
    assert f"embedding = {asked}" in (table.evidence.note or "")
    assert {s.key for s in made.counted} == {"s0"}
    assert made.kept == []


def test_nothing_is_decided_without_a_measure_but_what_is_asked_for() -> None:
    _, head, table = run(None)
    assert (head.precision, table.precision) == (Precision.FP32, Precision.FP32)
    assert "no KL was measured; head = 8bit asks for" in (head.evidence.note or "")
    assert run(None, head="8bit")[1].precision is COARSE


def test_a_table_of_a_head_that_is_asked_to_stay_stays() -> None:
    _, head, table = run(Costs({}, 0.0), head="as_is")
    assert (head.precision, table.precision) == (Precision.FP32, Precision.FP32)
    assert "stored a second time" in (table.evidence.note or "")


def test_a_head_in_integers_leaves_its_table_to_be_decided_over() -> None:
    _, head, table = run(Costs({}, 0.0001), quantize_lm_head=True)
    assert head.precision is Precision.INT8
    assert table.reason is Reason.WITHIN_BUDGET


def test_a_table_that_others_read_stays_as_well() -> None:
    held = {**APART, "embed": Held("E", 256_000, 68_000, by_others=True)}
    assert run(Costs({COARSE: 0.0}, 0.0), held)[2].precision is Precision.FP32


def test_what_takes_more_bytes_in_8_bits_stays() -> None:
    small = {"lm_head": Held("W", 100, 120), "embed": Held("W", 100, 120)}
    _, head, table = run(Costs({COARSE: 0.0}, 0.0), small)
    assert (head.precision, table.precision) == (Precision.FP32, Precision.FP32)
    assert "would take more bytes" in (head.evidence.note or "")


def test_what_a_graph_cannot_have_is_refused() -> None:
    def measure(precisions: Mapping[str, Precision]) -> float:
        if precisions.get("embed") is FAST:
            raise GraphError("the weight holds NaN or infinity")
        return 0.0

    _, head, table = run(measure)  # type: ignore[arg-type]
    assert (head.precision, table.precision) == (FINE, Precision.FP32)
    assert table.reason is Reason.OVER_BUDGET


@pytest.mark.parametrize(
    ("target", "head", "table"),
    [
        ("cpu", COARSE, FAST),
        ("cuda", FAST, FAST),
        ("openvino", FAST, FAST),
        ("portable", Precision.FP32, FAST),
        ("tensorrt", Precision.FP32, Precision.FP32),
    ],
)
def test_what_every_target_takes(target: str, head: Precision, table: Precision) -> None:
    _, of_head, of_table = run(Costs({}, 0.0), APART, target=target)
    assert (of_head.precision, of_table.precision) == (head, table)
    for site, taken in ((of_head, head), (of_table, table)):
        assert (site.reason is Reason.DEFAULT) is (taken is Precision.FP32)
        assert taken is not Precision.FP32 or "it stays as it is: " in (site.evidence.note or "")


def test_openvino_stores_a_tied_table_twice_in_8_bits_where_that_is_smaller() -> None:
    _, head, table = run(Costs({}, 0.0), target="openvino")
    assert (head.precision, table.precision) == (FAST, FAST)  # 68 + 68 kB in place of 256
    _, head, table = run(Costs({FAST: 1.0}, 0.0), target="openvino")
    assert (head.precision, table.precision) == (Precision.FP32, Precision.FP32)  # 68 kB beside 256


@pytest.mark.parametrize("by_hand", ["keep", "ignore"])
def test_a_pattern_by_hand_goes_first(by_hand: str) -> None:
    made, head, table = run(Costs(dict.fromkeys(BLOCKS, 0.0), 0.0), **{by_hand: ["*"]})
    assert head.precision not in BLOCKS
    assert table.precision is Precision.FP32
    assert head.reason is table.reason is Reason.OVERRIDE
    assert table not in made.kept


def test_an_override_by_block_is_for_tables_too_and_one_of_products_is_not() -> None:
    over = [{"pattern": "*", "precision": "w8a8_block"}]
    _, head, table = run(None, overrides=over)
    assert (head.precision, table.precision) == (COARSE, FAST)
    _, head, table = run(Costs({}, 0.0), overrides=[{"pattern": "*", "precision": "int8"}])
    assert head.precision is Precision.INT8
    assert table.reason is Reason.WITHIN_BUDGET


@pytest.mark.parametrize("precision", ["int8", "fp8_e4m3"])
def test_an_override_of_a_table_alone_that_it_cannot_have_is_refused(precision: str) -> None:
    with pytest.raises(UsageError, match="an embedding is w8a16 or stays as it is") as refused:
        run(None, overrides=[{"pattern": "embed", "precision": precision}])
    assert refused.value.remedy == "ask for fp32, which is what the graph has"
    run(None, overrides=[{"pattern": "embed", "precision": "fp32"}])


@pytest.mark.parametrize(("field", "target"), [("head", "portable"), ("head", "tensorrt"), ("embedding", "tensorrt")])
def test_what_a_target_cannot_run_is_refused_by_the_recipe(field: str, target: str) -> None:
    with pytest.raises(ValueError, match=f"target '{target}' cannot run {field} = 8bit"):
        Recipe.model_validate({field: "8bit", "target": target})


@pytest.mark.parametrize(
    ("target", "head"), [("openvino", FAST), ("cuda", FAST), ("portable", Precision.FP16), ("tensorrt", Precision.FP16)]
)
def test_a_head_by_token_goes_to_another_target(target: str, head: Precision) -> None:
    made, *_ = run(Costs({BY_TOKEN: 0.001}, 0.0001), scales="by_token")
    by_key = {site.key: site for site in retarget(made, target).sites}
    assert by_key["lm_head"].precision is head
    assert by_key["s0"].precision is Precision.INT8


def test_a_plan_goes_to_another_target() -> None:
    made, *_ = run(Costs({COARSE: 0.0}, 0.0), head="8bit", embedding="8bit")
    on = {target: {s.key: s for s in retarget(made, target).sites} for target in ("cuda", "portable", "tensorrt")}
    assert [on["cuda"][key].precision for key in ("lm_head", "embed")] == [FAST, FAST]
    assert on["portable"]["embed"] == {s.key: s for s in made.sites}["embed"]
    left = on["tensorrt"]["embed"]
    assert (left.precision, left.reason) == (Precision.FP32, Reason.UNSUPPORTED)
    assert "w8a16 was planned: TensorRT, strongly typed has no lookup in 8-bit codes" in (left.evidence.note or "")
    assert retarget(made, "tensorrt").kept == []


def test_the_ladder_has_the_plan_without_them() -> None:
    made, *_ = run(Costs({COARSE: 0.0}, 0.0))
    stored = {s.key: Precision.FP32 for s in made.sites}
    rows = {row.id: row.plan for row in variants(made, stored)}
    assert list(rows).index(WITHOUT_HEAD) == list(rows).index(SPIKE_AWARE) + 1
    without = {s.key: s.precision for s in rows[WITHOUT_HEAD].sites}
    assert without == {"embed": Precision.FP32, "s0": Precision.INT8, "lm_head": Precision.FP32}
    none, *_ = run(None)
    assert WITHOUT_HEAD not in {row.id for row in variants(none, stored)}

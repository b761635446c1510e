"""The rows of a plan's ladder: which there are, and what each of them decides."""

from __future__ import annotations

import pytest

from spq_graph.decisions.variants import decisions_of, in_other_formats, rows_of, variants, weight_only
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import BY_TOKEN, EVERYWHERE, SPIKE_AWARE, WEIGHT_ONLY, Extent, RowId, RowKind
from spq_graph.terms.targets import Target
from tests.support.samples import sample_plan

NAMES = [
    "everywhere",
    "everywhere_symmetric",
    "everywhere_per_tensor_weights",
    "spike_aware",
    "spike_aware_fp8_e4m3",
    "spike_aware_fp8_e5m2",
    "spike_aware_w8fp8a16",
    "spike_aware_w8a8_token",
    "spike_aware_w8a8_block",
    "spike_aware_fp16",
    "control_lowest",
    "control_random",
    "control_random",
    "control_random",
]


def by_id(plan: Plan) -> dict[RowId, Plan]:
    return {row.id: row.plan for row in variants(plan, {site.key: "fp32" for site in plan.sites})}


def kept(plan: Plan) -> set[str]:
    return {site.key for site in plan.counted if site.precision.bits is None}


def test_before_there_is_a_plan_as_many_rows_are_expected_as_there_can_be() -> None:
    rows = rows_of(Recipe(seed=7))
    assert [row.name for row in rows] == NAMES
    assert [row.seed for row in rows[-3:]] == [7, 8, 9]


@pytest.mark.parametrize("target", ["cpu", "portable", "openvino"])
def test_a_plan_gets_the_rows_that_its_recipe_says(target: Target) -> None:
    plan = sample_plan()
    plan = plan.model_copy(update={"recipe": Recipe(target=target)})
    assert list(by_id(plan)) == rows_of(plan.recipe)


@pytest.mark.parametrize("chosen", [Precision.W8A8_BLOCK, Precision.FP8_E5M2, Precision.FP16])
def test_the_format_that_the_plan_chose_is_no_row_of_its_own(chosen: Precision) -> None:
    plan = sample_plan()
    plan = plan.with_precisions(lambda s: chosen if s in plan.kept else s.precision)
    rows = by_id(plan)
    assert rows[SPIKE_AWARE] is plan
    assert {row.kept_in for row in rows if row.kept_in is not None} == set(plan.recipe.profile.compared) - {chosen}
    assert len({decisions_of(decided) for decided in rows.values()}) == len(rows)


def test_controls_that_cannot_but_draw_the_same_sites_are_one_row() -> None:
    plan = sample_plan(1)
    counted = [site.key for site in plan.counted]
    kept_now = set(counted[:-2])  # two others are left, and both are drawn whatever the seed
    plan = plan.with_precisions(lambda s: Precision.FP32 if s.key in kept_now else s.precision)
    for site in plan.sites:
        site.reason = Reason.SPIKE if site.key in kept_now else site.reason
    controls = [row for row in by_id(plan) if row.kind in (RowKind.CONTROL_LOWEST, RowKind.CONTROL_RANDOM)]
    assert controls == [RowId(RowKind.CONTROL_LOWEST)]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("symmetric", "activations", "symmetric"), ("per_tensor_weights", "weights", "per_tensor")],
)
def test_a_scheme_that_is_the_recipes_own_is_no_row(name: str, field: str, value: str) -> None:
    assert f"everywhere_{name}" in NAMES
    rows = [row.name for row in rows_of(Recipe.model_validate({field: value}))]
    assert rows == [row for row in NAMES if row != f"everywhere_{name}"]


def test_without_kept_sites_there_is_nothing_to_try_and_nothing_to_control() -> None:
    plan = sample_plan()
    none = plan.with_precisions(lambda s: Precision.INT8 if s in plan.counted else s.precision)
    assert list(by_id(none)) == rows_of(none.recipe, formats=False, controls=False)
    assert [row.name for row in by_id(none)] == NAMES[:4]


def test_what_each_row_decides() -> None:
    plan = sample_plan()
    rows = by_id(plan)
    assert rows[SPIKE_AWARE] is plan
    assert not kept(rows[EVERYWHERE])
    for name, field, value in (
        ("everywhere_symmetric", "activations", "symmetric"),
        ("everywhere_per_tensor_weights", "weights", "per_tensor"),
    ):
        assert getattr(rows[RowId.read(name)].recipe, field) == value
        assert rows[RowId.read(name)].sites == rows[EVERYWHERE].sites
    for row, decided in rows.items():
        if row.kept_in is not None:
            assert kept(decided) == kept(plan)
            assert {s.precision for s in decided.sites if s.key in kept(plan)} == {row.kept_in}
    controls = [decided for row, decided in rows.items() if row.kind is RowKind.CONTROL_RANDOM]
    controls.append(rows[RowId(RowKind.CONTROL_LOWEST)])
    for control in controls:
        assert len(kept(control)) == len(kept(plan))
        assert not kept(control) & kept(plan)
    assert len({frozenset(kept(control)) for control in controls}) == len(controls)
    lowest = kept(controls[-1])
    ratios = {s.key: s.evidence.ratio or 0.0 for s in plan.counted if s.key not in kept(plan)}
    assert max(ratios[key] for key in lowest) <= min(ratio for key, ratio in ratios.items() if key not in lowest)


def test_the_rival_has_every_weight_in_blocks() -> None:
    rival = weight_only(sample_plan())
    assert (rival.id, rival.bits) == (WEIGHT_ONLY, 8)
    assert {s.precision for s in rival.plan.counted} == {Precision.W8A8_BLOCK}


def test_every_site_in_another_format_is_a_row_where_the_target_has_that() -> None:
    plan = sample_plan()
    rows = in_other_formats(plan)
    assert [(row.id.name, row.bits) for row in rows] == [("everywhere_w8a8_token", 8), ("everywhere_fp8_e4m3", 8)]
    assert rows[0].id == BY_TOKEN
    for row in rows:
        assert {s.precision for s in row.plan.counted} == {row.id.format}
        assert [s.precision for s in row.plan.sites if s not in row.plan.counted] == [
            s.precision for s in plan.sites if s not in plan.counted
        ]
    for target, names in (("cuda", ["everywhere_fp8_e4m3"]), ("portable", [])):
        elsewhere = plan.model_copy(update={"recipe": Recipe(target=target)})
        assert [row.id.name for row in in_other_formats(elsewhere)] == names
    assert in_other_formats(plan, Extent.SHORT) == []


def test_a_site_without_a_range_is_in_no_format_that_needs_one() -> None:
    """An expert that saw too few tokens, such as."""
    plan = sample_plan(1)
    sites = [s.model_copy(update={"range": None, "precision": Precision.FP32}) for s in plan.sites[:1]]
    by_token, fp8 = in_other_formats(plan.model_copy(update={"sites": sites + plan.sites[1:]}))
    assert by_token.plan.sites[0].precision is Precision.W8A8_TOKEN
    assert fp8.plan.sites[0].precision is Precision.FP32
    assert fp8.plan.sites[1].precision is Precision.FP8_E4M3

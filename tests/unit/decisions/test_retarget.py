"""What each can run, what stands in for what it cannot, and that nothing changes without a reason."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from spq_graph.decisions.choices import Choice, planned
from spq_graph.decisions.retarget import refuse_unsupported, retarget
from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.recipe import Override, Recipe
from spq_graph.documents.treatment import Cause, tried
from spq_graph.terms.errors import UsageError
from spq_graph.terms.form import Form
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES, Target, target_named
from tests.support.plans import plan, site

EVERY = pytest.mark.parametrize("target", PROFILES)


@EVERY
def test_every_precision_has_a_form_or_a_reason(target: Target) -> None:
    profile = PROFILES[target]
    assert set(profile.forms) | set(profile.missing) == set(Precision)
    assert not set(profile.forms) & set(profile.missing)
    assert {p for tier in profile.tiers_for("prefill") for p in tier} <= set(profile.forms)
    assert {p for tier in profile.tiers_for("balanced") for p in tier} <= set(profile.compared) <= set(profile.forms)
    there, by_block = profile.weight_only
    assert PROFILES[there].allows(by_block)


@EVERY
def test_what_stands_in_is_legal(target: Target) -> None:
    profile = PROFILES[target]
    for precision in Precision:
        for largest in (None, 1.0, 1e6):
            settled, why = profile.settle(precision, largest)
            assert profile.allows(settled)
            assert (why is None) is (settled is precision)


def test_what_each_target_executes() -> None:
    integer = {target: profile.forms[Precision.INT8] for target, profile in PROFILES.items()}
    assert integer == {
        "cpu": Form.QDQ,
        "cuda": Form.MATMUL_INTEGER,
        "tensorrt": Form.QDQ,
        "openvino": Form.QDQ,
        "portable": Form.QDQ,
    }
    assert {t for t, p in PROFILES.items() if p.signed} == {"cuda", "tensorrt"}
    assert {t for t, p in PROFILES.items() if p.functions} == {"cpu", "cuda", "portable"}
    assert not PROFILES["tensorrt"].fp8_per_channel
    assert PROFILES["tensorrt"].domains == {""}


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_half_precision_gives_way_where_activations_do_not_fit(target: Target) -> None:
    profile = PROFILES[target]
    assert profile.settle(Precision.FP16, 65504.0) == (Precision.FP16, None)
    settled, why = profile.settle(Precision.FP16, 70000.0)
    assert settled is Precision.BF16
    assert "7e+04, beyond float16" in (why or "")
    # Where float16 only stores weights, activations are never in it.
    assert PROFILES["cpu"].settle(Precision.FP16, 70000.0) == (Precision.FP16, None)


@pytest.mark.parametrize(
    ("target", "asked", "why"),
    [
        ("cpu", "bf16", "no product in bfloat16"),
        ("portable", "w8a16", "MatMulNBits"),
        ("portable", "w8a8_block", "MatMulNBits"),
        ("tensorrt", "w8a16", "8-bit integers on both sides"),
        ("tensorrt", "w8a8_block", "8-bit integers on both sides"),
        ("cuda", "w8a8_block", "takes activations as they are"),
        ("openvino", "w8a8_block", "a setting of the whole model how activations are taken"),
        ("tensorrt", "fp8_e5m2", "E4M3 only"),
        ("tensorrt", "w8fp8a16", "FP8 weights alone"),
        ("openvino", "fp8_e4m3", "no product in FP8"),
        ("openvino", "fp8", "no product in FP8"),
        ("openvino", "bf16", "setting of the whole model"),
    ],
)
def test_a_recipe_for_what_a_target_cannot_run_is_refused(target: str, asked: str, why: str) -> None:
    with pytest.raises(ValidationError, match=f"target '{target}' cannot run {asked}.*{why}.*use one of"):
        Recipe.model_validate({"target": target, "high_precision": asked})
    if asked != "fp8":
        with pytest.raises(ValidationError, match=why):
            Recipe.model_validate({"target": target, "overrides": [{"pattern": "*", "precision": asked}]})


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_signed_targets_are_symmetric_and_say_so(target: Target) -> None:
    assert Recipe(target=target).activations == "symmetric"
    with pytest.raises(ValidationError, match="zero point 0"):
        Recipe(target=target, activations="asymmetric")
    assert Recipe.model_validate_json(Recipe(target=target).model_dump_json()).activations == "symmetric"


def test_decoding_keeps_what_the_budget_asks_for() -> None:
    assert Recipe(use="decode").max_kept == 1.0
    assert Recipe(use="decode", max_kept=0.2).max_kept == 0.2
    assert Recipe(use="prefill").max_kept == Recipe().max_kept
    first, second, *_ = Recipe(use="prefill").profile.tiers_for("prefill")
    assert first == (Precision.W8A8_TOKEN,)
    assert not {Precision.W8A16, Precision.W8A8_BLOCK} & set(second)
    assert Precision.W8FP8A16 in second


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(UsageError, match="no target 'tpu'"):
        target_named("tpu")


def test_a_plan_for_another_target_says_what_it_could_not_keep() -> None:
    made = plan(
        site("e4m3", Precision.FP8_E4M3),
        site("e5m2", Precision.FP8_E5M2),
        site("int", Precision.INT8, Reason.DEFAULT),
        site("w8", Precision.W8A16, high=1e5),
        site("head", Precision.FP32, Reason.DEFAULT),
        high_precision="fp8_e5m2",
        overrides=[Override(pattern="w8", precision="w8a16")],
    )
    found = {s.key: s for s in retarget(made, "tensorrt").sites}
    assert {key: s.precision for key, s in found.items()} == {
        "e4m3": Precision.FP8_E4M3,
        "e5m2": Precision.FP16,
        "int": Precision.INT8,
        "w8": Precision.BF16,
        "head": Precision.FP32,
    }
    assert {key for key, s in found.items() if s.reason is Reason.UNSUPPORTED} == {"e5m2", "w8"}
    note = found["e5m2"].evidence.note or ""
    assert note == "spike: costs KL 0.1; fp8_e5m2 was planned: TensorRT has FP8 in E4M3 only; fp16 instead"
    again = retarget(made, "tensorrt")
    assert again.recipe.target == "tensorrt"
    assert again.recipe.activations == "symmetric"
    refuse_unsupported(again)
    assert retarget(made, "cpu") is made
    assert Plan.model_validate_json(retarget(made, "openvino").to_json()).recipe.target == "openvino"


@pytest.mark.parametrize("target", ["cuda", "openvino"])
def test_what_is_rounded_by_block_on_a_cpu_finds_its_nearest_elsewhere(target: Target) -> None:
    made = plan(
        site("kept", Precision.W8A8_BLOCK),
        high_precision="w8a8_block",
        overrides=[Override(pattern="kept", precision="w8a8_block")],
    )
    there = retarget(made, target)
    [found] = there.sites
    assert (found.precision, found.reason) == (Precision.W8A16, Reason.UNSUPPORTED)
    why = PROFILES[target].why_not(Precision.W8A8_BLOCK)
    assert found.evidence.note == f"spike: costs KL 0.1; w8a8_block was planned: {why}; w8a16 instead"
    assert there.recipe.high_precision == there.recipe.overrides[0].precision == "w8a16"
    refuse_unsupported(there)
    assert retarget(there, "cpu").sites[0].precision is Precision.W8A16  # which a CPU can, if slowly


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
def test_what_has_no_near_becomes_half(target: Target) -> None:
    made = plan(site("kept", Precision.W8A8_BLOCK), high_precision="w8a8_block")
    there = retarget(made, target)
    assert there.sites[0].precision is Precision.FP16
    assert there.recipe.high_precision == "auto"


def test_who_is_held_against_what_weight_only() -> None:
    assert {target: profile.weight_only for target, profile in PROFILES.items()} == {
        "cpu": ("cpu", Precision.W8A8_BLOCK),
        "cuda": ("cuda", Precision.W8A16),
        "tensorrt": ("cpu", Precision.W8A8_BLOCK),
        "openvino": ("openvino", Precision.W8A16),
        "portable": ("cpu", Precision.W8A8_BLOCK),
    }


def test_a_plan_written_by_hand_for_what_a_target_cannot_run_is_refused() -> None:
    wrong = plan(site("a", Precision.W8A16), site("b", Precision.INT8), target="portable")
    with pytest.raises(UsageError, match=r"portable.*1 sites.*a \(w8a16\).*MatMulNBits"):
        refuse_unsupported(wrong)


def test_what_is_written_by_default_is_held_against_the_target_as_well() -> None:
    """Only floating point stays as the graph has it; anything else has to be written, whatever the reason says."""
    wrong = plan(site("a", Precision.W8A8_BLOCK, Reason.DEFAULT), target="tensorrt")
    with pytest.raises(UsageError, match=r"tensorrt.*a \(w8a8_block\)"):
        refuse_unsupported(wrong)
    there = retarget(plan(site("a", Precision.W8A8_BLOCK, Reason.DEFAULT)), "tensorrt")
    assert (there.sites[0].precision, there.sites[0].reason) == (Precision.FP16, Reason.UNSUPPORTED)


def test_a_kept_site_says_why_it_is_not_what_was_asked_for() -> None:
    recipe = Recipe(target="cuda", high_precision="fp16")
    from tests.support.deciding import seen

    choice = Choice(
        Site(key="k", node="n", role=Role.GLU_DOWN, layer=0, shape=(8, 8), input="x"),
        Precision.FP32,
        seen(1e5),
        Precision.FP16,
        Reason.SPIKE,
        Precision.FP16,
    )
    choice.set_high(Precision.FP16, recipe)
    choice.precision, choice.note = choice.high, "costs KL 1"
    made = planned(choice, None)
    assert made.precision is Precision.BF16
    assert made.reason is Reason.UNSUPPORTED
    assert "costs KL 1; its activations reach 1e+05, beyond float16; bf16 instead" in (made.evidence.note or "")


def test_a_branch_of_a_site_that_no_longer_takes_one_is_refused_with_the_reason() -> None:
    """By token a product has one scale for all channels; by block, which stands in for it elsewhere, it has not."""
    sites = [site("a", Precision.W8A8_TOKEN), site("b", Precision.INT8)]
    peels = {s.input: Peel(value=s.input, channels=(1,), low=-1.0, high=1.0) for s in sites}
    made = plan(*sites, target="cpu").with_treatments(tried([s.site for s in sites], peels))
    assert set(made.peels) == {s.input for s in sites}
    moved = retarget(made, "openvino")
    assert set(moved.peels) == {sites[1].input}
    [refused] = [t for t in moved.treatments if not t.applied]
    assert (refused.sites, refused.reason) == (("a",), Cause.NOT_NEEDED)
    assert "one scale for all channels" in (refused.note or "")

"""How much a search measures is known, about, before it begins."""

from __future__ import annotations

from functools import partial

from spq_graph.decisions.effort import Effort, all_by_token, chance_to_fall_back, effort, smooths
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.precision import Precision

STORED = frozenset({Precision.FP32})
# As SmolLM2-135M has them.
SMOL = partial(effort, stored=STORED, sites=210, candidates=47)


def test_what_meets_the_aim_at_once_is_measured_once() -> None:
    assert SMOL(Recipe(), lossy=False, peels=False) == Effort(1, 0, 0, 1)


def test_without_branches_the_costliest_are_measured_alone_and_prefixes_of_them_together() -> None:
    recipe = Recipe.model_validate({"remedies": {"peel": {"use": "never"}}})
    found = SMOL(recipe, lossy=True, peels=False)
    assert found.alone == 32
    assert found.roughly == 7  # each role, to know which those are
    # Everywhere, the cap, a bisection of 31, what lies beyond it, five formats and none.
    assert 10 <= found.together <= 16


def test_a_few_candidates_are_all_measured_alone() -> None:
    recipe = Recipe.model_validate({"remedies": {"peel": {"use": "never"}}})
    found = effort(recipe, STORED, sites=210, candidates=20, lossy=True, peels=False)
    assert (found.alone, found.roughly) == (20, 0)


def test_branches_ask_for_more_of_a_share_of_the_tokens() -> None:
    plain, branched = (SMOL(Recipe(scales="static"), lossy=True, peels=peels) for peels in (False, True))
    assert branched.together < plain.together
    # All candidates kept, four counts of channels and a scale, roles twice, and six formats.
    assert branched.roughly == 1 + 5 + 14 + 7
    assert branched.alone == 32  # of the costliest sites more than may be kept


def test_where_nothing_may_be_kept_no_site_is_measured_alone() -> None:
    recipe = Recipe(scales="static", max_kept=0.0)
    assert [SMOL(recipe, lossy=True, peels=peels).alone for peels in (False, True)] == [0, 0]


def test_scales_by_token_leave_no_site_to_keep() -> None:
    by_token, static = (SMOL(Recipe.model_validate({"scales": s}), lossy=True, peels=True) for s in ("auto", "static"))
    assert (by_token.roughly, by_token.alone) == (1 + 5 + 14, 0)
    assert by_token.together < static.together


def test_a_budget_that_is_not_given_asks_for_weights_alone_besides() -> None:
    default, given = (SMOL(recipe, lossy=True, peels=True) for recipe in (Recipe(), Recipe(kl_budget=0.005)))
    assert default.together == given.together + 1


def test_formats_by_site_are_measured_alone() -> None:
    auto, fp8 = (SMOL(Recipe(high_precision=high), lossy=True, peels=False) for high in ("auto", "fp8"))
    assert fp8.together < auto.together
    assert fp8.alone == 32 + 2 * 31


def test_where_scales_by_token_miss_the_budget_static_ones_are_sought_after_them() -> None:
    by_token, fallen, static = (
        SMOL(recipe, lossy=True, peels=True, smooths=smooths(recipe, missed=True, falls_back=falls), falls_back=falls)
        for recipe, falls in ((Recipe(), False), (Recipe(), True), (Recipe(scales="static"), False))
    )
    assert fallen.alone == static.alone > by_token.alone
    assert by_token.roughly < static.roughly < fallen.roughly
    # 76 choices were measured of SmolLM2-135M on chats of 3,060 tokens, whose search went this way; beside the kind of
    # place that saved most, two more have three exponents each since.
    assert 76 <= fallen.together + fallen.roughly + fallen.alone <= 96


def test_a_few_tokens_say_how_likely_that_is() -> None:
    recipe = Recipe()
    chances = [chance_to_fall_back(recipe, kl * recipe.kl_budget) for kl in (0.2, 0.89, 1.0, 1.2, 3.0)]
    assert chances == sorted(chances)
    assert (chances[0], chances[2], chances[-1]) == (0.0, 0.5, 1.0)
    assert chance_to_fall_back(recipe, None) == 0.5
    assert chance_to_fall_back(Recipe(scales="static"), None) == 0.0


def test_all_by_token_has_branches_as_the_recipe_has() -> None:
    found = all_by_token(Recipe())
    assert (found.scales, found.remedies.peel.use, found.remedies.peel.channels) == (
        "by_token",
        "always",
        Recipe().remedies.peel.channels,
    )
    without = Recipe.model_validate({"remedies": {"peel": {"use": "never"}}})
    assert all_by_token(without).remedies.peel.use == "never"

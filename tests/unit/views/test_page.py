from __future__ import annotations

import re
import tomllib

import pytest

from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Report
from spq_graph.terms.rows import EVERYWHERE, SPIKE_AWARE, RowId
from spq_graph.terms.site import Role
from spq_graph.views.charts.spikes import heat, spike_map
from spq_graph.views.page import recipe_file, render, shown_profiles
from tests.support.pages import Page
from tests.support.samples import HOSTILE, big_plan, sample_plan, sample_report, sample_rung
from tests.support.samples_ranges import sample_drawing, sample_ranges


def whole_page(*, hostile: bool = False) -> str:
    """The page with everything that it can have."""
    plan, report = sample_plan(hostile=hostile), sample_report(hostile=hostile)
    report.layer = sample_drawing(hostile=hostile)
    report.tokens = {1: HOSTILE if hostile else "<s>"}
    report.kernels = {site.key: HOSTILE if hostile else "MatMulIntegerToFloat" for site in plan.sites}
    report.placed = {"CPUExecutionProvider": {"MatMulIntegerToFloat": 54, HOSTILE if hostile else "Mul": 358}}
    return render(plan, report, shown_profiles(plan, sample_ranges(plan), report.tokens))


@pytest.fixture(scope="module")
def source() -> str:
    return whole_page()


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_the_verdict_comes_with_its_numbers(page: Page) -> None:
    assert "✓ Ready" in page.text
    assert "perplexity changes by +0.04 % against FP32 where quantizing everywhere changes it by +0.71 %" in page.text
    assert "2 of 56 sites stay in high precision and 7.64 MB become 2.78 MB" in page.text


def test_options_in_sentences_stay_whole() -> None:
    plan, report = sample_plan(), sample_report()
    report.verdict.warnings = [f"pass --text FILE, not a--b {HOSTILE}"]
    source = render(plan, report, [])
    assert 'pass <span class="whole">--text</span> FILE, not a--b &lt;script&gt;' in source


def test_everything_is_told(page: Page) -> None:
    for piece in (
        "control: random, seed 3",
        "weight-only 6 bit",
        "+0.56 %",  # ladder
        "16 evaluations on 4,096 tokens",
        "budget 0.005 met",
        "quantizing it alone costs 9 times the budget",
        "node_MatMul_scores",
        "no constant weight",
        "MatMulIntegerToFloat 54",
        "CPUExecutionProvider (412 nodes)",
        "--bits 8 --bits 6",
        "sha256:" + "3f" * 32,
        "kl_budget 0.005",
        "AVX512-VNNI",
        "evaluate 2 min 05 s",
    ):
        assert piece in page.text, piece


def test_the_page_is_self_contained_and_small(source: str, page: Page) -> None:
    assert len(source.encode()) < 500_000
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert all(reference.startswith("#") for name in ("href", "xlink:href", "src") for reference in page.having(name))
    assert not re.search(r"url\((?!#)|@import|fetch\(|innerHTML|insertAdjacentHTML|eval\(", source)
    policy = page.having("content")[-1]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


def test_every_reference_has_its_target(page: Page) -> None:
    ids = set(page.having("id"))
    assert {reference[1:] for name in ("href", "for") for reference in page.having(name) if reference[0] == "#"} <= ids
    assert set(page.having("for")) <= ids


def test_ids_are_unique(page: Page) -> None:
    ids = page.having("id")
    assert len(ids) == len(set(ids))


def test_same_inputs_give_the_same_page(source: str) -> None:
    assert whole_page() == source


def test_charts_take_their_colours_from_the_page_and_keep_text_as_text(source: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert len(charts) == 2 + 1 + 12 + 2  # loss against size; against speed only where that was timed
    assert all("var(--" in chart for chart in charts)
    for chart in charts[:2]:
        assert not re.search(r"#[0-9a-fA-F]{6}", re.sub(r"fill: #000000|stroke: #000000", "", chart))
        assert "var(--good)" in chart
        assert ">spike-aware</text>" in chart
        assert ">control: random, 3 seeds</text>" in chart


def test_cells_of_the_spike_map_tell_what_was_measured(page: Page) -> None:
    cells = [attributes["class"] for tag, attributes in page.tags if tag == "td" and "class" in attributes]
    assert len(cells) == 56
    assert [cell for cell in cells if cell and "kept" in cell] == ["h7 kept", "h4 kept"]
    assert "660 1.60 <s> at 0" in page.text  # in the table, which the cell leads to


def test_profiles_tell_where_and_on_which_token(page: Page) -> None:
    labels = [a["aria-label"] or "" for tag, a in page.tags if tag == "figure" and "aria-label" in a]
    assert "Token maxima by position: the largest is 660 at position 0, the median 1.60." in labels
    assert "Token Maximum Position <s> 660 0" in page.text
    assert len([a for tag, a in page.tags if tag == "input" and a["type"] == "radio"]) == 12


def test_without_ranges_and_drawing_their_sections_are_left_out() -> None:
    page = Page(render(sample_plan(), sample_report()))
    assert "On which token" not in page.text
    assert "One layer" not in page.text


def test_the_layer_is_drawn_before_and_after(page: Page) -> None:
    assert "QuantizeLinear → DequantizeLinear uint8, scale 0.1, zero point 128" in page.text
    assert "MatMul 160 × 160, int8 weight → DQ" in page.text
    assert "and 13 more" in page.text
    assert len([a for tag, a in page.tags if tag == "li" and a.get("class") == "quantizer"]) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bits": 6, "keep": ("*.0.mlp.*",), "kl_budget": 0.01, "quantize_lm_head": True},
        {"overrides": [{"pattern": 'a"\n\x1b\u202e\x7f*', "precision": "fp32"}], "ignore": ("ü",)},
    ],
)
def test_the_recipe_as_a_file_is_the_recipe(fields: dict[str, object]) -> None:
    recipe = Recipe.model_validate(fields)
    assert Recipe.model_validate(tomllib.loads(recipe_file(recipe))) == recipe
    assert bool(recipe_file(recipe)) == bool(fields)


def test_the_spike_map_follows_the_flow_of_data() -> None:
    arranged = spike_map(sample_plan(layers=2))
    assert arranged.roles[0] is Role.ATTN_Q
    assert arranged.roles[-1] is Role.GLU_DOWN
    assert [layer for layer, _ in arranged.rows] == [0, 1]
    assert [site.key for site in arranged.outside] == ["lm_head"]


@pytest.mark.parametrize(
    ("ratio", "step"),
    [(None, 0), (0.5, 0), (1.0, 0), (3.0, 1), (11.0, 3), (999.0, 8), (5000.0, 9), (float("inf"), 9), (float("nan"), 0)],
)
def test_heat(ratio: float | None, step: int) -> None:
    assert heat(ratio) == step


def test_hostile_names_are_text_everywhere() -> None:
    source = whole_page(hostile=True)
    page = Page(source)
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<script>alert('x')</script>\"&\\n\\x1b[31m\\u202eevil[red]{{ 7*7 }}" in page.text
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert HOSTILE not in source


def test_a_hostile_rung_name_stays_text() -> None:
    report = sample_report()
    report.ladder.append(sample_rung(RowId.read("$x^2$<script>"), 8, 0.5))
    page = Page(render(sample_plan(), report))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.text.count("$x^2$<script>") == 2


def test_a_report_without_a_ladder_says_so() -> None:
    page = Page(render(sample_plan(), sample_report(ladder=False)))
    assert "perplexity was not measured" in page.text
    assert "svg" not in {tag for tag, _ in page.tags}


def test_perplexities_beyond_numbers_are_drawn_around() -> None:
    report = sample_report()
    report.ladder += [sample_rung(EVERYWHERE, 4, float("inf")), sample_rung(SPIKE_AWARE, 4, 12345.0)]
    page = Page(render(sample_plan(), report))
    assert "not finite" in page.text
    assert "+1,234,500 %" in page.text


def test_a_plan_of_nothing_still_renders() -> None:
    plan = sample_plan(layers=0)
    plan.unmatched.clear()
    page = Page(render(plan, sample_report(ladder=False)))
    assert "No site is kept in high precision." in page.text
    assert "every MatMul and Gemm with a constant weight was recognised" in page.text


def test_a_model_of_thousands_of_sites_stays_small() -> None:
    plan, report = big_plan(), sample_report()
    report.kernels = {site.key: "MatMulIntegerToFloat" for site in plan.sites}
    assert len(plan.sites) > 5000
    assert len(render(plan, report, shown_profiles(plan, sample_ranges(plan), report.tokens)).encode()) < 2_000_000


def test_an_older_report_still_renders() -> None:
    report = sample_report().to_dict()
    for key in ("placed", "kernels", "layer", "tokens"):
        del report[key]
    assert "MatMulIntegerToFloat 54" in Page(render(sample_plan(), Report.model_validate(report))).text

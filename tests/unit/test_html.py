from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from spq_graph.html import heat, render, spike_map
from spq_graph.sites import Role
from tests.unit.samples import HOSTILE, sample_plan, sample_report, sample_rung

_VOID = {"meta", "br", "link", "img", "path", "use"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def source() -> str:
    return render(sample_plan(), sample_report())


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_the_verdict_comes_with_its_numbers(page: Page) -> None:
    assert "✓ Ready" in page.text
    assert "perplexity changes by +0.04 % against FP32 where quantizing everywhere changes it by +0.71 %" in page.text
    assert "2 of 56 sites stay in high precision and 7.64 MB become 2.78 MB" in page.text


def test_everything_is_told(page: Page) -> None:
    for piece in (
        "control: random, seed 3", "weight-only 6 bit", "+0.56 %",  # ladder
        "16 evaluations on 4,096 tokens", "budget 0.005 met", "quantizing it alone costs 9 times the budget",
        "node_MatMul_scores", "no constant weight", "MatMulIntegerToFloat 54", "CPUExecutionProvider (412 nodes)",
        "--bits 8 --bits 6", "sha256:" + "3f" * 32, "kl_budget 0.005", "AVX512-VNNI", "evaluate 2 min 05 s",
    ):  # fmt: skip
        assert piece in page.text, piece


def test_the_page_is_self_contained_and_small(source: str, page: Page) -> None:
    assert len(source.encode()) < 500_000
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(reference.startswith("#") for name in ("href", "xlink:href", "src") for reference in page.having(name))
    assert not re.search(r"url\((?!#)|@import", source)
    assert "default-src 'none'" in page.having("content")[-1]


def test_ids_are_unique(page: Page) -> None:
    ids = page.having("id")
    assert len(ids) == len(set(ids))


def test_same_inputs_give_the_same_page(source: str) -> None:
    assert render(sample_plan(), sample_report()) == source


def test_charts_take_their_colours_from_the_page_and_keep_text_as_text(source: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        assert not re.search(r"#[0-9a-fA-F]{6}", re.sub(r"fill: #000000|stroke: #000000", "", chart))
        assert "var(--good)" in chart
        assert ">spike-aware</text>" in chart
        assert ">control: random, 3 seeds</text>" in chart


def test_cells_of_the_spike_map_tell_what_was_measured(page: Page) -> None:
    titles = page.having("title")
    assert "model.layers.1.mlp.down_proj\nfp32, spike\nmax 660, median 1.60\ntoken <s> at position 0" in titles
    cells = [attributes["class"] for tag, attributes in page.tags if tag == "td" and "title" in attributes]
    assert len(cells) == 56
    assert [cell for cell in cells if cell and "kept" in cell] == ["h7 kept", "h4 kept"]


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
    source = render(sample_plan(hostile=True), sample_report(hostile=True))
    page = Page(source)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert('x')</script>\"&\\n\\x1b[31m\\u202eevil[red]{{ 7*7 }}" in page.text
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert HOSTILE not in source


def test_a_hostile_rung_name_stays_text() -> None:
    report = sample_report()
    report.ladder.append(sample_rung("$x^2$<script>", 8, 0.5))
    page = Page(render(sample_plan(), report))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("$x^2$<script>") == 2


def test_a_report_without_a_ladder_says_so() -> None:
    page = Page(render(sample_plan(), sample_report(ladder=False)))
    assert "perplexity was not measured" in page.text
    assert "svg" not in {tag for tag, _ in page.tags}


def test_perplexities_beyond_numbers_are_drawn_around() -> None:
    report = sample_report()
    report.ladder += [sample_rung("everywhere", 4, float("inf")), sample_rung("spike_aware", 4, 12345.0)]
    page = Page(render(sample_plan(), report))
    assert "not finite" in page.text
    assert "+1,234,500 %" in page.text


def test_a_plan_of_nothing_still_renders() -> None:
    plan = sample_plan(layers=0)
    plan.unmatched.clear()
    page = Page(render(plan, sample_report(ladder=False)))
    assert "No site is kept in high precision." in page.text
    assert "every MatMul and Gemm with a constant weight was recognised" in page.text

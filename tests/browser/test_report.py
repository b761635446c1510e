"""The report in a real browser: sorting, filtering and hovering work, by keyboard too, and nothing is out of reach."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from spq_graph.views import words
from spq_graph.views.charts.spikes import spike_map
from tests.browser.conftest import RIGHT_TO_LEFT, Open
from tests.support.samples import HOSTILE, sample_plan

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect
SPIKED = "model.layers.1.mlp.down_proj"


def visible_rows(page: Any) -> list[str]:
    return list(page.locator(".sites tbody tr:visible code").filter(has_text="model").all_inner_texts())


def ratios(page: Any) -> list[str]:
    return [cell.strip() for cell in page.locator(".sites tbody td:nth-child(4)").all_inner_texts()]


def test_cells_of_the_heat_map_carry_the_numbers_of_the_plan(opened: Open) -> None:
    page = opened()
    arranged = spike_map(sample_plan())
    shown = page.locator(".map tbody td").all_inner_texts()
    cells = [cell for _, row in arranged.rows for cell in row]
    assert len(shown) == len(cells) == 56
    for text, cell in zip(shown, cells, strict=True):
        assert cell is not None
        assert text == words.number(cell.ratio, 2 if (cell.ratio or 0) < 10 else 3)
    kept = page.locator(".map td.kept").all_inner_texts()
    assert kept == ["412", "36.0"]


@pytest.mark.parametrize("way", ["hover", "tap", "keyboard"])
def test_a_cell_tells_max_median_token_and_position(opened: Open, way: str) -> None:
    page = opened(has_touch=way == "tap")
    cell = page.locator(".map tbody tr").nth(1).locator("a").last
    if way == "hover":
        cell.hover()
    elif way == "tap":
        cell.tap()
    else:
        page.locator(".map a").first.focus()
        page.keyboard.press("ArrowDown")
        for _ in range(6):
            page.keyboard.press("ArrowRight")
    told = page.locator("#cell")
    expect(told).to_be_visible()
    text = told.inner_text()
    for piece in (SPIKED, "fp32", "Ratio 412", "Max 660", "Median 1.60", "Token <s> at 0", "Why spike"):
        assert piece in text, piece
    if way == "keyboard":
        page.keyboard.press("Enter")
        # The browser goes there in a turn of its own, after the key was handled.
        row = [s.key for s in sample_plan().sites].index(SPIKED)
        expect(page).to_have_url(re.compile(f"#s{row}$"))


def test_sorting_by_number_and_by_name(opened: Open) -> None:
    page = opened()
    before = visible_rows(page)
    head = page.locator(".sites th", has_text="Ratio")
    head.locator("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    values = [float(r) for r in ratios(page)]
    assert values[0] == 412
    assert values == sorted(values, reverse=True)
    head.locator("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert [float(r) for r in ratios(page)] == sorted(values)
    page.locator("#order").select_option(label="Site, A to Z")
    assert head.get_attribute("aria-sort") is None
    assert visible_rows(page) == sorted(before)
    page.locator("#order").select_option("")
    assert visible_rows(page) == before


def test_filtering(opened: Open) -> None:
    page = opened()
    page.locator("[name=find]").fill("LAYERS.1.")
    assert len(visible_rows(page)) == 7
    assert page.locator("#shown").inner_text() == "7 of 57 sites"
    page.locator("[name=precision]").select_option("fp32")
    assert visible_rows(page) == [SPIKED]
    page.locator("[name=find]").fill("")
    page.locator("[name=precision]").select_option("")
    page.locator("[name=reason]").select_option("spike")
    page.locator("[name=role]").select_option("glu_down")
    assert visible_rows(page) == [SPIKED, "model.layers.3.mlp.down_proj"]
    page.locator("#filter button").click()
    # A form clears what it gives out, and is counted again in a turn of its own.
    expect(page.locator("#shown")).to_have_text("57 of 57 sites")


def test_a_link_to_a_row_that_is_filtered_out_brings_it_back(opened: Open) -> None:
    page = opened()
    page.locator("[name=find]").fill("layers.5")
    page.locator("#kept ~ .cards a").first.click()
    expect(page.locator("tr:target")).to_be_visible()
    assert page.locator("tr:target code").first.inner_text() == SPIKED


def test_profiles_are_chosen_with_and_without_javascript(opened: Open) -> None:
    for settings in ({}, {"java_script_enabled": False}):
        page = opened(**settings)
        assert page.locator(".pane:visible").count() == 1
        page.locator(".profiles label").nth(1).click()
        assert "model.layers.3.mlp.down_proj" in page.locator(".pane:visible").inner_text()
    page = opened()
    page.locator(".profiles input").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#p1")).to_be_checked()
    page.locator(".sites a").first.click()
    expect(page.locator(":target")).to_be_checked()


def test_without_javascript_all_of_it_is_there(opened: Open) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator(".sites tbody tr:visible").count() == 57
    expect(page.locator("#filter")).to_be_hidden()
    assert page.locator(".sites button").count() == 0
    page.locator(".map tbody tr").nth(1).locator("a").last.click()
    assert page.locator("tr:target code").first.inner_text() == SPIKED
    page.locator("summary", has_text="The nodes after").click()
    expect(page.get_by_text("zero point 128").last).to_be_visible()


def test_everything_is_reached_by_keyboard(opened: Open) -> None:
    page = opened()
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(e => e.closest('nav,.map,.profiles,.layers,.cards,#filter,.sites thead,#again ~ *')?.className || "
                "e.closest('nav,#filter')?.id || e.tagName)(document.activeElement)"
            )
        )
    assert {"map", "profiles", "layers", "cards", "filter"} <= reached
    assert page.locator(".map a[tabindex='0']").count() == 1  # one stop for the whole map


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("plain", 1200, "light"), ("plain", 1200, "dark"), ("plain", 390, "light"), ("hostile", 390, "dark")],
)
def test_axe_finds_no_serious_fault(opened: Open, name: str, width: int, scheme: str) -> None:
    """Contrast in both schemes is among what it looks at."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = opened(name, width=width, color_scheme=scheme)
    page.locator(".map a").first.hover()
    page.locator("summary").last.click()
    response = axe.Axe().run(page).response
    assert {"color-contrast", "button-name", "label"} <= {rule["id"] for rule in response["passes"]}
    found = response["violations"]
    serious = [
        f"{v['id']}: {[n['target'] for n in v['nodes'][:3]]}" for v in found if v["impact"] in ("serious", "critical")
    ]
    assert not serious


def test_dark_mode_is_dark(opened: Open) -> None:
    colours = {
        scheme: opened(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert colours == {"light": "rgb(244, 245, 247)", "dark": "rgb(15, 18, 22)"}


@pytest.mark.parametrize("name", ["plain", "hostile", "long"])
def test_a_phone_scrolls_down_only_and_its_text_is_large_enough(opened: Open, name: str) -> None:
    page = opened(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    smallest = page.evaluate("""() => Math.min(...[...document.querySelectorAll('body *')]
        .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .map(e => parseFloat(getComputedStyle(e).fontSize) * (e.closest('svg')
            ? e.closest('svg').getBoundingClientRect().width / e.closest('svg').viewBox.baseVal.width : 1)))""")
    assert smallest >= 8.5
    assert page.locator(".sites tbody tr").first.bounding_box()["width"] <= 390


@pytest.mark.parametrize("name", ["plain", "hostile", "long"])
def test_a_phone_shows_every_column_of_the_ladder(opened: Open, name: str) -> None:
    page = opened(name, width=390)
    names = page.locator(".ladder thead th").all_text_contents()[1:]
    cells = page.locator(".ladder tr.ours").first.locator("td")
    assert len([label for cell in cells.all() if (label := cell.get_attribute("data-label"))]) == len(names)
    for cell in cells.all():
        box = cell.bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= 390
        assert cell.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_printed_it_is_whole(opened: Open) -> None:
    page = opened()
    page.emulate_media(media="print")
    expect(page.locator("#filter")).to_be_hidden()
    expect(page.locator("nav")).to_be_hidden()
    assert page.locator(".sites tbody tr").count() == 57
    assert page.pdf()[:5] == b"%PDF-"


def test_hostile_names_are_text(opened: Open) -> None:
    page = opened("hostile")
    assert page.locator("script").count() == 1
    page.locator(".map tbody tr").nth(1).locator("a").last.hover()
    shown = words.printable(HOSTILE)
    assert shown in page.locator("#cell").inner_text()
    assert shown in page.locator(".pane:visible .leaders").inner_text()
    assert shown in page.locator(".sites tbody").inner_text()
    assert "\u202e" not in page.content()


def test_long_and_right_to_left_names_push_nothing_out_of_place(opened: Open) -> None:
    page = opened("long")
    page.locator(".map tbody tr").nth(1).locator("a").last.focus()
    assert RIGHT_TO_LEFT in page.locator("#cell").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    for selector in ("#cell", ".cards li", ".profiles label", ".pane:visible .top", "#filter"):
        box = page.locator(selector).first.bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= 1200, selector


def test_a_model_of_thousands_of_sites_opens_in_two_seconds(opened: Open) -> None:
    """By the time that the page keeps a processor busy: other work on the machine is not the page's."""
    page = opened("big")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    start = time.perf_counter()
    page.reload()
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    wall = time.perf_counter() - start
    busy = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}["TaskDuration"]
    assert page.locator(".sites tbody tr").count() > 5000
    assert 0.05 < min(busy, wall) < 2, (busy, wall)

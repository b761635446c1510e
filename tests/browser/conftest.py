"""A headless Chromium, where there is one, and the pages that it opens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spq_graph.views.page import render, shown_profiles
from tests.support.samples import HOSTILE, big_plan, sample_plan, sample_report
from tests.support.samples_ranges import sample_drawing, sample_ranges

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path)
        yield found
        found.close()


LONG = "x" * 400
RIGHT_TO_LEFT = "\u05d0\u05d1\u05d2 (\u05d3)"


def write_page(path: Path, *, hostile: bool = False, big: bool = False, long: bool = False) -> Path:
    plan = big_plan() if big else sample_plan(hostile=hostile)
    for site in plan.sites if long else ():
        site.site = replace(site.site, key=f"{site.key}.{LONG}", node=f"{RIGHT_TO_LEFT}{site.node}{LONG}")
        site.evidence.token_text = RIGHT_TO_LEFT * 9
    report = sample_report(hostile=hostile)
    report.layer = sample_drawing(hostile=hostile)
    report.tokens = {1: HOSTILE if hostile else "<s>"}
    report.kernels = {site.key: HOSTILE if hostile else "MatMulIntegerToFloat" for site in plan.integer_sites}
    path.write_text(render(plan, report, shown_profiles(plan, sample_ranges(plan), report.tokens)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    kinds: dict[str, dict[str, bool]] = {
        "plain": {},
        "hostile": {"hostile": True},
        "big": {"big": True},
        "long": {"long": True},
    }
    return {name: write_page(folder / f"{name}.html", **kind) for name, kind in kinds.items()}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a page; in the end nothing may have been said on its console, and no request may have left it."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def go(name: str = "plain", *, width: int = 1200, fragment: str = "", **settings: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        address = pages[name].as_uri()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda r: complaints.append(r.url) if r.url.partition("#")[0] != address else None)
        page.goto(address + fragment)
        return page

    yield go
    for context in contexts:
        context.close()
    assert not complaints

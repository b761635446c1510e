"""The picture of a report: of one size, the same each time, and nothing in it over the edge."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.image import imread

from spq_graph.documents.plan import Plan
from spq_graph.documents.report import Report
from spq_graph.documents.verdict import Standing, Verdict
from spq_graph.views.charts.svg import LIGHT
from spq_graph.views.picture import HEIGHT, WIDTH, render_picture
from tests.support.samples import sample_plan, sample_report


def drawn(plan: Plan, report: Report) -> npt.NDArray[np.uint8]:
    picture = imread(io.BytesIO(render_picture(plan, report)), format="png")
    assert picture.shape[:2] == (HEIGHT, WIDTH)
    return (picture[:, :, :3] * 255).round().astype(np.uint8)


def has(picture: npt.NDArray[np.uint8], colour: str) -> bool:
    return bool((picture == np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8)).all(axis=-1).any())


def test_the_same_report_gives_the_same_bytes() -> None:
    first, again = (render_picture(sample_plan(), sample_report()) for _ in range(2))
    assert first == again
    later = sample_report()
    later.seconds, later.command = {"export": 99.0}, "spq-graph quantize elsewhere -o out"
    assert render_picture(sample_plan(), later) == first


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("ladder", [False, True])
def test_nothing_is_over_the_edge(hostile: bool, ladder: bool) -> None:
    report = sample_report(ladder=ladder, hostile=hostile)
    report.verdict.summary += " and so on" * 60
    picture = drawn(sample_plan(hostile=hostile), report)
    assert (picture[:20] == 255).all()
    assert (picture[-10:] == 255).all()
    assert (picture[:, [*range(40), -20, -1]] == 255).all()
    assert has(picture, LIGHT.bad) is ladder  # everything quantized, the red bar


@pytest.mark.parametrize("name", ["W" * 90, ""])
def test_a_name_of_any_width_stands_beside_the_verdict(name: str) -> None:
    plan = sample_plan()
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"origin": name})})
    picture = drawn(plan, sample_report())
    assert (picture[:100, WIDTH - 320 : WIDTH - 250] == 255).all()
    assert (picture[30:95, 50:870] < 128).any() is np.bool_(bool(name))


@pytest.mark.parametrize(
    ("status", "colour"), [(Standing.READY, LIGHT.good), (Standing.NOT_READY, LIGHT.bad), (Standing.NOT_MEASURED, "")]
)
def test_the_colour_is_the_verdicts(status: Standing, colour: str) -> None:
    report = sample_report(ladder=False)
    report.verdict = Verdict(ready=status is Standing.READY, status=status, summary="As it is.")
    picture = drawn(sample_plan(), report)
    assert [has(picture, one) for one in (LIGHT.good, LIGHT.bad)] == [colour == LIGHT.good, colour == LIGHT.bad]

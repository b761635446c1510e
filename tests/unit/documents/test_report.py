"""A report that says what cannot be is refused, by place and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spq_graph.documents.report import Report
from spq_graph.terms.errors import UsageError
from tests.support.samples import sample_report


def test_round_trip(tmp_path: Path) -> None:
    report = sample_report()
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").to_json() == report.to_json()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["ladder"][0].update(perplexity=-1.0), r"ladder\.0\.perplexity: -1.0 is not at least 0"),
        (lambda d: d["ladder"][0].update(kl=float("nan")), "nan is no number that JSON has"),
        (lambda d: d["ladder"][0].update(top1=1.5), r"ladder\.0\.top1: 1.5 is not from 0 to 1"),
        (lambda d: d["ladder"][0]["executed"].update(MatMul=-3), r"executed\.MatMul: -3 is not from 0"),
        (lambda d: d["text"].update(tokens=-4), r"text\.tokens: -4 is not from 0"),
        (lambda d: d["seconds"].update(apply=-1.0), r"seconds\.apply: -1.0 is not at least 0"),
        (lambda d: d.update(bytes="many"), "bytes: Input should be a valid integer"),
        (lambda d: d.update(ladder=None), "ladder: "),
    ],
)
def test_what_cannot_be(tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    path, data = tmp_path / "report.json", sample_report().to_dict()
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"(?s)the report cannot be read.*{says}") as caught:
        Report.load(path)
    assert caught.value.where == str(path)
    assert "spq-graph quantize --force" in caught.value.remedy


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(sample_report().to_json().replace('"source_bytes":', '"bytes":'))
    with pytest.raises(UsageError, match="the key 'bytes' stands twice"):
        Report.load(path)

"""Rows of ladders and benchmarks: their names in JSON, which other versions may know more of, and those for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_graph.documents.report import Report, Rung
from spq_graph.documents.speed import SpeedRow
from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import BY_TOKEN, EVERYWHERE, FP32, MODEL, SPIKE_AWARE, WEIGHT_ONLY, RowId, RowKind, Scheme
from spq_graph.views import words
from tests.support.samples import sample_report

NAMES = {
    "fp32": FP32,
    "fp32_with_superweight": RowId(RowKind.FP32, with_remedy="superweight"),
    "everywhere": EVERYWHERE,
    "everywhere_symmetric": RowId(RowKind.EVERYWHERE, scheme=Scheme.SYMMETRIC),
    "everywhere_per_tensor_weights": RowId(RowKind.EVERYWHERE, scheme=Scheme.PER_TENSOR_WEIGHTS),
    "everywhere_w8a8_token": BY_TOKEN,
    "everywhere_fp8_e4m3": RowId(RowKind.EVERYWHERE, format=Precision.FP8_E4M3),
    "everywhere_with_smooth": RowId(RowKind.EVERYWHERE, with_remedy="smooth"),
    "spike_aware": SPIKE_AWARE,
    "spike_aware_fp8_e4m3": RowId(RowKind.SPIKE_AWARE, kept_in=Precision.FP8_E4M3),
    "spike_aware_openvino": RowId(RowKind.SPIKE_AWARE, target="openvino"),
    "spike_aware_without_peel_twice": RowId(RowKind.SPIKE_AWARE, without_remedy="peel_twice"),
    "control_lowest": RowId(RowKind.CONTROL_LOWEST),
    "control_random": RowId(RowKind.CONTROL_RANDOM),
    "weight_only": WEIGHT_ONLY,
    "model": MODEL,
    "other": RowId(RowKind.OTHER, unread="other"),
    "": RowId(RowKind.OTHER, unread=""),
    "spike_aware_": RowId(RowKind.OTHER, unread="spike_aware_"),
    "everywhere_with_": RowId(RowKind.OTHER, unread="everywhere_with_"),
    "spike_aware_with_smooth": RowId(RowKind.OTHER, unread="spike_aware_with_smooth"),
    "everywhere_fp16": RowId(RowKind.OTHER, unread="everywhere_fp16"),
    "models": RowId(RowKind.OTHER, unread="models"),
}


@pytest.mark.parametrize(("name", "row"), NAMES.items())
def test_names_in_json(name: str, row: RowId) -> None:
    assert RowId.read(name) == row
    assert row.name == name


@given(st.one_of(st.text(), st.builds("_".join, st.lists(st.sampled_from(["", "with", "without", *NAMES])))))
def test_no_name_is_lost(name: str) -> None:
    assert RowId.read(name, 3).name == name
    assert RowId.read(name, 3).seed == 3


def test_a_rung_reads_and_writes_its_name_and_seed_where_they_always_stood() -> None:
    data = {
        "name": "control_random",
        "bits": 8,
        "perplexity": 2.0,
        "perplexity_stderr": 0.2,
        "nll": 0.7,
        "nll_stderr": 0.1,
        "kl": 0.1,
        "kl_stderr": None,
        "top1": 0.9,
        "bytes": 9,
        "kept": ["a"],
        "executed": {"MatMul": 1},
        "seed": 2,
    }
    rung = Rung.model_validate(data)
    assert rung.id == RowId(RowKind.CONTROL_RANDOM, seed=2)
    assert json.dumps(rung.model_dump(mode="json")) == json.dumps(data)
    assert Rung.model_validate({key: value for key, value in data.items() if key != "seed"}).id.seed is None


def test_a_timed_row_reads_and_writes_its_name() -> None:
    row = timed("spike_aware_openvino", "openvino")
    assert row.id.target == "openvino"
    assert list(row.model_dump(mode="json"))[:2] == ["name", "target"]
    assert SpeedRow.model_validate(row.model_dump(mode="json")) == row


def test_a_report_with_rows_of_another_version_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    report = sample_report()
    data = report.to_dict()
    data["ladder"][2]["name"] = "everywhere_by_moonlight"
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    read = Report.load(first)
    assert read.ladder[2].id == RowId(RowKind.OTHER, unread="everywhere_by_moonlight")
    assert words.rung_name(read.ladder[2]) == "everywhere by moonlight"
    read.save(second)
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize(("key", "value"), [("name", 5), ("name", None), ("seed", "one"), ("id", "fp32")])
def test_a_report_with_rows_without_a_sound_name_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    data = sample_report().to_dict()
    data["ladder"][0][key] = value
    file = tmp_path / "report.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        Report.load(file)


def timed(name: str, target: str) -> SpeedRow:
    facts = {"target": target, "bytes": 1, "load_seconds": 0.1, "resident_bytes": 1, "prefill": {}, "decode": None}
    return SpeedRow.model_validate({"name": name, **facts})


@pytest.mark.parametrize(
    ("name", "target", "text"),
    [
        ("fp32", "cpu", "FP32"),
        ("everywhere", "cpu", "INT8 everywhere"),
        ("weight_only", "cpu", "MatMulNBits, 8 bits"),
        ("spike_aware", "cuda", "spike-aware (cuda)"),
        ("spike_aware_openvino", "openvino", "spike-aware (openvino)"),
        ("model", "cpu", "this model"),
        ("something_new", "cpu", "something new"),
        ("a\x1b", "b\u202e", "a\\x1b (b\\u202e)"),
    ],
)
def test_timed_rows_for_people(name: str, target: str, text: str) -> None:
    assert words.timed_name(timed(name, target)) == text

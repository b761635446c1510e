"""`inspect`, `diff` and `view`: what is in a file, ours or not, without changing it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.jobs import view
from tests.support.command import Case, contents, done, spq

SPIKED = "layers.1.mlp.down_proj"


def fits(text: str) -> bool:
    """Whether every line of tables fits 80 columns, without colour and without text cut away."""
    plain = "\n".join(line for line in text.splitlines() if "plan sha256:" not in line)
    return max(map(len, text.splitlines())) <= 80 and "\x1b" not in text and "…" not in plain


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def names_in(path: Path) -> set[str]:
    return {node.name for node in onnx.load(path, load_external_data=False).graph.node}


def test_the_report_shows_what_is_in_the_files(case: Case) -> None:
    report, plan = case.result.json["report"], case.result.json["plan"]
    assert report["layer"]["layer"] == 1
    for side, file in (("before", case.model), ("after", case.out / "model.onnx")):
        boxes = report["layer"][side]
        assert {name for box in boxes for name in box["nodes"]} <= names_in(file)
        sites = [box["title"] for box in boxes if box["kind"] in ("site", "kept")]
        assert sites == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert sum("QuantizeLinear" in box["title"] for box in report["layer"]["after"]) == 3
    assert report["kernels"].keys() == {site["key"] for site in plan["sites"]}
    integers = {site["key"] for site in plan["sites"] if site["precision"].startswith("int")}
    assert {key for key, op in report["kernels"].items() if op == "MatMulIntegerToFloat"} == integers
    assert {name: sum(ops.values()) for name, ops in report["placed"].items()} == report["providers"]
    page = (case.out / "report.html").read_text()
    assert len(page.encode()) < 500_000
    for heading in ("What it costs", "Where it spikes", "On which token", "One layer, before and after", "Every site"):
        assert f">{heading}</h2>" in page


def test_tables_fit_80_columns_and_are_plain_off_a_terminal(case: Case) -> None:
    for arguments in ([], ["--why", SPIKED], ["--unmatched"]):
        assert fits(done("inspect", case.out, *arguments).out)
    text = done("inspect", case.out).out
    assert "3 GLU blocks, 23 sites" in " ".join(text.split())
    decided = next(site for site in case.result.json["plan"]["sites"] if site["key"] == SPIKED)
    row = next(line for line in text.splitlines() if line.split()[:2] == [SPIKED, "glu_down"])
    assert row.split()[3:5] == [decided["precision"], "spike"]


def test_why_takes_a_site(case: Case) -> None:
    text = done("inspect", case.out, "--why", SPIKED).out
    for piece in (SPIKED, "quantizing it alone costs KL", "ratio:", "by position", "at 0"):
        assert piece in text, piece
    assert "layers.0" not in text
    assert done("inspect", case.out, "--why", "--site", SPIKED).out == text
    assert spq("inspect", case.out, SPIKED, "--site", "other").code == 2
    missing = spq("inspect", case.out, "--why", "nothing*")
    assert missing.code == 2
    assert "fits no site" in missing.err


def test_a_file_without_ranges_shows_its_structure(case: Case) -> None:
    found = done("inspect", case.model, "--json").json
    assert found["graph"]["operators"]["MatMul"] >= 22
    assert found["graph"]["plan"] is None
    assert found["measured"] is None
    assert all(site["evidence"] == {} for site in found["sites"])
    text = done("inspect", case.model, "--why", SPIKED).out
    assert "no plan is recorded" in text


@pytest.mark.parametrize("ours", [False, True])
def test_a_file_is_measured_on_the_spot_without_changing_it(case: Case, ours: bool) -> None:
    """The source as it is gives what calibration gave; the quantized file is measured quantized, so nearly that."""
    path = case.out if ours else case.model
    before = contents(case.out, case.model.parent)
    found = done("inspect", path, "--calibration", case.calibration, "--json").json
    assert contents(case.out, case.model.parent) == before
    assert not list(Path.cwd().iterdir())
    planned = {s["key"]: s["evidence"] for s in case.result.json["plan"]["sites"]}
    assert found["measured"]["tokens"] == case.result.json["plan"]["calibration"]["tokens"]
    assert found["measured"]["digest"] == case.result.json["plan"]["calibration"]["digest"]
    products = [site for site in found["sites"] if site["role"] != "embedding"]  # nothing is measured at ids
    assert len(products) == len(found["sites"]) - 1
    for site in products:
        for name in ("ratio", "max", "median"):
            within = 0.2 if ours else 1e-6
            assert site["measured"][name] == pytest.approx(planned[site["key"]][name], rel=within), site["key"]
    (one,) = done("inspect", path, SPIKED, "--calibration", case.calibration, "--json").json["profiles"].values()
    assert one["tokens"][0]["position"] == planned[SPIKED]["position"]
    assert max(one["positions"], key=lambda p: p["max"])["first"] <= planned[SPIKED]["position"]


def test_diff_of_artifacts_tells_what_came_of_it(case: Case, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done(
        "quantize",
        case.model,
        "-o",
        other,
        "--calibration",
        case.calibration,
        "--text",
        case.text,
        "--bits",
        8,
        "--keep",
        "*.0.mlp.down_proj",
        "--high-precision",
        "fp32",
    )
    found = done("diff", case.out, other, "--json").json
    assert found["same_model"] is True
    changed = {entry["key"]: entry for entry in found["changed"]}
    kept = changed["layers.0.mlp.down_proj"]
    assert (kept["a"]["precision"], kept["b"]["precision"], kept["b"]["reason"]) == ("int8", "fp32", "override")
    assert kept["a"]["ratio"] == kept["b"]["ratio"] > 0
    assert found["recipe"]["high_precision"] == {"a": "auto", "b": "fp32"}
    assert found["bytes"]["bytes"]["b"] > found["bytes"]["bytes"]["a"]
    assert set(found["operators"]) & {"MatMul", "Fp8MatMul", "MatMulNBits"}
    assert {row["name"] for row in found["ladder"]} >= {"fp32", "everywhere", "spike_aware"}
    text = done("diff", case.out, other).out
    assert fits(text)
    assert "layers.0.mlp.down_proj int8" in " ".join(text.split())
    assert found["only_a"] == found["only_b"] == []


def test_diff_of_plans_and_of_plain_files(case: Case) -> None:
    plan = case.out / "plan.json"
    assert done("diff", plan, plan).out.strip() == "the plans decide the same"
    found = done("diff", plan, case.model, "--json").json
    assert found["same_model"] is None
    assert len(found["changed"]) >= 20
    assert all(entry["b"] == {"precision": "fp32", "reason": None, "ratio": None} for entry in found["changed"])
    assert spq("diff", plan, case.out / "missing.json").code == 2


def test_view_without_netron_says_what_to_do(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "netron", None)
    result = spq("view", case.out)
    assert result.code == 2
    assert "pip install netron" in result.err
    assert spq("view", case.out / "missing.onnx").code == 1


def test_view_serves_the_file(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    netron = types.ModuleType("netron")
    netron.start = lambda *given: asked.append(given) or ("localhost", 8123)  # type: ignore[attr-defined,func-returns-value]
    netron.wait = lambda: asked.append("waited")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "netron", netron)
    assert "http://localhost:8123" in done("view", case.out, "--no-browser").out
    assert asked == [(str(case.out / "model.onnx"), None, False), "waited"]
    assert view.view(case.model, port=9000) == "http://localhost:8123"
    assert asked[-1] == (str(case.model), ("localhost", 9000), True)

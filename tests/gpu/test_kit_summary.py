"""What becomes of the results of a GPU run: a file, and rows of the documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import summary
from benchmarks.gpu.summary import ROOT, ROWS, Run, changed, read, tables

MACHINE = {"step": "machine", "result": "done", "nvidia_smi": "NVIDIA H200, 580.159.04, 143771 MiB"}
MODELS = {
    "step": "models",
    "result": "done",
    "records": [{"model": "int8", "relative_l2": 0.004}, {"model": "fp16", "relative_l2": 0.012}],
}
TESTS = {"step": "tests", "result": "done", "said": "613 passed, 8 skipped in 60.1s"}
PRODUCT = {"step": "product", "result": "done"}
OPERATOR = {
    "step": "operator",
    "result": "timed out",
    "records": [{"kernel": "spq fp8_e4m3", "K": 8, "N": 9, "M": m, "seconds": m * 1e-6} for m in (1, 16)],
}
WHOLE = {
    "step": "whole",
    "result": "done",
    "records": [{"case": "decode", "file": "int8", "seconds": 2e-3, "over_fp16": 0.8}],
}
ALL = (MACHINE, PRODUCT, TESTS, MODELS, OPERATOR, WHOLE)


def written(folder: Path, *lines: dict[str, Any], date: str = "2026-12-01") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({**line, "date": date}) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_every_row_is_still_in_its_document_once_or_tells_of_a_run() -> None:
    for row in ROWS:
        text = (ROOT / row.file).read_text(encoding="utf-8")
        assert len(row.in_place(text)) == 1 or "NVIDIA" in text, (row.file, row.line)


def test_rows_tell_of_what_was_seen(tmp_path: Path) -> None:
    texts = {path.relative_to(ROOT).as_posix(): text for path, text in changed(read([written(tmp_path, *ALL)])).items()}
    seen = "NVIDIA H200, 2026-12-01"
    assert f"`cuda`, executed on {seen}; `tensorrt`, **not executed on a GPU yet**" in texts["README.md"]
    assert f"| read back on {seen}: 2 models, logits within 1.2% of the CPU's |" in texts["docs/targets.md"]
    assert f"run on {seen}: 613 passed, 8 skipped in 60.1s (`make test-gpu`)" in texts["docs/supported.md"]
    assert summary.NOT_YET in texts["docs/targets.md"]  # TensorRT
    assert summary.NOTHING_SEEN not in texts["docs/gpu.md"]


def test_a_row_whose_steps_failed_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = read([written(tmp_path, MACHINE, {**MODELS, "result": "failed"})])
    assert {path.name for path in changed(run)} == {"gpu.md"}
    assert "docs/targets.md, | `cuda` |: stays, since models did not all end well" in capsys.readouterr().out


def test_tables_hold_what_a_step_found_before_it_was_ended(tmp_path: Path) -> None:
    text = tables(read([written(tmp_path, *ALL)]))
    assert "| kernel | M = 1 | M = 16 |\n|---|---|---|\n| spq fp8_e4m3 | 1.0 | 16.0 |" in text
    assert "| int8 | 2.00 ms, 0.80 x |" in text


def test_of_two_runs_the_better_result_of_a_step_counts(tmp_path: Path) -> None:
    first = written(tmp_path / "first", MACHINE, {**MODELS, "result": "failed"}, TESTS)
    second = written(tmp_path / "second", MODELS, {"step": "tests", "result": "timed out"}, date="2026-12-02")
    run = read([first, second])
    assert run.done("machine", "models", "tests")
    assert run.words == "NVIDIA H200, 2026-12-02"


@pytest.mark.parametrize(
    ("line", "message"),
    [({**MODELS, "stands_in": True}, "stand-in"), ({"step": "models", "result": "no device"}, "there was no device")],
)
def test_what_ran_on_no_gpu_is_refused(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        read([written(tmp_path, line)])


def test_the_file_has_device_date_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.keeping.RESULTS", tmp_path)
    run: Run = read([written(tmp_path / "run", *ALL)])
    path = summary.kept(run)
    assert path.name == summary.file_of(run) == "gpu-nvidia-h200-2026-12-01.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert (kept["date"], kept["device"]) == ("2026-12-01", "NVIDIA H200")
    assert kept["steps"]["operator"]["records"] == OPERATOR["records"]

"""No document is written with a number that JSON lacks, and all of them go through the one place that sees to it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

import spq_graph
from spq_graph.cli.terminal import print_json
from spq_graph.documents import genai_config
from spq_graph.documents.json_text import json_text
from spq_graph.terms.errors import CheckError
from tests.support.samples import sample_plan, sample_report
from tests.support.samples_ranges import sample_ranges

NUMBERS = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_json_lacks_is_named_by_its_key(number: float) -> None:
    with pytest.raises(CheckError, match=r"'sites\.1\.evidence\.kl' is -?(nan|inf)") as caught:
        json_text({"a": 1.0, "sites": [{}, {"evidence": {"kl": number}}]}, "plan.json")
    assert caught.value.where == "plan.json"
    assert caught.value.exit_code == 3


def test_anything_else_is_written_as_json_does() -> None:
    data = {"b": [1, 2.5, None, True, "ä"], "a": {}}
    assert json_text(data, "x") == json.dumps(data, indent=1, ensure_ascii=False)
    assert json_text(data, "x", indent=None, ascii_only=True, sort_keys=True) == json.dumps(data, sort_keys=True)


def plan(folder: Path, number: float) -> None:
    made = sample_plan()
    made.search.kl = number
    made.save(folder / "plan.json")


def report(folder: Path, number: float) -> None:
    made = sample_report()
    made.ladder[0].kl = number
    made.save(folder / "report.json")


def ranges(folder: Path, number: float) -> None:
    made = sample_ranges(sample_plan())
    next(iter(made.values.values())).low = number
    made.save(folder / "ranges.json")


def genai(folder: Path, number: float) -> None:
    for place in (folder / "source", folder / "out"):
        place.mkdir(exist_ok=True)
    text = json.dumps({"model": {"decoder": {}}, "search": {"temperature": number}})
    (folder / "source" / genai_config.NAME).write_text(text)
    genai_config.adopt(folder / "source" / "model.onnx", folder / "out", "model.onnx", {})


def printed(folder: Path, number: float) -> None:
    print_json({"kl": number})


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("write", [plan, report, ranges, genai, printed])
def test_every_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path, float], None], number: float
) -> None:
    with pytest.raises(CheckError, match="which is no number that JSON has"):
        write(tmp_path, number)
    assert not [path for path in tmp_path.rglob("*.json") if "source" not in path.parts]
    assert capsys.readouterr().out == ""
    write(tmp_path, 0.5)


def test_there_is_no_other_place_that_writes_json() -> None:
    root = Path(spq_graph.__file__).parent
    files = [*root.rglob("*.py"), *(p for part in ("passes", "runtime", "models") for p in (root / part).rglob("*.py"))]
    others = {
        path.relative_to(root).as_posix()
        for path in files
        if any(call in path.read_text(encoding="utf-8") for call in ("json.dumps(", "json.dump(", "model_dump_json("))
    }
    assert len(files) > 200
    # What a chat template puts into a prompt by `tojson` is no document.
    assert others == {"documents/json_text.py", "runtime/text/chat.py"}

"""What every job of docs/integrating.md returns is, by `to_dict()`, what its verb prints with `--json`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

pytest.importorskip("onnxruntime")

import spq_graph
from spq_graph import Data, Opening
from spq_graph.jobs.plan import plan
from tests.conftest import ROOT, write_tokenizer
from tests.support.command import Case, done

PAGE = (ROOT / "docs" / "integrating.md").read_text(encoding="utf-8")
# What differs from run to run: times, memory, and the command itself.
MEASURED = re.compile(r"seconds|_bytes$|^times$|tokens_per_second|^command$")


class Returned(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Way:
    """A job as a program calls it and as it is typed; both write to `out`, which the caller names."""

    call: Callable[[Case, Path, Path], Returned]
    typed: Callable[[Case, Path, Path], list[object]]


def quantized(case: Case, out: Path, _: Path) -> Returned:
    return spq_graph.quantize(case.model, out, data=Data(case.calibration), ladder=False, bench=False)


# By name: the folder `at` holds a tokenizer, and what a Hugging Face folder and shards are made of.
WAYS = {
    "quantize": Way(
        quantized,
        lambda case, out, _: [
            *("quantize", case.model, "-o", out, "--calibration", case.calibration),
            *("--no-eval", "--no-bench"),
        ],
    ),
    "export": Way(
        lambda _, out, at: spq_graph.export(at / "llama", out), lambda _, out, at: ["export", at / "llama", "-o", out]
    ),
    "calibrate": Way(
        lambda case, out, _: spq_graph.calibrate(case.model, out, calibration=case.calibration),
        lambda case, out, _: ["calibrate", case.model, "-o", out, "--calibration", case.calibration],
    ),
    "merge": Way(
        lambda case, out, _: spq_graph.merge([case.out / "ranges.json"], out),
        lambda case, out, _: ["calibrate", case.model, "-o", out, "--merge", case.out / "ranges.json"],
    ),
    "plan": Way(
        lambda case, out, _: plan(case.model, out, ranges=case.out / "ranges.json"),
        lambda case, out, _: ["plan", case.model, case.out / "ranges.json", "-o", out],
    ),
    "apply": Way(
        lambda case, out, _: spq_graph.apply(case.model, out, case.out / "plan.json"),
        lambda case, out, _: ["apply", case.model, case.out / "plan.json", "-o", out],
    ),
    "verify": Way(
        lambda case, *_: spq_graph.verify(case.out, case.model), lambda case, *_: ["verify", case.out, case.model]
    ),
    "evaluate": Way(
        lambda case, *_: spq_graph.evaluate(case.out, text=case.text),
        lambda case, *_: ["eval", case.out, "--text", case.text],
    ),
    "generate": Way(
        lambda case, _, at: spq_graph.generate(Opening(case.model, at), "w1 w2", max_new_tokens=2),
        lambda case, _, at: ["generate", case.model, "--tokenizer", at, "--prompt", "w1 w2", "--max-new-tokens", 2],
    ),
    "bench": Way(
        lambda case, *_: spq_graph.bench(case.out, rounds=1, lengths=[8]),
        lambda case, *_: ["bench", case.out, "--rounds", 1, "--length", 8],
    ),
    "inspect": Way(lambda case, *_: spq_graph.inspect(case.out), lambda case, *_: ["inspect", case.out]),
    "compare": Way(
        lambda case, *_: spq_graph.compare(case.out, case.model), lambda case, *_: ["diff", case.out, case.model]
    ),
    "doctor": Way(lambda *_: spq_graph.doctor(), lambda *_: ["doctor"]),
}


def test_every_job_on_the_page_is_here() -> None:
    table = PAGE[PAGE.index("| function | does |") : PAGE.index("What they return is typed")]
    assert list(WAYS) == re.findall(r"`(\w+)\([^`]*\)`", table)


@pytest.mark.parametrize("name", WAYS)
def test_a_job_returns_what_its_verb_prints(
    name: str, case: Case, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_tokenizer(tmp_path)
    if name == "export":
        (tmp_path / "llama").symlink_to(request.getfixturevalue("tiny_llama"))
    for folder in ("called", "typed"):
        (tmp_path / folder).mkdir()
    found = WAYS[name].call(case, tmp_path / "called" / "out", tmp_path).to_dict()
    said = done(*WAYS[name].typed(case, tmp_path / "typed" / "out", tmp_path), "--json").json
    assert json.loads(json.dumps(found)) == found  # plain data
    assert settled(found) == settled(said).replace(str(tmp_path / "typed"), str(tmp_path / "called"))


def settled(found: Any) -> str:
    """As text, in which the order of keys counts; without what differs from run to run."""
    return json.dumps(without_measured(found), indent=1)


def without_measured(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: None if MEASURED.search(key) else without_measured(value) for key, value in found.items()}
    return [without_measured(value) for value in found] if isinstance(found, list) else found

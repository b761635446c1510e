"""Refusals of a prompt that outliers are sought on, each made and put right as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.base.run import run
from spq_graph.passes.changes.patch import ZeroWeights
from spq_graph.terms.precision import Precision
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoders import VOCABULARY
from tests.support.following import Told
from tests.support.inserting import applied, plan_for
from tests.support.super_weights import COLUMN, DOWN, IDS, ROW, write_super_weight

follows = pytest.mark.follows


@follows("spq_graph/workbench/outlying.py:require_prompt")
def test_a_text_without_a_tokenizer(refusal: Told, made: Made) -> None:
    refusal.command("inspect", made.model, "--outliers")
    (ids,) = re.findall("--prompt '(.+)'", refusal.error.remedy)
    found = [
        done("inspect", made.model, "--outliers", "--json", *more).json["outliers"]
        for more in (("--prompt", ids), ("--tokenizer", made.words))
    ]
    assert [one["id"] for one in found[0]["tokens"]] == [int(one) for one in ids.split()]
    assert found[0]["prompt"] is None
    assert found[1]["prompt"].startswith("Apple")


@follows("spq_graph/workbench/outlying.py:_ids_of", "no tokens")
def test_a_prompt_of_nothing(refusal: Told, made: Made, tmp_path: Path) -> None:
    """Of a tokenizer that prepends nothing."""
    folder = tmp_path / "bare"
    folder.mkdir()
    said = json.loads((made.words / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    given = ["inspect", made.model, "--outliers", "--tokenizer", folder]
    refusal.command(*given, "--prompt", "")
    done(*given)
    done(*given, "--prompt", "w3")


@follows("spq_graph/workbench/outlying.py:_ids_of", "the vocabulary ends")
def test_tokens_beyond_the_vocabulary(refusal: Told, made: Made) -> None:
    refusal.command("inspect", made.model, "--outliers", "--prompt", f"1 {VOCABULARY}")
    (below,) = re.findall(r"below (\d+)", refusal.error.remedy)
    done("inspect", made.model, "--outliers", "--prompt", f"1 {int(below) - 1}")


@follows("passes/changes/patch.py:ZeroWeights.call")
def test_zeroing_what_is_quantized(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, ids = write_super_weight(tmp_path / "model.onnx"), np.array([IDS])
    plan = plan_for(path, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, Precision.W8A16)
    zeroing = ZeroWeights({DOWN: [(ROW, COLUMN)]})
    with refusal:
        run(canonical(applied(path, plan)), [zeroing])
    assert run(canonical(path), [zeroing])

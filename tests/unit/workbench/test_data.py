"""How much of a text a ladder is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from spq_graph.documents.recipe import Recipe
from spq_graph.workbench import data
from spq_graph.workbench.data import Data, read
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.steps import Steps
from tests.support.decoders import write_decoder, write_ids


def tokens(folder: Path, given: Data, remarks: list[str], *, ladder: bool = True) -> int | None:
    model = write_decoder(folder / "model.onnx", layers=1)
    with Opening(model, window=32).open(Steps(remark=remarks.append)) as bench:
        text = read(bench, given, Recipe(), ladder=ladder).text
    return text.tokens if text is not None else None


def test_the_model_says_how_much_where_nobody_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_ids(tmp_path / "text.npz", rows=8, length=32)
    remarks: list[str] = []
    assert tokens(tmp_path, Data(text=text), remarks) == 256
    assert remarks == []
    asked: list[int] = []
    monkeypatch.setattr(data, "tokens_to_evaluate", lambda weights: asked.append(weights) or 128)
    assert tokens(tmp_path, Data(text=text), remarks) == 128
    assert remarks[0].startswith("the ladder is measured on the first 128 tokens of text.npz, which suit a model of")
    with Opening(tmp_path / "model.onnx").open() as bench:
        assert asked == [sum(k * n for k, n in (site.shape for site in bench.found.sites))]
    assert tokens(tmp_path, Data(text=text, max_eval_tokens=224), remarks) == 224
    assert len(remarks) == 1


def test_no_text_is_read_for_no_ladder(tmp_path: Path) -> None:
    assert tokens(tmp_path, Data(text=tmp_path / "absent.npz"), [], ladder=False) is None

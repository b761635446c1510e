"""Every input takes what token ids determine, or is refused by its name with something to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from spq_graph.runtime.sessions.feeds import TokenInputs
from spq_graph.terms.errors import GraphError
from spq_graph.terms.segment import Spec
from tests.support.graphs import Builder

IDS = Spec("input_ids", "tensor(int64)", ["batch", "length"])
MASK = Spec("attention_mask", "tensor(int64)", ["batch", "length"])
PAIRS: list[int | str | None] = ["batch", 1, "length", "total"]


def taken(path: Path, *inputs: Spec) -> TokenInputs:
    return TokenInputs(path, inputs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file whose `mask` is added to scores, and whose `other` nothing tells of."""
    b, shape = Builder(), ["batch", 1, "q", "k"]
    out = b.op("Add", b.op("Add", "scores", "mask"), b.op("Log", "other"))
    kinds = dict.fromkeys(("scores", "mask", "other", "sliding_mask"), (TensorProto.FLOAT, shape))
    onnx.save(b.model(kinds, {out: (TensorProto.FLOAT, shape)}), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_what_is_fed(path: Path) -> None:
    inputs = taken(
        path,
        IDS,
        MASK,
        Spec("token_type_ids", "tensor(int32)", ["batch", "length"]),
        Spec("position_ids", "tensor(int64)", ["batch", "length"]),
        Spec("cache_position", "tensor(int64)", ["length"]),
        Spec("mrope_position_ids", "tensor(int64)", [3, "batch", "length"]),
        Spec("past_key_values.0.key", "tensor(float)", ["batch", 1, "past", 8]),
        Spec("num_logits_to_keep", "tensor(int64)", []),
        Spec("mask", "tensor(float)", PAIRS),
    )
    ids, mask = np.array([[7, 8]]), np.array([[0, 1, 1, 1]])
    found = inputs.of(ids, mask)
    assert [spec.name for spec in inputs.past] == ["past_key_values.0.key"]
    assert list(found) == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "position_ids",
        "cache_position",
        "mrope_position_ids",
        "num_logits_to_keep",
        "mask",
    ]
    np.testing.assert_array_equal(found["token_type_ids"], [[0, 0]])
    assert found["token_type_ids"].dtype == np.int32
    np.testing.assert_array_equal(found["position_ids"], [[1, 2]])
    np.testing.assert_array_equal(found["cache_position"], [2, 3])
    np.testing.assert_array_equal(found["mrope_position_ids"], [[[1, 2]]] * 3)
    low = np.finfo(np.float32).min
    np.testing.assert_array_equal(found["mask"], np.array([[[[low, 0, 0, low], [low, 0, 0, 0]]]], np.float32))


def test_ids_by_another_name(path: Path) -> None:
    types = Spec("token_type_ids", "tensor(int64)", ["batch", "length"])
    tokens = Spec("tokens", "tensor(int32)", ["batch", "length"])
    assert taken(path, types, MASK, tokens).ids_name == "tokens"


def spec(name: str, kind: str, *shape: Any) -> Spec:
    return Spec(name, f"tensor({kind})", list(shape))


@pytest.mark.parametrize(
    ("inputs", "what", "remedy"),
    [
        ([spec("inputs_embeds", "float", "b", "s", 32), MASK], "takes 'inputs_embeds'", "onnx.compose.merge_models"),
        ([spec("x", "float16", "b", "s", 32)], "takes 'x'", "onnx.compose.merge_models"),
        ([MASK], "no input 'input_ids' among ['attention_mask']", "whose input of token ids"),
        ([IDS, spec("w", "float", 32, 48)], "input 'w' (tensor(float)) is not", "from_array(values, 'w')"),
        ([IDS, spec("encoder_hidden_states", "float", "b", "e", 32)], "'encoder_hidden_states'", "the decoder alone"),
        ([IDS, spec("position_bias", "float", "b", 4, "s", "s")], "'position_bias'", "the decoder alone"),
        ([IDS, spec("use_cache_branch", "bool", 1)], "'use_cache_branch'", "the decoder alone"),
        ([IDS, spec("mask_of_rows", "int64", "b")], "'mask_of_rows'", "the decoder alone"),
        ([IDS, spec("attention_bias", "float", *PAIRS)], "the mask 'attention_bias'", "a mask over tokens"),
        ([IDS, spec("sliding_mask", "float", *PAIRS)], "the mask 'sliding_mask'", "a mask over tokens"),
    ],
)
def test_what_is_refused(path: Path, inputs: list[Spec], what: str, remedy: str) -> None:
    with pytest.raises(GraphError) as refused:
        taken(path, *inputs)
    assert what in refused.value.what
    assert remedy in refused.value.remedy
    assert "`spq-graph inspect` reads this file" in refused.value.remedy
    assert refused.value.where == str(path)

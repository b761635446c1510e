"""Which output holds logits is told by what feeds it, whatever its name and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.find.identify import identify
from spq_graph.passes.find.logits import find_logits
from spq_graph.terms.logits import Logits
from spq_graph.terms.site import Role
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import VOCABULARY, write_decoder
from tests.support.ends import EVERY, LAST, NONE, write_with_end
from tests.support.graphs import Glu


def told(path: Path) -> Logits:
    return find_logits(prepared(path).graph)


def heads(path: Path) -> list[str]:
    return [site.key for site in identify(prepared(path).graph).sites if site.role is Role.LM_HEAD]


@pytest.mark.parametrize("width", [32, VOCABULARY], ids=["narrow", "as_wide_as_the_vocabulary"])
class TestEnds:
    @pytest.mark.parametrize("end", [*EVERY, *LAST])
    def test_a_product_onto_the_vocabulary(self, tmp_path: Path, end: str, width: int) -> None:
        path = write_with_end(tmp_path / "model.onnx", end, width=width, layers=1)
        given = [v.name for v in onnx.load(path, load_external_data=False).graph.output]
        assert told(path) == Logits(given[-1], VOCABULARY)
        assert len(heads(path)) == (0 if end in ("in_parts", "wider") else 1)

    @pytest.mark.parametrize("end", NONE)
    def test_hidden_states_by_any_name(self, tmp_path: Path, end: str, width: int) -> None:
        path = write_with_end(tmp_path / "model.onnx", end, width=width, layers=1)
        found = told(path)
        assert (found.output, found.vocabulary) == (None, VOCABULARY)
        for value in onnx.load(path).graph.output:
            assert f"'{value.name}'" in found.words
        assert heads(path) == []


@pytest.mark.parametrize(
    "shape",
    [
        Decoder(vocab=16, glu=Glu(width=16)),  # as many channels as tokens
        Decoder(vocab=16, glu=Glu(width=16), tied=True, capped=True),
        Decoder(vocab=20, glu=Glu(width=32), experts=2),
        Decoder(vocab=40, glu=Glu(width=32), attention="GroupQueryAttention"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_in_other_forms(tmp_path: Path, shape: Decoder, dtype: type[np.generic]) -> None:
    onnx.save(decoder(shape, dtype=dtype), tmp_path / "model.onnx")
    assert told(tmp_path / "model.onnx") == Logits("logits", shape.vocab)


def test_an_embedding_of_more_rows_than_the_head_has_columns(tmp_path: Path) -> None:
    path = write_decoder(tmp_path / "model.onnx", layers=1)
    model = onnx.load(path)
    table = next(t for t in model.graph.initializer if t.name == "embed_tokens.weight")
    array = numpy_helper.to_array(table)
    table.CopyFrom(numpy_helper.from_array(np.concatenate([array, array[:16]]), table.name))
    onnx.save(model, path)
    assert told(path) == Logits("logits", VOCABULARY)


def test_a_quantized_head(tmp_path: Path) -> None:
    """A weight in integers behind DequantizeLinear is a product onto the vocabulary too."""
    path = write_decoder(tmp_path / "model.onnx", layers=1)
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.name == "lm_head.weight")
    codes = numpy_helper.to_array(weight).astype(np.int8)
    weight.CopyFrom(numpy_helper.from_array(codes, "codes"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    node = onnx.helper.make_node("DequantizeLinear", ["codes", "scale"], ["lm_head.weight"], name="dequantize")
    model.graph.node.insert(0, node)
    onnx.save(model, path)
    assert told(path) == Logits("logits", VOCABULARY)


def test_a_head_that_reads_embeddings_from_outside(tmp_path: Path) -> None:
    """Without an embedding a product is one onto the vocabulary where its output is named so, or widens."""
    for name, expected in (("logits", "logits"), ("scores", "scores"), ("last_hidden_state", None)):
        path = write_decoder(tmp_path / f"{name}.onnx", layers=1)
        model = onnx.load(path)
        first = next(node for node in model.graph.node if node.name == "embed_tokens")
        model.graph.node.remove(first)
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(first.output[0], onnx.TensorProto.FLOAT, ["batch", "length", 32])
        )
        next(node for node in model.graph.node if node.name == "lm_head").output[0] = name
        model.graph.output[0].name = name
        del model.graph.value_info[:]
        onnx.save(model, path)
        assert told(path).output == expected


def test_constants_alone_say_nothing(tmp_path: Path) -> None:
    path = write_decoder(tmp_path / "model.onnx", layers=1)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, VOCABULARY), np.float32), "zeros"))
    head = next(node for node in model.graph.node if node.name == "lm_head")
    parts = onnx.helper.make_node("Concat", ["zeros", "zeros"], ["logits"], name="parts", axis=1)
    model.graph.node.remove(head)
    model.graph.node.append(parts)
    del model.graph.value_info[:]
    onnx.save(model, path)
    assert told(path).output is None

"""Decoders whose outputs are other than logits of every token under that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.decoders import VOCABULARY, write_decoder

WIDTH = 32
FLOAT = TensorProto.FLOAT


class _End:
    """The nodes behind a decoder's last layer, whose output is `stream`, written anew."""

    def __init__(self, model: onnx.ModelProto, width: int) -> None:
        self.graph = model.graph
        head = next(node for node in self.graph.node if node.name == "lm_head")
        self.stream, self.weight, self.width = head.input[0], head.input[1], width
        self.generator = np.random.default_rng(5)
        self.graph.node.remove(head)
        del self.graph.output[:]
        del self.graph.value_info[:]

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"end.{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        out = name or f"{op_type}.{len(self.graph.node)}.end"
        self.graph.node.append(helper.make_node(op_type, list(inputs), [out], name=f"end.{out}", **attributes))
        return out

    def gives(self, name: str, shape: list[int | str], kind: int = FLOAT) -> None:
        self.graph.output.append(helper.make_tensor_value_info(name, kind, shape))

    def linear(self, value: str, columns: int, **named: str) -> str:
        array = self.generator.normal(0, 0.3, (self.width, columns)).astype(np.float32)
        return self.op("MatMul", value, self.constant(array), **named)

    def head(self, value: str, **named: str) -> str:
        return self.op("MatMul", value, self.weight, **named)

    def last(self, value: str, **named: str) -> str:
        ends = (np.array([-1]), np.array([2**31]), np.array([1]))
        return self.op("Slice", value, *map(self.constant, ends), **named)


Shape = list[int | str]


def _renamed(e: _End, tokens: Shape) -> None:
    e.gives(e.head(e.stream, name="output_0"), [*tokens, VOCABULARY])


def _behind_hidden(e: _End, tokens: Shape) -> None:
    e.gives(e.op("Identity", e.stream, name="hidden_states.0"), [*tokens, e.width])
    e.gives(e.head(e.stream, name="lm_logits"), [*tokens, VOCABULARY])


def _half(e: _End, tokens: Shape, kind: int = TensorProto.FLOAT16) -> None:
    e.gives(e.op("Cast", e.head(e.stream), to=kind, name="logits"), [*tokens, VOCABULARY], kind)


def _bfloat16(e: _End, tokens: Shape) -> None:
    _half(e, tokens, TensorProto.BFLOAT16)


def _flat(e: _End, tokens: Shape) -> None:
    rows = e.op("Reshape", e.head(e.stream), e.constant(np.array([-1, VOCABULARY])), name="logits")
    e.gives(rows, ["tokens", VOCABULARY])


def _biased_and_capped(e: _End, tokens: Shape) -> None:
    cap, zeros = e.constant(np.array(1e6, np.float32)), e.constant(np.zeros(VOCABULARY, np.float32))
    biased = e.op("Add", e.head(e.stream), zeros)
    e.gives(e.op("Mul", e.op("Tanh", e.op("Div", biased, cap)), cap, name="logits"), [*tokens, VOCABULARY])


def _in_parts(e: _End, tokens: Shape) -> None:
    whole = numpy_helper.to_array(next(t for t in e.graph.initializer if t.name == e.weight))
    parts = [e.op("MatMul", e.stream, e.constant(part.copy())) for part in np.split(whole, 2, axis=1)]
    e.gives(e.op("Concat", *parts, axis=-1, name="out"), [*tokens, VOCABULARY])


def _wider(e: _End, tokens: Shape) -> None:
    """Padded, as tools do for speed: what is beyond the vocabulary is never likely."""
    low = e.constant(np.full((1, 1, 16), -1e4, np.float32))
    shape = e.op("Concat", e.op("Shape", "input_ids"), e.constant(np.array([16])), axis=0)
    e.gives(e.op("Concat", e.head(e.stream), e.op("Expand", low, shape), axis=-1, name="logits"), [*tokens, 80])


def _last(e: _End, tokens: Shape) -> None:
    e.gives(e.head(e.last(e.stream), name="logits"), [tokens[0], 1, VOCABULARY])


def _last_undeclared(e: _End, tokens: Shape) -> None:
    e.gives(e.head(e.last(e.stream), name="logits"), [tokens[0], "given", VOCABULARY])


def _last_lying(e: _End, tokens: Shape) -> None:
    e.gives(e.head(e.last(e.stream), name="logits"), [*tokens, VOCABULARY])


def _last_without_axis(e: _End, tokens: Shape) -> None:
    row = e.op("Gather", e.stream, e.constant(np.array(-1)), axis=1)
    e.gives(e.head(row, name="logits"), [tokens[0], VOCABULARY])


def _last_behind(e: _End, tokens: Shape) -> None:
    e.gives(e.last(e.head(e.stream), name="next_token_logits"), [tokens[0], 1, VOCABULARY])


def _hidden(e: _End, tokens: Shape, name: str = "last_hidden_state") -> None:
    e.gives(e.op("Identity", e.stream, name=name), [*tokens, e.width])


def _hidden_as_logits(e: _End, tokens: Shape) -> None:
    _hidden(e, tokens, "logits")


def _pooled(e: _End, tokens: Shape) -> None:
    mean = e.op("ReduceMean", e.stream, e.constant(np.array([1])), keepdims=0, name="sentence_embedding")
    e.gives(mean, [tokens[0], e.width])


def _hidden_and_pooled(e: _End, tokens: Shape) -> None:
    _hidden(e, tokens, "token_embeddings")
    _pooled(e, tokens)


def _projected(e: _End, tokens: Shape) -> None:
    e.gives(e.linear(e.stream, e.width, name="last_hidden_state"), [*tokens, e.width])


def _labels(e: _End, tokens: Shape) -> None:
    e.gives(e.linear(e.stream, 3, name="logits"), [*tokens, 3])


_EVERY = (_renamed, _behind_hidden, _half, _bfloat16, _flat, _biased_and_capped, _in_parts, _wider)
_LAST = (_last, _last_undeclared, _last_without_axis, _last_lying, _last_behind)
_NONE = (_hidden, _hidden_as_logits, _hidden_and_pooled, _pooled, _projected, _labels)
_ENDS = {write.__name__[1:]: write for write in (*_EVERY, *_LAST, *_NONE)}
EVERY, LAST, NONE = (tuple(write.__name__[1:] for write in some) for some in (_EVERY, _LAST, _NONE))


def write_with_end(path: Path, end: str, *, width: int = WIDTH, **options: Any) -> Path:
    """Write a decoder as `write_decoder` does, with another end; those of EVERY and LAST say what that one does.

    Args:
        path: the .onnx file.
        end: one of EVERY, LAST or NONE.
        width: channels of its hidden states; 64 are as many as tokens.
        options: of `write_decoder`.
    """
    model = onnx.load(write_decoder(path, width=width, **options))
    _ENDS[end](_End(model, width), list(options.get("fixed", ("batch_size", "sequence_length"))))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path

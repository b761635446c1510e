"""What a graph's inputs take where token ids determine it, and a refusal by name where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.sessions.inputs import AttentionFacts, attention_facts, number_feed, positions
from spq_graph.runtime.sessions.masks import MaskForm, mask_forms, pair_mask
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.cache import is_past
from spq_graph.terms.errors import GraphError

Array = npt.NDArray[Any]
Feed = Callable[[Ids, Ids], Array]

TYPES: dict[str, type[np.generic]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}
_SEGMENTS = ("token_type", "segment_ids")
_OF_FEW_TOKENS = ("sliding", "local", "window")
_INSPECT = "`spq-graph inspect` reads this file as it is"


class TokenInputs:
    """The inputs of a decoder, and what each takes for a batch of token ids.

    Args:
        path: the .onnx file, from which is read what names and shapes leave open.
        inputs: each with `name`, `type` and `shape`.

    Attributes:
        ids_name: the input that takes the ids.
        past: the inputs that hold keys and values of earlier tokens.

    Raises:
        GraphError: the graph takes no token ids, or something that they do not determine.
    """

    def __init__(self, path: Path, inputs: Sequence[Any]) -> None:
        self._path = path
        self._known: AttentionFacts | None = None
        self.past = [spec for spec in inputs if is_past(spec.name) and len(spec.shape) not in (1, 2)]
        left = [spec for spec in inputs if spec not in self.past]
        self.ids_name = self._find_ids(left)
        pairs = [spec.name for spec in left if _is_pair_mask(spec)]
        forms = mask_forms(path, pairs) if pairs else {}
        self._feeds = {spec.name: self._feed(spec, forms.get(spec.name)) for spec in left}

    @property
    def facts(self) -> AttentionFacts:
        """What the attention operators say; read once, and only where names and shapes are not enough."""
        if self._known is None:
            self._known = attention_facts(self._path)
        return self._known

    def of(self, ids: Ids, mask: Ids) -> dict[str, Array]:
        """What all inputs take but for the cache: ids [batch, new], and a mask over them and all before them."""
        return {name: feed(ids, mask) for name, feed in self._feeds.items()}

    def _find_ids(self, inputs: Sequence[Any]) -> str:
        names: list[str] = [spec.name for spec in inputs]
        if "input_ids" in names:
            return "input_ids"
        apart = ("mask", "position", *_SEGMENTS)
        integers = [s.name for s in inputs if "int" in s.type and len(s.shape) == 2]
        candidates: list[str] = [name for name in integers if not any(word in name for word in apart)]
        if len(candidates) == 1:
            return candidates[0]
        embedded = [s.name for s in inputs if "embed" in s.name or ("float" in s.type and len(s.shape) == 3)]
        if embedded and not candidates:
            raise GraphError(
                f"the graph takes '{embedded[0]}', what an embedding makes of token ids, and no token ids",
                where=str(self._path),
                remedy="put the embedding in front of it, in one file (`onnx.compose.merge_models`), or export the "
                f"decoder with its embedding; {_INSPECT}",
            )
        raise GraphError(
            f"no input 'input_ids' among {names}",
            where=str(self._path),
            remedy=f"export a decoder whose input of token ids has that name; {_INSPECT}",
        )

    def _feed(self, spec: Any, form: MaskForm | None) -> Feed:
        """What makes an input's array of ids and mask.

        Raises:
            GraphError: nothing does.
        """
        name, shape, dtype = spec.name, spec.shape, TYPES.get(spec.type, np.float32)
        integer = "int" in spec.type
        if name == self.ids_name:
            return lambda ids, mask: ids.astype(dtype)
        if _is_pair_mask(spec):
            if form is None or any(word in name for word in _OF_FEW_TOKENS):
                raise self._unknown_mask(spec)
            return lambda ids, mask: pair_mask(mask, ids.shape[1], shape, dtype, form)
        if "position" in name and integer and (len(shape) < 3 or shape[0] == 3):
            axes = len(shape)  # of three, the first is time, height and width, which are one for text
            return lambda ids, mask: _repeated(positions(mask, ids.shape[1], axes), axes).astype(dtype)
        if any(word in name for word in _SEGMENTS) and integer and len(shape) in (0, 2):
            return lambda ids, mask: np.zeros(ids.shape, dtype)  # all tokens are of the first segment
        if "mask" in name and len(shape) in (0, 2):
            return lambda ids, mask: mask.astype(dtype)
        one = np.ones((1, 1), np.int64)
        if number_feed(name, one, shape, self.facts) is None:
            raise self._foreign(spec)

        def numbers(ids: Ids, mask: Ids) -> Array:
            found = number_feed(name, mask, shape, self.facts)
            assert found is not None, name
            return found.astype(dtype)

        return numbers

    def _unknown_mask(self, spec: Any) -> GraphError:
        sizes = " x ".join(map(str, spec.shape))
        left = "what reads it does not tell what it means"
        if any(word in spec.name for word in _OF_FEW_TOKENS):
            left = "the graph does not say how far back it looks"
        return GraphError(
            f"the mask '{spec.name}' ({spec.type}, {sizes}) is over pairs of tokens, and {left}",
            where=str(self._path),
            remedy="export the decoder with a mask over tokens, `attention_mask` [batch, length], from which it makes "
            f"its own; {_INSPECT}",
        )

    def _foreign(self, spec: Any) -> GraphError:
        what = f"input '{spec.name}' ({spec.type}) is not one that a decoder has: token ids do not determine it"
        if "float" in spec.type and spec.shape and all(isinstance(size, int) for size in spec.shape):
            what = f"{what}, and the file holds no values for it"
            values = f"`graph.initializer.append(onnx.numpy_helper.from_array(values, '{spec.name}'))`"
            remedy = f"if it is a weight, store its values in the file under its name: {values}; {_INSPECT}"
        else:
            remedy = (
                "export the decoder alone, with no inputs but input_ids, attention_mask, position_ids, "
                f"token_type_ids and its cache; {_INSPECT}"
            )
        return GraphError(what, where=str(self._path), remedy=remedy)


def _repeated(found: npt.NDArray[np.int64], axes: int) -> npt.NDArray[np.int64]:
    return np.stack([found] * 3) if axes == 3 else found


def _is_pair_mask(spec: Any) -> bool:
    """Whether an input is a mask over pairs of tokens, by its name and the number of its axes."""
    return len(spec.shape) in (3, 4) and any(word in spec.name for word in ("mask", "attention_bias", "attn_bias"))

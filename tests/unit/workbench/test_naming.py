"""What a graph without logits gives is held to be numbers, where nothing of it can be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.workbench.naming import require_finite
from spq_graph.workbench.streams import open_stream
from tests.support.decoders import random_ids
from tests.support.ends import write_with_end


@pytest.mark.parametrize("fixed", [None, (2, 16)], ids=["free", "fixed"])
def test_hidden_states_that_are_not_finite(tmp_path: Path, fixed: tuple[int, int] | None) -> None:
    """Of rows with padding behind them, which is not run where it need not be."""
    path = write_with_end(tmp_path / "model.onnx", "hidden", layers=1, **({"fixed": fixed} if fixed else {}))
    text = Sequences(random_ids(2, 16), np.array([[1] * 16, [1] * 10 + [0] * 6]))
    require_finite(open_stream(path), text, scored=False)
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("up_proj.weight"))
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), 3e38), weight.name))
    onnx.save(model, path)
    with pytest.raises(LogitsNotFiniteError) as caught:
        require_finite(open_stream(path), text, scored=False)
    assert caught.value.ids.shape == caught.value.mask.shape

"""Powers of two folded into constants: the model computes the same to the bit, and they are taken back exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.documents.changes import Scale
from spq_graph.passes.base.run import run
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.changes.scale import ScaleChannels
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.absorbers import find_absorbers
from spq_graph.passes.find.identify import identify
from spq_graph.terms.absorber import gathered, spread
from spq_graph.terms.errors import GraphError
from tests.support.decoder_graphs import AttentionForm, Decoder, decoder, token_feeds
from tests.support.graphs import Array, Glu
from tests.support.inserting import run as computed
from tests.support.prefixes import Cached


def opened(shape: Decoder, opset: int = 21) -> ir.Model:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(decoder(shape, opset=opset), data_prop=True))
    Canonicalize()(model)
    return model


def scales_for(model: ir.Model, seed: int = 0) -> list[Scale]:
    """Random factors wherever the graph takes some."""
    draw = np.random.default_rng(seed)
    found = identify(model)
    size = {site.input: site.shape[0] for site in found.sites}
    absorbers, _ = find_absorbers(model.graph, found.sites)
    return [
        Scale(
            value=a.value,
            tensor=a.tensor,
            axis=a.axis,
            exponents=tuple(spread(gathered(draw.integers(-8, 9, size[a.value]), a.heads), a.heads).tolist()),
            heads=a.heads,
            low=-1.0,
            high=1.0,
        )
        for a in absorbers
    ]


def scale_channels(model: ir.Model, scales: list[Scale]) -> bool:
    return run(model, [ScaleChannels(scales, identify(model).sites)])


def held(model: ir.Model) -> dict[str, bytes]:
    return {name: v.const_value.tobytes() for name, v in model.graph.initializers.items() if v.const_value is not None}


SHAPES = [
    Decoder(),
    Decoder(kv_heads=1, glu=Glu(form="transpose")),
    Decoder(heads=4, kv_heads=2, glu=Glu(form="transpose", width=16)),
    Decoder(heads=4, kv_heads=2, glu=Glu(width=16), qkv_bias=True),
    Decoder(attention="GroupQueryAttention", rope=False, heads=4, kv_heads=2, glu=Glu(width=32)),
    Decoder(attention="MultiHeadAttention", rope=False),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_same_to_the_bit(shape: Decoder) -> None:
    model = opened(shape)
    feeds = token_feeds()
    (before,) = computed(ir.to_proto(model), feeds)
    bytes_before = held(model)
    scales = scales_for(model)
    assert len(scales) == 4 * shape.layers + 1
    assert scale_channels(model, scales)
    assert held(model) != bytes_before
    (after,) = computed(ir.to_proto(model), feeds)
    assert after.tobytes() == before.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_gives_back_the_bytes_of_the_source(shape: Decoder) -> None:
    model = opened(shape)
    before, scales = held(model), scales_for(model)
    scale_channels(model, scales)
    scale_channels(model, [scale.inverse for scale in scales])
    assert held(model) == before


@pytest.mark.parametrize("attention", ["plain", "Attention"])
def test_with_a_cache_every_step_gives_the_same_to_the_bit(attention: AttentionForm) -> None:
    """What goes out of the cache has the factors of the value projection, and comes in again."""
    shape = Decoder(attention=attention, heads=4, kv_heads=2, cache=True, glu=Glu(width=32), rope=attention == "plain")
    model = opened(shape, opset=23)
    scales = scales_for(model)
    source = Cached(ir.to_proto(model))
    assert scale_channels(model, scales)
    treated = Cached(ir.to_proto(model))
    ids = np.random.default_rng(0).integers(0, 16, (2, 6))
    past: tuple[dict[str, Array] | None, ...] = (None, None)
    for part in (ids[:, :3], ids[:, 3:4], ids[:, 4:]):
        wanted, found = (one.step(part, before) for one, before in zip((source, treated), past, strict=True))
        assert found["logits"].tobytes() == wanted["logits"].tobytes()
        assert found["present.0.key"].tobytes() == wanted["present.0.key"].tobytes()
        exponents = next(np.asarray(s.exponents) for s in scales if s.heads is not None)
        once = exponents.reshape(2, 2, 8)[:, 0]  # heads of values, those of the query that share each, and its size
        np.testing.assert_array_equal(
            np.ldexp(found["present.0.value"], once[:, None]), wanted["present.0.value"], strict=True
        )
        past = source.after(wanted), treated.after(found)


def test_heads_that_share_values_share_their_factors() -> None:
    model = opened(Decoder(heads=4, kv_heads=2, glu=Glu(width=16)))
    scale = next(s for s in scales_for(model) if s.heads is not None)
    other = scale.model_copy(update={"exponents": (scale.exponents[0] + 1, *scale.exponents[1:])})
    with pytest.raises(GraphError, match="different factors for heads of the query"):
        scale_channels(model, [other])
    with pytest.raises(GraphError, match="does not take the factors"):
        scale_channels(model, [scale.model_copy(update={"heads": (4, 4)})])


def test_each_channel_is_scaled_where_it_is_made_and_where_it_is_read() -> None:
    model = opened(Decoder(layers=1))
    before = {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}
    scale = scales_for(model)[0]
    scale_channels(model, [scale])
    after = {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    factors = 2.0 ** np.asarray(scale.exponents)
    assert len(changed) == 4  # the norm's weight, and those of query, key and value
    for name in changed:
        wanted = before[name] / factors if name == scale.tensor else before[name] * factors[:, None]
        np.testing.assert_array_equal(after[name], wanted)


def test_the_graph_that_it_is_a_copy_of_stays_as_it_is() -> None:
    model = opened(Decoder(layers=1))
    before = held(model)
    scale_channels(model.clone(), scales_for(model))
    assert held(model) == before


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"tensor": "no_such_tensor"}, "does not take the factors"),
        ({"axis": 1}, "does not take the factors"),
        ({"value": "no_such_value"}, "no site reads it"),
        ({"exponents": (1, 2, 3)}, "factors for 3 channels"),
    ],
)
def test_what_the_graph_does_not_take_is_refused(update: dict[str, object], said: str) -> None:
    model = opened(Decoder(layers=1))
    scale = scales_for(model)[0].model_copy(update=update)
    with pytest.raises(GraphError, match=said):
        scale_channels(model, [scale])


@pytest.mark.parametrize("number", [1e-44, 3e38])
def test_numbers_that_would_be_rounded_are_refused(number: float, tmp_path: Path) -> None:
    model = opened(Decoder(layers=1))
    scale = scales_for(model)[0]
    value = model.graph.initializers[scale.tensor]
    assert value.const_value is not None
    array = np.array(value.const_value.numpy())
    array[:] = np.float32(number)
    value.const_value = ir.tensor(array, name=scale.tensor)
    toward = 1 if number < 1 else -1
    scale_channels(model, [scale.model_copy(update={"exponents": (toward * 3,) * array.size})])
    with pytest.raises(GraphError, match="too small or too large"):
        value.const_value.numpy()
    with pytest.raises(GraphError, match="too small or too large"):
        save_model(model, tmp_path / "model.onnx")

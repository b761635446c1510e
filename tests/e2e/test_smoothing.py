"""Smoothing from the command line: applied, proved, measured beside its control, verified and told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.documents.changes import Scale
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.changes.scale import ScaleChannels
from spq_graph.passes.find.absorbers import find_absorbers
from spq_graph.passes.find.identify import identify
from spq_graph.terms.absorber import Place, spread
from spq_graph.terms.targets import PROFILES
from tests.support.both_ways import applied_and_verified, document, ladder_kls, quantized_both_ways
from tests.support.command import done, spq
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import write_decoder
from tests.support.graphs import Glu
from tests.support.prefixes import Cached

WITH, WITHOUT = ("--remedy", "smooth", "--no-remedy", "peel"), ("--no-remedy", "smooth", "--no-remedy", "peel")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose GLUs give channels of very different sizes, quantized everywhere with smoothing and without."""
    folder = tmp_path_factory.mktemp("smoothing")
    model = uneven(write_decoder(folder / "model.onnx"))
    return quantized_both_ways(folder, model, WITH, WITHOUT)


def uneven(model: Path) -> Path:
    """The same model to the bit, with channels of up projections times powers of two."""
    proto, draw = onnx.load(model), np.random.default_rng(0)
    held = {t.name: t for t in proto.graph.initializer}
    for up in [name for name in held if name.endswith("up_proj.weight")]:
        array = onnx.numpy_helper.to_array(held[up])
        factors = np.exp2(draw.integers(-4, 5, array.shape[1])).astype(np.float32)
        down = up.replace("up_proj", "down_proj")
        rows = onnx.numpy_helper.to_array(held[down]) / factors[:, None]
        held[up].CopyFrom(onnx.numpy_helper.from_array(array * factors, up))
        held[down].CopyFrom(onnx.numpy_helper.from_array(rows, down))
    onnx.save(proto, model)
    return model


def test_it_wins_back_what_uneven_channels_cost_and_permuted_factors_do_not(world: Path) -> None:
    found, bare = ladder_kls(world / "with"), ladder_kls(world / "without")
    assert found["spike_aware"] < 0.2 * bare["spike_aware"]
    assert found["everywhere"] == pytest.approx(bare["everywhere"], rel=0.1)  # what its head became may differ
    assert found["control_factors"] > found["everywhere"]


def test_the_plan_says_what_was_applied_and_where_nothing_takes_factors(world: Path) -> None:
    plan = document(world / "with", "plan.json")
    treatments = plan["treatments"]
    assert isinstance(treatments, list)
    applied = [t for t in treatments if t["applied"]]
    assert [t["sites"] for t in applied] == [[f"layers.{n}.mlp.down_proj"] for n in range(3)]
    assert all(t["reason"] == "override" and t["narrower"] > 2 for t in applied)
    refused = [t for t in treatments if not t["applied"]]
    assert {t["reason"] for t in refused} == {"impossible"}
    assert any("o_proj" in t["sites"][0] for t in refused)
    assert all(t["note"] and not t["changes"] for t in refused)
    search = plan["search"]
    assert isinstance(search, dict)
    assert set(search["kl_smoothed"]) == {"glu 0.5", "glu 0.65"}  # less is not asked: more saves more
    assert document(world / "without", "plan.json")["treatments"] == []


def test_out_is_verified_and_what_was_exchanged_is_refused(world: Path, tmp_path: Path) -> None:
    done("verify", world / "with", world / "model.onnx")
    out = tmp_path / "out"
    done("apply", world / "model.onnx", world / "with" / "plan.json", "-o", out)
    plan = document(out, "plan.json")
    treatments = plan["treatments"]
    assert isinstance(treatments, list)
    treatments[0]["changes"][0]["exponents"][0] += 1
    (out / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    told = spq("verify", out, world / "model.onnx")
    assert told.code == 3
    assert "the graph was made with another plan" in told.err


def test_a_plan_with_both_remedies(world: Path, tmp_path: Path) -> None:
    model = uneven(write_decoder(tmp_path / "model.onnx", spikes={0: 300.0, 1: 100.0}))
    data = ("--calibration", world / "ids.npz", "--text", world / "text.npz", "--window", 32)
    both = ("--remedy", "smooth", "--remedy", "peel", "--recipe", world / "none.toml")
    done("quantize", model, "-o", tmp_path / "both", *data, *both)
    done("verify", tmp_path / "both", model)
    found = ladder_kls(tmp_path / "both")
    assert {t["remedy"] for t in document(tmp_path / "both", "plan.json")["treatments"]} == {"smooth", "peel"}  # type: ignore[attr-defined]
    assert found["spike_aware"] < found["everywhere"]
    assert {"everywhere_with_smooth", "spike_aware_without_smooth", "control_channels", "control_factors"} <= set(found)


@pytest.mark.parametrize("target", PROFILES)
def test_the_same_plan_on_every_target(world: Path, tmp_path: Path, target: str) -> None:
    applied_and_verified(world, tmp_path / "out", target)


def test_a_difference_is_told_in_words(world: Path) -> None:
    said = " ".join(done("diff", world / "without", world / "with").out.split())
    assert "smoothed" in said
    assert "none -> 2^" in said
    assert done("diff", world / "without", world / "with", "--json").json["factors"]


def test_by_hand_without_measuring(world: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    given = ("--spike-ratio", 1e6, "--remedy", "smooth")
    told = done("plan", world / "model.onnx", world / "with" / "ranges.json", "-o", plan, *given)
    assert "smoothed channels at 3 of" in told.out
    done("apply", world / "model.onnx", plan, "-o", tmp_path / "out")
    done("verify", tmp_path / "out", world / "model.onnx")


def uneven_values(path: Path) -> Path:
    """A decoder with grouped heads and a cache, whose value projections make channels of very different sizes."""
    shape = Decoder(heads=4, kv_heads=2, cache=True, qkv_bias=True, vocab=64, glu=Glu(width=32, inner=48))
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(decoder(shape, naming="dynamo"), data_prop=True))
    Canonicalize()(graph)
    sites, draw = identify(graph).sites, np.random.default_rng(0)
    found = [a for a in find_absorbers(graph.graph, sites)[0] if a.place is Place.VALUE]
    scales = [
        Scale(
            value=a.value,
            tensor=a.tensor,
            axis=a.axis,
            exponents=tuple(spread(draw.integers(-5, 6, 16), a.heads).tolist()),
            heads=a.heads,
            low=0.0,
            high=0.0,
        )
        for a in found
    ]
    assert len(scales) == 2
    ScaleChannels(scales, sites)(graph)
    onnx.save(ir.to_proto(graph), path)
    return path


def test_factors_of_values_go_through_attention_and_the_cache(tmp_path: Path) -> None:
    model = uneven_values(tmp_path / "model.onnx")
    quantized_both_ways(tmp_path, model, WITH, WITHOUT)
    treatments = document(tmp_path / "with", "plan.json")["treatments"]
    assert isinstance(treatments, list)
    changes = [c for t in treatments if t["applied"] and t["sites"][0].endswith("o_proj") for c in t["changes"]]
    assert [change["heads"] for change in changes] == [[4, 2]] * 2
    assert all(t["narrower"] > 2 for t in treatments if t["applied"] and t["sites"][0].endswith("o_proj"))
    found, bare = ladder_kls(tmp_path / "with"), ladder_kls(tmp_path / "without")
    assert found["spike_aware"] < 0.7 * bare["spike_aware"]
    assert found["control_factors"] > found["spike_aware"]
    done("verify", tmp_path / "with", model)
    # Token by token, what comes out of the cache as values has the factors, and comes in again.
    ids, out, past = np.random.default_rng(3).integers(0, 64, (2, 6)), Cached(tmp_path / "with" / "model.onnx"), None
    whole, steps = out.step(ids)["logits"], []
    for at in range(ids.shape[1]):
        given = out.step(ids[:, at : at + 1], past)
        past = out.after(given)
        steps.append(given["logits"])
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, rtol=0, atol=2e-3 * np.abs(whole).max())

"""Smoothing from the command line: applied, proved, measured beside its control, verified and told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.terms.targets import PROFILES
from tests.support.both_ways import applied_and_verified, document, ladder_kls, quantized_both_ways
from tests.support.command import done, spq
from tests.support.decoders import write_decoder

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
    assert set(search["kl_smoothed"]) == {"glu 0.3", "glu 0.5", "glu 0.65"}
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

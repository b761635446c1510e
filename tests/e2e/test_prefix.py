"""A prefix from the command line: searched, applied, measured beside its control, verified and told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.documents.plan import Plan
from spq_graph.terms.targets import PROFILES
from tests.support.both_ways import applied_and_verified, document, ladder_kls, quantized_both_ways
from tests.support.command import done, spq
from tests.support.decoders import write_decoder
from tests.support.prefixes import Cached

OTHERS = ("--no-remedy", "smooth", "--no-remedy", "peel")
WITH, WITHOUT = ("--remedy", "prefix", *OTHERS), ("--no-remedy", "prefix", *OTHERS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that spikes at whatever token is the first, quantized everywhere with a prefix and without."""
    folder = tmp_path_factory.mktemp("prefix")
    model = resting(write_decoder(folder / "model.onnx", spikes={0: 3000.0, 1: 1000.0}, positions=True, cache=True))
    return quantized_both_ways(folder, model, WITH, WITHOUT)


def resting(model: Path) -> Path:
    """The same model, but that its spikes come at the first position instead of at one token, and no other counts."""
    proto = onnx.load(model)
    held = {t.name: t for t in proto.graph.initializer}
    embedding, positions = (
        onnx.numpy_helper.to_array(held[name]).copy() for name in ("embed_tokens.weight", "positions.weight")
    )
    embedding[:, -1] = 0
    positions[:] = 0
    positions[0, -1] = 1
    for name, array in (("embed_tokens.weight", embedding), ("positions.weight", positions)):
        held[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, model)
    return model


def test_what_spikes_is_no_longer_among_what_is_quantized(world: Path) -> None:
    found, bare = ladder_kls(world / "with"), ladder_kls(world / "without")
    assert {"fp32_with_prefix", "control_prefix"} <= set(found)
    # The row is without it, also in its ranges; what its head became may differ.
    assert found["everywhere"] == pytest.approx(bare["everywhere"], rel=0.1)
    assert found["spike_aware"] < 0.5 * bare["spike_aware"]
    assert found["spike_aware"] == pytest.approx(found["fp32_with_prefix"], rel=0.2)  # what is left is another model
    assert found["control_prefix"] > found["spike_aware"]


def test_the_plan_says_what_was_tried_and_what_it_holds(world: Path) -> None:
    plan = document(world / "with", "plan.json")
    treatments, search = plan["treatments"], plan["search"]
    assert isinstance(treatments, list)
    assert isinstance(search, dict)
    (treatment,) = treatments
    assert (treatment["remedy"], treatment["applied"], treatment["reason"]) == ("prefix", True, "override")
    assert treatment["narrower"] > 5
    (change,) = treatment["changes"]
    name = " ".join(map(str, change["tokens"]))
    assert search["kl_prefixed"][name] == min(search["kl_prefixed"].values())
    loaded = Plan.load(world / "with" / "plan.json")
    assert loaded.prefix is not None
    shape = (1, 1, len(change["tokens"]), 32)
    assert {array.shape for array in loaded.prefix.arrays.read().values()} == {shape}
    assert not (world / "without" / "plan.safetensors").exists()


def test_out_computes_what_the_source_does_behind_the_prefix(world: Path) -> None:
    """Of a plan that keeps all: nothing is rounded, and token by token nothing is different."""
    plan = document(world / "with", "plan.json")
    for site in plan["sites"]:  # type: ignore[attr-defined]
        site["precision"] = "fp32"
    folder = world / "whole"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "plan.safetensors").write_bytes((world / "with" / "plan.safetensors").read_bytes())
    done("apply", world / "model.onnx", folder / "plan.json", "-o", folder / "out")
    tokens = plan["treatments"][0]["changes"][0]["tokens"]  # type: ignore[index]
    ids = np.random.default_rng(3).integers(3, 64, (2, 9))
    whole = np.concatenate([np.tile(tokens, (2, 1)), ids], axis=1)
    wanted = Cached(world / "model.onnx").step(whole)["logits"][:, len(tokens) :]
    out, past, found = Cached(folder / "out" / "model.onnx"), None, []
    np.testing.assert_allclose(out.step(ids)["logits"], wanted, rtol=0, atol=2e-4)
    for at in range(ids.shape[1]):
        given = out.step(ids[:, at : at + 1], past)
        past = out.after(given)
        found.append(given["logits"])
    np.testing.assert_allclose(np.concatenate(found, axis=1), wanted, rtol=0, atol=2e-4)


def test_out_is_verified_and_what_was_exchanged_is_refused(world: Path, tmp_path: Path) -> None:
    done("verify", world / "with", world / "model.onnx")
    out = tmp_path / "out"
    done("apply", world / "model.onnx", world / "with" / "plan.json", "-o", out)
    done("verify", out, world / "model.onnx")
    model = onnx.load(out / "model.onnx")
    held = next(t for t in model.graph.initializer if t.name == "spq_graph.prefix.past_key_values.1.key.front")
    array = onnx.numpy_helper.to_array(held).copy()
    array[0, 0, 0, 0] += 1
    held.CopyFrom(onnx.numpy_helper.from_array(array, held.name))
    onnx.save(model, out / "model.onnx")
    told = spq("verify", out, world / "model.onnx")
    assert told.code == 3
    assert "does not hold what the source does" in told.err


@pytest.mark.parametrize("target", PROFILES)
def test_the_same_plan_on_every_target(world: Path, tmp_path: Path, target: str) -> None:
    applied_and_verified(world, tmp_path / "out", target)


def test_a_difference_is_told_in_words(world: Path) -> None:
    tokens = document(world / "with", "plan.json")["treatments"][0]["changes"][0]["tokens"]  # type: ignore[index]
    told = done("diff", world / "without", world / "with")
    assert f"prefix none -> {' '.join(map(str, tokens))}" in " ".join(told.out.split())
    assert done("diff", world / "without", world / "with", "--json").json["prefix"] == {
        "tokens": {"a": [], "b": tokens}
    }
    assert done("diff", world / "with", world / "with", "--json").json["prefix"] == {}


def test_with_the_other_remedies_and_tokens_by_hand(world: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'max_kept = 0.0\nscales = "static"\n[remedies.prefix]\nuse = "always"\ntokens = [1]\n'
    )
    data = ("--calibration", world / "ids.npz", "--text", world / "text.npz", "--window", 32)
    both = ("--remedy", "smooth", "--remedy", "peel", "--recipe", tmp_path / "r.toml")
    done("quantize", world / "model.onnx", "-o", tmp_path / "out", *data, *both)
    done("verify", tmp_path / "out", world / "model.onnx")
    plan = document(tmp_path / "out", "plan.json")
    assert plan["treatments"][0]["changes"][0]["tokens"] == [1]  # type: ignore[index]
    assert plan["search"]["kl_prefixed"] is None  # type: ignore[index]
    found, bare = ladder_kls(tmp_path / "out"), ladder_kls(world / "without")
    assert {"everywhere_with_prefix", "spike_aware_without_prefix", "fp32_with_prefix"} <= set(found)
    assert found["everywhere"] == pytest.approx(bare["everywhere"], rel=0.1)
    assert found["spike_aware"] == pytest.approx(found["fp32_with_prefix"], rel=0.2)


def test_auto_refuses_what_does_not_help(world: Path, tmp_path: Path) -> None:
    even = write_decoder(tmp_path / "model.onnx", positions=True, cache=True)
    (tmp_path / "r.toml").write_text('max_kept = 0.0\nscales = "static"\n[remedies.prefix]\nuse = "auto"\n')
    data = ("--calibration", world / "ids.npz", "--window", 32, "--recipe", tmp_path / "r.toml", "--no-eval")
    done("quantize", even, "-o", tmp_path / "out", *data, *OTHERS)
    (treatment,) = document(tmp_path / "out", "plan.json")["treatments"]  # type: ignore[misc]
    assert (treatment["applied"], treatment["reason"], treatment["changes"]) == (False, "not_needed", [])
    search = document(tmp_path / "out", "plan.json")["search"]
    assert isinstance(search, dict)
    # Behind any token this model says something else, by more than the budget: none of them is tried.
    assert min(search["kl_behind_prefix"].values()) > 0.004
    assert set(search["kl_prefixed"]) == {"none"}
    plain = write_decoder(tmp_path / "plain.onnx", positions=True)
    done("quantize", plain, "-o", tmp_path / "plain", *data, *OTHERS)
    (treatment,) = document(tmp_path / "plain", "plan.json")["treatments"]  # type: ignore[misc]
    assert treatment["reason"] == "impossible"
    assert "no keys and values of earlier tokens" in treatment["note"]

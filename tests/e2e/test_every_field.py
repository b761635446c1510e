"""Every field of a recipe changes what is decided, written or measured, not only what the plan says was asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph import Data, Opening, Plan, Ranges, Recipe, calibrate, plan, quantize
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.save import save_model
from tests.conftest import write_tokenizer
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import write_decoder, write_ids
from tests.support.graphs import Glu
from tests.support.serving import TEMPLATE

SPIKES = {0: 300.0, 1: 100.0, 2: 30.0}
DOWN = "layers.1.mlp.down_proj"
FOUR = {"bits": 4, "max_kept": 0.5, "candidate_ratio": 1.5}


@dataclass(frozen=True, slots=True)
class Row:
    """A value off the default, and the recipe beside it in which that shows.

    Attributes:
        value: of the field.
        beside: other fields, the same with and without it.
        told: what is compared.
    """

    value: Any
    beside: dict[str, Any] = field(default_factory=dict)
    told: str = "decided"


ROWS: dict[str, Row] = {
    "target": Row("cuda"),
    "use": Row("decode", {"kl_budget": 1e-9, "bits": 4}),
    "reduce_range": Row(True, told="written"),
    "bits": Row(6),
    "high_precision": Row("fp16", {"spike_ratio": 5.0}),
    "spike_ratio": Row(1.5),
    "kl_budget": Row(1.0, FOUR),
    "kl_margin": Row(0.99, {**FOUR, "kl_budget": 0.3}),
    "max_kept": Row(0.05, {"bits": 4, "kl_budget": 1e-9}),
    "recovery": Row(0.05, {**FOUR, "kl_budget": 1e-9}),
    "candidate_ratio": Row(1.0, {"bits": 4}),
    "sensitivity_tokens": Row(64, FOUR),
    "activations": Row("symmetric", told="written"),
    "scales": Row("by_token", {"spike_ratio": 1e6}),
    "weights": Row("per_tensor", told="written"),
    "fp8_activations": Row("exact", {"keep": (DOWN,), "high_precision": "w8fp8a16"}, told="written"),
    "quantize_lm_head": Row(True),
    "head": Row("8bit"),
    "embedding": Row("8bit"),
    "keep": Row((DOWN,), {"spike_ratio": 1e6}),
    "ignore": Row((DOWN,), {"spike_ratio": 1e6}),
    "overrides": Row(({"pattern": DOWN, "precision": "fp16"},), {"spike_ratio": 1e6}),
    "remedies": Row({"peel": {"use": "always"}}, {"spike_ratio": 5.0}, told="written"),
    "min_expert_tokens": Row(100_000, {"spike_ratio": 1e6}, told="experts"),
    "calibration_tokens": Row(256, told="whole"),
    "sample_chat": Row(False, told="conversing"),
    "seed": Row(7, told="sampled"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    model = write_decoder(folder / "model.onnx", spikes=SPIKES)
    ids = write_ids(folder / "ids.npz")
    (folder / "chatty").mkdir()
    write_decoder(folder / "chatty" / "model.onnx", layers=1, cache=True, positions=True)
    write_tokenizer(folder / "chatty")
    (folder / "chatty" / "chat_template.jinja").write_text(TEMPLATE)
    write_ids(folder / "text.npz", seed=1)
    calibrate(Opening(model, window=32), folder / "r.json", calibration=ids)
    experts = decoder(Decoder(layers=1, experts=3, routed=True, glu=Glu()), naming="dynamo")
    onnx.save(experts, folder / "experts.onnx")
    np.savez(folder / "few.npz", input_ids=np.random.default_rng(0).integers(0, 16, (40, 16)))
    calibrate(Opening(folder / "experts.onnx", window=16), folder / "e.json", calibration=folder / "few.npz")
    return folder


def _sites(made: Plan) -> str:
    """All of a plan but what was asked for."""
    data = made.to_dict()
    return json.dumps({key: data[key] for key in ("sites", "search", "budget_met", "unmatched")}, sort_keys=True)


def decided(folder: Path, recipe: Recipe) -> str:
    """What is decided by measured KL."""
    opening = Opening(folder / "model.onnx", window=32)
    return _sites(plan(opening, folder / "p.json", recipe, ranges=folder / "r.json", calibration=folder / "ids.npz"))


def written(folder: Path, recipe: Recipe) -> str:
    """The graph that a plan is made into, but for the digest of the plan that it names."""
    made = plan(
        Opening(folder / "model.onnx", window=32), folder / "p.json", recipe, ranges=Ranges.load(folder / "r.json")
    )
    graph = apply_plan(folder / "model.onnx", made)
    graph.metadata_props.clear()
    save_model(graph, folder / "made.onnx")
    files = sorted(folder.glob("made.onnx*"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def experts(folder: Path, recipe: Recipe) -> str:
    """What is decided of experts that saw few tokens."""
    opening = Opening(folder / "experts.onnx", window=16, allow_no_glu=True)
    return _sites(plan(opening, folder / "p.json", recipe, ranges=folder / "e.json"))


def whole(folder: Path, recipe: Recipe) -> str:
    """The ladder and the ranges of a whole run on data that was given."""
    return _run(folder, recipe, folder / "ids.npz")


def sampled(folder: Path, recipe: Recipe) -> str:
    """The same, of a run that samples its data and keeps random controls."""
    return _run(folder, recipe.model_copy(update={"spike_ratio": 1.5}), None)


def conversing(folder: Path, recipe: Recipe) -> str:
    """The same, of a model with a chat template."""
    return _run(folder, recipe, None, folder / "chatty" / "model.onnx")


def _run(folder: Path, recipe: Recipe, calibration: Path | None, model: Path | None = None) -> str:
    opening, data = Opening(model or folder / "model.onnx", window=32), Data(calibration, text=folder / "text.npz")
    made = quantize(opening, folder / "out", recipe, data=data, force=True)
    rungs = [rung.model_dump(mode="json") for rung in made.report.ladder]
    return json.dumps([rungs, made.plan.calibration.model_dump(mode="json")], sort_keys=True)


TOLD: dict[str, Callable[[Path, Recipe], str]] = {
    f.__name__: f for f in (decided, written, experts, whole, sampled, conversing)
}


def test_every_field_has_a_row() -> None:
    assert ROWS.keys() == Recipe.model_fields.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_field_changes_more_than_what_was_asked_for(name: str, world: Path) -> None:
    row = ROWS[name]
    told = TOLD[row.told]
    usual, other = Recipe.model_validate(row.beside), Recipe.model_validate({**row.beside, name: row.value})
    assert usual != other
    assert told(world, usual) != told(world, other), f"{name} = {row.value!r} changes nothing"


@pytest.mark.parametrize("told", TOLD)
def test_what_is_compared_is_the_same_for_the_same_recipe(told: str, world: Path) -> None:
    assert TOLD[told](world, Recipe()) == TOLD[told](world, Recipe())


def test_the_bits_of_a_recipe_are_those_of_the_artifact(tmp_path: Path) -> None:
    """From Python as from the command line, in the one place that there is for them; the Olive pass of docs does so."""
    model, ids = write_decoder(tmp_path / "model.onnx", layers=1), write_ids(tmp_path / "ids.npz")
    opening, data = Opening(model, window=32), Data(calibration=ids)
    for bits, precision in ((8, "int8"), (6, "int6_in_8"), (4, "int4_in_8")):
        made = quantize(
            opening, tmp_path / "out", Recipe(bits=bits, spike_ratio=1e6), data=data, ladder=False, force=True
        )
        assert {
            site.precision.value for site in made.plan.sites if site.role.value not in ("lm_head", "embedding")
        } == {precision}
        assert Plan.load(tmp_path / "out" / "plan.json").recipe.bits == bits
    beside = quantize(opening, tmp_path / "out", Recipe(bits=6), data=data, ladder_bits=(8, 5), force=True)
    assert beside.plan.recipe.bits == 6

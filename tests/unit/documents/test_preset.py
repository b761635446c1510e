"""Recipes by name: each is a recipe that says what it is for, and lies below a file and below options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from spq_graph.cli.app import app
from spq_graph.documents.preset import preset, presets
from spq_graph.documents.recipe import Recipe, json_schema, load_recipe
from spq_graph.terms.errors import UsageError
from spq_graph.terms.naming import matches
from spq_graph.terms.targets import PROFILES

NAMES = sorted(presets())


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_file_for_a_recipe_that_says_what_it_is_for(name: str, tmp_path: Path) -> None:
    one = preset(name)
    (tmp_path / "recipe.toml").write_text(one.text)
    assert load_recipe(tmp_path / "recipe.toml") == load_recipe(preset=name)
    assert one.text.startswith(f"# {one.about}\n")
    assert 20 < len(one.about) < 100
    assert one.fields.keys() <= Recipe.model_fields.keys()


def test_no_two_are_the_same_and_the_first_choice_is_the_default() -> None:
    made = [load_recipe(preset=name) for name in NAMES]
    assert all(made.count(one) == 1 for one in made)
    assert load_recipe(preset="w8a8-spike") == Recipe()


@pytest.mark.parametrize("key", ["model.layers.0.mlp.down_proj", "layers.0.mlp.up_proj", "/model/layers.1/attn/MatMul"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_overridden_is_every_layer_of_any_exporter_and_nothing_else(name: str, key: str) -> None:
    for rule in preset(name).fields.get("overrides", ()):
        assert matches(rule["pattern"], key)
        assert not matches(rule["pattern"], "lm_head")
        assert not matches(rule["pattern"], "model.embed_tokens")


def test_options_lie_over_a_file_and_a_file_over_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("max_kept = 0.5\nseed = 3\n")
    recipe = load_recipe(path, preset="w8a8-strict", seed=4)
    assert (recipe.kl_budget, recipe.max_kept, recipe.seed) == (0.002, 0.5, 4)
    assert load_recipe(preset="w8a8-fp8", high_precision="fp16").high_precision == "fp16"


def test_formats_are_those_of_the_target_or_refused_by_name() -> None:
    (rule,) = load_recipe(preset="weight-only-8", target="openvino").overrides
    assert rule.precision == PROFILES["openvino"].weight_only[1].value == "w8a16"
    with pytest.raises(UsageError, match=r"target 'tensorrt' cannot run w8a8_block") as refused:
        load_recipe(preset="weight-only-8", target="tensorrt")
    assert refused.value.where == "--preset weight-only-8"
    with pytest.raises(UsageError, match=r"target: .*found 'tpu'"):
        load_recipe(preset="fp8", target="tpu")


def test_the_schema_has_every_key_with_its_values() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert schema["additionalProperties"] is False
    assert "weight-only-8" not in json.dumps(schema)
    assert schema["properties"]["target"]["enum"] == list(PROFILES)


def test_help_shows_the_defaults_of_the_recipe() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    shown = {
        (verb, option.name): re.split(r"\W", str(option.show_default))[0]
        for verb in ("quantize", "plan", "calibrate")
        for option in group.commands[verb].params
        if option.name in Recipe.model_fields and isinstance(getattr(option, "show_default", None), str)
    }
    assert {name for _, name in shown} >= {"bits", "target", "high_precision", "calibration_tokens", "seed"}
    plain = Recipe()
    assert shown == {(verb, name): str(getattr(plain, str(name))) for verb, name in shown}


def test_every_option_of_the_long_verbs_stands_in_a_group() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for verb in ("quantize", "plan", "calibrate"):
        loose = [one for one in group.commands[verb].params if getattr(one, "rich_help_panel", "") is None]
        assert len(loose) <= 9, verb

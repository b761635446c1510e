"""What is accepted, and that anything else is refused by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from spq_graph.documents.recipe import Recipe, load_recipe
from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision, today


def test_defaults_are_what_the_contract_says() -> None:
    recipe = load_recipe(None)
    assert (recipe.bits, recipe.kl_budget, recipe.max_kept, recipe.recovery) == (8, 0.005, 0.15, 0.98)
    assert (recipe.target, recipe.high_precision, recipe.candidate_ratio) == ("cpu", "auto", 3.0)
    assert recipe.calibration_tokens == 65_536


def test_a_file_and_options_over_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'bits = 6\nkeep = ["*.0.*"]\nkl_budget = 0.01\n[[overrides]]\npattern = "lm_head"\nprecision = "w8a16"\n'
    )
    recipe = load_recipe(path, bits=5, seed=None, keep=None)
    assert (recipe.bits, recipe.keep, recipe.kl_budget, recipe.seed) == (5, ("*.0.*",), 0.01, 0)
    assert [(o.pattern, o.precision) for o in recipe.overrides] == [("lm_head", "w8a16")]
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bitz": 8}, r"unknown key 'bitz'; known keys: activations, bits"),
        ({"bits": 3}, r"bits: .*greater than or equal to 4 \(found 3\)"),
        ({"bits": 9}, r"bits: .*less than or equal to 8 \(found 9\)"),
        ({"target": "tpu"}, r"target: .*'cpu', .*'openvino' or 'portable' \(found 'tpu'\)"),
        ({"high_precision": "fp12"}, r"high_precision: .*found 'fp12'"),
        ({"spike_ratio": 1.0}, r"spike_ratio: .*greater than 1"),
        ({"kl_budget": 0}, r"kl_budget: .*greater than 0"),
        ({"max_kept": 1.5}, r"max_kept"),
        ({"seed": -1}, r"seed"),
        ({"calibration_tokens": 0}, r"calibration_tokens"),
        ({"activations": "log"}, r"activations"),
        ({"overrides": [{"pattern": "x", "precision": "int3"}]}, r"overrides\.0\.precision"),
        ({"overrides": [{"glob": "x", "precision": "int8"}]}, r"unknown key 'overrides\.0\.glob'"),
        ({"target": "portable", "high_precision": "w8a16"}, r"MatMulNBits.*use one of fp32"),
        ({"target": "portable", "overrides": [{"pattern": "x", "precision": "w8a16"}]}, r"MatMulNBits"),
        ({"high_precision": "int8"}, r"high_precision: Input should be 'auto', 'fp8', .*found 'int8'"),
        ({"high_precision": 8}, r"high_precision: .*found 8"),
        ({"overrides": [{"pattern": "x", "precision": "fp8"}]}, r"overrides\.0\.precision"),
        ({"fp8_activations": "slow"}, r"fp8_activations: .*'fast' or 'exact'"),
        ({"spike_ratio": float("nan")}, r"spike_ratio"),
        ({"kl_budget": float("inf")}, r"kl_budget"),
        ({"seed": 2**70}, r"seed: .*less than or equal to 9007199254740992"),
        ({"calibration_tokens": 10**30}, r"calibration_tokens: .*less than or equal"),
    ],
)
def test_what_is_not_valid_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(None, **given)
    assert caught.value.exit_code == 2


def test_every_problem_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('bits = 2\ntarget = "tpu"\nspikes = true\n')
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    for part in ("bits", "target", "unknown key 'spikes'", str(path)):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"bits = ", b"bits = 8\nbits = 6\n", b"\xff\xfe", None])
def test_unreadable_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="the recipe cannot be read") as caught:
        load_recipe(path)
    assert caught.value.where == str(path)


def test_names_of_the_first_edition(tmp_path: Path) -> None:
    """int4 to int7 were grids in an 8-bit container; w8a16 keeps its meaning by name."""
    path = tmp_path / "recipe.toml"
    path.write_text('overrides = [{pattern = "a", precision = "int6"}, {pattern = "b", precision = "w8a16"}]\n')
    recipe = load_recipe(path)
    assert [o.precision for o in recipe.overrides] == ["int6_in_8", "w8a16"]
    assert [Precision(f"int{bits}") for bits in range(4, 9)] == [Precision.integer(bits) for bits in range(4, 9)]
    assert [today(name) for name in ("int4", "int8", "w8a16", "high")] == ["int4_in_8", "int8", "w8a16", "high"]
    with pytest.raises(ValueError, match="int3"):
        Precision("int3")


def test_every_word_is_in_the_schema() -> None:
    schema = Recipe.model_json_schema()
    high = {p.value for p in Precision if p.bits is None}
    assert set(schema["properties"]["high_precision"]["enum"]) == {"auto", "fp8", *high}
    assert schema["$defs"]["Override"]["properties"]["precision"]["enum"] == [*Precision, "high"]


@pytest.mark.parametrize("bits", range(4, 9))
def test_integer_precisions(bits: int) -> None:
    assert Precision.integer(bits).bits == bits
    assert Precision.FP16.bits is Precision.W8A16.bits is Precision.W8A8_BLOCK.bits is None


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "w8fp8a16"])
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_fp8_is_asked_for_by_format_and_runs_anywhere(name: str, target: str) -> None:
    recipe = load_recipe(None, target=target, high_precision=name, overrides=[{"pattern": "x", "precision": name}])
    assert recipe.high_precision == recipe.overrides[0].precision == Precision(name)
    assert recipe.fp8_activations == "fast"
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_fp8_by_measured_error_is_for_kept_sites() -> None:
    assert load_recipe(None, high_precision="fp8").high_precision == "fp8"
    assert "fp8" not in list(Precision)


def test_what_the_precisions_of_the_fp8_operator_need() -> None:
    assert {p for p in Precision if p.is_fp8} == {Precision.FP8_E4M3, Precision.FP8_E5M2, Precision.W8FP8A16}
    integers = {p for p in Precision if p.bits is not None}
    assert {p for p in Precision if p.needs_range} == integers | {Precision.FP8_E4M3, Precision.FP8_E5M2}


def test_what_is_found_is_told_in_short(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f"keep = [[{', '.join(['1'] * 1000)}]]")
    with pytest.raises(UsageError) as caught:
        load_recipe(tmp_path / "r.toml")
    assert len(caught.value.what) < 200


@pytest.mark.parametrize("nested", [True, False])
def test_what_toml_cannot_read_is_told(tmp_path: Path, nested: bool) -> None:
    depth = sys.getrecursionlimit()  # which other libraries raise
    (tmp_path / "r.toml").write_text("keep = " + "[" * depth + "]" * depth if nested else "seed = " + "9" * 5000)
    with pytest.raises(UsageError, match="the recipe cannot be read") as caught:
        load_recipe(tmp_path / "r.toml")
    assert caught.value.remedy

"""A Hugging Face folder all the way, and what README promises."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.cli.app import app
from spq_graph.documents.plan import Plan
from tests.conftest import ROOT, WORDS
from tests.support.command import Result, contents, done

README = (ROOT / "README.md").read_text(encoding="utf-8")


def words(count: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS[3:], count))


@pytest.fixture(scope="module")
def quantized(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """OUT of the tiny folder, from text and with a ladder."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "calibration.txt").write_text(words(1500, 0))
    (folder / "text.txt").write_text(words(400, 1))
    before = contents(tiny_llama, folder)
    out = tmp_path_factory.mktemp("quantized") / "out"
    arguments = ["quantize", tiny_llama, "-o", out, "--calibration", folder / "calibration.txt"]
    result = done(*arguments, "--text", folder / "text.txt", "--json")
    assert contents(tiny_llama, folder) == before
    return out, result


def test_a_folder(quantized: tuple[Path, Result], tiny_llama: Path) -> None:
    out, result = quantized
    plan = Plan.load(out / "plan.json")
    assert {f"model.layers.{n}.mlp.down_proj" for n in (0, 1)} <= {site.key for site in plan.sites}
    assert len(plan.counted) == 14
    report = result.json["report"]
    rows = {row["name"]: row["perplexity"] for row in report["ladder"]}
    assert rows["spike_aware"] == pytest.approx(rows["fp32"], rel=0.05)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tiny_llama / name).read_bytes()
    for content in ((out / name).read_bytes() for name in ("model.onnx", "plan.json", "ranges.json")):
        assert str(tiny_llama).encode() not in content


def commands() -> list[list[str]]:
    """Every spq-graph command of the README, without its comment."""
    lines = re.findall(r"^spq-graph .*$", README, flags=re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_commands_parse(arguments: list[str]) -> None:
    import typer

    group = typer.main.get_command(app)
    verb = group.commands[arguments[0]]  # type: ignore[attr-defined]
    verb.make_context(arguments[0], list(arguments[1:]))


def test_it_is_short_and_begins_with_a_command() -> None:
    lines = README.splitlines()
    assert len(lines) < 200
    assert any(line.startswith("spq-graph quantize") for line in lines[:12])


def test_what_it_links_to_is_there() -> None:
    linked = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert len(linked) > 20
    assert not [link for link in linked if not (ROOT / link).is_file()]


def test_the_makefile_has_what_is_promised() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target

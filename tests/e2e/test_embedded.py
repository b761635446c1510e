"""The embedded reference model: natural spikes, and what keeping them is worth, with nothing but the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from spq_graph.models.source import REFERENCE, embedded_text
from tests.support.command import done

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(exports: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """On a quarter of the tokens that are sampled by default, and of the text a part."""
    out, few = tmp_path_factory.mktemp("reference") / "out", ["--calibration-tokens", 16384, "--max-eval-tokens", 4000]
    found: dict[str, Any] = done("quantize", "reference", "-o", out, *few, "--no-bench", "--json").json
    return found


def perplexity(made: dict[str, Any], name: str, bits: int | None) -> float:
    return min(float(r["perplexity"]) for r in made["report"]["ladder"] if (r["name"], r["bits"]) == (name, bits))


def test_files() -> None:
    assert (REFERENCE / "model.safetensors").stat().st_size <= 8_000_000
    text = (REFERENCE / "evaluation.txt").read_bytes()
    assert embedded_text("reference") == embedded_text(str(REFERENCE)) == REFERENCE / "evaluation.txt"
    assert embedded_text(str(REFERENCE.parent)) is None
    assert len(text) >= 30_000
    assert text.isascii()
    assert {f.name for f in Path(REFERENCE).iterdir()} >= {"README.md", "config.json", "tokenizer.json", "train.py"}


def test_the_spike_is_natural_and_on_bos(made: dict[str, Any]) -> None:
    sites = {s["key"]: s for s in made["plan"]["sites"]}
    evidence = max((s["evidence"] for s in sites.values() if s["role"] == "glu_down"), key=lambda e: e["ratio"])
    assert evidence["ratio"] > 50
    assert (evidence["position"], evidence["token_text"]) == (0, "<s>")
    assert len(sites) == 58  # 7 in each of 8 layers, lm_head and the embedding


@pytest.mark.parametrize("bits", [8, 6])
def test_every_planned_site_is_an_integer_kernel_and_few_are_kept(made: dict[str, Any], bits: int) -> None:
    row = next(r for r in made["report"]["ladder"] if (r["name"], r["bits"]) == ("spike_aware", bits))
    assert len(row["kept"]) <= 0.15 * 56
    assert row["executed"]["MatMulIntegerToFloat"] == 56 - len(row["kept"])


def test_eight_bits_cost_next_to_nothing(made: dict[str, Any]) -> None:
    assert perplexity(made, "spike_aware", 8) <= 1.005 * perplexity(made, "fp32", None)


def test_at_six_bits_the_loss_is_won_back_and_controls_win_nothing(made: dict[str, Any]) -> None:
    fp32, everywhere = perplexity(made, "fp32", None), perplexity(made, "everywhere", 6)
    assert everywhere > 1.03 * fp32
    assert everywhere - perplexity(made, "spike_aware", 6) >= 0.97 * (everywhere - fp32)
    # Beside smoothing and outlier branches, which all of them have, keeping other sites wins nothing; nor, beside kept
    # sites, do branches of other channels.
    branched = perplexity(made, "everywhere_with_all_remedies", 6)
    for control in ("control_lowest", "control_random"):
        assert branched - perplexity(made, control, 6) <= 0.3 * (branched - fp32)
    kept = perplexity(made, "spike_aware_without_peel", 6)
    assert kept - perplexity(made, "control_channels", 6) <= 0.3 * (kept - fp32)

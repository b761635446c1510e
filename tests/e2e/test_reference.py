"""A trained model with planted BOS spikes of a known size: the known sites are kept, and nothing else would help."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from spq_graph.models.plant import plant_bos_spikes
from tests.support.command import done

pytestmark = pytest.mark.slow
LAYERS = (1, 3)
PLANTED = {f"model.layers.{layer}.mlp.down_proj" for layer in LAYERS}
# What quantizing everywhere costs at least, by the ratio that was planted.
COST = {150: 1.2, 1000: 4.0}


@dataclass(frozen=True)
class Ladder:
    """What `quantize` says of one planted model."""

    ratio: int
    plan: dict[str, Any]
    rows: list[dict[str, Any]]

    def perplexity(self, name: str) -> float:
        """Perplexity of the best row of that name, as a multiple of FP32's."""
        values = {row["name"]: row["perplexity"] for row in sorted(self.rows, key=lambda row: -row["perplexity"])}
        return float(values[name] / values["fp32"])


@pytest.fixture(scope="module", params=sorted(COST))
def ladder(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    folder = tmp_path_factory.mktemp("planted")
    plant_bos_spikes(shared_data / "stories260K", folder / "model", layers=LAYERS, ratio=request.param)
    stories = json.loads((shared_data / "tinystories" / "stories.json").read_text(encoding="utf-8"))
    assert len(set(stories[:120])) == 120
    # Disjoint: what is evaluated was never calibrated on.
    for name, part in (("calibration", stories[:60]), ("text", stories[60:120])):
        (folder / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    made = done(
        "quantize",
        folder / "model",
        "-o",
        folder / "out",
        "--calibration",
        folder / "calibration.json",
        "--text",
        folder / "text.json",
        "--window",
        256,
        "--max-eval-tokens",
        3000,
        "--json",
    ).json
    return Ladder(request.param, made["plan"], made["report"]["ladder"])


def test_both_planted_sites_are_kept(ladder: Ladder) -> None:
    sites = {site["key"]: site for site in ladder.plan["sites"]}
    assert {key for key, site in sites.items() if site["reason"] == "spike"} >= PLANTED
    assert ladder.plan["budget_met"]
    for key in PLANTED:
        evidence = sites[key]["evidence"]
        assert evidence["ratio"] == pytest.approx(ladder.ratio, rel=0.25)
        assert evidence["position"] == 0
        assert evidence["token_text"] == "<s>"
    assert {key for key, site in sites.items() if site["evidence"].get("rank") in (0, 1)} == PLANTED


def test_everywhere_breaks_and_spike_aware_does_not(ladder: Ladder) -> None:
    assert ladder.perplexity("everywhere") >= COST[ladder.ratio]
    assert ladder.perplexity("spike_aware") <= 1.02
    rows = {row["name"]: row for row in ladder.rows}
    assert rows["spike_aware"]["kl"] < 0.1 * rows["everywhere"]["kl"]
    assert rows["spike_aware"]["top1"] > rows["everywhere"]["top1"]


def test_keeping_other_sites_does_not_help(ladder: Ladder) -> None:
    """Of all that quantizing everywhere loses, the best control wins back next to nothing."""
    lost = ladder.perplexity("everywhere") - 1
    for control in ("control_lowest", "control_random"):
        assert ladder.perplexity(control) - 1 >= 0.8 * lost, control

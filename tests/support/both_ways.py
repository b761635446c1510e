"""One model quantized with a remedy and without it, from the command line, and what came of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.support.command import done
from tests.support.decoders import write_ids


def quantized_both_ways(folder: Path, model: Path, asking: Sequence[str], leaving: Sequence[str]) -> Path:
    """OUT `with` a remedy and `without` it below a folder, which is returned: static scales, nothing kept.

    Args:
        folder: where to.
        model: what is quantized.
        asking, leaving: the options by which the remedy comes, and by which it does not.
    """
    calibration, text = write_ids(folder / "ids.npz"), write_ids(folder / "text.npz", seed=1)
    (folder / "none.toml").write_text("max_kept = 0.0\nscales = 'static'\n")
    common = ("--calibration", calibration, "--text", text, "--window", 32, "--recipe", folder / "none.toml")
    done("quantize", model, "-o", folder / "with", *common, *asking)
    done("quantize", model, "-o", folder / "without", *common, *leaving)
    return folder


def applied_and_verified(folder: Path, out: Path, target: str) -> None:
    """The plan with the remedy, of `quantized_both_ways`, is applied for a target, and what came of it verified."""
    done("apply", folder / "model.onnx", folder / "with" / "plan.json", "-o", out, "--target", target)
    done("verify", out, folder / "model.onnx")


def document(folder: Path, name: str) -> dict[str, object]:
    """A document of OUT."""
    found: dict[str, object] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def ladder_kls(folder: Path) -> dict[str, float]:
    """KL of every row of OUT's ladder, by the row's name."""
    ladder = document(folder, "report.json")["ladder"]
    assert isinstance(ladder, list)
    return {row["name"]: row["kl"] for row in ladder}

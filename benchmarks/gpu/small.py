"""The small models of a GPU run, quantized for target cuda, each with inputs and what the CPU computes from them.

`reference` is the embedded model with its spikes in FP8 and both ends in 8-bit weights. `planted` is a decoder of a few
kilobytes with a planted spike, in an outlier branch; beside it, its kept sites in every other format of the target, and
`int8`, where nothing is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spq_graph import Opening
from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.save import save_model
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.precision import Precision
from tests.support.decoders import BOS, write_decoder, write_ids

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 64
KEPT = (Precision.FP8_E4M3, Precision.FP8_E5M2, Precision.W8FP8A16, Precision.W8A16, Precision.FP16, Precision.BF16)


def add_models(folder: Path) -> None:
    """Write the small models, each to a folder of its own: model.onnx, its weights, plan.json and expected.npz."""
    folder.mkdir(parents=True)
    _quantize("reference", folder / "reference", "--high-precision", "fp8_e4m3")
    with Opening("reference").open() as bench:
        add_expected(bench.model, folder / "reference", bos=0)
    add_planted(folder)


def add_planted(folder: Path) -> None:
    """Those with a planted spike."""
    with tempfile.TemporaryDirectory() as name:
        source = write_decoder(Path(name) / "decoder.onnx", width=64, hidden=160, spikes={1: 1000.0})
        data = write_ids(Path(name) / "ids.npz")
        _quantize(str(source), folder / "planted", "--remedy", "peel", "--calibration", str(data))
        add_expected(source, folder / "planted")
        plan = Plan.load(folder / "planted" / "plan.json").with_treatments(())
        spiked = max((s for s in plan.sites if s.evidence.ratio), key=lambda s: s.evidence.ratio or 0.0).key
        _write(source, plan.with_precisions(_all_in_integers), folder / "int8")
        for kept in KEPT:
            _write(source, plan.with_precisions(_keeping(spiked, kept)), folder / kept.value)


def _write(source: Path, plan: Plan, out: Path) -> None:
    out.mkdir()
    save_model(apply_plan(source, plan), out / "model.onnx")
    plan.save(out / "plan.json")
    add_expected(source, out)


def add_expected(source: Path, folder: Path, *, bos: int = BOS) -> None:
    """Inputs, int64 [1, tokens], and logits [1, tokens, vocabulary], kept in float16.

    They are those of what stands in for the device's forms on the CPU, whose own kernels round other things: it has
    none in bfloat16, and its MatMulNBits may round activations, as a GPU's never does.
    """
    plan = Plan.load(folder / "plan.json")
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model.onnx"
        save_model(apply_plan(source, plan, plan.recipe.profile.emulation), model)
        runner = Runner(model)
        ids = np.random.default_rng(0).integers(3, runner.vocabulary or TOKENS, (1, TOKENS))
        ids[:, 0] = bos
        logits = runner.logits(ids, np.ones_like(ids))
    np.savez(folder / "expected.npz", ids=ids, logits=logits.astype(np.float16))


def _all_in_integers(site: SitePlan) -> Precision:
    return site.precision if site.aside else Precision.INT8


def _keeping(key: str, precision: Precision) -> Callable[[SitePlan], Precision]:
    return lambda site: precision if site.key == key else _all_in_integers(site)


def _quantize(source: str, out: Path, *options: str) -> None:
    """The main job for target cuda, without a ladder; of what it writes, what a GPU run reads is left."""
    command = [sys.executable, "-m", "spq_graph", "quantize", source, "-o", str(out), "--target", "cuda"]
    subprocess.run([*command, "--no-eval", "--no-bench", *options], check=True, cwd=ROOT)
    for path in list(out.iterdir()):
        if not (path.name.startswith("model.onnx") or path.name == "plan.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

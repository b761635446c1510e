"""What it costs to hold a written model against its source: apply and save, with the proof and without, in turns.

    python benchmarks/proof.py 8b --save

writes an 8B-shaped LLaMA with random float16 weights (16 GB) and applies a plan with every projection in INT8. With the
proof every untouched constant is known to be the source's, and every code is decoded and compared with the weight that
it stands for. Without it the same is written, and nobody has looked. It needs disk for one and a half times the model.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.keeping import keep
from benchmarks.shaped import SHAPES, write
from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.plan import ModelRef, Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.passes.adapt.prepared import Prepared, prepared
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.identify import identify
from spq_graph.passes.forms.storages import Blocks, Fp8Codes, Halves, Integers, SignedBlocks
from spq_graph.runtime.proof.health import processor
from spq_graph.terms.precision import Precision


def plan_of(source: Prepared, precision: Precision) -> Plan:
    """A plan with every projection in a precision, the head as it is, and ranges of no meaning."""
    found = identify(source.copy())
    return Plan(
        model=ModelRef(digest="", origin="shape"),
        recipe=Recipe(),
        search=Search(rule="none"),
        calibration=CalibrationRef(digest="", tokens=0, sequences=0),
        budget_met=True,
        sites=[
            SitePlan(site=site, precision=precision, reason=Reason.DEFAULT, range=(-1.0, 1.0))
            for site in found.sites
            if not site.left_alone()
        ],
    )


@contextmanager
def without_proof() -> Iterator[None]:
    """Nothing is compared, neither in the graph nor while weights are written."""
    kinds = (Integers, Fp8Codes, Blocks, SignedBlocks, Halves)
    near, call = [kind.near for kind in kinds], VerifyPlan.call
    for kind in kinds:
        kind.near = lambda *_: True  # type: ignore[method-assign]
    VerifyPlan.call = lambda _, model: ir.passes.PassResult(model, False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, right in zip(kinds, near, strict=True):
            kind.near = right  # type: ignore[method-assign]
        VerifyPlan.call = call  # type: ignore[method-assign]


def timed(source: Prepared, plan: Plan, path: Path) -> tuple[float, float]:
    """Seconds on the wall and of the processor that applying and saving take."""
    before, start = _processor(), time.perf_counter()
    save_model(apply_plan(source, plan), path)
    return time.perf_counter() - start, _processor() - before


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="1b", choices=sorted(SHAPES))
    parser.add_argument("--precision", default="int8", choices=[p.value for p in Precision])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    parser.add_argument("--folder", type=Path, help="where there is room for one and a half times the model")
    given = parser.parse_args()
    shape = SHAPES[given.shape]
    folder = Path(tempfile.mkdtemp(prefix="spq-graph-proof-", dir=given.folder))
    try:
        source = prepared(write(shape, folder / "model.onnx"))
        plan = plan_of(source, Precision(given.precision))
        rounds = []
        for number in range(given.rounds + 1):
            proved = timed(source, plan, folder / "out.onnx")
            with without_proof():
                bare = timed(source, plan, folder / "out.onnx")
            if number:  # the first one fills caches
                rounds.append((proved, bare))
            print(
                f"with {proved[0]:.1f} s, without {bare[0]:.1f} s; processor {proved[1]:.1f} and {bare[1]:.1f} s",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)
    wall, used = (statistics.median(proved[i] / bare[i] for proved, bare in rounds) for i in (0, 1))
    print(f"the proof takes {100 * (wall - 1):+.1f} % of the time, {100 * (used - 1):+.1f} % of the processor's")
    if given.save:
        versions = {name: version(name) for name in ("onnx", "onnx-ir", "numpy")}
        facts = {"shape": asdict(shape), "precision": given.precision, "rounds": rounds}
        facts |= {"versions": versions, "device": processor()}
        print(keep(f"proof-{given.shape}-{given.precision}", wall_ratio=wall, processor_ratio=used, **facts))


if __name__ == "__main__":
    main()

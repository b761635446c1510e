"""The small models of the kit on a device: their logits, their kernels, and where every node ran."""

from __future__ import annotations

import json
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.place import GPU, Place
from spq_graph.documents.leftovers import temporary_folder
from spq_graph.documents.plan import Plan
from spq_graph.runtime.proof.held import check_executed
from spq_graph.runtime.sessions.executed import Executed, executed_in
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision

# Relative L2 of the logits. Tensor cores sum in another order, and float32 products may be in TF32: activations then
# move to the codes beside theirs. Quantizing itself costs ten times as much.
TOLERANCE = 2e-2
STAND_INS = 5e-2  # a CPU's MatMulNBits rounds activations by block, and what is expected does not
SHAPES = frozenset({"int64", "bool"})  # what ONNX Runtime works out on the CPU on purpose: sizes, positions and masks
Found = dict[str, Any]


def models(folder: Path, where: Place, record: Callable[[Found], None]) -> Found:
    """Check every model; one that fails does not keep the others from being checked.

    Raises:
        SystemExit: one of them failed; each said why in its record.
    """
    names, bad = sorted(path.parent.name for path in folder.glob("*/plan.json")), []
    for name in names:
        try:
            found = check(folder / name, where) if _runs(folder / name, where) else {"result": "left out"}
        except Exception as error:  # whatever it is, the next model is looked at
            traceback.print_exc()
            found = {"result": "failed", "why": f"{type(error).__name__}: {str(error)[:1500]}"}
        bad += [name] if found["result"] == "failed" else []
        record({"model": name, **found})
    if bad or not names:
        raise SystemExit(f"of {len(names)} models failed: {', '.join(bad) or 'none was there'}")
    return {"models": names}


def _runs(folder: Path, where: Place) -> bool:
    """Whether a place has the formats of a model: what stands in has no product in bfloat16."""
    return not (where.stands_in and any(s.precision is Precision.BF16 for s in Plan.load(folder / "plan.json").sites))


def check(folder: Path, where: Place) -> Found:
    """One model against what the CPU computed, and against its plan; whatever is wrong, all is told."""
    model, plan, kept = folder / "model.onnx", Plan.load(folder / "plan.json"), np.load(folder / "expected.npz")
    wanted = kept["logits"].astype(np.float32)
    logits = Runner(model, provider=where.provider).logits(kept["ids"], np.ones_like(kept["ids"]))
    difference = float(np.linalg.norm(logits - wanted) / np.linalg.norm(wanted))
    executed, others = ran(model, kept["ids"], where)
    try:
        check_executed(as_on_target(executed, where), plan, str(model))
        otherwise = None
    except CheckError as error:
        otherwise = error.what
    close = difference < (STAND_INS if where.stands_in else TOLERANCE)  # false for NaN
    return {
        "result": "done" if close and not others and otherwise is None else "failed",
        "relative_l2": difference,
        "same_first": float((logits.argmax(-1) == wanted.argmax(-1)).mean()),
        "sites": dict(sorted(Counter(executed.kernels.get(site.node, "not found") for site in plan.sites).items())),
        "not_as_planned": otherwise,
        "placed": executed.by_provider,
        "left_to_others": others,
    }


def ran(model: Path, ids: Ids, where: Place) -> tuple[Executed, list[str]]:
    """What ran for a batch, and the nodes that compute numbers and ran on another provider."""
    with temporary_folder() as folder:
        runner = Runner(model, profile=folder / "profile", provider=where.provider)
        runner.run(ids, np.ones_like(ids))
        profile = Path(runner.session.end_profiling())
        return executed_in([profile]), sorted(set(left_to_others(profile, where.provider)))


def left_to_others(profile: Path, provider: str) -> Iterator[str]:
    """Nodes of a profile that give anything but sizes, positions, masks and single numbers, and ran elsewhere."""
    for event in json.loads(profile.read_text(encoding="utf-8")):
        told = event.get("args", {})
        if event.get("cat") != "Node" or "op_name" not in told or told.get("provider") == provider:
            continue
        given = [pair for one in told.get("output_type_shape", ()) for pair in one.items()]
        if any(kind not in SHAPES and math.prod(shape) > 1 for kind, shape in given):
            yield f"{event['name'].removesuffix('_kernel_time')} ({told['op_name']} on {told.get('provider')})"


def as_on_target(executed: Executed, where: Place) -> Executed:
    """What ran, with the device's provider in the place of what stands in for it."""
    placed = {n: GPU.provider if provider == where.provider else provider for n, provider in executed.placed.items()}
    return replace(executed, placed=placed)

"""Plans for tiny graphs, and an independent reference of what a plan's quantizers do, in plain numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.changes import Peel, Scale
from spq_graph.documents.plan import ModelRef, Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.documents.treatment import tried
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.absorbers import find_absorbers
from spq_graph.passes.find.identify import identify
from spq_graph.runtime.sessions.opening import open_session
from spq_graph.terms.absorber import Absorber, gathered, spread
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Site
from tests.support.graphs import Array, Builder, LinearForm

Choose = Callable[[Site], Precision]


def run(model: Path | onnx.ModelProto, feeds: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
    """Run a model in ONNX Runtime, one thread, its sums exact on every processor."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    results: list[Array] = open_session(source, options, Path("model")).run(outputs, dict(feeds))
    return results


def activations(tokens: int, width: int, seed: int = 1) -> Array:
    return (np.random.default_rng(seed).standard_normal((tokens, width)) * 2 + 0.5).astype(np.float32)


def kernels(path: Path) -> Counter[str]:
    """Operators after ONNX Runtime's own optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def plan_for(
    model: Path,
    feeds: Mapping[str, Array],
    choose: Choose | Precision,
    *,
    peeled: int = 0,
    smoothed: bool = False,
    **recipe: Any,
) -> Plan:
    """A plan whose ranges are the extremes of every site's input on the given feeds.

    Args:
        model: the file.
        feeds: what it is run on.
        choose: the precision of each site, or of all.
        peeled: how many channels of each input have an outlier branch, those of the largest absolute values.
        smoothed: whether channels are divided by the powers of two that are nearest to their largest values, wherever
            something takes them.
        recipe: fields of the plan's recipe.
    """
    graph = load_graph(model)
    Canonicalize()(graph)
    sites = identify(graph).sites
    absorbers, _ = find_absorbers(graph.graph, sites)
    names = list(dict.fromkeys(site.input for site in sites))
    proto = ir.to_proto(graph)
    fed = {value.name for value in proto.graph.input}
    inner = [name for name in names if name not in fed]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in _outputs(proto))
    values = {**feeds, **dict(zip(inner, run(proto, feeds, inner) if inner else [], strict=True))}
    made = Plan(
        model=ModelRef(digest="", origin=""),
        recipe=Recipe(**recipe),
        search=Search(rule="none"),
        budget_met=True,
        calibration=CalibrationRef(digest="", tokens=0, sequences=0),
        sites=[
            SitePlan(
                site=s,
                precision=choose if isinstance(choose, Precision) else choose(s),
                reason=Reason.DEFAULT,
                range=(float(values[s.input].min()), float(values[s.input].max())),
            )
            for s in sites
        ],
    )
    scales = {a.value: _scale(a, values[a.value]) for a in absorbers if smoothed}
    values |= {name: values[name] / np.exp2(np.asarray(s.exponents, np.float32)) for name, s in scales.items()}
    peels = {name: _peel(name, values[name], peeled) for name in names if peeled}
    return made.with_treatments(tried([s.site for s in made.sites], scales, peels))


def _scale(absorber: Absorber, values: Array) -> Scale:
    rows = values.astype(np.float32).reshape(-1, values.shape[-1])
    largest = gathered(np.abs(rows).max(axis=0), absorber.heads)
    exponents = spread(np.clip(np.rint(np.log2(largest)), -8, 8), absorber.heads)
    rows = rows / np.exp2(exponents)
    return Scale(
        value=absorber.value,
        tensor=absorber.tensor,
        axis=absorber.axis,
        exponents=tuple(exponents.astype(int).tolist()),
        heads=absorber.heads,
        low=float(rows.min()),
        high=float(rows.max()),
    )


def _peel(name: str, values: Array, count: int) -> Peel:
    rows = values.astype(np.float32).reshape(-1, values.shape[-1])
    outer = np.argsort(-np.abs(rows).max(axis=0), kind="stable")[:count]
    inner = np.delete(rows, outer, axis=1)
    low, high = float(inner.min()), float(inner.max())
    return Peel(value=name, channels=tuple(sorted(outer.tolist())), low=low, high=high)


def _outputs(proto: onnx.ModelProto) -> set[str]:
    return {value.name for value in proto.graph.output}


def applied(model: Path, plan: Plan, name: str = "applied.onnx") -> Path:
    """Apply a plan and save the result beside the model, checked by onnx itself."""
    path = model.with_name(name)
    save_model(apply_plan(model, plan), path)
    onnx.checker.check_model(path, full_check=True)
    return path


def fake_quantized(values: Array, low: float, high: float, bits: int, *, symmetric: bool = False) -> Array:
    """What a quantizer over [low, high] makes of values, from the definition; scales are float32."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step, zero, smallest, largest = max(-low, high) / top, 0, -top - (bits == 8), top
    else:
        step, smallest, largest = (high - low) / (2**bits - 1), 0, 2**bits - 1
        zero = round(-low / step)
    ratio = np.asarray(values, dtype=np.float32) / np.float32(step)  # ties fall as they fall in float32
    codes = np.clip(np.rint(ratio.astype(np.float64)) + zero, smallest, largest)
    return np.asarray((codes - zero) * step)


def fake_quantized_weight(weight: Array, bits: int, *, per_channel: bool = True) -> Array:
    """What symmetric scales make of a weight [K, N]."""
    top = 2 ** (bits - 1) - 1
    step = np.abs(weight.astype(np.float64)).max(axis=0 if per_channel else None) / top
    return np.asarray(np.rint(weight / step) * step)


def linear(folder: Path, form: LinearForm, rows: int, columns: int, *, half: bool = False) -> tuple[Path, Array, Array]:
    """One projection with a bias: its file, the weight as the product sees it, and the bias."""
    dtype = np.float16 if half else np.float32
    b = Builder(dtype=dtype, seed=rows)
    b.op("Identity", b.linear("x", rows, columns, form=form, bias=True), outputs=["y"])
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    path = folder / "model.onnx"
    onnx.save(b.model({"x": (kind, ["n", rows])}, {"y": (kind, ["n", columns])}), path)
    again = Builder(dtype=dtype, seed=rows)
    weight, bias = again.random(rows, columns), again.random(columns)
    if form == "half":
        weight = weight.astype(np.float16).astype(dtype)
    return path, weight, bias

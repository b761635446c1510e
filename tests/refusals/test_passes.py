"""Refusals of graphs and of plans for them, each made and put right as it says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.documents.plan import Plan
from spq_graph.jobs.calibrate import calibrate
from spq_graph.jobs.inspect import inspect
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.base.run import run
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.check.target import VerifyTarget, refuse_foreign
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.identify import identify
from spq_graph.passes.forms.storages import Halves
from spq_graph.passes.numbers import fp8
from spq_graph.passes.numbers.fp8 import E4M3
from spq_graph.passes.numbers.scales import ActivationQuantizer
from spq_graph.passes.observe import Observe
from spq_graph.terms.errors import SpqError
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoder_graphs import decoder
from tests.support.decoders import write_decoder, write_ids
from tests.support.following import Told
from tests.support.graphs import Builder, Glu, glu_model
from tests.support.inserting import activations, plan_for
from tests.support.tampering import an_untouched, made_for, replaced

follows = pytest.mark.follows
FEEDS = {"x": activations(3, 8)}


def glu(path: Path, *, opset: int = 21, inner: int = 12) -> Path:
    onnx.save(glu_model(Glu(inner=inner), opset=opset), path)
    return path


def canonical(proto: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(proto)
    Canonicalize()(graph)
    return graph


@follows("passes/adapt/lift.py:LiftOpset.call")
def test_opset_without_fp8(refusal: Told, tmp_path: Path) -> None:
    """Of opset 6, which nothing brings to a newer one."""
    old, recent = glu(tmp_path / "old.onnx", opset=6), glu(tmp_path / "recent.onnx")
    with refusal:
        apply_plan(old, plan_for(recent, FEEDS, Precision.W8FP8A16))
    least = int(refusal.error.remedy.partition(" or later")[0].rpartition(" ")[2])
    again = glu(tmp_path / "again.onnx", opset=least)
    assert apply_plan(again, plan_for(again, FEEDS, Precision.W8FP8A16)).graph
    assert apply_plan(old, plan_for(recent, FEEDS, Precision.FP16)).graph


@follows("passes/forms/insert.py:require_opset")
def test_opset_without_integers(refusal: Told, tmp_path: Path) -> None:
    old, recent = glu(tmp_path / "old.onnx", opset=6), glu(tmp_path / "recent.onnx")
    with refusal:
        apply_plan(old, plan_for(recent, FEEDS, Precision.INT8))
    least = int(refusal.error.remedy.partition(" or later")[0].rpartition(" ")[2])
    again = glu(tmp_path / "again.onnx", opset=least)
    assert apply_plan(again, plan_for(again, FEEDS, Precision.INT8)).graph


@follows("passes/base/editor.py:Editor.find")
def test_plan_of_another_graph(refusal: Told, tmp_path: Path) -> None:
    made_for_it, other = glu(tmp_path / "model.onnx"), glu(tmp_path / "other.onnx", inner=20)
    plan = plan_for(made_for_it, FEEDS, Precision.INT8)
    with refusal:
        apply_plan(other, plan)
    assert apply_plan(made_for_it, plan).graph


@follows("passes/observe.py:as_float32")
def test_value_of_another_graph(refusal: Told) -> None:
    with refusal:
        Observe(["elsewhere"])(canonical(decoder()))
    graph = canonical(decoder())
    assert Observe([identify(graph).sites[0].input])(graph).modified


@follows("passes/forms/rules.py:Wanted.range")
def test_site_without_a_range(refusal: Told, tmp_path: Path) -> None:
    path = glu(tmp_path / "model.onnx")
    plan = plan_for(path, FEEDS, Precision.INT8)
    plan.sites[1].range = None
    with refusal:
        apply_plan(path, plan)
    assert refusal.error.where == plan.sites[1].key
    plan.sites[1].precision = Precision.FP32
    assert apply_plan(path, plan).graph
    assert apply_plan(path, plan_for(path, FEEDS, Precision.INT8)).graph


@follows("passes/forms/storages.py:half_weight")
def test_weight_beyond_half(refusal: Told, tmp_path: Path) -> None:
    b = Builder()
    b.op("MatMul", "x", b.const(np.full((8, 8), 70_000, np.float32)), outputs=["y"], name="big")
    path = tmp_path / "model.onnx"
    onnx.save(b.model({"x": (1, [3, 8])}, {"y": (1, [3, 8])}), path)
    with refusal:
        apply_plan(path, plan_for(path, FEEDS, Precision.FP16))
    [override] = tomllib.loads(refusal.error.remedy.removeprefix("in the recipe: "))["overrides"]
    plan = plan_for(path, FEEDS, lambda site: Precision(override["precision"]))
    assert [site.key for site in plan.sites] == [override["pattern"]]
    assert apply_plan(path, plan).graph


def names_what_is_not_finite(tmp_path: Path) -> None:
    """`spq-graph calibrate` names the first site that is not finite, here for a weight far too large."""
    broken = write_decoder(tmp_path / "broken.onnx", layers=1)
    model = onnx.load(broken)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "layers.0.mlp.up_proj.weight")
    large = np.full_like(onnx.numpy_helper.to_array(weight), 3e38)
    weight.CopyFrom(onnx.numpy_helper.from_array(large, weight.name))
    onnx.save(model, broken)
    with pytest.raises(SpqError, match=r"layers\.0\.mlp\."):
        calibrate(broken, tmp_path / "ranges", calibration=write_ids(tmp_path / "ids.npz", rows=2))


@follows("passes/numbers/fp8.py:activation_scale")
def test_endless_range_in_fp8(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        fp8.activation_scale(-1.0, float("inf"), E4M3)
    names_what_is_not_finite(tmp_path)
    assert fp8.activation_scale(-1.0, 448.0, E4M3) == 1


@follows("passes/numbers/scales.py:ActivationQuantizer.fit")
def test_endless_range(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        ActivationQuantizer.fit(float("nan"), 1.0, 8)
    names_what_is_not_finite(tmp_path)
    assert ActivationQuantizer.fit(0.0, 255.0, 8).scale == 1


def weight_of_graph(path: Path, value: float) -> Path:
    b = Builder()
    weight = b.random(8, 8)
    weight[3, 2] = value
    b.op("MatMul", "x", b.const(weight), outputs=["y"], name="product")
    onnx.save(b.model({"x": (1, [3, 8])}, {"y": (1, [3, 8])}), path)
    return path


@follows("passes/numbers/scales.py:_positive")
def test_damaged_weight(refusal: Told, tmp_path: Path) -> None:
    damaged, whole = weight_of_graph(tmp_path / "a.onnx", np.inf), weight_of_graph(tmp_path / "b.onnx", 1.0)
    with refusal:
        save_model(apply_plan(damaged, plan_for(damaged, FEEDS, Precision.INT8)), tmp_path / "out.onnx")
    save_model(apply_plan(whole, plan_for(whole, FEEDS, Precision.INT8)), tmp_path / "out.onnx")


@follows("passes/numbers/fp8.py:fp8_weight_codes")
def test_damaged_weight_in_fp8(refusal: Told) -> None:
    weight, ones = np.ones((8, 8), np.float32), np.ones(8, np.float32)
    weight[3, 2] = np.nan
    with refusal:
        fp8.fp8_weight_codes(weight, ones)
    weight[3, 2] = 1  # as a whole checkpoint has it
    assert fp8.fp8_weight_codes(weight, ones).shape == (8, 8)


@follows("passes/find/identify.py:require_glu")
def test_no_glu(refusal: Told, tmp_path: Path) -> None:
    plain, data = write_decoder(tmp_path / "model.onnx", layers=1, glu=False), write_ids(tmp_path / "ids.npz", rows=2)
    arguments = ["quantize", plain, "-o", tmp_path / "out", "--calibration", data, "--spike-ratio", 50, "--no-eval"]
    refusal.command(*arguments)
    done(*arguments, "--allow-no-glu")


@follows("passes/find/quantized.py:refuse_quantized")
def test_quantized_already(refusal: Told, tmp_path: Path) -> None:
    source, made = glu(tmp_path / "model.onnx"), tmp_path / "made.onnx"
    plan = plan_for(source, FEEDS, Precision.INT8)
    save_model(apply_plan(source, plan), made)
    refusal.command("calibrate", made, "-o", tmp_path / "ranges")
    assert {site.precision for site in inspect(made).sites} == {Precision.INT8}
    assert identify(canonical(onnx.load(source))).sites
    assert apply_plan(source, plan).graph


def ending_in(op_type: str, domain: str) -> ir.Model:
    b = Builder()
    b.op(op_type, b.op("MatMul", "x", b.const(b.random(8, 8))), outputs=["y"], domain=domain)
    return ir.from_proto(b.model({"x": (1, [3, 8])}, {"y": (1, [3, 8])}))


@follows("passes/check/target.py:refuse_foreign", "or use target cpu")
def test_operators_of_one_runtime(refusal: Told) -> None:
    with refusal:
        refuse_foreign(ending_in("FastGelu", "com.microsoft"), PROFILES["tensorrt"])
    refuse_foreign(ending_in("Gelu", ""), PROFILES["tensorrt"])
    refuse_foreign(ending_in("FastGelu", "com.microsoft"), PROFILES["cpu"])


@follows("passes/check/target.py:refuse_foreign", "does", nth=1)
def test_operators_of_no_runtime(refusal: Told) -> None:
    with refusal:
        refuse_foreign(ending_in("Odd", "elsewhere"), PROFILES["cpu"])
    refuse_foreign(ending_in("Gelu", ""), PROFILES["cpu"])


@follows("passes/base/own_calls.py:refuse_wrong_calls")
def test_a_call_of_the_operator_that_means_nothing(refusal: Told, made: Made, tmp_path: Path) -> None:
    out, data = tmp_path / "out", ["--calibration", made.data, "--spike-ratio", 50, "--no-eval"]
    done("quantize", made.model, "-o", out, *data, "--high-precision", "fp8_e4m3")
    model = onnx.load(out / "model.onnx")
    call = next(node for node in model.graph.node if node.op_type == "Fp8MatMul")
    next(attribute for attribute in call.attribute if attribute.name == "K").i = -1
    (out / "model.onnx.data").unlink()
    onnx.save(model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    refusal.command("eval", out, "--text", made.text)
    done("apply", made.model, out / "plan.json", "-o", tmp_path / "again")
    done("eval", tmp_path / "again", "--text", made.text)


@follows("passes/check/functions.py:refuse_other_functions")
def test_another_function_under_our_operators_name(refusal: Told, made: Made, tmp_path: Path) -> None:
    out, data = tmp_path / "out", ["--calibration", made.data, "--spike-ratio", 50, "--no-eval"]
    done("quantize", made.model, "-o", out, *data, "--high-precision", "fp8_e4m3")
    model = onnx.load(out / "model.onnx")
    next(node for node in model.functions[0].node if node.op_type == "IsInf").op_type = "IsNaN"
    (out / "model.onnx.data").unlink()
    onnx.save(model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    refusal.command("eval", out, "--text", made.text)
    done("apply", made.model, out / "plan.json", "-o", tmp_path / "again")
    done("eval", tmp_path / "again", "--text", made.text)


# ------------------------------------------------------------------------------------------------- faults of ours


@follows("passes/base/run.py:run", outside="it is for us to mend: an order of passes that no input can cause")
def test_passes_in_a_wrong_order(refusal: Told) -> None:
    proto = glu_model(Glu(), constants_as_nodes=True)
    with refusal:
        run(ir.from_proto(proto), [Observe(["x"])])
    assert run(ir.from_proto(proto), [Canonicalize(), Observe(["x"])])


@follows("passes/check/plan.py:VerifyPlan.call", outside="it is for us to mend: a graph that was written otherwise")
def test_not_as_planned(refusal: Told, tmp_path: Path) -> None:
    graph, plan, before = made_for("cpu", tmp_path)
    VerifyPlan(plan, before)(graph)
    replaced(an_untouched(graph, before), lambda array: array + 1)
    with refusal:
        VerifyPlan(plan, before)(graph)


@follows("passes/check/target.py:VerifyTarget.call", outside="it is for us to mend: a graph that was written otherwise")
def test_not_as_the_target_takes(refusal: Told, tmp_path: Path) -> None:
    graph, plan, _ = made_for("cpu", tmp_path)
    VerifyTarget(plan)(graph)
    graph.graph.opset_imports[""] = 9
    with refusal:
        VerifyTarget(plan)(graph)


def halves(tmp_path: Path) -> tuple[Path, Plan]:
    path = glu(tmp_path / "model.onnx")
    return path, plan_for(path, FEEDS, Precision.FP16)


@follows("passes/forms/encode.py:Encoded._made", "does not stand for it", outside="it is for us to mend: wrong codes")
def test_wrong_codes(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plan = halves(tmp_path)
    monkeypatch.setattr(Halves, "encode", lambda self, block, rows: (block + 1).astype(self.half.numpy()))
    with refusal:
        save_model(apply_plan(path, plan), tmp_path / "out.onnx")


@follows(
    "passes/forms/encode.py:Encoded._made", "does not hold its codes", outside="it is for us to mend: wrong packing"
)
def test_wrong_packing(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plan = halves(tmp_path)
    monkeypatch.setattr(Halves, "pack", lambda self, codes: codes + np.float16(1))
    with refusal:
        save_model(apply_plan(path, plan), tmp_path / "out.onnx")

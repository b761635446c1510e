"""`spq-graph verify`: what somebody changed in a file after it was written is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph import verify
from spq_graph.terms.errors import CheckError
from spq_graph.terms.targets import PROFILES
from tests.support.command import Case, contents, done, spq
from tests.support.decoders import write_decoder, write_ids

SITE = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize("target", PROFILES)
def test_what_was_written_holds_on_every_target(case: Case, tmp_path: Path, target: str) -> None:
    out = tmp_path / "out"
    done("apply", case.model, case.out / "plan.json", "-o", out, "--target", target)
    before = contents(out)
    found = done("verify", out, case.model, "--json").json
    nodes = onnx.load(out / "model.onnx", load_external_data=False).graph.node
    assert (found["target"], found["sites"], found["nodes"]) == (target, 23, len(nodes))
    assert contents(out) == before


def test_what_it_says(case: Case) -> None:
    said = done("verify", case.out, case.model).out.splitlines()
    assert said[0] == f"{case.out} is what its plan makes of {case.model} for cpu"
    assert said[1].startswith("held against it: 23 sites, ")


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def rewritten(tensor: onnx.TensorProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(array.copy()).astype(array.dtype), tensor.name))


def scaled_weight(model: onnx.ModelProto) -> str:
    rewritten(constant(model, "layers.1.self_attn.scale"), lambda array: array * 7)
    return "constant layers.1.self_attn.scale"


def zero_codes(model: onnx.ModelProto) -> str:
    rewritten(constant(model, f"{SITE}.weight.int8.codes"), np.zeros_like)
    return SITE


def flipped_code(model: onnx.ModelProto) -> str:
    def flip(codes: np.ndarray) -> np.ndarray:
        codes.flat[0] += 2 if codes.flat[0] < 0 else -2
        return codes

    rewritten(constant(model, f"{SITE}.weight.int8.codes"), flip)
    return SITE


def halved_scale(model: onnx.ModelProto) -> str:
    rewritten(constant(model, f"{SITE}.weight.int8.scale"), lambda scale: scale / 2)
    return SITE


def twin(model: onnx.ModelProto) -> str:
    names = [f"layers.0.self_attn.{part}_proj.weight.int8.codes" for part in "kv"]
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in names:
                node.input[place] = names[1 - names.index(name)]
    return "layers.0.self_attn.k_proj"


def attribute(model: onnx.ModelProto) -> str:
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("axis", -2))
    return f"{node.name} (attribute axis)"


def behind_the_logits(model: onnx.ModelProto) -> str:
    [end] = [value for value in model.graph.output if value.name == "logits"]
    node = next(node for node in model.graph.node if "logits" in node.output)
    node.output[list(node.output).index("logits")] = "inner"
    model.graph.node.append(onnx.helper.make_node("Neg", ["inner"], [end.name], name="behind"))
    return "behind"


@pytest.mark.parametrize(
    "change", [scaled_weight, zero_codes, flipped_code, halved_scale, twin, attribute, behind_the_logits]
)
def test_what_was_changed_in_the_file_is_refused_by_name(
    case: Case, tmp_path: Path, change: Callable[[onnx.ModelProto], str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(case.out, out)
    model = onnx.load(out / "model.onnx")
    named = change(model)
    (out / "model.onnx.data").unlink()
    onnx.save(model, out / "model.onnx")
    result = spq("verify", out, case.model)
    assert result.code == CheckError.exit_code
    assert named in result.err
    assert "report this" not in result.err
    assert "spq-graph apply" in result.err
    with pytest.raises(CheckError, match="not what the plan says"):
        verify(out, case.model)


def test_a_file_that_was_only_stored_otherwise_holds(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(case.out, out)
    model = onnx.load(out / "model.onnx")
    (out / "model.onnx.data").unlink()
    onnx.save(model, out / "model.onnx")
    assert done("verify", out, case.model).code == 0


def test_a_byte_of_the_data(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(case.out, out)
    data = bytearray((out / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 0x80
    (out / "model.onnx.data").write_bytes(data)
    assert spq("verify", out, case.model).code == CheckError.exit_code


def test_another_plan_and_another_model(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(case.out, out)
    other = write_decoder(tmp_path / "other.onnx", spikes={1: 900.0}, external=True)
    result = spq("verify", out, other)
    assert (result.code, "made for another model" in result.err) == (2, True)
    plan = json.loads((out / "plan.json").read_text())
    plan["sites"][0]["range"] = [-1.0, 1.0]
    (out / "plan.json").write_text(json.dumps(plan))
    result = spq("verify", out, case.model)
    assert (result.code, "another plan" in result.err) == (CheckError.exit_code, True)
    (out / "plan.json").unlink()
    result = spq("verify", out, case.model)
    assert (result.code, "there is no plan.json" in result.err) == (2, True)


def test_a_decoder_with_a_cache(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "cached.onnx", positions=True, cache=True, spikes={1: 1000.0})
    ids = write_ids(tmp_path / "ids.npz")
    done("quantize", model, "-o", tmp_path / "out", "--calibration", ids, "--no-eval")
    assert done("verify", tmp_path / "out", model).code == 0

"""What docs/pipelines.md shows of Olive and of optimum runs as it stands there, in the environments of those tools."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from spq_graph.documents.plan import Plan
from tests.conftest import ROOT, WORDS
from tests.sources.environments import python_of
from tests.support.command import done
from tests.support.decoders import write_decoder, write_ids

pytestmark = pytest.mark.families

PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


def run(arguments: list[str | Path], folder: Path) -> str:
    beside = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(arguments, cwd=folder, env=os.environ | beside, capture_output=True, text=True)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    return ran.stdout


def test_olive(environments: Path, tmp_path: Path) -> None:
    python = python_of("olive", environments)
    model = write_decoder(tmp_path / "decoder.onnx", spikes={1: 1000.0}, external=True)
    calibration = write_ids(tmp_path / "calibration.npz")
    packages, workflow = blocks("json")
    (tmp_path / "spq_olive.py").write_text(blocks("python")[0])
    (tmp_path / "packages.json").write_text(packages)
    for name, file in (("exported/model.onnx", model), ("ids.npz", calibration)):
        workflow = workflow.replace(name, file.as_posix())
    (tmp_path / "workflow.json").write_text(workflow)
    (command,) = (line for line in blocks("sh")[0].splitlines() if "olive run" in line)
    _, _, *arguments = shlex.split(command)
    run([python, "-m", "olive", *arguments], tmp_path)
    assert Plan.load(tmp_path / "made" / "plan.json").kept
    assert (tmp_path / "made" / "model.onnx").is_file()


def test_optimum(tiny_llama: Path, environments: Path, tmp_path: Path) -> None:
    python = python_of("optimum", environments)
    (tmp_path / "mine.txt").write_text(" ".join(np.random.default_rng(0).choice(WORDS[3:], 1500)))
    export, quantize = (shlex.split(line) for line in blocks("sh")[1].splitlines())
    export[export.index("./my-llama")] = str(tiny_llama)
    run([python.with_name(export[0]), *export[1:]], tmp_path)
    places = {"out", "exported", "mine.txt", "exported/model.onnx"}
    done(*(tmp_path / one if one in places else one for one in quantize[1:]))
    code = blocks("python")[1].replace("The river", " ".join(WORDS[3:6]))
    assert len(run([python, "-c", code], tmp_path).split()) > 3

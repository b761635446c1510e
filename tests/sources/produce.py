"""Makes models and exports them, inside of an environment that holds the exporter; reads jobs as JSON.

Nothing of this repository is imported but for the one job that tries our own exporter in another transformers.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

PROMPT, NEW_TOKENS = 11, 12


def folder(out: Path, *, model: str, config: str, settings: dict[str, Any], tokenizer: str) -> None:
    """A Hugging Face folder with random weights, and what torch says: logits, and the greedy text of its first row."""
    import numpy as np
    import torch
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    made.save_pretrained(out)
    for file in Path(tokenizer).iterdir():
        shutil.copy(file, out)
    ids = torch.tensor(np.random.default_rng(0).integers(3, settings["vocab_size"], (2, PROMPT)))
    greedy = ids[:1]
    with torch.no_grad():
        logits = made(ids).logits
        for _ in range(NEW_TOKENS):
            greedy = torch.cat([greedy, made(greedy).logits[:, -1:].argmax(-1)], 1)
    np.savez(out / "expected.npz", ids=ids.numpy(), logits=logits.numpy(), greedy=greedy.numpy())


def export(out: Path, *, source: str, opset: int = 21, cache: bool = True) -> None:
    """Our own exporter, which is torch's with the names of the contract."""
    from spq_graph.models.export import export_folder

    export_folder(Path(source), out / "model.onnx", opset=opset, cache=cache)


def optimum(out: Path, *, source: str, task: str) -> None:
    """optimum-onnx, which traces with TorchScript."""
    from optimum.exporters.onnx import main_export

    main_export(source, output=out, task=task, do_validation=False)


def genai(out: Path, *, source: str, precision: str, provider: str) -> None:
    """The model builder of onnxruntime-genai."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    arguments = ("", source, str(out), precision, provider, str(out / "cache"))
    create_model(*arguments, **parse_extra_options(*arguments, None))


def runtime(out: Path, *, source: str, level: str) -> None:
    """ONNX Runtime's own optimizer, saved with its weights beside it as large models must be."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath, options.log_severity_level = str(out / "model.onnx"), 3
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.onnx.data")
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def transformers_optimizer(out: Path, *, source: str, heads: int, width: int) -> None:
    """The fusions of onnxruntime.transformers.optimizer."""
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(source, model_type="gpt2", num_heads=heads, hidden_size=width, opt_level=0).save_model_to_file(
        str(out / "model.onnx")
    )


def slim(out: Path, *, source: str) -> None:
    """onnxslim."""
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), out / "model.onnx")


def sim(out: Path, *, source: str) -> None:
    """onnxsim."""
    import onnx
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(source))[0], out / "model.onnx")


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job for job in (folder, export, optimum, genai, runtime, transformers_optimizer, slim, sim)
}


def main() -> None:
    """Do every job, and print as the last line why those failed that did."""
    failed = {}
    for job in json.load(sys.stdin):
        do, out = JOBS[job.pop("do")], Path(job.pop("out"))
        out.mkdir(parents=True, exist_ok=True)
        try:
            with redirect_stdout(sys.stderr):
                do(out, **job)
        except Exception as cause:  # whatever an exporter raises
            failed[str(out)] = f"{type(cause).__name__}: {cause}"
    print(json.dumps(failed))


if __name__ == "__main__":
    main()

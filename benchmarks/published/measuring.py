"""One method on one model: made by a process of its own, held against FP32 on the same tokens, and timed beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.apart import python_of, run
from benchmarks.published.methods import ENVIRONMENTS, METHODS, OURS, Method
from benchmarks.published.served import Recorded, Served, in_pairs

LENGTHS, PAST, WINDOW = (128, 512), 128, 512
OPENED = (".onnx", ".xml", ".gguf", ".safetensors")
MAKERS = Path(__file__).with_name("makers.py")


@dataclass(frozen=True, slots=True)
class Bench:
    """What all methods of one model share.

    Attributes:
        work: the folder that holds what is made, one folder a method, and what `makers.py` reads.
        environments: the folder of the peers' environments.
        calibration: a text; calibration_tokens: how much of it.
        sequences: what loss is measured on.
        rounds: in which two models are timed in turns.
    """

    work: Path
    environments: Path
    calibration: Path
    calibration_tokens: int
    sequences: Any
    rounds: int

    @property
    def text(self) -> str:
        """Says which tokens loss is measured on."""
        return str(self.sequences.digest)[:16]

    def python(self, method: Method) -> Path:
        """What runs a method's maker and what it makes; raises as `python_of`."""
        if method.environment is None:
            return Path(sys.executable)
        environment = ENVIRONMENTS[method.environment]
        return python_of(method.environment, environment.installs, self.environments, above=environment.above)

    def made(self, name: str) -> list[Path]:
        """What a method wrote, the file to open first."""
        found = (path for path in self.work.joinpath(name).glob(METHODS[name].files) if path.suffix in OPENED)
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def model(self, name: str) -> Path:
        """What to open of it.

        Raises:
            RuntimeError: it wrote nothing.
        """
        if found := self.made(name):
            return found[0]
        raise RuntimeError("failed: it wrote no model")


def make(bench: Bench, name: str) -> dict[str, Any]:
    """Make a method's model; returns what that took, imports included.

    Raises:
        RuntimeError: it cannot be installed, or fails; why.
    """
    out = bench.work / name
    if name in OURS:
        float_model = bench.work / "fp32" / "model.onnx"
        command = [sys.executable, "-m", "spq_graph", "quantize", str(float_model), "-o", str(out)]
        command += ["--tokenizer", str(float_model.parent), "--calibration", str(bench.calibration)]
        command += ["--calibration-tokens", str(bench.calibration_tokens), "--window", str(WINDOW)]
        command += ["--no-eval", "--no-bench", "--force"]
        return _run(command + (["--preset", "w8a8-static"] if name == "ours_static" else []), bench.work)
    python = bench.python(METHODS[name])
    out.mkdir(exist_ok=True)
    for file in out.iterdir():
        if file.is_file():
            file.unlink()
    return _run([str(python), str(MAKERS), name, str(bench.work), str(out)], bench.work)


def _run(command: list[str], place: Path) -> dict[str, float]:
    """As `run` has it, but for resident memory, in which what starts a process counts too."""
    return {key: value for key, value in run(command, place).items() if key != "peak_rss_bytes"}


def measure(bench: Bench, name: str) -> dict[str, Any]:
    """On one thread loss against FP32 on the same tokens, speed, load time and peak memory.

    Raises:
        RuntimeError: it cannot be installed, or fails; why.
    """
    from spq_graph.runtime.measures.evaluate import score_text

    method, path = METHODS[name], bench.model(name)
    float_model, log = bench.work / "fp32" / "model.onnx", bench.work / "stderr.txt"
    command = (bench.python(method), method.engine, path)
    recorded = Recorded(
        bench.work / f"logits-{bench.text}.npy",
        lambda: Served(Path(sys.executable), "onnx", float_model, "judge", 1, bench.work / "base.txt"),
        list(bench.sequences.batches(1)),
    )
    with Served(*command, "judge", 1, log) as other:
        before, (score,) = score_text(recorded, [other], bench.sequences)  # type: ignore[arg-type, list-item]
        vocabulary = len(other.logits([1])[0])
    with (
        Served(Path(sys.executable), "onnx", float_model, "time", 1, bench.work / "base.txt") as base,
        Served(*command, "time", 1, log) as other,
    ):
        times = in_pairs(base, other, LENGTHS, PAST, vocabulary, bench.rounds)
        peak = other.ask(do="peak")["bytes"]
    return {
        "name": name,
        "text": bench.text,
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "load": os.getloadavg()[0],
        "perplexity": score.perplexity,
        "perplexity_stderr": score.perplexity_stderr,
        "perplexity_over_fp32": score.perplexity / before.perplexity - 1,
        "kl": score.kl,
        "kl_stderr": score.kl_stderr,
        "top1": score.top1,
        "tokens": score.tokens,
        "bytes": sum(file.stat().st_size for file in (bench.work / name).glob(method.files)),
        "load_seconds": other.load_seconds,
        "peak_rss_bytes": peak,
        "times": times,
        "versions": versions(bench, method),
    }


def versions(bench: Bench, method: Method) -> dict[str, str]:
    """Of what matters in a peer's environment; nothing for what runs here, whose versions stand beside the rows."""
    if method.environment is None:
        return {}
    code = "import sys\nfrom importlib.metadata import version\nprint(*map(version, sys.argv[1:]))"
    packages = ENVIRONMENTS[method.environment].packages
    command = [str(bench.python(method)), "-c", code, *packages]
    with suppress(subprocess.CalledProcessError):
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return dict(zip(packages, told, strict=True))
    return {}

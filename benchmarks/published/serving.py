"""A quantized model that answers: `python serving.py ENGINE MODEL THREADS PURPOSE`, run by the engine's own Python.

One JSON object a line comes in on standard input and goes out on what was standard output; libraries that print go to
standard error. PURPOSE is `judge`, where logits of every token are asked for, or `time`. What it answers to:

- `{"do": "logits", "ids": [...]}`: `{"shape": [tokens, vocabulary]}`, and behind the line so many float32;
- `{"do": "prefill", "ids": [...]}`: `seconds` of a prompt, and `cpu_seconds`, of all of the process's threads together;
- `{"do": "decode", "ids": [...], "steps": n}`: alike of one token behind that prompt, the mean of several;
- `{"do": "peak"}`: the most resident bytes that the process has held, libraries included.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOM = 1024  # tokens that a cache of fixed size has room for


class Engine(Protocol):
    """A model that is open."""

    def logits(self, ids: list[int]) -> np.ndarray:
        """Of every token, [tokens, vocabulary]."""
        ...

    def prompt(self, ids: list[int]) -> None:
        """Run a prompt from an empty cache, as generation begins."""
        ...

    def step(self, token: int) -> None:
        """Run one token more behind what was run."""
        ...


class Onnx:
    """ONNX Runtime's session, by spq-graph's runner: its library is registered, and the cache stays in the runtime."""

    def __init__(self, path: Path, threads: int, judge: bool) -> None:
        from onnxruntime import OrtValue

        from spq_graph.runtime.sessions.session import Runner

        self._runner = Runner(path, threads=threads)
        self._value = OrtValue.ortvalue_from_numpy
        self._given = [given.name for given in self._runner.session.get_outputs()]
        presents = [name for name in self._given if name != self._runner.outputs[0]]
        self._carried = dict(zip(self._runner.past_names, presents, strict=True))

    def logits(self, ids: list[int]) -> np.ndarray:
        row = np.asarray([ids])
        return self._runner.logits(row, np.ones_like(row))[0]

    def prompt(self, ids: list[int]) -> None:
        self._past = {name: self._value(array) for name, array in self._runner.empty_past(1, len(ids)).items()}
        self._seen = 0
        self._run(ids)

    def step(self, token: int) -> None:
        self._run([token])

    def _run(self, ids: list[int]) -> None:
        self._seen += len(ids)
        feeds = self._runner.token_feeds(np.asarray([ids]), np.ones((1, self._seen), dtype=np.int64))
        taken = {name: self._value(array) for name, array in feeds.items()} | self._past
        given = dict(zip(self._given, self._runner.session.run_with_ort_values(None, taken), strict=True))
        self._past = {past: given[present] for past, present in self._carried.items()}


class OpenVino:
    """OpenVINO's CPU plugin with its defaults; keys and values are states of the request."""

    def __init__(self, path: Path, threads: int, judge: bool) -> None:
        import openvino as ov

        core = ov.Core()
        self._request = core.compile_model(
            str(path), "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        ).create_infer_request()
        self._names = {name for port in self._request.model_inputs for name in port.names}

    def logits(self, ids: list[int]) -> np.ndarray:
        return self._first(ids)[0]

    def prompt(self, ids: list[int]) -> None:
        self._first(ids)

    def step(self, token: int) -> None:
        self._run([token])

    def _first(self, ids: list[int]) -> np.ndarray:
        self._request.reset_state()
        self._seen = 0
        return self._run(ids)

    def _run(self, ids: list[int]) -> np.ndarray:
        start, self._seen = self._seen, self._seen + len(ids)
        feeds = {
            "input_ids": np.asarray([ids], dtype=np.int64),
            "attention_mask": np.ones((1, self._seen), dtype=np.int64),
            "position_ids": np.arange(start, self._seen, dtype=np.int64)[None],
        }
        self._request.infer({name: array for name, array in feeds.items() if name in self._names})
        found: np.ndarray = self._request.get_tensor("logits").data
        return found


class Llama:
    """llama.cpp through llama-cpp-python, whose prompts compute logits of their last token alone."""

    def __init__(self, path: Path, threads: int, judge: bool) -> None:
        from llama_cpp import Llama as Model

        self._judge = judge
        self._model = Model(
            str(path),
            n_ctx=ROOM,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=judge,
            verbose=False,
        )

    def logits(self, ids: list[int]) -> np.ndarray:
        self.prompt(ids)
        return self._model.scores[: len(ids)]

    def prompt(self, ids: list[int]) -> None:
        self._model.reset()
        self._model.eval(ids)

    def step(self, token: int) -> None:
        self._model.eval([token])


class Genai:
    """onnxruntime-genai's own loop."""

    def __init__(self, path: Path, threads: int, judge: bool) -> None:
        import onnxruntime_genai as og

        self._og = og
        config = og.Config(str(path.parent))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)

    def logits(self, ids: list[int]) -> np.ndarray:
        self.prompt(ids)
        found: np.ndarray = self._generator.get_output("logits")
        return found.reshape(len(ids), -1)

    def prompt(self, ids: list[int]) -> None:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=ROOM, min_length=ROOM)
        self._generator = self._og.Generator(self._model, params)
        self._generator.append_tokens(np.asarray([ids], dtype=np.int32))

    def step(self, token: int) -> None:
        self._generator.append_tokens(np.asarray([[token]], dtype=np.int32))


class Torchao:
    """transformers' model with torchao's weights; prompts compute logits of their last token, as generation does."""

    def __init__(self, path: Path, threads: int, judge: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(path.parent).eval()

    def logits(self, ids: list[int]) -> np.ndarray:
        with self._torch.inference_mode():
            found: np.ndarray = self._model(self._torch.tensor([ids])).logits[0].float().numpy()
        return found

    def prompt(self, ids: list[int]) -> None:
        self._past = None
        self._run(ids)

    def step(self, token: int) -> None:
        self._run([token])

    def _run(self, ids: list[int]) -> None:
        with self._torch.inference_mode():
            rows = self._torch.tensor([ids])
            found = self._model(rows, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = found.past_key_values


ENGINES: dict[str, Callable[[Path, int, bool], Engine]] = {
    "onnx": Onnx,
    "openvino": OpenVino,
    "llama": Llama,
    "genai": Genai,
    "torchao": Torchao,
}


def timed(work: Callable[[], object], count: int = 1) -> dict[str, float]:
    """What some work took by the clock and of the processor, divided by how often it does the same."""
    start, before = time.perf_counter(), time.process_time()
    work()
    cpu, wall = time.process_time() - before, time.perf_counter() - start
    return {"seconds": wall / count, "cpu_seconds": cpu / count}


def peak() -> int:
    """The most resident bytes; by Linux's own record of this program, since what started it counts in the other."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def answer(engine: Engine, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What to say, and what to send behind it."""
    do, ids = asked["do"], asked.get("ids", [])
    if do == "logits":
        logits = np.ascontiguousarray(engine.logits(ids), dtype=np.float32)
        return {"shape": logits.shape}, logits.tobytes()
    if do == "prefill":
        return timed(lambda: engine.prompt(ids)), b""
    if do == "decode":
        engine.prompt(ids)
        steps = asked["steps"]
        return timed(lambda: [engine.step(token) for token in ids[:steps]], steps), b""
    return {"bytes": peak()}, b""


def main() -> None:
    kind, path, threads, purpose = sys.argv[1:]
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    engines: list[Engine] = []
    __import__({"onnx": "spq_graph.runtime.sessions.session", "llama": "llama_cpp"}.get(kind, "numpy"))

    def start() -> None:
        engines.append(ENGINES[kind](Path(path), int(threads), purpose == "judge"))
        engines[0].prompt([1])

    told: dict[str, Any] = timed(start)
    behind = b""
    while True:
        out.write(json.dumps(told).encode() + b"\n" + behind)
        out.flush()
        line = sys.stdin.readline()
        if not line:
            return
        told, behind = answer(engines[0], json.loads(line))


if __name__ == "__main__":
    main()

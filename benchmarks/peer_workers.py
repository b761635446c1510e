"""What benchmarks/peers.py measures, one method a process: `python peer_workers.py METHOD FOLDER MODEL OUT`.

FOLDER holds what `prepare` left; MODEL is a copy of the model for this run alone, and OUT an empty folder. Each method
imports what it needs itself, since the peers' environments know nothing of this project.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LENGTH, VOCABULARY = 128, 8192
BATCH = 8  # rows in a batch of the bare inference: as many as our calibration takes of this length


class Batches:
    """The calibration data as the quantizers of ONNX Runtime and its kin read it: feeds, then None.

    They read a row at a time, as is common: with eight, ONNX Runtime's takes as long and three times the memory.
    """

    def __init__(self, folder: Path, rows: int = 1) -> None:
        import numpy as np

        self._rows = rows
        self._ids = np.load(folder / "ids.npz")["input_ids"]
        self._past = json.loads((folder / "past.json").read_text())
        self.rewind()

    def rewind(self) -> None:
        self._feeds = self._made()

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)

    def get_first(self) -> dict[str, Any]:
        return next(self._made())

    def __len__(self) -> int:
        return len(range(0, len(self._ids), self._rows))

    def _made(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        for start in range(0, len(self._ids), self._rows):
            ids = self._ids[start : start + self._rows]
            positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
            # The cache is empty: each batch is a beginning.
            past = {name: np.zeros((len(ids), heads, 0, size), np.float32) for name, (heads, size) in self._past}
            yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions, **past}


def prepare(folder: Path, work: Path, rows: Path) -> None:
    """The model, exported once into `work`, and in `folder` the token ids and what the graph's cache looks like."""
    import numpy as np
    import onnxruntime as ort
    from end_to_end import exported

    from spq_graph.cli.terminal import steps

    work.mkdir(exist_ok=True)
    model = exported(work, steps())
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (int(rows.name), LENGTH))
    np.savez(folder / "ids.npz", input_ids=ids)
    inputs = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()
    past = [(i.name, (i.shape[1], i.shape[3])) for i in inputs if i.name.startswith("past")]
    (folder / "past.json").write_text(json.dumps(past))


def bare(folder: Path, model: Path, out: Path) -> None:
    """Inference of every batch, logits fetched and dropped; the weights read and written once."""
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    reader = Batches(folder, BATCH)
    while (feeds := reader.get_next()) is not None:
        session.run(["logits"], feeds)
    shutil.copyfile(model.with_name(model.name + ".data"), out / "model.onnx.data")


def onnxruntime(folder: Path, model: Path, out: Path) -> None:
    """MinMax and QDQ, as by default, with weights by channel."""
    from onnxruntime.quantization import quantize_static

    quantize_static(model, out / "model.onnx", Batches(folder), per_channel=True)


def modelopt(folder: Path, model: Path, out: Path) -> None:
    """INT8 on the CPU, with largest values as the others have it: its default, entropy, takes longer."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(model),
        quantize_mode="int8",
        calibration_method="max",
        calibration_data_reader=Batches(folder),
        calibration_eps=["cpu"],
        output_path=str(out / "model.onnx"),
    )


def quark(folder: Path, model: Path, out: Path) -> None:
    """INT8 as by default, with MinMax as the others have it."""
    from quark.onnx import Int8Spec, ModelQuantizer, QConfig, QLayerConfig
    from quark.onnx.quantization.config.spec import CalibMethod

    layer = QLayerConfig(activation=Int8Spec(calibration_method=CalibMethod.MinMax), weight=Int8Spec())
    ModelQuantizer(QConfig(layer)).quantize_model(str(model), str(out / "model.onnx"), Batches(folder))


WORKERS: dict[str, Callable[[Path, Path, Path], None]] = {
    "prepare": prepare,
    "bare": bare,
    "onnxruntime": onnxruntime,
    "modelopt": modelopt,
    "quark": quark,
}


if __name__ == "__main__":
    WORKERS[sys.argv[1]](*map(Path, sys.argv[2:]))

"""What a wheel must do where it is installed, without torch: a decoder quantized, proved and verified.

`python -m tests.packaging.installed` in a folder that holds `tests` and not the sources, as cibuildwheel runs it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.decoders import write_decoder, write_ids


def main() -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        model = write_decoder(folder / "model.onnx", spikes={0: 300.0}, cache=True, positions=True)
        ids, text = write_ids(folder / "ids.npz"), write_ids(folder / "text.npz", seed=1)
        measured = ["--calibration", ids, "--text", text, "--window", 32, "--ladder", "short"]
        for command in (
            ["doctor"],
            ["quantize", model, "-o", folder / "out", *measured],
            ["verify", folder / "out", model],
        ):
            subprocess.run([sys.executable, "-m", "spq_graph", *map(str, command)], check=True)


if __name__ == "__main__":
    main()

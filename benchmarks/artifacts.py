"""Quantize the same models with two checkouts, and say whether what they write is the same, byte for byte.

    python benchmarks/artifacts.py sources FOLDER            # makes the models once, in FOLDER/sources
    python benchmarks/artifacts.py write FOLDER NAME         # what this checkout makes of them, in FOLDER/NAME
    python benchmarks/artifacts.py compare FOLDER ONE OTHER [--renamed OLD=NEW ...]

The models: the embedded reference at 8 and at 6 bits, stories260K with planted spikes, what onnxruntime-genai's builder
makes of a LLaMA, and a mixture of experts. `--renamed` names words that one checkout writes for another's, such as a
precision's; digests follow from the words, and are then left out of the comparison. It is for whoever moves code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STORIES = ROOT.parent / "shared" / "data" / "stories260K"
TOKENS = ("--calibration-tokens", "8192")
LLAMA = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
# By name: the source, and the options that it is quantized with.
RUNS: dict[str, tuple[str, list[str]]] = {
    "reference-8": ("reference", ["--bits", "8", "--max-eval-tokens", "4096"]),
    "reference-6": ("reference", ["--bits", "6", "--max-eval-tokens", "4096"]),
    "planted": ("planted", []),
    "genai": ("genai/model.onnx", ["--calibration", "ids.npz"]),
    "experts": ("experts", []),
}
FILES = ("plan.json", "model.onnx", "model.onnx.data", "ranges.json", "ranges.safetensors", "inspect.json", "file.json")
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")


def sources(folder: Path) -> None:
    """Make every model that is not in the repository; those whose tools or data are absent are left out, and said."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    made = folder / "sources"
    made.mkdir(parents=True)
    np.savez(made / "ids.npz", input_ids=np.random.default_rng(0).integers(3, 512, (8, 64)))
    if STORIES.is_dir():
        plant = [sys.executable, "-m", "spq_graph.models.plant", str(STORIES), "-o", str(made / "planted")]
        subprocess.run([*plant, "--layers", "1,3", "--ratio", "150"], check=True)
    torch.manual_seed(0)
    experts = MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=4))
    experts.save_pretrained(made / "experts")
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(made / "llama")
    if STORIES.is_dir():
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(STORIES / name, made / "llama" / name)
    _genai(made)


def _genai(made: Path) -> None:
    from tests.sources.environments import produce, python_of

    (made / "genai").mkdir()
    job = {"do": "genai", "out": str(made / "genai"), "source": str(made / "llama"), "precision": "fp32"}
    failed = produce(python_of("genai", made / "environments"), [job | {"provider": "cpu"}])
    print(f"left out: {failed}" if failed else "all sources are there")


def write(folder: Path, name: str) -> None:
    """Quantize every source with this checkout, and inspect what came of it."""
    made = folder / "sources"
    for run, (source, options) in RUNS.items():
        where = source if source == "reference" else str(made / source)
        if source != "reference" and not Path(where).exists():
            print(f"{run}: no source, left out")
            continue
        out = folder / name / run
        given = [str(made / o) if o.endswith(".npz") else o for o in options]
        command = [sys.executable, "-m", "spq_graph", "quantize", where, "-o", str(out), "--force", *given]
        subprocess.run([*command, *(() if "--calibration" in given else TOKENS)], check=True, cwd=ROOT)
        for what, path in (("inspect", out), ("file", out / "model.onnx")):
            ran = subprocess.run(
                [sys.executable, "-m", "spq_graph", "inspect", str(path), "--json"],
                check=True,
                cwd=ROOT,
                capture_output=True,
            )
            shown = json.loads(ran.stdout)
            shown["path"] = ""  # where it lies is not what it is
            (out / f"{what}.json").write_text(json.dumps(shown, indent=1), encoding="utf-8")


def compare(folder: Path, one: str, other: str, renamed: list[str]) -> int:
    """Print what differs, and return how many files do."""
    pairs = [tuple(word.split("=")) for word in renamed]
    different = 0
    for run in RUNS:
        for file in FILES:
            paths = [folder / name / run / file for name in (one, other)]
            if not all(path.is_file() for path in paths):
                print(f"{run}/{file}: not in both")
                continue
            a, b = (_content(path, pairs if index == 0 else []) for index, path in enumerate(paths))
            if pairs:
                a, b = _DIGEST.sub(b"", a), _DIGEST.sub(b"", b)
            same = a == b
            different += not same
            print(f"{run}/{file}: {'same' if same else 'DIFFERENT'}  {hashlib.sha256(b).hexdigest()[:16]}")
    return different


def _content(path: Path, pairs: list[tuple[str, ...]]) -> bytes:
    """A file's bytes, with words renamed; of a model as text, since in protobuf every length would follow them."""
    if not pairs and path.suffix != ".onnx":
        return path.read_bytes()
    if path.suffix == ".onnx":
        import onnx

        data = str(onnx.load(path, load_external_data=False)).encode()
    else:
        data = path.read_bytes()
    for old, new in pairs:
        data = re.sub(rb"\b" + old.encode() + rb"\b(?!_)", new.encode(), data)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("sources", "write", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW")
    given = parser.parse_args()
    if given.verb == "sources":
        sources(given.folder.resolve())
    elif given.verb == "write":
        write(given.folder.resolve(), given.names[0])
    else:
        sys.exit(compare(given.folder.resolve(), given.names[0], given.names[1], given.renamed) > 0)


if __name__ == "__main__":
    main()

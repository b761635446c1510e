"""Cases: what is given to the command line, made of a seed and a number alone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from tests.conftest import write_tokenizer
from tests.fuzz.mutations import damage, mutate, nested
from tests.fuzz.options import odd_options
from tests.fuzz.papers import SPOILED
from tests.fuzz.places import Rng
from tests.fuzz.seeds import SEEDS
from tests.fuzz.sources import spoil_source
from tests.support.decoders import write_decoder, write_ids

KINDS = ("inspect", "quantize", "others", "documents", "sources", "options")
MODEL, OUT = "model.onnx", "OUT"
_FAST = ["--no-eval", "--window", "16"]
_GRAPHS: dict[str, bytes] = {}


@dataclass(slots=True)
class Case:
    """One call of the command line.

    Attributes:
        name: its kind and number.
        arguments: of the command.
        about: what was done to its inputs, for people.
    """

    name: str
    arguments: list[str] = field(default_factory=list)
    about: str = ""


def make(seed: int, name: str, folder: Path, base: Path) -> Case:
    """Write the inputs of a case into a folder, and say what is called.

    Args:
        seed: of the run.
        name: kind and number, as in "inspect-17".
        folder: empty; the inputs go into `in`, what is written into `out`.
        base: sound documents, which are copied.
    """
    rng = random.Random(f"{seed} {name}")  # noqa: S311 - no secret
    kind = name.partition("-")[0]
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    case = Case(name)
    if kind == "documents":
        _documents(rng, case, folder, base)
    elif kind == "sources":
        case.about, case.arguments = spoil_source(rng, folder / "in", folder / "out", base / "sources")
    elif kind == "options":
        case.about, case.arguments = odd_options(rng, folder / "in", folder / "out", base)
    else:
        _graph(rng, case, folder / "in")
        case.arguments = _verb(rng, kind, folder)
    return case


def _verb(rng: Rng, kind: str, folder: Path) -> list[str]:
    """What is called on a graph."""
    model, ids = str(folder / "in" / MODEL), str(folder / "in" / "ids.npz")
    if kind == "inspect":
        return ["inspect", model, *rng.choice((["--json"], ["--json"], ["--why", "--unmatched"]))]
    write_ids(Path(ids), 4, 16)
    data = ["--calibration", ids, "--calibration-tokens", "64"]
    if kind == "quantize":
        more = rng.choice((["--spike-ratio", "20"], ["--spike-ratio", "1.5"], ["--allow-no-glu", "--json"]))
        more += rng.choice(
            ([], [], ["--high-precision", "fp8_e4m3"], ["--target", "openvino"], ["--memory-limit", "1"])
        )
        return ["quantize", model, "-o", str(folder / "out" / OUT), *_FAST, *more, *data]
    write_tokenizer(folder / "in")
    write_decoder(folder / "in" / "sound.onnx", layers=1)
    words, sound = ["--tokenizer", str(folder / "in")], str(folder / "in" / "sound.onnx")
    ways = (
        ["eval", model, "--text", ids, "--window", "16", "--json"],
        ["eval", model, "--text", ids, "--window", "16", "--against", sound],
        ["generate", model, *words, "--prompt", "w1 w5 w9", "--max-new-tokens", "3"],
        ["calibrate", model, "-o", str(folder / "out" / "ranges.json"), *data, "--window", "16"],
        ["inspect", model, *data, "--window", "16", "--json"],
        ["diff", model, sound],
        ["quantize", model, "-o", str(folder / "out" / OUT), "--dry-run", "--json", *data, "--window", "16"],
    )
    return rng.choice(ways)


def _graph(rng: Rng, case: Case, folder: Path) -> None:
    """A graph that was changed, as a file."""
    chosen = rng.choice(list(SEEDS))
    if chosen not in _GRAPHS:
        _GRAPHS[chosen] = SEEDS[chosen]().SerializeToString()
    model = onnx.load_from_string(_GRAPHS[chosen])
    done = mutate(rng, model) if rng.random() < 0.85 else []
    if chosen == "external":
        onnx.save_model(model, folder / "sound.onnx", save_as_external_data=True, location="model.onnx.data")
        model = onnx.load(folder / "sound.onnx", load_external_data=False)
        (folder / "sound.onnx").unlink()
        done += mutate(rng, model)
    content = model.SerializeToString()
    if not done or rng.random() < 0.1:
        content = damage(rng, content)
        done.append("bytes")
    if rng.random() < 0.003:
        content = nested(rng.choice((30, 40, 5000)))
        done.append("nested bytes")
    (folder / MODEL).write_bytes(content)
    case.about = f"{chosen}: {', '.join(done)}"


# ------------------------------------------------------------------------------------------------------- documents


def write_base(folder: Path, call: Callable[[list[str]], None]) -> Path:
    """A model, its data, its tokenizer, and what the verbs make of them.

    Args:
        folder: empty.
        call: runs the command line, which must end well.
    """
    inputs = folder / "in"
    inputs.mkdir(parents=True)
    write_decoder(inputs / MODEL, layers=1, cache=True, positions=True)
    write_ids(inputs / "ids.npz", 4, 16)
    write_tokenizer(inputs)
    (inputs / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, '
        '"bos_token_id": 1, "eos_token_id": [2, 3], "max_position_embeddings": 64, "num_attention_heads": 1}'
    )
    (inputs / "generation_config.json").write_text('{"eos_token_id": [2], "temperature": 0.5, "top_k": 5}')
    (inputs / "text.txt").write_text("w1 w2 w3 w9 w7 \n" * 60)
    (inputs / "recipe.toml").write_text('bits = 8\nkeep = ["*down_proj"]\n')
    model, ids = str(inputs / MODEL), str(inputs / "ids.npz")
    call(["calibrate", model, "-o", str(inputs / "ranges.json"), "--calibration", ids, "--window", "16"])
    call(["plan", model, str(inputs / "ranges.json"), "-o", str(inputs / "plan.json"), "--spike-ratio", "20"])
    made = ["quantize", model, "-o", str(inputs / "made"), "--tokenizer", str(inputs), "--spike-ratio", "20"]
    call([*made, "--ranges", str(inputs / "ranges.json"), "--text", str(inputs / "text.txt"), "--window", "16"])
    return folder


def _documents(rng: Rng, case: Case, folder: Path, base: Path) -> None:
    """A set of sound files, one of which is spoiled, and a verb that reads it."""
    inputs, out = folder / "in", folder / "out"
    shutil.copytree(base / "in", inputs, dirs_exist_ok=True)
    at = {name: str(inputs / name) for name in (MODEL, "ids.npz", "ranges.json", "plan.json", "recipe.toml", "made")}
    to, text = ["-o", str(out / OUT)], str(inputs / "text.txt")
    quantize = ["quantize", at[MODEL], *to, *_FAST, "--spike-ratio", "20"]
    with_ids = [*quantize, "--calibration", at["ids.npz"]]
    words = ["--tokenizer", str(inputs)]
    generate = ["generate", at[MODEL], *words, "--prompt", "w1 w5", "--max-new-tokens", "3"]
    measured = ["eval", at[MODEL], "--text", text, *words, "--json"]
    site = ["inspect", at["made"], "--site", "*down_proj", "--why"]
    ways: list[tuple[str, list[str]]] = [
        ("recipe.toml", [*with_ids, "--recipe", at["recipe.toml"]]),
        ("ranges.json", [*quantize, "--ranges", at["ranges.json"]]),
        ("ranges.json", ["plan", at[MODEL], at["ranges.json"], "-o", str(out / "plan.json"), "--spike-ratio", "20"]),
        ("ranges.safetensors", [*quantize, "--ranges", at["ranges.json"]]),
        ("plan.json", ["apply", at[MODEL], at["plan.json"], *to]),
        ("plan.json", ["diff", at["plan.json"], at["made"]]),
        ("ids.npz", with_ids),
        ("text.txt", [*quantize, *words, "--calibration", text]),
        ("text.txt", measured),
        ("generation_config.json", generate),
        ("generation_config.json", with_ids),
        ("config.json", [*with_ids, *words]),
        ("config.json", ["quantize", str(inputs), *to]),
        ("tokenizer.json", [*quantize, *words, "--calibration", text]),
        ("tokenizer.json", generate),
        ("tokenizer_config.json", measured),
        ("made/plan.json", ["inspect", at["made"], "--json"]),
        ("made/plan.json", ["verify", at["made"], at[MODEL]]),
        ("made/plan.json", site),
        ("made/ranges.json", site),
        ("made/ranges.safetensors", site),
        ("made/report.json", ["diff", at["made"], at["made"]]),
        ("made/report.json", ["inspect", at["made"]]),
        ("made/model.onnx", ["verify", at["made"], at[MODEL], "--json"]),
        ("made/tokenizer.json", ["generate", at["made"], "--prompt", "w1", "--max-new-tokens", "2"]),
    ]
    name, case.arguments = rng.choice(ways)
    file = inputs / name
    if name == "config.json" and case.arguments[1] == str(inputs):  # refused for its weights, where not before
        (inputs / "model.safetensors").write_bytes(b"\x05")
    file.write_bytes(SPOILED[file.suffix](rng, file.read_bytes()))
    case.about = name

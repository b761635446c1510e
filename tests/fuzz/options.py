"""A sound command, one of whose arguments is not what anybody would give."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.places import Rng

_NUMBERS = (
    "0",
    "-1",
    "1",
    "99",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 30,
    "9" * 5000,
    "1.5",
    "0x10",
    "",
    " ",
    "\u0661",
    "--",
    "1_0",
)
_WORDS = (
    "",
    " ",
    "nobody",
    "CPU",
    "\x1b[31mred",
    "line\nbreak",
    "x" * 70_000,
    "é\udcff",
    "[!",
    "*",
    "-",
    "--json",
    "%s{0}",
)
_PLACES = (
    *("/dev/null", "/dev/full", "/dev/zero", "/dev/stdout", "/proc/self/mem", "/sys", "/", ".", "", "~", "-", "a/b/c"),
    *("x" * 300, "\u00e9\udcff", "\x1b[31m", "reference", "http://x/y"),
)
_OPTIONS = {
    "quantize": {
        "numbers": (
            "--bits",
            "--calibration-tokens",
            "--max-eval-tokens",
            "--spike-ratio",
            "--seed",
            "--window",
            "--memory-limit",
        ),
        "words": ("--high-precision", "--keep", "--target", "--preset"),
        "files": ("--recipe", "--calibration", "--text", "--tokenizer", "--ranges", "-o"),
    },
    "calibrate": {
        "numbers": ("--calibration-tokens", "--seed", "--window", "--memory-limit"),
        "words": ("--shard",),
        "files": ("--calibration", "--tokenizer", "--merge", "-o"),
    },
    "plan": {
        "numbers": ("--bits", "--spike-ratio", "--window", "--memory-limit"),
        "words": ("--high-precision", "--keep", "--target", "--preset"),
        "files": ("--recipe", "--calibration", "--tokenizer", "-o"),
    },
    "apply": {"words": ("--target",), "files": ("-o",)},
    "eval": {
        "numbers": ("--limit", "--max-eval-tokens", "--window"),
        "words": ("--target",),
        "files": ("--text", "--against", "--tasks", "--tokenizer"),
    },
    "generate": {
        "numbers": ("--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed"),
        "words": ("--prompt", "--stop"),
        "files": ("--tokenizer",),
    },
    "bench": {"numbers": ("--threads", "--length"), "words": ("--target",), "files": ("--against",)},
    "inspect": {
        "numbers": ("--calibration-tokens", "--window"),
        "words": ("--site", "--prompt"),
        "files": ("--calibration", "--tokenizer"),
    },
    "export": {"numbers": ("--opset",), "files": ("-o",)},
    "diff": {},
    "verify": {},
}


def odd_options(rng: Rng, inputs: Path, out: Path, base: Path) -> tuple[str, list[str]]:
    """Sound files, and a command with an argument or two that are odd.

    Returns:
        What is odd, and the arguments.
    """
    shutil.copytree(base / "in", inputs, dirs_exist_ok=True)
    verb = rng.choice(list(_OPTIONS))
    arguments = _sound(verb, inputs, out)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        kinds = _OPTIONS[verb]
        kind = rng.choice((*kinds, "place"))
        if kind == "place":
            at = rng.randint(1, 2 if verb in ("plan", "apply", "diff", "verify") else 1)
            arguments[at] = _odd_path(rng, inputs)
            said.append(f"argument {at}")
            continue
        option = rng.choice(kinds[kind])
        if kind == "files":
            value = _odd_place(rng, out) if option == "-o" else _odd_path(rng, inputs)
        else:
            value = rng.choice(_NUMBERS if kind == "numbers" else _WORDS)
        arguments = [*_without(arguments, option), option, value]
        if option == "--merge":
            arguments = _without(arguments, "--calibration")
        said.append(option)
    return f"{verb}: {', '.join(said)}", [argument.replace("\0", "") for argument in arguments]


def _without(arguments: list[str], option: str) -> list[str]:
    if option not in arguments:
        return arguments
    at = arguments.index(option)
    return arguments[:at] + arguments[at + 2 :]


def _sound(verb: str, inputs: Path, out: Path) -> list[str]:
    model, made, ranges = (str(inputs / name) for name in ("model.onnx", "made", "ranges.json"))
    ids, words, text = str(inputs / "ids.npz"), ["--tokenizer", str(inputs)], str(inputs / "text.txt")
    small = ["--window", "16", "--calibration", ids]
    return {
        "quantize": ["quantize", model, "-o", str(out / "OUT"), "--no-eval", "--spike-ratio", "20", *small, *words],
        "calibrate": ["calibrate", model, "-o", str(out / "ranges.json"), *small, *words],
        "plan": ["plan", model, ranges, "-o", str(out / "plan.json"), "--spike-ratio", "20"],
        "apply": ["apply", model, str(inputs / "plan.json"), "-o", str(out / "OUT")],
        "eval": ["eval", model, "--text", text, "--window", "16", *words, "--json"],
        "generate": ["generate", model, *words, "--prompt", "w1 w5", "--max-new-tokens", "3", "--json"],
        "bench": ["bench", model, "--rounds", "1", "--length", "4", "--target", "cpu"],
        "inspect": ["inspect", model, "--outliers", *words, "--json"],
        "export": ["export", model, "-o", str(out / "OUT")],
        "diff": ["diff", str(inputs / "plan.json"), made],
        "verify": ["verify", made, model, "--json"],
    }[verb]


def _odd_place(rng: Rng, out: Path) -> str:
    """Where something stands that is not to be replaced, or nothing can stand; never a device, since root may."""
    entries: tuple[tuple[str, Callable[[Path], object]], ...] = (
        ("a-pipe", os.mkfifo),
        ("a-loop", lambda path: path.symlink_to(path)),
        ("a-link-to-nothing", lambda path: path.symlink_to(out / "nothing")),
        ("a-file", lambda path: path.write_bytes(b"of somebody")),
        ("a-folder", lambda path: (path / "of-somebody").mkdir(parents=True)),
    )
    name, make = rng.choice(entries)
    if not os.path.lexists(out / name):  # two options may be given the same
        make(out / name)
    there = (str(out / name), str(out / name / "below"), f"{out}/{name}/")
    names = (
        "",
        ".",
        "..",
        "x" * 300,
        "a/b/c",
        "-",
        "~",
        "\x1b[31m",
        "\u00e9\udcff",
        "line\nbreak",
        "a/../b",
        "./",
        "plan.json/",
    )
    return rng.choice((*there, *there, *there, *names))


def _odd_path(rng: Rng, inputs: Path) -> str:
    """A path that is there but no file of its kind, or none at all."""
    odd = inputs / "odd"
    odd.mkdir(exist_ok=True)
    way = rng.randrange(9)
    path = odd / "pipe"
    if way == 0 and not path.exists():
        os.mkfifo(path)
    elif way == 1:
        path = odd / "loop"
        path.unlink(missing_ok=True)
        path.symlink_to(path)
    elif way == 2:
        path = odd / "empty"
        path.write_bytes(b"")
    elif way == 3:
        path = odd / "locked"
        path.mkdir(exist_ok=True)
        path.chmod(0o500)
    elif way == 4:
        path = rng.choice([entry for entry in inputs.rglob("*") if "odd" not in entry.parts] or [inputs])
    elif way > 4:
        return rng.choice((str(inputs), f"{inputs}/text.txt/x", *_PLACES))
    return str(path)

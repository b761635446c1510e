"""Every option of every verb changes what is said or done: none is taken and forgotten."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from typer.core import TyperGroup

pytest.importorskip("onnxruntime")

from spq_graph.cli.app import app
from spq_graph.runtime.measures.timing import Loaded
from tests.conftest import write_tokenizer
from tests.support.command import contents, done, spq
from tests.support.decoders import write_decoder, write_ids
from tests.support.every_option import Given, World, base, rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("options")
    w = World(folder)
    write_decoder(w.model__onnx, layers=2, spikes={0: 300.0}, cache=True, positions=True)
    write_decoder(w.other__onnx, layers=1, cache=True, positions=True)
    write_decoder(w.plain__onnx, layers=1, glu=False)
    write_decoder(w.large__onnx, layers=2, width=128, hidden=768)
    write_ids(w.ids__npz)
    write_ids(w.text__npz, seed=1)
    words = np.random.default_rng(0).integers(3, 60, 900)
    w.words__txt.write_text(" ".join(f"w{n}" for n in words))
    for name, ids in (("tokenizer", (1, 2)), ("without", (5, 6))):
        (folder / name).mkdir()
        write_tokenizer(folder / name)
        (folder / name / "config.json").write_text(json.dumps({"bos_token_id": ids[0], "eos_token_id": ids[1]}))
    bare = json.loads((w.without / "tokenizer.json").read_text()) | {"post_processor": None}
    (w.without / "tokenizer.json").write_text(json.dumps(bare))
    shutil.copytree(w.tokenizer, w.chatty)
    (w.chatty / "chat_template.jinja").write_text("{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}w3")
    w.task__jsonl.write_text('{"context": "w3 w4", "continuation": "w5"}\n{"context": "w5", "continuation": "w6"}\n')
    w.recipe__toml.write_text("bits = 5\n")
    w.peeled__toml.write_text('[remedies.peel]\nuse = "always"\n')
    given = ["--calibration", w.ids__npz, "--window", 32]
    done("calibrate", w.model__onnx, "-o", w.ranges__json, *given)
    done("calibrate", w.large__onnx, "-o", w.large__json, *given)
    done("quantize", w.model__onnx, "-o", w.out, "--no-eval", "--spike-ratio", 5, *given)
    done("quantize", w.model__onnx, "-o", w.out6, "--no-eval", "--spike-ratio", 5, "--bits", 6, *given)
    return w


# What every verb cannot do without; that they are read shows wherever a verb does anything.
NEEDED = {"source", "out", "model", "ranges", "plan_file", "path", "a", "b"}


def options() -> Iterator[tuple[str, str]]:
    """Every option and argument of the command line, as typer has them."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for verb, command in group.commands.items():
        for parameter in command.params:
            optional = not (
                parameter.name in NEEDED and (parameter.param_type_name == "argument" or parameter.required)
            )
            if parameter.name != "help" and (optional and parameter.name != "out"):
                yield verb, str(parameter.name)


# Of every verb, and the same in each: tests/e2e/test_folders.py hears what a verb has to say with --verbose, and
# tests/e2e/test_telling.py with --quiet and --log-file.
SHARED = ("as_json", "said", "quiet", "log_file")


def test_every_option_has_a_row(world: World) -> None:
    found = {(verb, name) for verb, name in options() if name not in (*SHARED, "source")}
    assert rows(world).keys() == found


_TIMES = re.compile(r"(\d[\d.,]* ?(s|ms|min)\b.*|time .*|.*(seconds|rss).*|\d+\.\d+ a second)")


def told(verb: str, added: Given, w: World, seen: list[object]) -> object:
    """All that a call says and leaves: status, both streams, files and what it opened, but for times."""
    for path in (w.made, w.made__json, w.at / "made.safetensors", w.there):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    shutil.copytree(w.out, w.there)
    seen.clear()
    sys.stdin = io.StringIO("w3 w4\nw5\n")  # which the fixture puts back
    arguments = base(verb, w)
    places = [place for place in added if isinstance(place, Path) and place.suffix == ".onnx" and place in added[:1]]
    arguments = [arguments[0], *added, *arguments[2:]] if places else [*arguments, *added]
    if places and len(added) > 1 and isinstance(added[1], Path):  # plan takes two
        arguments = [arguments[0], *added, *base(verb, w)[3:]]
    if "--prompt" in added:  # a list: the other one would be kept
        arguments = [a for place, a in enumerate(arguments) if place not in (2, 3)]
    result = spq(*arguments)
    plan = _plan(w.made / "plan.json") or _plan(w.made__json)
    streams = [_TIMES.sub("", text) for text in (result.out, result.err)]
    ranges = contents(w.made__json) if not plan and w.made__json.exists() else {}
    return json.dumps([result.code, streams, plan, _report(w.made), _graph(w.made), ranges, [str(s) for s in seen]])


def _plan(path: Path) -> Any:
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {key: found[key] for key in ("sites", "search", "calibration") if key in found}


def _graph(out: Path) -> list[str]:
    file = out / "model.onnx"
    return [node.op_type for node in onnx.load(file, load_external_data=False).graph.node] if file.is_file() else []


def _report(out: Path) -> Any:
    if not (out / "report.json").is_file():
        return None
    found = json.loads((out / "report.json").read_text())
    return {key: found[key] for key in ("ladder", "text", "executed", "target", "kernels", "bytes")}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, world: World) -> list[object]:
    """What verbs call whose times, windows or exports are not to be waited for, and how many pieces models run in."""
    calls: list[object] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def export(source: Path, model: Path, **keywords: object) -> None:
        calls.append(keywords)
        shutil.copyfile(world.model__onnx, model)

    def load(path: Path, target: str, threads: int) -> Loaded:
        calls.append((target, threads))
        return Loaded(1.0, 1)

    def turns(runners: Any, lengths: Any, past: int, rounds: int, tick: Any, within: float) -> Any:
        calls.append((sorted(runners), tuple(lengths), rounds))
        return {name: {f"prefill {n}": [1.0] * rounds for n in lengths} for name in runners}

    def start(file: str, address: object, browse: bool) -> tuple[str, int]:
        calls.append((address, browse))
        return "localhost", 1

    from spq_graph.jobs.evaluate import runner_on as on
    from spq_graph.runtime.sessions import segmented

    opened = segmented.SegmentedRunner.__init__

    def pieces(self: Any, model: Any, *more: Any, **keywords: Any) -> None:
        calls.append(len(model.segments))
        opened(self, model, *more, **keywords)

    monkeypatch.setattr("spq_graph.models.export.export_folder", export)
    monkeypatch.setattr("spq_graph.runtime.measures.timing.load_apart", load)
    monkeypatch.setattr("spq_graph.runtime.measures.timing.in_turns", turns)
    # The model takes shorter prompts than are timed.
    monkeypatch.setattr("spq_graph.runtime.measures.timing.require_finite", lambda *_: None)
    monkeypatch.setattr("spq_graph.jobs.bench.add_to_report", lambda *_: calls.append("report"))
    netron = SimpleNamespace(start=start, wait=int)
    monkeypatch.setattr("spq_graph.jobs.view.importlib", SimpleNamespace(import_module=lambda _: netron))
    monkeypatch.setattr(segmented.SegmentedRunner, "__init__", pieces)
    monkeypatch.setattr(
        "spq_graph.jobs.evaluate.runner_on", lambda profile, path: calls.append(profile.name) or on(profile, path)
    )
    return calls


def _keys() -> list[tuple[str, str]]:
    return sorted(rows(World(Path("unused"))))


@pytest.mark.parametrize(("verb", "name"), _keys(), ids=str)
def test_an_option_changes_what_is_said_or_done(verb: str, name: str, world: World, seen: list[object]) -> None:
    without, beside = rows(world)[verb, name]
    if "openvino" in beside:
        pytest.importorskip("openvino")
    usual, other = told(verb, without, world, seen), told(verb, beside, world, seen)
    assert usual != other, f"{verb} {' '.join(map(str, beside))} says the same as without"


@pytest.mark.parametrize(
    "verb", ["quantize", "export", "calibrate", "plan", "apply", "doctor", "eval", "generate", "chat"]
)
def test_json_is_one_object(verb: str, world: World, seen: list[object]) -> None:
    told(verb, (), world, seen)
    shutil.rmtree(world.made, ignore_errors=True)
    sys.stdin = io.StringIO("w3 w4\n")
    assert isinstance(done(*base(verb, world), "--json").json, dict)


@pytest.mark.parametrize("verb", ["bench", "inspect", "verify", "diff", "presets"])
def test_json_is_one_object_of_what_is_looked_at(verb: str, world: World, seen: list[object]) -> None:
    assert isinstance(done(*base(verb, world), "--json").json, dict)


def test_what_is_not_used_is_said(world: World, seen: list[object]) -> None:
    """Where an option is legal and cannot matter, standard error says so."""
    w = world
    cases: list[tuple[list[object], str]] = [
        (["inspect", w.model__onnx, "--window", 16], "--window: not used without --calibration"),
        (["inspect", w.model__onnx, "--bos"], "--bos: not used without --calibration FILE or --outliers"),
        (["inspect", w.model__onnx, "--prompt", "w3"], "--prompt: not used without --outliers"),
        (
            ["calibrate", w.model__onnx, "-o", w.made__json, "--merge", w.ranges__json, "--shard", "0/2"],
            "--shard: not used",
        ),
        ([*base("calibrate", w), "--seed", 3], "--seed: not used where --calibration names the data"),
        ([*base("calibrate", w), "--no-chat"], "--no-chat: not used where --calibration names the data"),
        ([*base("quantize", w), "--no-chat", "--no-eval", "--force"], "--no-chat: not used where --calibration or"),
        ([*base("eval", w), "--limit", 3], "--limit: not used without --tasks"),
        ([*base("generate", w), "--seed", 3], "--seed: not used where the likeliest token is taken"),
        ([*base("quantize", w), "--no-eval", "--text", w.text__npz, "--force"], "--text: not used with --no-eval"),
        ([*base("quantize", w), "--max-eval-tokens", 50, "--force"], "--max-eval-tokens: not used without --text"),
        ([*base("quantize", w), "--ladder", "short", "--no-eval", "--force"], "--ladder: not used with --no-eval"),
        (["bench", w.out, "--target", "cpu"], "--target is not used"),
    ]
    for arguments, message in cases:
        assert message in " ".join(spq(*arguments).err.split()), arguments


def test_the_worlds_files_are_graphs(world: World) -> None:
    for path in world.at.glob("*.onnx"):
        onnx.checker.check_model(onnx.load(path))

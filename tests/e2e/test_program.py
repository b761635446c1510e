"""The jobs as a program calls them: plain paths, nothing printed, and what --json prints in what they return."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("onnxruntime")

from spq_graph import (
    Data,
    Opening,
    Plan,
    Ranges,
    Recipe,
    Sampling,
    SpqError,
    Steps,
    apply,
    bench,
    calibrate,
    compare,
    evaluate,
    export,
    generate,
    inspect,
    load_recipe,
    merge,
    quantize,
)
from spq_graph.cli import terminal
from spq_graph.documents.results import Outcome
from spq_graph.jobs.forecast import forecast
from spq_graph.jobs.order import Order
from spq_graph.jobs.plan import plan
from spq_graph.jobs.quantize import fulfil
from spq_graph.terms.rows import FP32, SPIKE_AWARE
from tests.conftest import write_tokenizer
from tests.support.command import Case, contents, done
from tests.support.decoders import write_decoder, write_ids


@pytest.fixture(scope="module")
def made(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    data = Data(calibration=str(case.calibration), text=str(case.text))
    return quantize(str(case.model), str(tmp_path_factory.mktemp("made") / "out"), data=data, ladder_bits=(6,))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


def test_a_program_makes_what_the_command_makes(case: Case, made: Outcome) -> None:
    for name in ("model.onnx", "model.onnx.data", "plan.json", "ranges.json", "ranges.safetensors"):
        assert (made.out / name).read_bytes() == (case.out / name).read_bytes(), name
    said, found = case.result.json, json.loads(json.dumps(made.to_dict()))
    assert found["plan"] == said["plan"]
    assert found["report"]["ladder"] == said["report"]["ladder"]
    assert set(found) == set(said)
    assert list(made.report.seconds)  # kept, though nobody watched


def test_the_width_that_out_holds_is_the_recipes(case: Case, tmp_path: Path) -> None:
    six = quantize(case.model, tmp_path / "six", Recipe(bits=6), data=Data(case.calibration), ladder=False)
    assert (six.plan.recipe.bits, six.report.ladder) == (6, [])
    with pytest.raises(SpqError, match="less than or equal to 8"):
        quantize(case.model, tmp_path / "unused", ladder_bits=[12])


@pytest.mark.parametrize("named", [True, False])
def test_how_much_is_measured_stands_in_the_recipe(case: Case, tmp_path: Path, named: bool) -> None:
    """Of data and of text sampled from the model alike: the plan's recipe says what was asked for."""
    recipe = Recipe(calibration_tokens=64, spike_ratio=100.0)
    data = Data(case.calibration) if named else None
    made = quantize(Opening(case.model, window=32), tmp_path / "out", recipe, data=data, ladder=False)
    assert made.plan.calibration.tokens == made.plan.recipe.calibration_tokens == 64


def test_sampled_text_that_nobody_limited_is_as_much_as_settles_ranges(case: Case, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("spike_ratio = 100.0")
    arguments = ["--recipe", recipe, "--window", 32, "--no-eval", "--json"]
    found = done("quantize", case.model, "-o", tmp_path / "out", *arguments).json["plan"]
    assert found["recipe"]["calibration_tokens"] == Recipe().calibration_tokens > found["calibration"]["tokens"]
    recipe.write_text("spike_ratio = 100.0\ncalibration_tokens = 96")
    assert load_recipe(str(recipe), preset="w8a8-spike") == Recipe(spike_ratio=100.0, calibration_tokens=96)
    found = done("quantize", case.model, "-o", tmp_path / "less", *arguments).json["plan"]
    assert found["recipe"]["calibration_tokens"] == found["calibration"]["tokens"] == 96


def test_the_single_steps_hand_on_what_they_return(case: Case, tmp_path: Path) -> None:
    parts = [calibrate(case.model, tmp_path / f"part{n}", calibration=case.calibration, shard=f"{n}/2") for n in (0, 1)]
    ranges = merge(parts, tmp_path / "ranges.json")
    merge([tmp_path / "part0.json", str(tmp_path / "part1.json")], tmp_path / "again")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "ranges.json").read_bytes()
    assert Ranges.load(str(tmp_path / "ranges.json")).tokens == sum(part.tokens for part in parts)
    made = plan(case.model, tmp_path / "plan.json", Recipe(spike_ratio=100.0), ranges=ranges)
    applied = apply(case.model, tmp_path / "out", made)
    assert applied.integer_kernels == len(made.integer_sites) > 0
    assert Plan.load(str(applied.out / "plan.json")) == applied.plan == made
    same = apply(str(case.model), tmp_path / "same", str(tmp_path / "plan.json"), target="cpu")
    assert same.to_dict() == applied.to_dict() | {"out": str(tmp_path / "same")}
    said = done("apply", case.model, tmp_path / "plan.json", "-o", tmp_path / "said", "--json").json
    assert said == applied.to_dict() | {"out": str(tmp_path / "said")}
    assert not compare(str(applied.out), tmp_path / "plan.json").changed
    assert len(inspect(str(applied.out)).sites) == len(made.sites)


def test_ranges_that_are_at_hand(case: Case, made: Outcome, tmp_path: Path) -> None:
    known = Ranges.load(made.out / "ranges.json")
    data = Data(case.calibration, ranges=known)
    again = quantize(case.model, tmp_path / "again", data=data, ladder=False)
    assert again.plan == made.plan
    assert "calibrate" not in again.report.seconds
    other = write_decoder(tmp_path / "other.onnx", seed=5)
    with pytest.raises(SpqError, match="another model") as refused:
        plan(other, tmp_path / "plan.json", ranges=known)
    assert refused.value.where == "other.onnx"


def test_evaluation(case: Case, made: Outcome, tokenizer: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "choice.jsonl"
    tasks.write_text("\n".join(json.dumps({"query": "w1", "choices": ["w2 w3", "w4"], "gold": 0}) for _ in range(3)))
    opening = Opening(made.out, tokenizer=tokenizer, window=32)
    found = evaluate(opening, text=case.text, against=case.model, tasks=[tasks], limit=2)
    arguments = ["eval", made.out, "--text", case.text, "--against", case.model, "--tasks", tasks, "--limit", 2]
    assert done(*arguments, "--tokenizer", tokenizer, "--window", 32, "--json").out == text_of(found.to_dict())
    assert found.tasks["choice"].n == 2
    rung = next(rung for rung in made.report.ladder if rung.id == SPIKE_AWARE)
    plain = evaluate(str(made.out), text=str(case.text))
    assert plain.perplexity == pytest.approx(rung.perplexity, rel=1e-6)
    assert (plain.kl, plain.top1, plain.tasks) == (None, None, {})
    assert evaluate(made.out, text=case.text, against=Opening(made.out)).kl == pytest.approx(0.0, abs=1e-9)


def text_of(data: dict[str, object]) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def test_generation(case: Case, tokenizer: Path) -> None:
    opening, pieces = Opening(case.model, tokenizer), list[str]()
    found = generate(opening, "w1 w2", max_new_tokens=5, write=pieces.append)
    assert "".join(pieces) == f"w1 w2{found.texts[0]}\n"
    assert (found.prompts, found.finish, found.reached_model_length) == (["w1 w2"], ["length"], False)
    several = generate(opening, ["w1 w2", "w3"], sampling=Sampling(temperature=0.7, seed=3), max_new_tokens=5)
    arguments = ["--prompt", "w1 w2", "--prompt", "w3", "--temperature", 0.7, "--seed", 3, "--max-new-tokens", 5]
    said = done("generate", case.model, *arguments, "--tokenizer", tokenizer, "--json").json
    seconds = ("load_seconds", "prefill_seconds", "decode_seconds", "tokens_per_second")
    assert list(said) == list(several.to_dict())
    assert {k: v for k, v in said.items() if k not in seconds} == {
        k: v for k, v in several.to_dict().items() if k not in seconds
    }


def test_a_forecast_in_numbers(case: Case, tmp_path: Path) -> None:
    order = Order(
        Opening(case.model, window=32), tmp_path / "out", Recipe(), Data(max_eval_tokens=100), ladder_bits=(6,)
    )
    found = forecast(order)
    assert (found.sites, found.kept_at_most, found.bits) == (21, 3, (8, 6))
    assert found.bytes_everywhere < found.bytes_at_most < found.source_bytes
    assert found.ladder_seconds == 0  # no text, so no ladder
    assert found.by_step.keys() >= {"sample", "calibrate", "decide at 8 bits", "decide at 6 bits", "apply"}
    with_text = replace(order, data=Data(case.calibration, text=case.text, max_eval_tokens=100))
    found = forecast(with_text)
    assert 0 < found.ladder_seconds < found.seconds
    assert "sample" not in found.by_step
    longer = forecast(replace(with_text, data=replace(with_text.data, max_eval_tokens=None)))
    assert longer.ladder_seconds > 0  # its text is read, and its length known, without a limit too
    assert forecast(replace(with_text, ladder=False)).ladder_seconds == 0
    by_ratio = forecast(replace(with_text, recipe=Recipe(spike_ratio=20.0)))
    assert not any(name.startswith("decide") for name in by_ratio.by_step)
    assert not [name for name, value in found.to_dict().items() if isinstance(value, str) and name != "source"]


def _orders(case: Case, folder: Path) -> dict[str, Order]:
    """A second, some seconds with a ladder, and some without."""
    wide = write_decoder(folder / "wide.onnx", layers=4, width=256, hidden=1024, spikes={0: 300.0})
    ids, text = write_ids(folder / "ids.npz", rows=256, length=64), write_ids(folder / "text.npz", rows=64, seed=1)
    small, opening = Data(case.calibration, text=case.text), Opening(wide, window=64)
    return {
        "small": Order(Opening(case.model, window=32), folder / "out", Recipe(), small, ladder_bits=(6,)),
        "wide": Order(opening, folder / "out", Recipe(), Data(ids, text=text)),
        "at 4 bits": Order(opening, folder / "out", Recipe(bits=4), Data(ids)),
    }


@pytest.mark.parametrize("name", ["small", "wide", "at 4 bits"])
def test_a_forecast_comes_true(name: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a factor of 1.5, by processor time: what else the machine does does not count. A run says it of itself."""
    monkeypatch.setattr("time.perf_counter", time.process_time)
    order = _orders(case, tmp_path)[name]
    forecasts = [dict(forecast(order).by_step) for _ in range(3)]
    assert all(one.pop("around") > 0 for one in forecasts)
    told: list[Mapping[str, float]] = []
    report = fulfil(order, steps=Steps(ahead=told.append)).report
    assert report.expected_seconds == told[0]
    assert told[0].keys() == {*report.seconds, "around"}
    real = {step: seconds for step, seconds in report.seconds.items() if step != "estimate"}
    assert all(one.keys() - {"ladder"} == real.keys() - {"ladder"} for one in forecasts)
    typical = statistics.median(sum(one.values()) for one in forecasts)
    assert 1 / 1.5 < typical / sum(real.values()) < 1.5
    assert 0.5 < (sum(told[0].values()) - told[0]["around"]) / sum(report.seconds.values()) < 2


def test_speed(case: Case, made: Outcome) -> None:
    found = bench(str(made.out), against=str(case.model), targets=["portable"], rounds=1, lengths=[8])
    assert found.rows[0].id == FP32
    assert json.dumps(found.to_dict())


def test_what_is_left_out_is_told(case: Case, made: Outcome) -> None:
    """The plan is not one of the model that it is compared with: without a remark, rows would be missing silently."""
    told: list[str] = []
    found = bench(made.out, against=made.out, rounds=1, lengths=[8], steps=Steps(remark=told.append))
    assert [row.id for row in found.rows] == [FP32, SPIKE_AWARE]
    assert told == ["only the two models are timed: the plan is not one of the floating-point model given"]


def test_progress_is_told_and_shown_where_asked_for(case: Case, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    over: list[tuple[str, float | None]] = []
    steps = Steps(watch=lambda *what: told.append(what), ended=lambda *what: over.append(what))
    calibrate(case.model, tmp_path / "ranges.json", calibration=case.calibration, steps=steps)
    assert list(steps.seconds) == ["identify", "calibrate"]
    labels = list(dict.fromkeys(label for label, _, _ in told))
    assert labels[0] == "Finding GLU blocks and projections"
    assert labels[1].startswith("Calibrating on ")
    assert told[-1][1] == told[-1][2] > 0
    assert over == list(zip(labels, steps.seconds.values(), strict=True))
    with (tmp_path / "terminal").open("w") as file:
        shown = terminal.steps(Console(file=file, force_terminal=True))
        calibrate(case.model, tmp_path / "ranges.json", calibration=case.calibration, steps=shown)
    assert "Calibrating on" in (tmp_path / "terminal").read_text(encoding="utf-8")


def test_errors_leave_nothing_behind(case: Case, tmp_path: Path) -> None:
    before = contents(case.out)
    with pytest.raises(SpqError, match="OUT exists") as refused:
        quantize(case.model, case.out, data=Data(case.calibration))
    assert (refused.value.where, refused.value.exit_code) == (str(case.out), 1)
    with pytest.raises(SpqError, match="ONNX file already"):
        export(case.model, tmp_path / "out")
    with pytest.raises(SpqError, match="one of cpu") as refused:
        apply(case.model, tmp_path / "out", case.out / "plan.json", target="tpu")
    with pytest.raises(SpqError, match="I below N"):
        calibrate(case.model, tmp_path / "ranges", calibration=case.calibration, shard="2/2")
    assert contents(case.out) == before
    assert not list(tmp_path.iterdir())


def test_an_opening_serves_every_job(case: Case, made: Outcome, tmp_path: Path) -> None:
    """What a job needs of a model is its own business: the same value opens one with its sites, and one without."""
    opening = Opening(case.model, window=16)
    with opening.open() as found, opening.open(find_sites=False) as plain:
        assert found.found.sites
        assert found.sequence_length == plain.sequence_length == 16
    assert Opening.of(opening) is opening
    seen = inspect(opening, "*down_proj", calibration=case.calibration, tokens=64)
    assert seen.measured is not None
    assert 0 < seen.measured.tokens <= 64
    assert all(site.measured is not None and site.measured.ratio for site in seen.sites)
    assert inspect(Opening(made.out)).to_dict() == inspect(made.out).to_dict()
    assert compare(Opening(made.out), opening).to_dict() == compare(made.out, case.model).to_dict()
    with pytest.raises(LookupError, match="find_sites"):
        assert plain.found
    assert Opening.of("reference") == Opening("reference")
    with replace(opening, source=made.out).open(find_sites=False) as of_out:
        assert of_out.model == made.out / "model.onnx"
        assert of_out.sequences(case.text).ids.shape[1] == 16

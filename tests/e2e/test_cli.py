"""The verbs as people use them, on decoders of a few kilobytes: outputs, shapes of JSON, exit statuses, same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph import __version__
from spq_graph.documents.plan import Plan
from spq_graph.documents.report import Report
from spq_graph.terms.kernels import INTEGER_KERNELS
from tests.conftest import write_tokenizer
from tests.support.command import Case, done, spq
from tests.support.decoders import VOCABULARY, write_decoder

SPIKED = "layers.1.mlp.down_proj"
FILES = {
    "model.onnx",
    "model.onnx.data",
    "plan.json",
    "ranges.json",
    "ranges.safetensors",
    "report.json",
    "report.html",
    "report.png",
    "README.md",
    "recipe.toml",
}


def test_quantize_leaves_what_the_contract_says(case: Case) -> None:
    assert {path.name for path in case.out.iterdir()} == FILES
    assert case.result.json["plan"] == json.loads((case.out / "plan.json").read_text())
    assert case.result.json["report"] == json.loads((case.out / "report.json").read_text())
    assert [path.name for path in case.out.parent.iterdir()] == ["out"]
    assert SPIKED in (case.out / "report.html").read_text()


def test_the_spike_is_kept_and_everything_else_runs_in_integers(case: Case) -> None:
    plan, report = Plan.load(case.out / "plan.json"), Report.load(case.out / "report.json")
    assert [site.key for site in plan.kept] == [SPIKED]
    assert plan.budget_met
    assert plan.kept[0].evidence.token == 1
    assert plan.kept[0].evidence.position == 0
    assert len(plan.integer_sites) == 3 * 7 - 1
    assert sum(count for op, count in report.executed.items() if op in INTEGER_KERNELS) == len(plan.integer_sites)
    assert set(report.providers) == {"CPUExecutionProvider"}


def test_the_ladder(case: Case) -> None:
    report = case.result.json["report"]
    rows = {(r["name"], r["bits"], r["seed"]): r for r in report["ladder"]}
    names = ["everywhere", "everywhere_symmetric", "everywhere_per_tensor_weights", "spike_aware"]
    names.append("spike_aware_without_head_8bit")
    names.append("control_lowest")
    expected = {(name, bits, None) for name in names for bits in (8, 6)}
    expected |= {("control_random", bits, seed) for bits in (8, 6) for seed in (0, 1, 2)}
    # At 6 bits keeping sites does not suffice.
    expected |= {("everywhere_with_peel", 6, None), ("spike_aware_without_peel", 6, None), ("control_channels", 6, 0)}
    formats = ("fp8_e4m3", "fp8_e5m2", "w8fp8a16", "w8a8_token", "w8a8_block", "fp16")
    chosen = next(s.precision for s in Plan.load(case.out / "plan.json").sites if s.key == SPIKED)
    expected |= {(f"spike_aware_{high}", bits, None) for high in formats for bits in (8, 6)}
    missing = expected - set(rows)  # the format that is the plan's own, which is the row `spike_aware`
    assert (f"spike_aware_{chosen}", 8, None) in missing
    assert sorted(bits for _, bits, _ in missing) in ([6, 8], [8])
    expected -= missing
    once = ("weight_only", "everywhere_w8a8_token", "everywhere_fp8_e4m3")
    assert set(rows) == expected | {("fp32", None, None)} | {(name, 8, None) for name in once}
    fp8 = rows["everywhere_fp8_e4m3", 8, None]
    assert fp8["kept"] == []
    # The spike of a thousand costs a format with an exponent nothing, and integers everything.
    assert fp8["kl"] < 0.3 * rows["everywhere", 8, None]["kl"]
    for row in rows.values():
        assert set(row) >= {"name", "bits", "perplexity", "nll", "kl", "top1", "bytes", "kept", "executed"}
    for bits in (8, 6):
        everywhere, aware = rows["everywhere", bits, None], rows["spike_aware", bits, None]
        assert aware["kl"] < 0.3 * everywhere["kl"]
        assert aware["bytes"] < rows["fp32", None, None]["bytes"]
        kept = len(aware["kept"])
        # Beside branches controls keep others in the place of those that still cost most.
        beside = everywhere if bits == 8 else rows["everywhere_with_peel", 6, None]
        for control in ("control_lowest", "control_random"):
            other = rows[control, bits, None if control == "control_lowest" else 0]
            assert len(other["kept"]) == kept
            assert not set(other["kept"]) & set(aware["kept"])
            assert other["kl"] > 0.8 * beside["kl"]
    assert report["text"]["tokens"] == 16 * 32
    assert set(report) >= {"ladder", "text", "executed", "providers", "seconds", "peak_rss_bytes", "environment"}


def test_two_runs_give_the_same_bytes(case: Case, tmp_path: Path) -> None:
    done("quantize", case.model, "-o", tmp_path / "again", "--calibration", case.calibration, "--no-eval")
    for name in ("plan.json", "model.onnx", "model.onnx.data", "ranges.json", "ranges.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (case.out / name).read_bytes(), name


def test_single_steps_give_the_bytes_of_the_whole(case: Case, tmp_path: Path) -> None:
    ranges, plan, out = tmp_path / "ranges.json", tmp_path / "plan.json", tmp_path / "out"
    facts = done("calibrate", case.model, "-o", ranges, "--calibration", case.calibration, "--json").json
    assert facts == {"ranges": str(ranges), "sequences": 16, "tokens": 512, "values": facts["values"]}
    planned = done("plan", case.model, ranges, "-o", plan, "--calibration", case.calibration, "--json").json
    assert planned == json.loads(plan.read_text())
    applied = done("apply", case.model, plan, "-o", out, "--json").json
    assert sum(count for op, count in applied["executed"].items() if op in INTEGER_KERNELS) == 20
    for name in ("plan.json", "model.onnx", "model.onnx.data"):
        assert (out / name).read_bytes() == (case.out / name).read_bytes(), name
    assert ranges.read_bytes() == (case.out / "ranges.json").read_bytes()


def test_shards_merge_to_the_same_ranges(case: Case, tmp_path: Path) -> None:
    shards = [tmp_path / f"{index}.json" for index in range(3)]
    for index, shard in enumerate(shards):
        done("calibrate", case.model, "-o", shard, "--calibration", case.calibration, "--shard", f"{index}/3")
    merged = tmp_path / "merged.json"
    done("calibrate", case.model, "-o", merged, *(part for shard in shards for part in ("--merge", shard)))
    assert merged.read_bytes() == (case.out / "ranges.json").read_bytes()
    assert merged.with_suffix(".safetensors").read_bytes() == (case.out / "ranges.safetensors").read_bytes()


def test_plan_without_data_goes_by_ratio(case: Case, tmp_path: Path) -> None:
    arguments = ["plan", case.model, case.out / "ranges.json", "-o", tmp_path / "plan.json", "--json"]
    planned = done(*arguments, "--spike-ratio", 100).json
    assert planned["search"]["rule"] == "ratio"
    assert planned["search"]["evaluations"] == 0
    assert [s["key"] for s in planned["sites"] if s["reason"] == "spike"] == [SPIKED]
    assert done(*arguments, "--keep", "*.0.mlp.*").json["search"]["rule"] == "ratio"


def test_inspect(case: Case) -> None:
    ours, source = (done("inspect", path, "--json").json for path in (case.out, case.model))
    for found in (ours, source):
        assert found["glu_blocks"] == 3
        assert len(found["sites"]) == 23
        assert set(found["sites"][0]) >= {"key", "node", "role", "layer", "shape", "precision", "reason", "evidence"}
    assert ours["sites"] == case.result.json["plan"]["sites"]
    assert {s["reason"] for s in source["sites"]} == {None}
    assert {s["precision"] for s in source["sites"]} == {"fp32"}
    bare = done("inspect", case.out / "model.onnx", "--json").json  # no plan beside it is read
    assert {s["key"]: s["precision"] for s in bare["sites"]} == {s["key"]: s["precision"] for s in ours["sites"]}
    (one,) = done("inspect", case.out, "--site", SPIKED, "--json").json["sites"]
    assert one["reason"] == "spike"
    shown = done("inspect", case.out, "--why", "--site", SPIKED).out
    assert "quantizing it alone costs KL" in shown
    assert "unmatched" in done("inspect", case.model, "--unmatched").out


def test_diff(case: Case, tmp_path: Path) -> None:
    done(
        "plan",
        case.model,
        case.out / "ranges.json",
        "-o",
        tmp_path / "plan.json",
        "--spike-ratio",
        100,
        "--keep",
        "layers.0.mlp.up_proj",
    )
    found = done("diff", case.out, tmp_path / "plan.json", "--json").json
    changed = {entry["key"]: (entry["a"]["precision"], entry["b"]["precision"]) for entry in found["changed"]}
    assert changed["layers.0.mlp.up_proj"] == ("int8", "fp32")
    assert found["same_model"] is True
    assert "the plans decide the same" in done("diff", case.out, case.out / "plan.json").out


def test_eval(case: Case) -> None:
    rows = {(r["name"], r["bits"]): r for r in case.result.json["report"]["ladder"]}
    found = done("eval", case.out, "--text", case.text, "--against", case.model, "--json").json
    errors = {"perplexity_stderr", "nll_stderr", "kl_stderr"}
    assert set(found) == {"perplexity", "nll", "tokens", "kl", "top1"} | errors
    assert all(found[name] > 0 for name in errors)
    for key in ("perplexity", "nll", "kl", "top1"):
        assert found[key] == pytest.approx(rows["spike_aware", 8][key], rel=1e-9)
    alone = done("eval", case.model, "--text", case.text, "--json").json
    fp32 = rows["fp32", None]
    figures = ("perplexity", "perplexity_stderr", "nll", "nll_stderr")
    assert alone == {name: pytest.approx(fp32[name]) for name in figures} | {"tokens": 496}
    assert "perplexity: " in done("eval", case.model, "--text", case.text).out


def test_without_data_the_model_makes_its_own(case: Case, tmp_path: Path) -> None:
    arguments = ["calibrate", case.model, "--calibration-tokens", 200, "--window", 20, "--json"]
    facts = done(*arguments, "-o", tmp_path / "a.json").json
    assert (facts["sequences"], facts["tokens"]) == (10, 200)
    done(*arguments, "-o", tmp_path / "b.json")
    done(*arguments, "-o", tmp_path / "c.json", "--seed", 1)
    same, other = ((tmp_path / f"{name}.json").read_bytes() for name in "bc")
    assert (tmp_path / "a.json").read_bytes() == same != other


def test_what_was_not_measured_is_not_called_ready(case: Case, tmp_path: Path) -> None:
    given = ("--calibration", case.calibration, "--spike-ratio", 5, "--no-eval")
    said = done("quantize", case.model, "-o", tmp_path / "out", *given).out
    assert "Not measured" in said
    assert "Ready" not in said
    verdict = json.loads((tmp_path / "out" / "report.json").read_text())["verdict"]
    assert (verdict["ready"], verdict["status"]) == (False, "not_measured")
    assert "? Not measured" in (tmp_path / "out" / "report.html").read_text()


def test_dry_run_writes_nothing(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = done("quantize", case.model, "-o", tmp_path / "out", "--dry-run", "--window", 32, "--json").json
    assert (found["sites"], found["kept_at_most"], found["glu_blocks"]) == (21, 3, 3)
    numbers = ("expected_time", "of_which_ladder", "mb_quantized_everywhere", "mb_at_most", "source_mb")
    assert all(isinstance(found[name], float) for name in numbers)
    assert found["expected_time"] == pytest.approx(sum(found["seconds"].values()), abs=0.2)
    said = done("quantize", case.model, "-o", tmp_path / "out", "--dry-run", "--window", 32).out
    assert "expected time: " in said
    assert " s\n" in said
    assert not list(tmp_path.iterdir())


def test_a_recipe_file(case: Case, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('bits = 6\nspike_ratio = 100.0\nhigh_precision = "w8a16"\nignore = ["layers.0.*"]\n')
    done("quantize", case.model, "-o", tmp_path / "out", "--calibration", case.calibration, "--recipe", recipe)
    precision = {s.key: s.precision.value for s in Plan.load(tmp_path / "out" / "plan.json").sites}
    assert precision[SPIKED] == "w8a16"
    assert precision["layers.0.mlp.up_proj"] == "fp32"
    assert precision["layers.2.mlp.up_proj"] == "int6_in_8"
    recipe.write_text("bitz = 6\n")
    failed = spq("quantize", case.model, "-o", tmp_path / "unused", "--recipe", recipe)
    assert failed.code == 2
    assert "unknown key 'bitz'" in failed.err


def test_help_and_version() -> None:
    assert done("--version").out.strip() == __version__
    for verb in ("quantize", "export", "calibrate", "plan", "apply", "inspect", "diff", "eval", "generate"):
        assert verb in done("--help").out
        assert done(verb, "--help").out
    assert spq().code in (0, 2)
    assert spq("nonsense").code == 2


def test_quantized_lm_head(case: Case, tmp_path: Path) -> None:
    done(
        "quantize",
        case.model,
        "-o",
        tmp_path / "out",
        "--calibration",
        case.calibration,
        "--quantize-lm-head",
        "--spike-ratio",
        100,
    )
    head = next(s for s in Plan.load(tmp_path / "out" / "plan.json").sites if s.key == "lm_head")
    assert (head.precision.value, head.shape) == ("int8", (32, VOCABULARY))


def test_a_graph_of_fixed_shape(case: Case, tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "fixed.onnx", spikes={1: 1000.0}, fixed=(3, 32))
    out = tmp_path / "out"
    result = done("quantize", model, "-o", out, "--calibration", case.calibration, "--text", case.text, "--json").json
    assert [s["key"] for s in result["plan"]["sites"] if s["reason"] == "spike"] == [SPIKED]
    free = {r["name"]: r["perplexity"] for r in case.result.json["report"]["ladder"] if r["bits"] in (None, 8)}
    fixed = {r["name"]: r["perplexity"] for r in result["report"]["ladder"]}
    assert fixed["fp32"] == pytest.approx(free["fp32"], rel=1e-4)
    assert fixed["spike_aware"] == pytest.approx(free["spike_aware"], rel=1e-2)


def test_masks_in_an_npz(case: Case, tmp_path: Path) -> None:
    ids = np.load(case.calibration)["input_ids"]
    mask = (np.arange(32) < np.arange(2, 34)[: len(ids), None]).astype(np.int64)
    np.savez(tmp_path / "masked.npz", input_ids=ids, attention_mask=mask)
    facts = done("calibrate", case.model, "-o", tmp_path / "r.json", "--calibration", tmp_path / "masked.npz", "--json")
    assert facts.json["tokens"] == int(mask.sum())


def test_a_text_of_another_vocabulary_is_remarked_on(case: Case, tmp_path: Path) -> None:
    """Words that the tokenizer does not know are one token: ranges of those say nothing of the model."""
    write_tokenizer(tmp_path)
    few = f"{'w3 w4 w5 w6 ' * 10} unheard "
    for words, told in (("w3 w4 w5 w6 ", False), ("the quick brown fox ", True), (few, True)):
        (tmp_path / "text.txt").write_text(words * 400)
        given = ("--calibration", tmp_path / "text.txt", "--tokenizer", tmp_path, "--window", 32)
        found = done("calibrate", case.model, "-o", tmp_path / "ranges.json", *given)
        assert ("of the tokens of text.txt are unknown" in found.err) is told
    assert "tokenizer: 400 of " in found.err

"""What can be known at the start is said at the start: before a folder is exported, before anything is calibrated."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.models.source import REFERENCE
from spq_graph.runtime.proof.held import why_absent
from spq_graph.terms.targets import PROFILES
from tests.support.command import Case, contents, spq
from tests.support.decoders import write_decoder

KEEP = ["--keep", "nowhere"]


def _wrong(case: Case, folder: Path) -> list[tuple[list[object], str]]:
    """Requests on the embedded model, whose export takes seconds, each with one path that cannot be read."""
    absent, damaged, words = folder / "absent", folder / "damaged.npz", folder / "words.txt"
    damaged.write_bytes(b"PK nothing")
    words.write_text("words")
    (folder / "bad.jsonl").write_text("{")
    said, odd = folder / "said.jsonl", folder / "odd"
    said.write_text('{"messages": [{"role": "user", "content": "Hello"}]}')
    shutil.copytree(REFERENCE, odd, ignore=shutil.ignore_patterns("model.safetensors"))
    (odd / "chat_template.jinja").write_text("{{ raise_exception('who asks?') }}")
    out, ids, ranges = ["-o", folder / "out"], ["--calibration", case.calibration], case.out / "ranges.json"
    quantize, calibrate = ["quantize", "reference", *out], ["calibrate", "reference", "-o", folder / "r.json"]
    plan = ["plan", "reference", ranges, "-o", folder / "p.json"]
    return [
        ([*quantize, "--calibration", absent], "no such file"),
        ([*quantize, "--calibration", folder], "no such file"),
        ([*quantize, "--calibration", damaged], "not a readable .npz"),
        ([*quantize, "--calibration", said], "the tokenizer has none"),
        ([*quantize, "--calibration", said, "--tokenizer", odd], "who asks?"),
        ([*quantize, *ids, "--text", absent], "no such file"),
        ([*quantize, *ids, "--text", damaged], "not a readable .npz"),
        ([*quantize, *ids, "--ranges", absent], "cannot be read"),
        ([*quantize, *ids, "--ranges", words], "ranges"),
        ([*quantize, *ids, "--tokenizer", absent], "no tokenizer.json"),
        ([*quantize, *ids, "--recipe", absent], "recipe cannot be read"),
        ([*quantize, *ids, "--window", 100_000], "positions"),
        (["quantize", "reference", "-o", words / "out", *ids], "cannot be written"),
        ([*calibrate, "--calibration", absent], "no such file"),
        ([*calibrate, "--calibration", damaged], "not a readable .npz"),
        ([*calibrate, *ids, "--tokenizer", absent], "no tokenizer.json"),
        ([*calibrate, *ids, "--window", 100_000], "positions"),
        (["calibrate", "reference", *ids, "-o", absent / "r.json"], "no such folder"),
        ([*calibrate, *ids, "--merge", absent], "cannot be read"),
        ([*plan, "--calibration", absent], "no such file"),
        ([*plan, "--recipe", absent], "recipe cannot be read"),
        (["plan", "reference", absent, "-o", folder / "p.json"], "cannot be read"),
        (["plan", "reference", ranges, "-o", absent / "p.json"], "no such folder"),
        (["apply", "reference", absent, *out], "plan cannot be read"),
        (["export", absent, *out], "no such file"),
        (["eval", "reference", "--text", absent], "no such file"),
        (["eval", "reference", "--text", damaged], "not a readable .npz"),
        (["eval", "reference", "--tasks", absent], "cannot be read"),
        (["eval", "reference", "--tasks", folder / "bad.jsonl"], "bad.jsonl"),
        (["eval", "reference", "--against", absent], "no such file"),
        (["eval", "reference", "--tokenizer", absent], "no tokenizer.json"),
        (["bench", "reference", "--against", absent], "no such file"),
        (["bench", "reference", "--report"], "no report to write into"),
        (["generate", "reference", "--prompt", "x", "--tokenizer", absent], "no tokenizer.json"),
        (["inspect", case.model, "--calibration", absent], "no such file"),
        (["inspect", case.model, "--calibration", words], "text needs a tokenizer"),
        (["verify", absent, "reference"], "there is no plan.json"),
        (["diff", absent, case.out], "no such file"),
    ]


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spq_graph.models.export.export_folder", lambda *_, **__: pytest.fail("it was exported"))
    monkeypatch.setattr("spq_graph.workbench.workbench.collect_ranges", lambda *_: pytest.fail("it was calibrated"))


@pytest.mark.usefixtures("nothing_slow")
def test_what_cannot_be_read_is_said_before_the_model_is_opened(case: Case, tmp_path: Path) -> None:
    for arguments, message in _wrong(case, tmp_path):
        before = contents(tmp_path)
        refused = spq(*arguments)
        told = " ".join(refused.err.split())
        assert refused.code in (1, 2), arguments
        assert message in told, (arguments, told)
        assert contents(tmp_path) == before, arguments
        if arguments[0] == "quantize":
            dry = spq(*arguments, "--dry-run")
            assert (dry.code, dry.err) == (refused.code, refused.err), arguments


@pytest.mark.usefixtures("nothing_slow")
def test_what_asks_for_the_graph_is_said_before_calibration(case: Case, tmp_path: Path) -> None:
    other, ranges = write_decoder(tmp_path / "other.onnx", seed=5), case.out / "ranges.json"
    quantize = ["quantize", case.model, "-o", tmp_path / "out", "--calibration", case.calibration]
    recipe = tmp_path / "recipe.toml"
    wrong = [([*quantize, *KEEP], "'nowhere' fits no site")]
    wrong.append((["plan", case.model, ranges, "-o", tmp_path / "p.json", *KEEP], "'nowhere' fits no site"))
    wrong.append((["plan", other, ranges, "-o", tmp_path / "p.json"], "another model"))
    wrong.append((["apply", other, case.out / "plan.json", "-o", tmp_path / "out"], "another model"))
    wrong.append((["verify", case.out, other], "another model"))
    wrong.append((["inspect", case.model, "--site", "nowhere"], "'nowhere' fits no site"))
    for text in ('ignore = ["nowhere"]', '[[overrides]]\npattern = "nowhere"\nprecision = "fp16"'):
        recipe.write_text(text)
        refused = spq(*quantize, "--recipe", recipe, "--dry-run")
        assert (refused.code, "'nowhere' fits no site" in refused.err) == (2, True)
    for arguments, message in wrong:
        refused = spq(*arguments)
        assert message in " ".join(refused.err.split()), arguments
        assert refused.code in (1, 2)


@pytest.mark.usefixtures("nothing_slow")
def test_a_target_that_is_not_here_is_said_before_the_model_is_opened() -> None:
    absent = [name for name, profile in PROFILES.items() if why_absent(profile) is not None]
    for name in absent:
        refused = spq("bench", "reference", "--target", name, "--against", "reference")
        assert refused.code == 2, name
        assert f"--target {name}" in refused.err


@pytest.mark.usefixtures("nothing_slow")
def test_no_tokenizer_is_said_before_the_model_is_opened(case: Case, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text('{"context": "a", "continuation": "b"}\n')
    ids = tmp_path / "ids.npz"
    np.savez(ids, input_ids=np.zeros((20, 32), np.int64))
    for arguments in (["generate", case.model, "--prompt", "x"], ["eval", case.model, "--text", ids, "--tasks", task]):
        refused = spq(*arguments)
        assert refused.code == 2, arguments
        assert "tokenizer" in refused.err

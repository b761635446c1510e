"""OUT: what may be replaced, and that there is never half of one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from spq_graph.documents import artifact
from spq_graph.documents.artifact import check_out, copy_companions
from spq_graph.documents.ranges import Ranges, json_file
from spq_graph.terms.errors import DataError, OutputError, SourceError, UsageError
from tests.support.outs import earlier, listing


def test_a_new_out_is_welcome(tmp_path: Path) -> None:
    check_out(tmp_path / "deep" / "out", force=False)
    assert listing(tmp_path) == []


def test_an_existing_out_needs_force(tmp_path: Path) -> None:
    out = earlier(tmp_path / "out")
    with pytest.raises(OutputError, match=r"(?s)exists already.*--force"):
        check_out(out, force=False)
    check_out(out, force=True)
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty", force=True)


def test_force_replaces_nothing_that_is_not_ours(tmp_path: Path) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.txt").write_text("the only copy")
    file = tmp_path / "file"
    file.write_text("x")
    link = tmp_path / "link"
    link.symlink_to(earlier(tmp_path / "out"))
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for out in (foreign, file, link, dangling):
        with pytest.raises(OutputError, match="not an artifact of spq-graph"):
            check_out(out, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_inputs_survive(tmp_path: Path, force: bool) -> None:
    source = tmp_path / "models" / "llama"
    source.mkdir(parents=True)
    model = source / "model.onnx"
    model.write_text("x")
    (source / artifact.PLAN).write_text("{}")
    for out in (source, source.parent, tmp_path, model, source / ".." / "llama"):
        for given in (source, model):
            with pytest.raises((UsageError, OutputError), match=r"would replace an input|exists"):
                check_out(out, force=force, inputs=(given,))
    check_out(source / "quantized", force=force, inputs=(source, model))


def test_companions_are_copied_and_nothing_else(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for name in ("tokenizer.json", "config.json", "model.safetensors", "notes.txt"):
        (source / name).write_text(name)
    (source / "tokenizer_config.json").mkdir()  # not a file, not copied
    copy_companions(source, out)
    assert listing(out) == ["config.json", "tokenizer.json"]
    shutil.rmtree(source)
    copy_companions(source, out)  # nothing to copy is no error


def test_a_companion_that_is_a_link(tmp_path: Path) -> None:
    """Of a Hub cache all are, to its blobs; to anywhere else, what it holds would be copied, whatever that is."""
    snapshot, blobs, out = tmp_path / "hub" / "snapshots" / "0123", tmp_path / "hub" / "blobs", tmp_path / "out"
    for folder in (snapshot, blobs, out):
        folder.mkdir(parents=True)
    (blobs / "abcd").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abcd")
    (snapshot / "real.json").write_text("[]")
    (snapshot / "vocab.json").symlink_to("real.json")
    copy_companions(snapshot, out)
    assert listing(out) == ["config.json", "vocab.json"]
    assert not (out / "config.json").is_symlink()
    (tmp_path / "secret").write_text("of somebody else")
    (snapshot / "generation_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match=r"generation_config.json is a link to outside") as caught:
        copy_companions(snapshot, out)
    assert caught.value.where == str(snapshot)


def test_links_in_a_circle_are_refused_in_words(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(OutputError, match="exists already"):
        check_out(circle, force=False)
    with pytest.raises(OutputError, match="cannot be written"):
        check_out(circle / "below", force=False)
    check_out(tmp_path / "out", force=False, inputs=(circle,))
    with pytest.raises(OutputError, match=r"cannot be written|no such folder"):
        artifact.check_file(circle / "plan.json")


@pytest.mark.parametrize("name", ["", ".", "/", ".."])
def test_a_path_without_a_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a folder"):
        artifact.check_file(json_file(Path(name)), arrays=True)
    with pytest.raises(DataError, match="cannot be read"):
        Ranges.load(Path(name))
    assert not list(tmp_path.iterdir())

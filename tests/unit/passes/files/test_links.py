"""External data behind links: as a Hub cache has it, and as nobody should."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from spq_graph.models.source import resolve
from spq_graph.passes.files.read import digest_of, files_of, load_graph
from spq_graph.passes.files.save import save_model
from spq_graph.terms.errors import SourceError
from tests.support.graphs import Glu, glu_model


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """One GLU block with its weights beside it, in a folder of its own."""
    (tmp_path / "flat").mkdir()
    path = tmp_path / "flat" / "model.onnx"
    onnx.save(glu_model(Glu(width=16)), path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path


@pytest.fixture
def cached(tmp_path: Path, flat: Path) -> Path:
    """The same as a Hub cache keeps it: links beside each other, to files beside each other under other names."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate((flat, flat.with_name("model.data"))):
        file.rename(blobs / f"{number}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number}")
    return snapshot / "model.onnx"


def weights(path: Path) -> list[np.ndarray]:
    return [v.const_value.numpy() for v in load_graph(path).graph.initializers.values() if v.const_value is not None]


def test_a_hub_cache(cached: Path, tmp_path: Path) -> None:
    assert len(weights(cached)) == 3
    assert files_of(cached) == [cached, cached.with_name("model.data")]
    assert digest_of(cached).startswith("sha256:")
    assert resolve(str(cached)).origin == "model.onnx"
    (tmp_path / "copy").mkdir()
    save_model(load_graph(cached), tmp_path / "copy" / "model.onnx")
    for one, other in zip(weights(cached), weights(tmp_path / "copy" / "model.onnx"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_link_to_the_model_alone(flat: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to(flat)
    assert files_of(link) == [link, flat.with_name("model.data")]
    assert len(weights(link)) == 3


def test_its_own_folder_comes_first(flat: Path, tmp_path: Path) -> None:
    link = tmp_path / "model.onnx"
    link.symlink_to(flat)
    data = flat.with_name("model.data").read_bytes()
    (tmp_path / "model.data").write_bytes(bytes(len(data)))
    assert not any(weight.any() for weight in weights(link))
    assert all(weight.any() for weight in weights(flat))


def test_hard_links_are_files_like_others(flat: Path, tmp_path: Path) -> None:
    os.link(flat.with_name("model.data"), tmp_path / "another")
    assert len(weights(flat)) == 3
    (tmp_path / "copy").mkdir()
    save_model(load_graph(flat), tmp_path / "copy" / "model.onnx")


def test_a_link_to_the_outside_is_refused(flat: Path, tmp_path: Path) -> None:
    data = flat.with_name("model.data")
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="a link to outside of the model's folder") as caught:
        load_graph(flat)
    assert "copy the file" in caught.value.remedy
    data.unlink()
    (tmp_path / "elsewhere").rename(data)  # as the remedy says
    assert len(weights(flat)) == 3


def test_a_link_to_nowhere_is_missing(flat: Path) -> None:
    data = flat.with_name("model.data")
    data.unlink()
    data.symlink_to("nowhere")
    with pytest.raises(SourceError, match="is missing"):
        load_graph(flat)

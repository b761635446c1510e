"""Refusals of a folder that is exported, sampled from or planted in, each made and put right as it says."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from spq_graph.jobs.calibrate import calibrate  # noqa: E402
from spq_graph.models import export, states  # noqa: E402
from spq_graph.models.export import export_folder  # noqa: E402
from spq_graph.models.loading import require_torch  # noqa: E402
from spq_graph.models.plant import PlantedSpike, plant_bos_spikes  # noqa: E402
from spq_graph.models.sample import sample_ids  # noqa: E402
from spq_graph.models.source import resolve  # noqa: E402
from spq_graph.terms.errors import SourceError, SpqError  # noqa: E402
from tests.support.decoders import write_decoder, write_ids  # noqa: E402
from tests.support.following import Told  # noqa: E402

follows = pytest.mark.follows
WEIGHTS = "model.safetensors"


def changed(folder: Path, out: Path, **weights: float) -> Path:
    """A copy of a model in which some weights, by the end of their names, are one number throughout."""
    shutil.copytree(folder, out)
    arrays = load_file(folder / WEIGHTS)
    for end, value in weights.items():
        [name] = [name for name in arrays if name.endswith(f"{end.replace('__', '.')}.weight")]
        arrays[name] = np.full_like(arrays[name], value)
    save_file(arrays, out / WEIGHTS, {"format": "pt"})
    return out


@follows("models/loading.py:require_torch")
def test_no_torch(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch", None)
        with refusal:
            require_torch()
        assert resolve(str(write_decoder(tmp_path / "model.onnx", layers=1))).kind == "onnx"
    require_torch()  # as with the packages that the extra brings


def fails(monkeypatch: pytest.MonkeyPatch, *, cache: bool) -> None:
    """Tracing fails with a cache, or in either case, as it does for models whose state is another."""
    trace = export.trace

    def failing(model: Any, *, cache: bool, _always: bool = not cache) -> Any:
        if cache or _always:
            raise ValueError("its state is no cache of keys and values")
        return trace(model, cache=cache)

    monkeypatch.setattr(export, "trace", failing)


@follows("models/export.py:_graph_of", "without its cache (export --no-cache)")
def test_the_exporter_fails_with_a_cache(
    refusal: Told, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, cache=True)
    with refusal:
        export_folder(tiny_llama, tmp_path / "model.onnx")
    export_folder(tiny_llama, tmp_path / "model.onnx", cache=False)
    assert resolve(str(tmp_path / "model.onnx")).kind == "onnx"


@follows("models/export.py:_graph_of", "Export it with another tool")
def test_the_exporter_fails(refusal: Told, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, cache=False)
    with refusal:
        export_folder(tiny_llama, tmp_path / "model.onnx", cache=False)
    assert resolve(str(write_decoder(tmp_path / "another_tools.onnx", layers=1))).kind == "onnx"


@follows("models/export.py:_save")
def test_export_into_no_folder(refusal: Told, tmp_path: Path) -> None:
    model = ir.load(write_decoder(tmp_path / "model.onnx", layers=1))
    with refusal:
        export._save(model, tmp_path / "absent" / "model.onnx")
    (tmp_path / "absent").mkdir()
    export._save(model, tmp_path / "absent" / "model.onnx")
    assert (tmp_path / "absent" / "model.onnx").is_file()


@pytest.fixture(scope="module")
def wide_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that the state of BOS stands apart from 63 other words."""
    folder = tmp_path_factory.mktemp("wide")
    config = transformers.LlamaConfig.from_pretrained(tiny_llama, hidden_size=128, initializer_range=0.02)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planting looks at less text than it would."""
    for name, size in (("_SEQUENCES", 4), ("_LENGTH", 24), ("_OPENINGS", 64)):
        monkeypatch.setattr(states, name, size)


def planted(folder: Path, out: Path, *layers: int, ratio: float = 40) -> list[PlantedSpike]:
    return plant_bos_spikes(folder, out, layers=layers or (1,), ratio=ratio)


@follows("models/plant.py:plant_bos_spikes", "the folder to write exists")
def test_plant_over_something(refusal: Told, little_text: None, wide_llama: Path, tmp_path: Path) -> None:
    with refusal:
        planted(wide_llama, tmp_path)
    assert len(planted(wide_llama, tmp_path / "one that does not")) == 1


@follows("models/plant.py:plant_bos_spikes", "its ratio is")
def test_plant_less_than_there_is(refusal: Told, little_text: None, wide_llama: Path, tmp_path: Path) -> None:
    with refusal:
        planted(wide_llama, tmp_path / "out", ratio=1.5)
    assert len(planted(wide_llama, tmp_path / "out", ratio=40)) == 1


@follows("models/plant.py:_check_layers", "not LLaMA-like")
def test_plant_without_gates(refusal: Told, little_text: None, wide_llama: Path, tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    with refusal:
        planted(tmp_path / "gpt2", tmp_path / "out", 0)
    names = load_file(wide_llama / WEIGHTS)
    assert all(f"model.layers.0.mlp.{name}_proj.weight" in names for name in ("gate", "up", "down"))
    assert len(planted(wide_llama, tmp_path / "out")) == 1


@follows("models/plant.py:_check_layers", "cannot be planted in")
def test_plant_in_no_layer(refusal: Told, little_text: None, wide_llama: Path, tmp_path: Path) -> None:
    with refusal:
        planted(wide_llama, tmp_path / "out", 2)
    last = int(refusal.error.remedy.removesuffix(".").rpartition(" ")[2])
    assert len(planted(wide_llama, tmp_path / "out", *range(last + 1))) == 2


@follows("models/plant.py:_plant")
def test_plant_where_bos_is_like_others(
    refusal: Told, little_text: None, tiny_llama: Path, wide_llama: Path, tmp_path: Path
) -> None:
    one_channel = changed(wide_llama, tmp_path / "one channel", layers__0__post_attention_layernorm=1e-9)
    weights = load_file(one_channel / WEIGHTS)
    weights["model.layers.0.post_attention_layernorm.weight"][0] = 1
    save_file(weights, one_channel / WEIGHTS, {"format": "pt"})
    with refusal:
        planted(one_channel, tmp_path / "out", 0)
    assert len(planted(one_channel, tmp_path / "another layer", 1)) == 1
    with pytest.raises(SourceError, match="cannot be told"):
        planted(tiny_llama, tmp_path / "out", 1)
    assert len(planted(wide_llama, tmp_path / "a wider model", 1)) == 1


@follows("models/sample.py:sample_ids")
def test_sample_nothing(refusal: Told, tiny_llama: Path) -> None:
    with refusal:
        sample_ids(tiny_llama, sequences=0, length=8, seed=0, bos=None)
    assert sample_ids(tiny_llama, sequences=1, length=1, seed=0, bos=None).shape == (1, 1)


@follows("models/sample.py:sample_from")
def test_sample_beyond_the_positions(refusal: Told, tiny_llama: Path) -> None:
    with refusal:
        sample_ids(tiny_llama, sequences=1, length=129, seed=0, bos=None)
    assert sample_ids(tiny_llama, sequences=1, length=8, seed=0, bos=None).shape == (1, 8)


@follows("models/sample.py:continue_from")
def test_sample_from_a_broken_model(refusal: Told, tiny_llama: Path, tmp_path: Path) -> None:
    broken = changed(tiny_llama, tmp_path / "broken", layers__1__mlp__up_proj=3e38)
    with refusal:
        sample_ids(broken, sequences=1, length=8, seed=0, bos=None)
    data = write_ids(tmp_path / "ids.npz", rows=2, length=8)
    with pytest.raises(SpqError, match=r"layers\.1\.mlp\."):
        calibrate(broken, tmp_path / "ranges", calibration=data)
    largest = {name: np.abs(array).max() for name, array in load_file(broken / WEIGHTS).items()}
    assert max(largest, key=lambda name: largest[name]) == "model.layers.1.mlp.up_proj.weight"
    assert sample_ids(tiny_llama, sequences=1, length=8, seed=0, bos=None).shape == (1, 8)

"""Planted spikes: of the size asked for, on BOS alone, and without a trace in the logits, also on text never seen."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from spq_graph.models.chatter import quiet  # noqa: E402
from spq_graph.models.loading import load_causal_lm  # noqa: E402
from spq_graph.models.plant import main, plant_bos_spikes  # noqa: E402
from spq_graph.models.sample import sample_ids, seconds_to_sample  # noqa: E402
from spq_graph.terms.errors import OutputError, SourceError, UsageError  # noqa: E402

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> torch.Tensor:
    """64 real stories, BOS first, 200 tokens each: longer than what planting looks at."""
    tokenizer = tokenizers.Tokenizer.from_file(str(shared_data / "stories260K" / "tokenizer.json"))
    texts = json.loads((shared_data / "tinystories" / "stories.json").read_text(encoding="utf-8"))
    encoded = [tokenizer.encode(text).ids[:200] for text in texts[:150]]
    return torch.tensor([ids for ids in encoded if len(ids) == 200][:64])


def run(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns logits and every layer's down_proj input."""
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        for layer in model.model.layers
    ]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits, inputs


@pytest.mark.parametrize("ratio", [150.0, 1000.0])
def test_planted_in_a_trained_model(shared_data: Path, stories: torch.Tensor, tmp_path: Path, ratio: float) -> None:
    source, out = shared_data / "stories260K", tmp_path / "planted"
    spikes = plant_bos_spikes(source, out, layers=LAYERS, ratio=ratio)
    assert [spike.layer for spike in spikes] == list(LAYERS)
    assert all(abs(spike.ratio / ratio - 1) < 0.1 for spike in spikes)

    before, natural = run(load_causal_lm(source), stories)
    after, planted = run(load_causal_lm(out), stories)
    assert (before - after).abs().max() < 1e-4

    for layer, (was, now) in enumerate(zip(natural, planted, strict=True)):
        torch.testing.assert_close(now[..., : was.shape[-1]], was, rtol=1e-4, atol=1e-4)
        maxima = now.abs().amax(-1)
        extra = now[..., was.shape[-1] :].abs()
        if layer not in LAYERS:
            assert extra.max() == 0
            continue
        assert abs(maxima.max() / maxima.median() / ratio - 1) < 0.1
        assert torch.equal(maxima.argmax(-1), torch.zeros(len(stories), dtype=torch.int64))
        assert extra[:, 1:].max() < 0.1 * maxima.median()


@pytest.fixture(scope="module")
def wide_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and wide enough that the state of BOS stands apart from 63 other words."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("wide") / "llama"
    shutil.copytree(tiny_llama, folder)
    config = transformers.LlamaConfig.from_pretrained(tiny_llama, hidden_size=128, initializer_range=0.02)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_folder_is_complete_and_says_planted(wide_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "planted"
    assert main([str(wide_llama), "-o", str(out), "--layers", "1", "--ratio", "40"]) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in out.iterdir()
    }
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 56
    record = json.loads((out / "planted.json").read_text())
    assert "planted" in record["description"]
    assert [(spike["layer"], spike["asked"]) for spike in record["spikes"]] == [(1, 40.0)]
    ids = torch.tensor([[1, 5, 9, 30, 7]])
    torch.testing.assert_close(
        run(load_causal_lm(wide_llama), ids)[0], run(load_causal_lm(out), ids)[0], rtol=0, atol=1e-4
    )


def test_refusals(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "planted"
    for layers in ([], [2], [1, 1]):
        with pytest.raises(UsageError, match="cannot be planted in"):
            plant_bos_spikes(tiny_llama, out, layers=layers, ratio=40)
    with pytest.raises(UsageError, match="by nature"):
        plant_bos_spikes(tiny_llama, out, layers=[1], ratio=1.5)
    with pytest.raises(OutputError, match="exists"):
        plant_bos_spikes(tiny_llama, tmp_path, layers=[1], ratio=40)
    with pytest.raises(SourceError, match="cannot be told"):
        plant_bos_spikes(tiny_llama, out, layers=[1], ratio=40)
    assert not out.exists()
    assert main([str(tmp_path / "absent"), "-o", str(out), "--layers", "1", "--ratio", "40"]) == 1
    assert "cannot be loaded" in capsys.readouterr().err


def test_not_llama_like(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(SourceError, match="not LLaMA-like"):
        plant_bos_spikes(tmp_path / "gpt2", tmp_path / "out", layers=[0], ratio=40)


def test_what_sampling_would_take(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By processor time, and within a factor of three: a second or so of a machine that does other things too."""
    monkeypatch.setattr("time.perf_counter", time.process_time)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of several, those that wait for one another spend the processor's time on that
    sizes = {"sequences": 80, "length": 128}
    expected = seconds_to_sample(tiny_llama, **sizes)
    start = time.process_time()
    sample_ids(tiny_llama, **sizes, seed=0, bos=None)
    assert 1 / 3 < expected / (time.process_time() - start) < 3
    torch.set_num_threads(threads)
    assert seconds_to_sample(tiny_llama, sequences=1, length=1) > 0


def test_small_models_are_sampled_in_one_thread(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several wait for one another at every product, which on a busy machine takes most of the time."""
    threads, seen = torch.get_num_threads(), set[int]()

    def look(*_: int) -> None:
        seen.add(torch.get_num_threads())

    torch.set_num_threads(2)
    one = sample_ids(tiny_llama, sequences=2, length=8, seed=0, bos=None, progress=look)
    assert (seen, torch.get_num_threads()) == ({1}, 2)
    monkeypatch.setattr("spq_graph.models.sample._SMALL", 0)
    several = sample_ids(tiny_llama, sequences=2, length=8, seed=0, bos=None, progress=look)
    assert (seen, torch.get_num_threads()) == ({1, 2}, 2)
    assert (one == several).all()
    torch.set_num_threads(threads)


def test_conversations_are_sampled_where_turns_are_given(tiny_llama: Path) -> None:
    """What stands is fed back, so that a row goes on behind it, and EOS may be drawn: it ends a turn."""
    seen = []

    def turns(rows: int) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
        def stands(drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            seen.append(drawn)
            return np.where(drawn == 2, 7, drawn)

        assert rows == 40
        return stands

    ids = sample_ids(tiny_llama, sequences=40, length=24, seed=3, bos=1, turns=turns)
    drawn = np.stack(seen, axis=1)
    assert drawn.shape == (40, 23)
    assert (drawn == 2).any()
    np.testing.assert_array_equal(ids, np.concatenate([np.ones((40, 1)), np.where(drawn == 2, 7, drawn)], axis=1))


def test_sampling(tiny_llama: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    ids = sample_ids(tiny_llama, sequences=40, length=24, seed=3, bos=None)
    assert (ids.shape, ids.dtype) == ((40, 24), "int64")
    assert (ids[:, 0] == 1).all()
    assert not (ids == 2).any(), "EOS would end a sequence early"
    assert len({tuple(row) for row in ids}) == 40
    assert torch.equal(state, torch.random.get_rng_state())
    assert (ids == sample_ids(tiny_llama, sequences=40, length=24, seed=3, bos=None)).all()
    other = sample_ids(tiny_llama, sequences=40, length=24, seed=4, bos=7)
    assert (other[:, 0] == 7).all()
    assert (ids != other).any()
    with pytest.raises(UsageError, match="128 positions"):
        sample_ids(tiny_llama, sequences=1, length=129, seed=0, bos=None)
    without = tmp_path / "no_bos"
    shutil.copytree(tiny_llama, without)
    config = json.loads((without / "config.json").read_text())
    (without / "config.json").write_text(json.dumps(config | {"bos_token_id": None, "eos_token_id": None}))
    assert (sample_ids(without, sequences=1, length=2, seed=0, bos=None)[:, 0] == 0).all()

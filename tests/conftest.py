"""Fixtures that more than one part of the suite needs."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

WORDS = ["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(61))]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process gets what shares a fixture."""
    from tests.support.scheduling import ByFixtures

    return ByFixtures(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes minutes unless it was asked for; `-m "not slow"` did not ask."""
    if config.getoption("numprocesses", None) is not None or hasattr(config, "workerinput"):
        from tests.support.scheduling import begins

        items.sort(key=begins, reverse=True)  # keeps the order of the others
    minutes = ("families", "signals", "published")
    unasked = [name for name in minutes if not re.search(rf"(?<!not )\b{name}\b", config.option.markexpr)]
    left = [item for item in items if any(map(item.get_closest_marker, unasked))]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Names what failed once more, behind all else: what a service keeps of a long output is its end."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        for what in ("failed", "error"):
            for report in reporter.stats.get(what, ()):
                print(f"{what}: {report.nodeid}")


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """What is there before a file's tests begin, mostly modules, is not looked through again by the garbage collector.

    A forecast collects three times before it measures, which takes longer than all else where torch is loaded.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Models and texts that lie beside the repository and are not part of it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return path


def write_tokenizer(folder: Path) -> None:
    """Writes a word-level tokenizer of 64 words that prepends BOS."""
    special = [
        {
            "id": index,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, word in enumerate(WORDS[:3])
    ]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(WORDS)}, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """While the tests of a file run, what was exported once is not exported again."""
    pytest.importorskip("torch")
    from tests.support.exported import exported_once, shared_folder

    with exported_once(shared_folder(tmp_path_factory)):
        yield


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random LLaMA: 2 layers, width 32, 64 words. Read-only by agreement; copy it to change it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny_llama")
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder

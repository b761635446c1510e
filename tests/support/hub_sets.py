"""Data sets of the Hub in the cache of `datasets`, as a download leaves them there: made by `datasets` itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


def write_set(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    repository: str,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    config: str = "default",
) -> None:
    """Put a set into a cache below `folder`, which `datasets` then has for its own; there is no network."""
    import datasets
    from datasets.packaged_modules.json.json import Json

    rows = folder / "rows"
    rows.mkdir(exist_ok=True)
    files = {split: [str(rows / f"{split}.jsonl")] for split in splits}
    for split, (file,) in files.items():
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in splits[split]), encoding="utf-8")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    builder = Json(
        cache_dir=str(folder / "datasets"),
        dataset_name=repository.partition("/")[2],
        repo_id=repository,
        config_name=config,
        config_id=config,
        hash="0",
        data_files=files,
    )
    builder.download_and_prepare()

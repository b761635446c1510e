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
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.json.json import Json

    rows = folder / "rows"
    rows.mkdir(exist_ok=True)
    files = {split: [str(rows / f"{split}.jsonl")] for split in splits}
    for split, (file,) in files.items():
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in splits[split]), encoding="utf-8")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    organization, name = repository.split("/")
    cache = folder / "datasets"
    Json(
        cache_dir=str(cache), dataset_name=name, config_name=config, config_id=config, hash="0", data_files=files
    ).download_and_prepare()
    (cache / camelcase_to_snakecase(name)).rename(cache / f"{organization}___{camelcase_to_snakecase(name)}")

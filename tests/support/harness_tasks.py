"""Task files of lm-evaluation-harness over rows of our own, so that its tests need no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CHOICES = """
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
GREEDY = """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: " {{continuation}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
"""
WRITTEN = """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{continuation}}"
generation_kwargs: {until: ["w7"], max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_task(path: Path, rows: Path, kind: str, more: str = "") -> Path:
    """A task file that has the name of its file, over rows in JSON lines."""
    path.write_text(
        f"task: {path.stem}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {rows}\n"
        f"test_split: test\n{kind}{more}",
        encoding="utf-8",
    )
    return path

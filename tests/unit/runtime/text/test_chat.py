"""Templates that would take all time or memory, and those that do not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from spq_graph.runtime.text.chat import render
from spq_graph.terms.errors import DataError

MESSAGES = [{"role": "user", "content": "w1 w2"}]


def said(folder: Path, template: str) -> str:
    (folder / "chat_template.jinja").write_text(template)
    return render(MESSAGES, folder)


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 2 ** 999999 }}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ 10 ** 12 * [1, 2] }}",
        "{{ 'x' | center(10 ** 15) }}",
        "(" * 3 + "{{" + "(" * 5000,
        "{% for",
    ],
)
def test_what_does_not_end_is_refused(tmp_path: Path, template: str) -> None:
    start = time.process_time()
    with pytest.raises(DataError, match="does not take these messages"):
        said(tmp_path, template)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 3000000 * 2 + 2 ** 10 }}", "6001024"),
        ("{{ '-' * 5 }}{{ 2.5 * 4 }}", "-----10.0"),
        ("{% for n in range(1, 7, 2) %}{{ n }}{% endfor %}{{ messages[0].content }}", "135w1 w2"),
    ],
)
def test_what_templates_compute_stays(tmp_path: Path, template: str, text: str) -> None:
    assert said(tmp_path, template) == text

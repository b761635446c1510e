from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from spq_graph.runtime.measures.tasks import Task, load_task, score_task
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import ActivationError, DataError, UsageError

LETTERS = ["<s>", *"abcdefghijklmnopqrstuvwxyzQA?:.,' "]


def letters(*, bos: bool) -> TextTokenizer:
    """One token a letter, so that every text has more tokens than words."""
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(LETTERS)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return TextTokenizer(tokenizer, 0)


class Model:
    """A random causal model: each position's logits depend on all ids up to it and on nothing behind it."""

    def __init__(self, vocab_size: int = len(LETTERS)) -> None:
        random = np.random.default_rng(1)
        self.embedding = random.normal(size=(vocab_size, 8))
        self.head = random.normal(size=(8, vocab_size))
        self.rows: list[int] = []

    def __call__(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        assert ids.shape == mask.shape
        self.rows.append(len(ids))
        state, out = np.zeros((len(ids), 8)), []
        for column in range(ids.shape[1]):
            state = np.tanh(0.9 * np.roll(state, 1, axis=1) + self.embedding[ids[:, column]])
            out.append(state @ self.head)
        return np.stack(out, axis=1).astype(np.float32)


def brute_force(model: Model, row: list[int], count: int) -> tuple[float, bool]:
    """Log-likelihood and greedy match of the last `count` tokens of one row, run alone and one token at a time."""
    logits = model(np.array([row]), np.ones((1, len(row)), dtype=np.int64))[0].astype(np.float64)
    total, met = 0.0, True
    for position in range(len(row) - count, len(row)):
        before = logits[position - 1]
        total += float(before[row[position]] - np.log(np.exp(before).sum()))
        met &= int(before.argmax()) == row[position]
    return total, met


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


class TestBytes:
    """A task is read by its content, as texts are."""

    ROWS = '{"context": "a b", "continuation": "c"}\n{"context": "b", "continuation": "c\u2028d"}\n'

    @pytest.mark.parametrize(
        "content",
        [
            b"\xef\xbb\xbf" + ROWS.encode(),
            ROWS.encode("utf-16"),
            ROWS.replace("\n", "\r\n").encode("utf-16-le"),
            gzip.compress(ROWS.encode()),
        ],
        ids=["marked", "utf16", "utf16_unmarked", "gzip"],
    )
    def test_encodings(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "task.jsonl").write_bytes(content)
        task = load_task(tmp_path / "task.jsonl")
        assert [example.options for example in task.examples] == [(("a b", "c"),), (("b", "c\u2028d"),)]

    def test_the_name_is_without_what_packed_it(self, tmp_path: Path) -> None:
        (tmp_path / "task.jsonl.gz").write_bytes(gzip.compress(self.ROWS.encode()))
        assert load_task(tmp_path / "task.jsonl.gz").name == "task"

    @pytest.mark.parametrize("content", ["café".encode("latin-1"), b"PK\x03\x04" + bytes(99)])
    def test_what_is_no_text(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "task.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=r"not UTF-8: byte 0xe9|a zip archive, not text"):
            load_task(tmp_path / "task.jsonl")


@pytest.fixture
def choices(tmp_path: Path) -> Task:
    random = np.random.default_rng(2)

    def words(count: int) -> str:
        return " ".join("".join(random.choice(list("abcdefgh"), size=3)) for _ in range(count))

    rows = [
        {
            "query": words(length),
            "choices": [words(count) for count in random.integers(1, 3, size=3)],
            "gold": length % 3,
        }
        for length in random.integers(1, 9, size=40).tolist()
    ]
    return load_task(write(tmp_path / "made_up.jsonl", *rows))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("max_length", [1000, 24, 9])
def test_choices_equal_brute_force(choices: Task, bos: bool, max_length: int) -> None:
    tokenizer, model = letters(bos=bos), Model()
    right = right_by_byte = 0
    for example in choices.examples:
        scores, by_byte = [], []
        for context, text in example.options:
            tail = f"{context} {text}"[-(max_length + 1 - bos) :]
            row = [0] * bos + [LETTERS.index(letter) for letter in tail]
            count = min(len(text) + 1, len(row) - 1)
            score, _ = brute_force(model, row, count)
            scores.append(score)
            by_byte.append(score / len(text))
        right += scores.index(max(scores)) == example.gold
        right_by_byte += by_byte.index(max(by_byte)) == example.gold
    result = score_task(choices, tokenizer, model, max_length=max_length, batch=7)
    assert (result.accuracy, result.n, result.accuracy_normalized) == (right / 40, 40, right_by_byte / 40)
    assert max_length < 1000 or right != right_by_byte


def test_greedy_continuations_are_met_in_full_or_not_at_all(tmp_path: Path) -> None:
    tokenizer, model = letters(bos=True), Model()
    rows, met = [], 0
    for number in range(12):
        ids = [0, *(LETTERS.index(letter) for letter in "ab"[number % 2] * (number + 1)), LETTERS.index(" ")]
        for _ in range(3):
            logits = model(np.array([ids]), np.ones((1, len(ids)), dtype=np.int64))[0, -1]
            logits[[0, LETTERS.index(" ")]] = -np.inf
            ids.append(int(logits.argmax()))
        text = "".join(LETTERS[token] for token in ids[1:])
        rows.append({"context": text[:-4], "continuation": text[-3:] if number % 3 else text[-3:-1] + "?"})
        row = [0, *(LETTERS.index(letter) for letter in rows[-1]["context"] + " " + rows[-1]["continuation"])]
        met += brute_force(model, row, 4)[1]
    task = load_task(write(tmp_path / "greedy.jsonl", *rows))
    result = score_task(task, tokenizer, model, max_length=64)
    assert (result.accuracy, result.accuracy_normalized) == (met / 12, None)


def test_greedy_counts_a_model_that_knows(tmp_path: Path) -> None:
    task = load_task(
        write(
            tmp_path / "alphabet.jsonl",
            {"context": "x abc", "continuation": "def"},
            {"context": "abc", "continuation": "dxf"},
        )
    )

    def successor(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        following = np.where(ids == LETTERS.index("c"), LETTERS.index(" "), (ids + 1) % len(LETTERS))
        following = np.where(ids == LETTERS.index(" "), LETTERS.index("d"), following)
        return np.eye(len(LETTERS), dtype=np.float32)[following]

    assert score_task(task, letters(bos=False), successor, max_length=64).accuracy == 0.5


def test_contexts_compete_for_one_continuation(tmp_path: Path) -> None:
    rows = [{"context_options": ["the cat", "a big dog"], "continuation": "ran.", "gold": gold} for gold in (0, 1)]
    task = load_task(write(tmp_path / "schema.jsonl", *rows))
    model = Model()
    scores = []
    for context in ("the cat", "a big dog"):
        row = [LETTERS.index(letter) for letter in f"{context} ran."]
        scores.append(brute_force(model, row, 5)[0])
    assert scores[0] != scores[1]
    assert score_task(task, letters(bos=False), model, max_length=64).accuracy == 0.5
    assert score_task(task, letters(bos=False), model, max_length=64, limit=1).accuracy == float(scores[0] > scores[1])


def test_options_that_differ_in_the_last_token_run_once(tmp_path: Path) -> None:
    task = load_task(
        write(
            tmp_path / "t.jsonl",
            {"query": "a or b", "choices": ["a", "b"], "gold": 1},
            {"query": "a", "choices": ["b", "c"], "gold": 1},
        )
    )
    model, seen = Model(), []
    score_task(task, letters(bos=True), model, max_length=64, progress=lambda done, total: seen.append((done, total)))
    assert model.rows == [2]
    assert seen == [(2, 2)]


def test_a_question_gets_its_answer_line(tmp_path: Path) -> None:
    row = {"choices": ["x", "y"], "gold": 0}
    task = load_task(
        write(
            tmp_path / "t.jsonl",
            {**row, "query": "Question: why?\n"},
            {**row, "query": "Question: why?\nAnswer:"},
            {**row, "query": "A fact."},
        )
    )
    asked = [example.options[0][0] for example in task.examples]
    assert asked == ["Question: why?\nAnswer:", "Question: why?\nAnswer:", "A fact."]


def test_nan_is_refused(choices: Task) -> None:
    def broken(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return np.full((*ids.shape, len(LETTERS)), np.nan, dtype=np.float32)

    with pytest.raises(ActivationError, match="made_up"):
        score_task(choices, letters(bos=True), broken, max_length=64)


def test_nothing_to_score_is_refused(choices: Task) -> None:
    with pytest.raises(UsageError, match="limit of 0"):
        score_task(choices, letters(bos=True), Model(), max_length=64, limit=0)
    with pytest.raises(UsageError, match="no room"):
        score_task(choices, letters(bos=True), Model(), max_length=1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "unknown form: prompt"),
        ({"query": "x", "choices": ["a"], "gold": 0}, "unknown form"),
        ([1], "unknown form: list"),
        ({"query": "x", "choices": ["a", "b"], "gold": 2}, "gold is 2"),
        ({"query": "x", "choices": ["a", 3], "gold": 0}, "empty or not a string"),
        ({"query": " ", "choices": ["a", "b"], "gold": 0}, "empty or not a string"),
        ({"context": "x", "continuation": "y"}, "either choices or"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "t.jsonl", {"query": "x", "choices": ["a", "b"], "gold": 0}, row)
    with pytest.raises(DataError, match=message) as error:
        load_task(path)
    assert error.value.where == f"{path}:2"


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for content, message in (
        (b"", "no examples"),
        (b"{", "not valid JSON"),
        (b"\xff", "not UTF-8: byte 0xff at offset 0"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_task(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_task(tmp_path / "absent.jsonl")


def test_every_shared_task_loads(shared_data: Path) -> None:
    tasks = [load_task(path) for path in sorted((shared_data / "zeroshot").glob("*.jsonl"))]
    assert {task.name for task in tasks if task.greedy} == {"lambada_openai"}
    assert {task.name: len(task.examples) for task in tasks}["boolq"] == 3270
    tokenizer = TextTokenizer.load(shared_data / "stories260K")
    for task in tasks:
        result = score_task(task, tokenizer, Model(512), max_length=48, limit=3)
        assert 0 <= result.accuracy <= 1
        assert result.n == 3

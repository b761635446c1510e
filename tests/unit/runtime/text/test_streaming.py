from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from spq_graph.runtime.text.streaming import InOrder, TextStream
from spq_graph.runtime.text.tokenizer import TextTokenizer
from tests.support.words import words

TEXT = "naïve 漢字 🙂👍🏽 done"


@pytest.fixture(scope="module")
def by_bytes() -> TextTokenizer:
    """Every byte is a token, so a character is up to four of them."""
    vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextTokenizer(tokenizer)


def streamed(stream: TextStream, ids: list[int]) -> list[str]:
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert stream.text == "".join(pieces)
    return pieces


def test_a_character_comes_when_it_is_whole(by_bytes: TextTokenizer) -> None:
    ids = by_bytes.encode(TEXT)
    assert len(ids) == len(TEXT.encode())
    pieces = streamed(TextStream(by_bytes, []), ids)
    assert "".join(pieces) == TEXT
    assert "🙂" in pieces
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[:4] == ["n", "a", "", "ï"]


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_prompt_may_end_anywhere(by_bytes: TextTokenizer, cut: int) -> None:
    ids = by_bytes.encode(TEXT)
    before = by_bytes.decode(ids[:cut])
    if "\ufffd" not in before:
        assert before + "".join(streamed(TextStream(by_bytes, ids[:cut]), ids[cut:])) == TEXT


def test_half_a_character_at_the_end_is_given_as_such(by_bytes: TextTokenizer) -> None:
    pieces = streamed(TextStream(by_bytes, []), by_bytes.encode("a🙂")[:-1])
    assert pieces[0] == "a"
    assert set(pieces[-1]) == {"\ufffd"}
    assert not any(pieces[1:-1])


def test_bytes_that_are_no_text_do_not_hold_the_rest_back(by_bytes: TextTokenizer) -> None:
    broken = by_bytes.encode("🙂")[:2]
    pieces = streamed(TextStream(by_bytes, []), [*by_bytes.encode("a"), *broken, *by_bytes.encode("bc")])
    assert pieces[0] == "a"
    assert pieces[3].endswith("b")
    assert pieces[4] == "c"


def test_blanks_between_words(by_bytes: TextTokenizer) -> None:
    tokenizer = TextTokenizer(words())
    assert streamed(TextStream(tokenizer, tokenizer.encode("w0 w1")), tokenizer.encode("w2 w3")) == [" w2", " w3", ""]
    metaspace = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "<unk>": 2}, unk_token="<unk>"))
    metaspace.pre_tokenizer, metaspace.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert streamed(TextStream(TextTokenizer(metaspace), []), [0, 1]) == ["a", " b", ""]
    assert streamed(TextStream(TextTokenizer(metaspace), [0]), [0, 1]) == [" a", " b", ""]


@pytest.mark.parametrize(
    ("stops", "text", "stopped"),
    [
        ((" 漢",), "naïve", True),
        (("字 🙂👍", "zz"), "naïve 漢", True),
        (("absent",), TEXT, False),
        (("done!",), TEXT, False),
        (("e", "na"), "", True),
        (("",), TEXT, False),
    ],
)
def test_stops(by_bytes: TextTokenizer, stops: tuple[str, ...], text: str, stopped: bool) -> None:
    stream = TextStream(by_bytes, [], stops)
    pieces = streamed(stream, by_bytes.encode(TEXT))
    assert ("".join(pieces), stream.stopped) == (text, stopped)


def test_what_may_become_a_stop_is_held_back(by_bytes: TextTokenizer) -> None:
    pieces = streamed(TextStream(by_bytes, [], ["abc", "bd"]), by_bytes.encode("xababx"))
    assert pieces == ["x", "", "", "ab", "", "abx", ""]


def test_texts_are_written_one_after_the_other() -> None:
    written: list[str] = []
    shown = InOrder(written.append, ["A:", "B:", "C:"])
    shown.add(0, "1")
    shown.add(1, "1")
    shown.end(2)
    shown.add(0, "2")
    assert written == ["A:1", "2"]
    shown.end(0)
    assert written[2:] == ["\n\n", "B:1"]
    shown.add(1, "2")
    shown.end(1)
    assert "".join(written) == "A:12\n\nB:12\n\nC:\n"

"""Text in windows: every token is predicted once, in order, and what leaves no room is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_graph.runtime.text.reading import windows
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import DataError, UsageError
from tests.support.words import text_of, words


@pytest.fixture
def plain() -> TextTokenizer:
    return TextTokenizer(words())


@pytest.fixture
def prepending() -> TextTokenizer:
    return TextTokenizer(words("<s> $A </s>"))


class TestWindows:
    @given(count=st.integers(2, 200), window=st.integers(2, 40), bos=st.booleans())
    def test_every_token_is_predicted_once_in_order(self, count: int, window: int, bos: bool) -> None:
        tokenizer = TextTokenizer(words(), bos_id=1)
        cut = windows(tokenizer, text_of(count), window=window, bos=bos, min_windows=0)
        assert cut.ids.shape[1] <= window
        assert cut.prefix == int(bos)
        expected = tokenizer.encode(text_of(count))[0 if bos else 1 :]
        assert cut.ids[:, 1:][cut.predicted].tolist() == expected
        assert (cut.ids[:, 0] == 1).all() == bos
        if not bos:
            assert (cut.ids[1:, 0] == cut.ids[:-1, -1]).all()

    def test_a_longer_prefix_is_not_predicted(self) -> None:
        tokenizer = TextTokenizer(words("</s> <s> $A"))
        cut = windows(tokenizer, text_of(10), window=7, bos=False)
        assert cut.ids[:, :2].tolist() == [[2, 1], [2, 1]]
        assert cut.ids[:, 1:][cut.predicted].tolist() == tokenizer.encode(text_of(10))

    def test_documents_do_not_share_rows(self, prepending: TextTokenizer) -> None:
        cut = windows(prepending, ["w0 w1 w2 w3", "", "w4"], window=4, bos=False)
        assert cut.ids.tolist() == [[1, 3, 4, 5], [1, 6, 0, 0], [1, 7, 0, 0]]
        assert cut.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
        assert cut.tokens == 8

    @given(tokens=st.integers(1, 300), documents=st.booleans())
    def test_a_token_budget_reads_less_and_gives_the_same(self, tokens: int, documents: bool) -> None:
        tokenizer = TextTokenizer(words("<s> $A"))
        text = [text_of(n) for n in (3, 40, 7, 90)] if documents else text_of(250)
        whole = windows(tokenizer, text, window=16, bos=False)
        some = windows(tokenizer, text, window=16, bos=False, max_tokens=tokens)
        assert some.digest == whole.take(tokens).digest
        assert len(some) == 1 or some.tokens <= tokens

    def test_a_token_budget_does_not_tokenize_the_rest(
        self, plain: TextTokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[int] = []
        monkeypatch.setattr(plain, "pieces", lambda text: (read.append(n) or [3] * 50 for n in range(1000)))
        assert windows(plain, "text", window=10, bos=False, max_tokens=95).tokens == 90
        assert len(read) == 3

    def test_too_little_text_says_how_much_and_what_helps(self, prepending: TextTokenizer) -> None:
        with pytest.raises(DataError, match=r"^here: 37 tokens .* 255 .*\n.*--window 38\.$"):
            windows(prepending, text_of(37), window=256, bos=False, origin="here")
        assert len(windows(prepending, text_of(37), window=38, bos=False)) == 1
        with pytest.raises(DataError, match=r"37 tokens .* 60 .*\n.*--window 10\.$"):
            windows(prepending, text_of(37), window=16, bos=False, min_windows=4)
        assert len(windows(prepending, text_of(37), window=10, bos=False, min_windows=4)) == 5

    def test_nothing_to_predict(self, plain: TextTokenizer) -> None:
        for text in ("", " \n", []):
            with pytest.raises(DataError, match="empty"):
                windows(plain, text, window=8, bos=False)
        with pytest.raises(DataError, match="0 tokens to predict"):
            windows(plain, "w0", window=8, bos=False, min_windows=0)
        with pytest.raises(UsageError, match="no room"):
            windows(plain, text_of(9), window=1, bos=False)

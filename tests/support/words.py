from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(29))]


def words(template: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return tokenizer


def text_of(count: int) -> str:
    return " ".join(WORDS[3 + n % 29] for n in range(count))

"""Train the embedded reference model from scratch, on a CPU.

A small LLaMA (8 layers, width 160, SwiGLU 432, untied head, BPE 2048) in which activation spikes emerge on
their own: BOS stands at position 0 of every window, so attention makes it a sink, and a high learning rate, weight
decay and embeddings of unit variance let a few `down_proj` inputs grow on that one token.

    python models/reference/train.py --data ../shared/data --out models/reference --compile

needs `pip install -e .[export]`. The text is read from --data (WikiText-2 train; with --book-bytes also public-domain
books) and is not part of the repository. Training is deterministic for one machine, thread count and torch version.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spq_graph.documents.json_text import json_text

VOCABULARY = 2048
WINDOW = 256
# Typographic punctuation is folded: a vocabulary of 2048 has better uses for its codes.
FOLDED = {"“": '"', "”": '"', "‘": "'", "’": "'", "—": " - ", "–": "-", "…": "...", "\u00a0": " ", "\u2060": ""}


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that prepends BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), *(normalizers.Replace(old, new) for old, new in FOLDED.items())]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # WikiText writes rare words as "<unk>": one token, with the blank before it.
    special = ["<s>", "</s>", AddedToken("<unk>", lstrip=True, special=True)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def windows(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Cut a text into rows of BOS and WINDOW - 1 consecutive tokens, int64 [rows, WINDOW]."""
    lines = text.splitlines(keepends=True)
    ids = [
        token
        for start in range(0, len(lines), 4096)
        for encoded in tokenizer.backend_tokenizer.encode_batch(lines[start : start + 4096], add_special_tokens=False)
        for token in encoded.ids
    ]
    body = WINDOW - 1
    rows = np.asarray(ids[: len(ids) // body * body], dtype=np.int64).reshape(-1, body)
    return np.concatenate([np.full((len(rows), 1), tokenizer.bos_token_id), rows], axis=1)


def load_texts(data: Path, book_bytes: int, rng: np.random.Generator) -> tuple[str, str, str]:
    """WikiText-2 train and validation, and a random choice of book paragraphs."""
    train = (data / "wikitext2/train.txt").read_text(encoding="utf-8")
    valid = (data / "wikitext2/valid.txt").read_text(encoding="utf-8")
    if not book_bytes:
        return train, valid, ""
    with lzma.open(data / "books/books.txt.xz", "rt", encoding="utf-8") as stream:
        books = stream.read().split("<|book|>")
    per_book = book_bytes // len(books)
    chosen = []
    for book in books:
        start = int(rng.integers(0, max(1, len(book) - per_book)))
        chosen.append(book[book.find("\n", start) + 1 :][:per_book])
    return train, valid, "\n".join(chosen)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, rows: np.ndarray) -> float:
    """Perplexity over rows, every token but BOS predicted once."""
    model.eval()
    total = 0.0
    for start in range(0, len(rows), 16):
        ids = torch.from_numpy(rows[start : start + 16])
        logits = model(input_ids=ids).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
    model.train()
    return math.exp(total / (rows.shape[0] * (rows.shape[1] - 1)))


@torch.no_grad()
def spike_table(model: LlamaForCausalLM, rows: np.ndarray) -> list[dict[str, float]]:
    """Per layer: maximum and median of the token maxima at the `down_proj` input, and their ratio."""
    maxima: list[torch.Tensor] = [torch.empty(0)] * len(model.model.layers)
    handles = []
    for index, layer in enumerate(model.model.layers):

        def hook(_module: torch.nn.Module, args: tuple[torch.Tensor, ...], index: int = index) -> None:
            maxima[index] = args[0].abs().amax(-1).float().flatten()

        handles.append(layer.mlp.down_proj.register_forward_pre_hook(hook))
    model.eval()
    model(input_ids=torch.from_numpy(rows))
    model.train()
    for handle in handles:
        handle.remove()
    return [
        {
            "layer": i,
            "max": round(m.max().item(), 2),
            "median": round(m.median().item(), 3),
            "ratio": round((m.max() / m.median()).item(), 1),
            "position": int(m.argmax() % rows.shape[1]),
        }
        for i, m in enumerate(maxima)
    ]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up, stay, and decay linearly over the last quarter (warmup-stable-decay)."""
    warm, decay = 100, steps // 4
    return peak * min(1.0, (step + 1) / warm, max(0.02, (steps - step) / decay))


def initialized(config: LlamaConfig, embedding_std: float) -> LlamaForCausalLM:
    """A model with PyTorch's own initialization instead of the usual 0.02.

    Embeddings of unit variance make a residual stream that only massive activations can overrule, which is how a BOS
    sink comes about: with 0.02 everywhere none had formed after 1000 steps, with this one stood in layer 1 after 250.
    """
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "embed" in name:
            torch.nn.init.normal_(parameter, std=embedding_std)
        elif parameter.ndim > 1:
            torch.nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
    return model


def batches(sources: list[np.ndarray], shares: list[int], rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Endless batches with so many rows of each source, in an order drawn anew for every pass over it."""
    orders = [rng.permutation(len(s)) for s in sources]
    cursor = [0] * len(sources)
    while True:
        picked = []
        for s, count in enumerate(shares):
            if cursor[s] + count > len(orders[s]):
                orders[s], cursor[s] = rng.permutation(len(sources[s])), 0
            picked.append(sources[s][orders[s][cursor[s] : cursor[s] + count]])
            cursor[s] += count
        yield torch.from_numpy(np.concatenate(picked))


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    train_text, valid_text, books = load_texts(args.data, args.book_bytes, rng)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer([train_text, books[: len(books) // 2]])
    tokenizer.save_pretrained(args.out)
    sources = [rows for rows in (windows(tokenizer, train_text), windows(tokenizer, books)) if len(rows)]
    valid = windows(tokenizer, valid_text)
    print("windows:", [len(s) for s in sources], "valid:", len(valid), flush=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=8,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=False,
        initializer_range=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    model = initialized(config, args.embedding_std)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay, fused=True
    )
    forward = torch.compile(model) if args.compile else model
    books_per_batch = round(args.batch * args.book_share) if len(sources) > 1 else 0
    shares = [args.batch - books_per_batch, books_per_batch][: len(sources)]
    started = time.monotonic()
    for step, ids in zip(range(args.steps), batches(sources, shares, rng), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = train_step(model, forward, optimizer, ids)
        if step % 50 == 0:
            print(f"{step} loss {loss:.3f} {time.monotonic() - started:.0f}s", flush=True)
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            report = {
                "step": step + 1,
                "seconds": round(time.monotonic() - started),
                "valid_perplexity": round(evaluate(model, valid[:: 1 if step + 1 == args.steps else 8]), 3),
                "down_proj": spike_table(model, valid[:16]),
            }
            print(json_text(report, "report", indent=None), flush=True)
            save(model, args.out, report, args)


def train_step(
    model: LlamaForCausalLM, forward: Callable[..., Any], optimizer: torch.optim.Optimizer, ids: torch.Tensor
) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = forward(input_ids=ids, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save(model: LlamaForCausalLM, out: Path, report: dict[str, object], args: argparse.Namespace) -> None:
    """Save the weights as float16 without touching the model in training."""
    state = {name: tensor.detach().to(torch.float16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float16"
    (out / "config.json").write_text(json_text(config, "config.json", indent=2) + "\n")
    arguments = {k: v for k, v in vars(args).items() if k not in ("data", "out")}
    (out / "training.json").write_text(json_text({"arguments": arguments, **report}, "training.json") + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--every", type=int, default=125)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--embedding-std", type=float, default=1.0)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--book-bytes", type=int, default=0)
    parser.add_argument("--book-share", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    train(parser.parse_args())

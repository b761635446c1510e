"""What every verb of the command line needs, and for every option of it a call in which it matters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DOWN = "layers.0.mlp.down_proj"
Given = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class World:
    """Files that the verbs read, and where they write."""

    at: Path

    def __getattr__(self, name: str) -> Path:
        return self.at / name.replace("__", ".")


def base(verb: str, w: World) -> list[object]:
    """A verb with what it needs and no more."""
    given = ["--calibration", w.ids__npz]
    return {
        "quantize": ["quantize", w.model__onnx, "-o", w.made, "--spike-ratio", 5, *given],
        "export": ["export", "reference", "-o", w.made],
        "calibrate": ["calibrate", w.model__onnx, "-o", w.made__json, *given],
        "plan": ["plan", w.model__onnx, w.ranges__json, "-o", w.made__json],
        "apply": ["apply", w.model__onnx, w.out / "plan.json", "-o", w.made],
        "doctor": ["doctor"],
        "eval": ["eval", w.model__onnx, "--text", w.text__npz, "--window", 32],
        "generate": ["generate", w.model__onnx, "--prompt", "w3 w4", "--tokenizer", w.tokenizer, "--max-new-tokens", 8],
        "chat": ["chat", w.model__onnx, "--tokenizer", w.chatty, "--max-new-tokens", 8],
        "bench": ["bench", w.out],
        "inspect": ["inspect", w.model__onnx],
        "verify": ["verify", w.out, w.model__onnx],
        "diff": ["diff", w.out, w.out6],
        "view": ["view", w.model__onnx],
        "presets": ["presets"],
    }[verb]


def rows(w: World) -> dict[tuple[str, str], tuple[Given, Given]]:
    """What is added to a verb, without the option and with it; arguments are exchanged as a whole."""
    text, tokenizer = ("--calibration", w.words__txt, "--tokenizer", w.tokenizer), ("--tokenizer", w.without)
    bare = ("--calibration", w.words__txt, *tokenizer)
    sampling, chatty = ("--temperature", 1.0), ("--tokenizer", w.chatty)
    measured = ("--calibration", w.ids__npz)
    tasks = ("--tasks", w.task__jsonl, "--tokenizer", w.tokenizer)
    return {
        ("quantize", "bits"): ((), ("--bits", 6)),
        ("quantize", "preset"): ((), ("--preset", "weight-only-8")),
        ("quantize", "recipe"): ((), ("--recipe", w.recipe__toml)),
        ("quantize", "calibration"): ((), ("--calibration", w.text__npz)),
        ("quantize", "calibration_tokens"): ((), ("--calibration-tokens", 128)),
        ("quantize", "text"): ((), ("--text", w.text__npz)),
        ("quantize", "max_eval_tokens"): (("--text", w.text__npz), ("--text", w.text__npz, "--max-eval-tokens", 64)),
        ("quantize", "ladder"): (("--text", w.text__npz), ("--text", w.text__npz, "--ladder", "short")),
        ("quantize", "tokenizer"): (bare, text),
        ("quantize", "high_precision"): ((), ("--high-precision", "fp16")),
        ("quantize", "keep"): ((), ("--keep", "layers.1.mlp.up_proj")),
        ("quantize", "remedy"): ((), ("--remedy", "peel")),
        ("quantize", "no_remedy"): (("--recipe", w.peeled__toml), ("--recipe", w.peeled__toml, "--no-remedy", "peel")),
        ("quantize", "spike_ratio"): ((), ("--spike-ratio", 1.5)),
        ("quantize", "target"): ((), ("--target", "portable")),
        ("quantize", "quantize_lm_head"): ((), ("--quantize-lm-head",)),
        ("quantize", "head"): ((), ("--head", "8bit")),
        ("quantize", "embedding"): ((), ("--embedding", "8bit")),
        ("quantize", "no_chat"): ((), ("--no-chat",)),
        ("quantize", "seed"): (("--text", w.text__npz), ("--text", w.text__npz, "--seed", 5)),
        ("quantize", "bos"): (bare, (*bare, "--bos")),
        ("quantize", "window"): (text, (*text, "--window", 16)),
        ("quantize", "ranges"): ((), ("--ranges", w.ranges__json)),
        ("quantize", "memory_limit"): ((w.large__onnx,), (w.large__onnx, "--memory-limit", 1)),
        ("quantize", "dask"): ((), ("--dask", "nowhere")),
        ("quantize", "force"): (("-o", w.there), ("-o", w.there, "--force")),
        ("quantize", "no_eval"): (("--text", w.text__npz), ("--text", w.text__npz, "--no-eval")),
        ("quantize", "no_bench"): ((), ("--no-bench",)),
        ("quantize", "dry_run"): ((), ("--dry-run",)),
        ("quantize", "allow_no_glu"): ((w.plain__onnx,), (w.plain__onnx, "--allow-no-glu")),
        ("export", "opset"): ((), ("--opset", 18)),
        ("export", "no_cache"): ((), ("--no-cache",)),
        ("export", "force"): (("-o", w.there), ("-o", w.there, "--force")),
        ("calibrate", "calibration"): ((), ("--calibration", w.text__npz)),
        ("calibrate", "calibration_tokens"): ((), ("--calibration-tokens", 128)),
        ("calibrate", "tokenizer"): (bare, text),
        ("calibrate", "shard"): ((), ("--shard", "0/2")),
        ("calibrate", "merge"): ((), ("--merge", w.out / "ranges.json")),
        ("calibrate", "no_chat"): ((), ("--no-chat",)),
        ("calibrate", "seed"): ((), ("--seed", 3)),
        ("calibrate", "bos"): (bare, (*bare, "--bos")),
        ("calibrate", "window"): (text, (*text, "--window", 16)),
        ("calibrate", "memory_limit"): ((w.large__onnx,), (w.large__onnx, "--memory-limit", 1)),
        ("calibrate", "dask"): ((), ("--dask", "nowhere")),
        ("calibrate", "allow_no_glu"): ((w.plain__onnx,), (w.plain__onnx, "--allow-no-glu")),
        ("plan", "bits"): ((), ("--bits", 6)),
        ("plan", "preset"): ((), ("--preset", "fp8")),
        ("plan", "recipe"): ((), ("--recipe", w.recipe__toml)),
        ("plan", "calibration"): ((), measured),
        ("plan", "tokenizer"): ((), ("--tokenizer", w.tokenizer)),
        ("plan", "high_precision"): ((), ("--high-precision", "fp16")),
        ("plan", "keep"): ((), ("--keep", "layers.1.mlp.up_proj")),
        ("plan", "remedy"): ((), ("--remedy", "peel")),
        ("plan", "no_remedy"): (("--recipe", w.peeled__toml), ("--recipe", w.peeled__toml, "--no-remedy", "peel")),
        ("plan", "spike_ratio"): ((), ("--spike-ratio", 1.5)),
        ("plan", "target"): (("--high-precision", "fp8"), ("--high-precision", "fp8", "--target", "openvino")),
        ("plan", "quantize_lm_head"): ((), ("--quantize-lm-head",)),
        ("plan", "head"): ((), ("--head", "8bit")),
        ("plan", "embedding"): ((), ("--embedding", "8bit")),
        ("plan", "bos"): (bare, (*bare, "--bos")),
        ("plan", "window"): ((), ("--window", 1024)),
        ("plan", "memory_limit"): (
            (w.large__onnx, w.large__json, *measured),
            (w.large__onnx, w.large__json, *measured, "--memory-limit", 1),
        ),
        ("plan", "allow_no_glu"): ((w.plain__onnx,), (w.plain__onnx, "--allow-no-glu")),
        ("apply", "target"): ((), ("--target", "openvino")),
        ("apply", "force"): (("-o", w.there), ("-o", w.there, "--force")),
        ("eval", "text"): ((), ("--text", w.ids__npz)),
        ("eval", "against"): ((), ("--against", w.other__onnx)),
        ("eval", "tasks"): ((), tasks),
        ("eval", "limit"): (tasks, (*tasks, "--limit", 1)),
        ("eval", "num_fewshot"): (tasks, (*tasks, "--num-fewshot", 1)),
        ("eval", "apply_chat_template"): (tasks, (*tasks, "--apply-chat-template")),
        ("eval", "tokenizer"): (("--text", w.words__txt, *tokenizer), ("--text", w.words__txt, *text[2:])),
        ("eval", "max_eval_tokens"): ((), ("--max-eval-tokens", 64)),
        ("eval", "bos"): (("--text", w.words__txt, *tokenizer), ("--text", w.words__txt, *tokenizer, "--bos")),
        ("eval", "window"): ((), ("--window", 16)),
        ("eval", "target"): ((), ("--target", "openvino")),
        ("generate", "prompt"): ((), ("--prompt", "w9")),
        ("generate", "chat"): (chatty, (*chatty, "--no-chat")),
        ("generate", "system"): (chatty, (*chatty, "--system", "w7 w8 w9")),
        ("generate", "max_new_tokens"): ((), ("--max-new-tokens", 3)),
        ("generate", "temperature"): ((), ("--temperature", 5)),
        ("generate", "top_k"): (sampling, (*sampling, "--top-k", 1)),
        ("generate", "top_p"): (sampling, (*sampling, "--top-p", 0.01)),
        ("generate", "seed"): (sampling, (*sampling, "--seed", 4)),
        ("generate", "stop"): ((), ("--stop", "w")),
        ("generate", "tokenizer"): ((), ("--tokenizer", w.without)),
        ("generate", "bos"): (tokenizer, (*tokenizer, "--bos")),
        ("chat", "system"): ((), ("--system", "w7 w8 w9")),
        ("chat", "max_new_tokens"): ((), ("--max-new-tokens", 3)),
        ("chat", "temperature"): ((), ("--temperature", 5)),
        ("chat", "top_k"): (sampling, (*sampling, "--top-k", 1)),
        ("chat", "top_p"): (sampling, (*sampling, "--top-p", 0.01)),
        ("chat", "seed"): (sampling, (*sampling, "--seed", 4)),
        ("chat", "tokenizer"): ((), tokenizer),
        ("bench", "against"): ((), ("--against", w.model__onnx)),
        ("bench", "target"): (("--against", w.model__onnx), ("--against", w.model__onnx, "--target", "cpu")),
        ("bench", "rounds"): ((), ("--rounds", 2)),
        ("bench", "threads"): ((), ("--threads", 2)),
        ("bench", "length"): ((), ("--length", 7)),
        ("bench", "report"): ((), ("--report",)),
        ("inspect", "chosen"): ((), (DOWN,)),
        ("inspect", "site"): ((), ("--site", DOWN)),
        ("inspect", "why"): ((), ("--why",)),
        ("inspect", "unmatched"): ((), ("--unmatched",)),
        ("inspect", "calibration"): ((), measured),
        ("inspect", "calibration_tokens"): (measured, (*measured, "--calibration-tokens", 64)),
        ("inspect", "outliers"): ((), ("--outliers", "--prompt", "1 2 3")),
        ("inspect", "prompt"): (("--outliers", *text[2:]), ("--outliers", *text[2:], "--prompt", "w9")),
        ("inspect", "tokenizer"): (bare, text),
        ("inspect", "bos"): (bare, (*bare, "--bos")),
        ("inspect", "window"): (text, (*text, "--window", 16)),
        ("presets", "name"): ((), ("fp8",)),
        ("presets", "schema"): ((), ("--schema",)),
        ("view", "port"): ((), ("--port", 8081)),
        ("view", "no_browser"): ((), ("--no-browser",)),
    }

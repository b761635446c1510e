"""The verbs that run a model: `eval` and `generate`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from spq_graph.cli import options as o
from spq_graph.cli.terminal import answer, errors, print_json, steps, unused, write_text


def evaluate(
    path: o.AnyModel,
    text: o.Text = None,
    against: Annotated[
        str | None, typer.Option(help="floating-point model: adds KL and top-1 agreement", metavar="FP_MODEL")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="tasks of lm-evaluation-harness by name, several between commas, a task file of it (.yaml), or "
            "zero-shot tasks in jsonl (repeatable)",
            metavar="NAME|FILE",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="examples of each task")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="solved examples before each question, for tasks of lm-evaluation-harness")
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template", help="ask tasks of lm-evaluation-harness by the model's chat template, as it does"
        ),
    ] = False,
    tokenizer: o.Tokenizer = None,
    max_eval_tokens: o.MaxEvalTokens = None,
    bos: o.Bos = False,
    window: o.Window = None,
    target: Annotated[str | None, typer.Option(help="cpu (ONNX Runtime, the default) or openvino")] = None,
    as_json: o.Json = False,
) -> None:
    """Perplexity, agreement with another model, and zero-shot accuracy."""
    from spq_graph.jobs.evaluate import evaluate as run
    from spq_graph.views.results import evaluation_in_words
    from spq_graph.workbench.harness import told_apart
    from spq_graph.workbench.opening import Opening

    if not tasks:
        unused("without --tasks NAME", limit=limit, num_fewshot=num_fewshot, apply_chat_template=apply_chat_template)
    elif not told_apart(tasks)[1]:
        unused("with tasks in jsonl", num_fewshot=num_fewshot, apply_chat_template=apply_chat_template)
    if text is None and path != "reference":
        unused("without --text FILE", max_eval_tokens=max_eval_tokens)
    found = run(
        Opening(path, tokenizer, bos, window),
        text=text,
        max_tokens=max_eval_tokens,
        against=against,
        tasks=tasks or (),
        limit=limit,
        num_fewshot=num_fewshot,
        chat=apply_chat_template,
        target=target,
        steps=steps(),
    )
    answer(found.to_dict(), evaluation_in_words(found), as_json=as_json)


def bench(
    path: o.AnyModel,
    against: Annotated[
        str | None, typer.Option(help="floating-point model, which all ratios refer to", metavar="FP_MODEL")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="targets to time as well (repeatable); by default all that run here")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="how often each model is timed")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="threads of every session")] = 1,
    length: Annotated[
        list[int] | None, typer.Option(min=1, max=1 << 20, help="prompt lengths (repeatable; 128 and 512)")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="write the figures into OUT's report")] = False,
    as_json: o.Json = False,
) -> None:
    """Prefill, decoding, load time and memory, in turns with the models it is compared with."""
    from spq_graph.jobs.bench import LENGTHS
    from spq_graph.jobs.bench import bench as run
    from spq_graph.views.speeds import show

    found = run(
        path,
        against=against,
        targets=target or (),
        rounds=rounds,
        threads=threads,
        lengths=length or LENGTHS,
        report=report,
        steps=steps(),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        show(found, Console())


def generate(
    path: o.AnyModel,
    prompt: Annotated[
        list[str], typer.Option(help="text to continue or to answer; repeatable: several run as one batch")
    ],
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="answer by the model's chat template, or continue the text as it is",
            show_default="--chat where the model has a template",
        ),
    ] = None,
    system: o.System = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="most tokens to add to each", metavar="N")] = 64,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    seed: o.DrawSeed = None,
    stop: Annotated[list[str] | None, typer.Option(help="text to end at, not shown (repeatable)")] = None,
    tokenizer: o.Tokenizer = None,
    bos: o.Bos = False,
    as_json: o.Json = False,
) -> None:
    """Continue or answer text, shown as it arrives: over the KV cache where the graph has one."""
    from spq_graph.jobs.generate import generate as run
    from spq_graph.views.results import generation_in_words
    from spq_graph.workbench.opening import Opening

    sampling = o.sampling_of(temperature, top_k, top_p, seed)
    if chat is False:
        unused("with --no-chat", system=system)
    found = run(
        Opening(path, tokenizer, bos),
        prompt,
        chat=chat,
        system=system if chat is not False else None,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        stops=stop or (),
        write=None if as_json else write_text,
        steps=steps(),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        errors.print(generation_in_words(found), style="dim", highlight=False, soft_wrap=True)

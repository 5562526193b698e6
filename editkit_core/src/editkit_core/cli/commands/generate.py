"""``editkit generate``: continue prompts, with or without a patch."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from editkit_core.cli.options import load_editor, model_options
from editkit_core.cli.output import json_option, print_json


@click.command("generate")
@model_options
@click.option("--prompt", "-p", "prompts", multiple=True, required=True, help="May be repeated.")
@click.option("--patch", type=click.Path(path_type=Path), help="A patch to apply meanwhile.")
@click.option(
    "--mode",
    type=click.Choice(["merge", "overlay"]),
    default="merge",
    show_default=True,
    help="Write the patch into the weights in memory, or add it as a side path.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Most tokens to add.",
)
@click.option("--sample", is_flag=True, help="Sample instead of taking the likeliest token.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Divides the logits when sampling.",
)
@click.option("--top-k", type=click.IntRange(1), help="Sample from the k likeliest tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from the fewest tokens of this probability.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random."
)
@json_option
def command(
    prompts: tuple[str, ...],
    patch: Path | None,
    mode: str,
    max_new_tokens: int,
    sample: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    as_json: bool,
    **model: Any,  # Any: the model options as click gives them
) -> None:
    """Continue prompts greedily, or by sampling with a seed."""
    from editkit_core.patch.format import Patch

    loaded = Patch.load(patch) if patch else None
    editor = load_editor(**model)
    with editor.applied(loaded, mode=mode) if loaded else nullcontext():
        texts = editor.model.generate(
            list(prompts),
            max_new_tokens=max_new_tokens,
            sample=sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
    if as_json:
        print_json([{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)])
        return
    for prompt, text in zip(prompts, texts, strict=True):
        click.echo(prompt + click.style(text, bold=True))

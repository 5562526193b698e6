"""``editkit generate``: continue prompts, with or without a patch."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editkit_core.cli.options import known_kinds, load_editor, optional_model_options
from editkit_core.cli.output import json_option, print_json

if TYPE_CHECKING:
    from editkit_core.api import Editor


@click.command("generate")
@optional_model_options
@click.option("--prompt", "-p", "prompts", multiple=True, required=True, help="May be repeated.")
@click.option("--patch", type=click.Path(path_type=Path), help="A patch to apply meanwhile.")
@click.option(
    "--stack",
    "-s",
    type=click.Path(path_type=Path),
    help="Apply what counts in this stack, below the patch. The stack knows its base.",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "merge", "overlay"]),
    default="auto",
    show_default=True,
    help="Write patches into the weights in memory, add them as side paths, or what keeps them.",
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
    stack: Path | None,
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

    loaded = Patch.load(patch, kinds=known_kinds()) if patch else None
    editor = _load(stack, mode, model)
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


def _load(stack: Path | None, mode: str, model: dict[str, Any]) -> Editor:
    if stack is not None:
        from editkit_core.cli.commands.stack.basing import load_stacked
        from editkit_core.cli.commands.stack.options import open_store

        return load_stacked(open_store(stack), mode=mode, **model)
    if model["model"] is None:
        raise click.UsageError("Give the model with --model, or a stack with --stack.")
    return load_editor(**model)

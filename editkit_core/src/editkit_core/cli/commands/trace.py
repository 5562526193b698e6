"""``editkit trace``: find where a model recalls a fact, and draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from editkit_core.cli.commands.edit import check_free
from editkit_core.cli.options import load_editor, model_options
from editkit_core.cli.output import json_option, print_json, print_table, progress_bar
from editkit_core.types import EditRequest


@click.command("trace")
@model_options
@click.option("--prompt", required=True, help="Text before the answer; {} marks the subject.")
@click.option("--subject", required=True, help="The entity the fact is about.")
@click.option("--answer", help="The answer to trace; what the model says by default.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Draw the heat map here (PNG).")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option(
    "--samples", type=click.IntRange(1), default=10, show_default=True, help="Draws of the noise."
)
@click.option("--noise", type=click.FloatRange(0), help="Standard deviation; 3 sigma by default.")
@click.option(
    "--window", type=click.IntRange(1), help="Layers restored at once for MLP, attention."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random."
)
@json_option
def command(
    prompt: str,
    subject: str,
    answer: str | None,
    out: Path | None,
    force: bool,
    samples: int,
    noise: float | None,
    window: int | None,
    seed: int,
    as_json: bool,
    **model: Any,  # Any: the model options as click gives them
) -> None:
    """Corrupt the subject, restore one state at a time, and measure what brings the answer back."""
    request = EditRequest(prompt=prompt, subject=subject, target_new=answer or "?")
    check_free(out, force=force)
    if out is not None:
        from editkit_core.report.heatmap import require_matplotlib

        require_matplotlib()
    editor = load_editor(**model)
    options: dict[str, Any] = {"window": window} if window else {}  # Any: keyword arguments
    with progress_bar(off=as_json) as bar:
        result = editor.trace(
            request, answer=answer, samples=samples, noise=noise, seed=seed, progress=bar, **options
        )
    if out is not None:
        from editkit_core.report.heatmap import draw_trace

        draw_trace(result, out, force=force)
    if as_json:
        print_json(result.to_dict())
        return
    click.echo(
        f"p({result.answer!r}) is {result.p_clean:.3f}, and {result.p_corrupted:.3f} with the "
        f"subject corrupted: a total effect of {result.total_effect:.3f}."
    )
    rows = []
    for kind, grid in result.effects.items():
        token, layer = divmod(int(grid.argmax()), grid.shape[1])
        rows.append((kind, repr(result.tokens[token]), str(layer), f"{grid.max():.3f}"))
    print_table("Strongest indirect effect", ("state", "token", "layer", "effect"), rows)
    if out is not None:
        click.echo(f"Drew {out}.")

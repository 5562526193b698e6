"""``editkit stats``: collect the key statistics that a method solves with, and add them up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editkit_core.cli.commands.stats.merging import merge
from editkit_core.cli.options import optional_model_options
from editkit_core.cli.output import json_option, print_json, progress_bar
from editkit_core.models.families import ROLES, Role

if TYPE_CHECKING:
    from editkit_core.cli.commands.stats.working import Loaded
    from editkit_core.numerics.moments import KeyMoments

_REQUIRED = ("model", "layers", "corpus")


@click.group("stats", invoke_without_command=True, subcommand_metavar="[merge …]")
@optional_model_options
@click.option("--layer", "layers", type=int, multiple=True, help="May be repeated: one pass.")
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    default=("mlp_down",),
    show_default=True,
    help="The feed-forward's down projection or the attention's output projection; or both.",
)
@click.option(
    "--corpus",
    help="Text: .txt by paragraphs, .jsonl with a text field, or hub:OWNER/NAME#CONFIG/SPLIT.",
)
@click.option("--documents", type=click.IntRange(1), help="Read the first so many; all by default.")
@click.option("--max-tokens", type=click.IntRange(1), help="Stop after this many; all by default.")
@click.option(
    "--quick", is_flag=True, help="Few tokens from all over the corpus; says how far off they are."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that share the documents; the result is the same.",
)
@click.option(
    "--document-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Cut documents after this many tokens.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Documents a forward pass.",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder; a cache by default.")
@click.option("--fresh", is_flag=True, help="Start again instead of going on with a partial file.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; compute and write nothing.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    layers: tuple[int, ...],
    roles: tuple[Role, ...],
    corpus: str | None,
    documents: int | None,
    max_tokens: int | None,
    quick: bool,
    workers: int,
    document_tokens: int,
    batch_size: int,
    out: Path | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
    **model: Any,  # Any: the model options as click gives them
) -> None:
    """Sum k kᵀ over the inputs of layers' edited weights. Stopped, it goes on where it was.

    --model, --layer and --corpus are required.
    """
    if context.invoked_subcommand is not None:
        return
    for param in context.command.params:
        if param.name in _REQUIRED and not context.params[param.name]:
            raise click.MissingParameter(ctx=context, param=param)
    from editkit_core.cli.commands.stats.working import Work, helpers

    work = Work(
        model=model,
        layers=layers,
        roles=roles,
        corpus=str(corpus),
        documents=documents,
        max_tokens=max_tokens,
        document_tokens=document_tokens,
        batch_size=batch_size,
        out=out,
        fresh=fresh,
        quick=quick,
    )
    loaded = work.load(size=workers)
    if dry_run:
        _say(loaded)
        return
    with helpers(work, workers) as group, progress_bar(off=as_json or group.rank > 0) as bar:
        made = loaded.collect(group, bar)
    if made:
        _report(loaded, made, as_json=as_json)


def _say(loaded: Loaded) -> None:
    for site in loaded.sites:
        side = loaded.model.weight(site).shape[1]
        tokens = "" if loaded.tokens is None else f", at most {loaded.tokens:,} tokens,"
        click.echo(
            f"Would sum {side} x {side} for {site.parameter} over "
            f"{len(loaded.corpus.documents)} documents{tokens} into {loaded.store.folder}."
        )


def _report(loaded: Loaded, made: tuple[KeyMoments, ...], *, as_json: bool) -> None:
    from editkit_core.numerics.moments import quality_warning
    from editkit_core.numerics.moments_quick import error_note

    rows = [
        {
            "layer": moments.key.layer,
            "role": site.role,
            "module": moments.key.module,
            "tokens": moments.count,
            "documents": moments.documents,
            "d_in": len(moments.total),
            "folder": str(loaded.store.folder),
            "digest": moments.key.digest,
            "error": moments.error,
            "warning": quality_warning(moments),
        }
        for site, moments in zip(loaded.sites, made, strict=True)
    ]
    if as_json:
        print_json(rows)
        return
    for row, moments in zip(rows, made, strict=True):
        which = "" if row["role"] == "mlp_down" else ", attention"
        click.echo(
            f"Layer {row['layer']}{which}: {row['tokens']:,} tokens of {row['documents']:,} "
            f"documents, {row['d_in']} x {row['d_in']}, in {row['folder']}."
        )
        if loaded.work.quick:
            click.echo(error_note(moments))
        if row["warning"]:
            click.echo(f"Warning: {row['warning']}", err=True)


command.add_command(merge)

"""``editkit stats``: collect the key statistics that a method solves with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from editkit_core.cli.options import load_editor, model_options
from editkit_core.cli.output import json_option, print_json, progress_bar


@click.command("stats")
@model_options
@click.option("--layer", "layers", type=int, multiple=True, required=True, help="May be repeated.")
@click.option(
    "--corpus",
    type=click.Path(path_type=Path),
    required=True,
    help="Text: .txt by paragraphs, or .jsonl with a text field.",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Stop after this many; all by default.")
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
def command(
    layers: tuple[int, ...],
    corpus: Path,
    max_tokens: int | None,
    document_tokens: int,
    batch_size: int,
    out: Path | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
    **model: Any,  # Any: the model options as click gives them
) -> None:
    """Sum k kᵀ over the inputs of a layer's edited weight. Stopped, it goes on where it was."""
    from editkit_core.numerics.corpus import read_corpus
    from editkit_core.numerics.moments import collect_moments, quality_warning
    from editkit_core.numerics.moments_store import StatisticsStore, default_folder

    text = read_corpus(corpus)
    editor = load_editor(**model)
    sites = [editor.model.site(layer) for layer in layers]
    store = StatisticsStore(out or default_folder())
    if dry_run:
        for site in sites:
            side = editor.model.weight(site).shape[1]
            click.echo(
                f"Would sum {side} x {side} for {site.parameter} over {len(text.documents)} "
                f"documents into {store.folder}."
            )
        return
    made = []
    for site in sites:
        with progress_bar(off=as_json) as bar:
            moments = collect_moments(
                editor.model,
                site,
                text,
                max_tokens=max_tokens,
                document_tokens=document_tokens,
                batch_size=batch_size,
                store=store,
                resume=not fresh,
                progress=bar,
            )
        made.append(
            {
                "layer": site.layer,
                "module": site.module,
                "tokens": moments.count,
                "documents": moments.documents,
                "d_in": len(moments.total),
                "folder": str(store.folder),
                "digest": moments.key.digest,
                "warning": quality_warning(moments),
            }
        )
    if as_json:
        print_json(made)
        return
    for row in made:
        click.echo(
            f"Layer {row['layer']}: {row['tokens']:,} tokens of {row['documents']:,} documents, "
            f"{row['d_in']} x {row['d_in']}, in {row['folder']}."
        )
        if row["warning"]:
            click.echo(f"Warning: {row['warning']}", err=True)

"""``editkit stats merge``: add up key statistics made of different texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from editkit_core.cli.output import json_option, print_json
from editkit_core.errors import InputNotFoundError, StatisticsMismatchError

if TYPE_CHECKING:
    from editkit_core.numerics.moments import KeyMoments


@click.command("merge")
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="Folder for the sums."
)
@click.option("--dry-run", is_flag=True, help="Check and say what would be written; write nothing.")
@json_option
def merge(parts: tuple[Path, ...], out: Path, dry_run: bool, as_json: bool) -> None:
    """Add up statistics of one model from different texts.

    PARTS are files, or folders with a file for each of the same layers.
    """
    from editkit_core.numerics.moments import quality_warning
    from editkit_core.numerics.moments_merge import merge_moments
    from editkit_core.numerics.moments_store import StatisticsStore

    store = StatisticsStore(out)
    found = [moments for part in parts for moments in _read(part)]
    modules = list(dict.fromkeys(moments.key.module for moments in found))
    grouped = [[one for one in found if one.key.module == module] for module in modules]
    counts = {len(group) for group in grouped}
    if len(counts) > 1 or counts == {1}:
        told = ", ".join(
            f"{len(group)} of {module}" for module, group in zip(modules, grouped, strict=True)
        )
        raise StatisticsMismatchError(
            f"Statistics of the same modules are needed in every part; there are {told}. Give "
            "files of one module, or folders with the same layers."
        )
    made = [merge_moments(group) for group in grouped]
    rows = []
    for moments in made:
        path = None if dry_run else store.save(moments)
        rows.append(
            {
                "layer": moments.key.layer,
                "module": moments.key.module,
                "tokens": moments.count,
                "documents": moments.documents,
                "corpus": moments.key.corpus,
                "digest": moments.key.digest,
                "path": None if path is None else str(path),
                "warning": quality_warning(moments),
            }
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        where = f"would go into {out}" if dry_run else f"in {row['path']}"
        several = sum(other["layer"] == row["layer"] for other in rows) > 1
        which = f" ({row['module']})" if several else ""
        click.echo(
            f"Layer {row['layer']}{which}: {row['tokens']:,} tokens of {row['documents']:,} "
            f"documents ({row['corpus']}), {where}."
        )
        if row["warning"]:
            click.echo(f"Warning: {row['warning']}", err=True)


def _read(part: Path) -> list[KeyMoments]:
    from editkit_core.numerics.moments_store import StatisticsStore

    if not part.is_dir():
        return [StatisticsStore(part.parent).load(part)]
    store = StatisticsStore(part)
    files = store.files()
    if not files:
        raise InputNotFoundError(
            f"{part} holds no finished key statistics. Make them with editkit stats --out {part}.",
            path=str(part),
        )
    return [store.load(path) for path in files]

"""``editkit report``: tables, pictures and failures of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editkit_core.cli.commands.edit import check_free
from editkit_core.cli.output import json_option, print_json, print_table, progress_bar
from editkit_core.errors import InvalidParameterError

if TYPE_CHECKING:
    from editkit_core.report.document import Document, Group, Stage

FORMATS = (".html", ".htm", ".md", ".csv")


@click.command("report")
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Write a page (.html), Markdown (.md) or all numbers (.csv).",
)
@click.option("--title", help="The page's heading.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap."
)
@json_option
def command(
    folders: tuple[Path, ...],
    out: Path | None,
    title: str | None,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Show what runs measured: folders of `editkit bench`, or folders that hold several."""
    render = _renderer(out) if out is not None else None
    check_free(out, force=force)
    from editkit_core.report.document import make_document
    from editkit_core.report.runs import read_runs

    runs = read_runs(folders)
    with progress_bar(off=as_json) as bar:
        bar.start("reading runs", len(runs))
        try:
            document = make_document(runs, title=title, seed=seed, advance=bar.advance)
        finally:
            bar.finish()
    if out is not None and render is not None:
        from editkit_core.atomic import write_file

        write_file(out, [render(document, seed).encode()], force=force)
    if as_json:
        print_json(_plain(document, out))
    elif out is not None:
        click.echo(f"Wrote {out}: {len(runs)} run{'s'[: len(runs) != 1]}.")
    else:
        for group in document.groups:
            _print_group(group)


def _renderer(out: Path) -> Callable[[Document, int], str]:
    """Return what writes this kind of file; refuses early what could not be written."""
    suffix = out.suffix.lower()
    if suffix in (".html", ".htm"):
        from editkit_core.report.heatmap import require_matplotlib
        from editkit_core.report.html import render_html

        require_matplotlib()
        return lambda document, seed: render_html(document, seed=seed)
    if suffix == ".md":
        from editkit_core.report.markdown import render_markdown

        return lambda document, seed: render_markdown(document, seed=seed)
    if suffix == ".csv":
        from editkit_core.report.csv_rows import render_csv

        return lambda document, seed: render_csv(document)
    raise InvalidParameterError(
        f"A report is written as {', '.join(FORMATS)}, and {out.name!r} ends in none of them. "
        "Rename it.",
        path=str(out),
    )


def _print_group(group: Group) -> None:
    click.echo(f"{group.model} on {group.data}, {group.scenario}")
    for member in group.members:
        for remark in member.remarks:
            click.echo(f"  {member.label}: {remark}")
    for stage in group.stages:
        _print_stage(group, stage)


def _print_stage(group: Group, stage: Stage) -> None:
    from editkit_core.report.wording import (
        interval_text,
        metric_text,
        number,
        protocol_title,
        stage_text,
    )

    for protocol, lines in stage.tables.items():
        title = protocol_title(protocol)
        rows = []
        for line in lines:
            cells = [metric_text(line.key.metric, line.key.probe)]
            cells.append("" if line.before is None else number(line.before.value, line.unit))
            for score in line.scores:
                if score is None:
                    cells.append("")
                    continue
                ends = interval_text(score.after, line.unit)
                range_ = f" [{ends}]" if ends else ""
                cells.append(f"{number(score.after.value, line.unit)}{range_} n={score.after.n}")
            rows.append(cells)
        print_table(
            f"{stage_text(stage.name)}: {title} ({protocol})",
            ("metric", "unedited", *(member.label for member in group.members)),
            rows,
            indent=2,
        )


def _plain(document: Document, out: Path | None) -> dict[str, object]:
    return {
        "out": None if out is None else str(out),
        "runs": [
            {
                "run": member.run.folder,
                "method": member.run.method,
                "model": group.model,
                "dataset": group.data,
                "dataset_digest": group.digest,
                "target_policy": group.target_policy,
                "scenario": group.scenario,
                "remarks": list(member.remarks),
                "scores": [
                    {
                        "stage": stage,
                        **key._asdict(),
                        "unit": score.unit,
                        "higher_is_better": score.higher_is_better,
                        "n": score.after.n,
                        "before": score.before.value,
                        "after": score.after.value,
                        "low": score.after.low,
                        "high": score.after.high,
                    }
                    for stage, scores in member.scores.items()
                    for key, score in scores.items()
                ],
            }
            for group in document.groups
            for member in group.members
        ],
    }

"""``editkit compare``: paired differences of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from editkit_core.cli.output import json_option, print_json, print_table
from editkit_core.errors import InputNotFoundError, InvalidParameterError

if TYPE_CHECKING:
    from editkit_core.report.paired import Comparison
    from editkit_core.report.runs import ReportedRun


@click.command("compare")
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--protocol", "protocols", multiple=True, help="Only this one; may be repeated.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap."
)
@json_option
def command(
    first: Path, second: Path, protocols: tuple[str, ...], seed: int, as_json: bool
) -> None:
    """Show how run B differs from run A, over the requests that both have.

    Refused when data set, wanted answers, scenario or protocols differ.
    """
    _check_protocols(protocols)
    from editkit_core.report.paired import compare_runs

    one, two = _one_run(first), _one_run(second)
    found = compare_runs(one, two, protocols=protocols, seed=seed)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _check_protocols(protocols: tuple[str, ...]) -> None:
    from typing import get_args

    from editkit_core.errors import did_you_mean
    from editkit_core.metrics.report import Protocol

    known = get_args(Protocol)
    for name in protocols:
        if name not in known:
            raise InvalidParameterError(
                f"There is no protocol {name!r}.{did_you_mean(name, known)} Known: "
                f"{', '.join(known)}.",
                protocol=name,
            )


def _one_run(folder: Path) -> ReportedRun:
    from editkit_core.report.runs import read_runs

    runs = read_runs([folder])
    if len(runs) > 1:
        raise InputNotFoundError(
            f"{folder} holds {len(runs)} runs, and two single runs are compared. Name one of them: "
            f"{', '.join(run.folder for run in runs[:5])}.",
            path=str(folder),
        )
    return runs[0]


def _print(found: Comparison) -> None:
    from editkit_core.report.wording import interval_text, metric_text, number, stage_text

    a, b = found.first, found.second
    click.echo(f"A: {a.method} on {a.model_name} ({a.folder})")
    click.echo(f"B: {b.method} on {b.model_name} ({b.folder})")
    only = f"; {found.only_first} only in A, {found.only_second} only in B"
    click.echo(
        f"Requests in both: {found.requests}{only if found.only_first + found.only_second else ''}."
    )
    for remark in found.remarks:
        click.echo(remark)
    for stage in dict.fromkeys(one.stage for one in found.differences):
        rows = []
        for one in found.differences:
            if one.stage == stage:
                ends = interval_text(one.difference, one.unit, signed=True)
                rows.append(
                    (
                        metric_text(one.key.metric, one.key.probe),
                        one.key.protocol,
                        number(one.first, one.unit),
                        number(one.second, one.unit),
                        number(one.difference.value, one.unit, signed=True),
                        ends,
                        str(one.difference.n),
                        {"a": "A", "b": "B", None: ""}[one.better],
                    )
                )
        columns = ("metric", "protocol", "A", "B", "B - A", "95 % interval", "n", "better")
        print_table(stage_text(stage), columns, rows)
    if found.unmatched:
        told = sorted(
            {f"{run.upper()}: {key.metric} {key.protocol}" for run, _, key in found.unmatched}
        )
        click.echo(f"Measured in one run only: {'; '.join(told)}.")

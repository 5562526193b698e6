"""``editkit bench``: many edits, measured, written down as they finish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editkit_core.cli.options import optional_model_options
from editkit_core.cli.output import (
    human_bytes,
    json_option,
    print_json,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from editkit_core.bench import Estimate, Plan, Sweep


@click.command("bench")
@optional_model_options
@click.option("--method", default="rome", show_default=True, help="Id of an installed method.")
@click.option("--dataset", "-d", help="FORMAT:FILE, demo:N, or a file; see `editkit datasets`.")
@click.option(
    "--scenario",
    default="single",
    show_default=True,
    help="single, batch:N, sequential, sequential:N or stacked.",
)
@click.option("--limit", type=click.IntRange(1), help="Most records, drawn by seed.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random."
)
@click.option("--metrics", help="Registered names, with commas between them.")
@click.option("--protocols", help="Measure by these only, with commas between them.")
@click.option("--preset", help="A preset by name instead of the one that fits best.")
@click.option("--params", "params_file", type=click.Path(path_type=Path), help="YAML or JSON.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option("--form", help="The data set's form, where it has several.")
@click.option("--target-policy", help="Which answer of a record becomes the target.")
@click.option("--strict", is_flag=True, help="Refuse a record that does not fit.")
@click.option(
    "--locate",
    type=click.Choice(["preset", "trace"]),
    default="preset",
    show_default=True,
    help="Take the layer from the preset, or find it by causal tracing for each edit.",
)
@click.option("--corpus", help="A text file that perplexity is measured on.")
@click.option("--tasks", help="Tasks of lm-evaluation-harness, with commas between them.")
@click.option("--judge", help="A model that judges answers; its key is in EDITKIT_JUDGE_KEY.")
@click.option("--judge-url", help="Its OpenAI-compatible endpoint.")
@click.option("--statistics", help="Folder of key statistics.")
@click.option("--editor", help="File or folder of the trained editor, for methods that train.")
@click.option("--rows", type=click.IntRange(1), default=64, help="Most rows a forward pass.")
@click.option("--keep-patches", is_flag=True, help="Keep every patch file in the folder.")
@click.option("--sweep", type=click.Path(path_type=Path), help="Several runs, from a YAML file.")
@click.option("--workers", type=click.IntRange(1), default=1, help="Runs of a sweep at a time.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="Folder of the run, new or to go on with."
)
@click.option("--dry-run", is_flag=True, help="Try two edits; say what it would take.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    sweep: Path | None,
    workers: int,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    **flags: Any,  # Any: the options of a plan as click gives them
) -> None:
    """Edit the facts of a data set, measure every edit, and write it all down as it happens.

    Started again with the same --out, a run that was stopped goes on where it was.
    """
    if not dry_run and out is None:
        raise click.UsageError("Say where the run goes with --out, or ask with --dry-run.")
    if sweep is not None:
        _refuse_flags(ctx)
        ctx.exit(_do_sweep(sweep, out, workers, dry_run, as_json))
    plan = _plan(flags)
    if dry_run:
        _estimate({"": plan}, as_json)
        return
    assert out is not None
    ctx.exit(_do_run(plan, out, as_json))


def _plan(flags: dict[str, Any]) -> Plan:  # Any: as click gives them
    from editkit_core.bench import Plan
    from editkit_core.params import load_mapping, parse_assignments

    for name in ("model", "dataset"):
        if not flags[name]:
            raise click.UsageError(f"Give --{name}, or a sweep with --sweep.")
    params_file = flags.pop("params_file")
    params = {
        **(load_mapping(params_file) if params_file else {}),
        **parse_assignments(flags.pop("assignments")),
    }
    for name in ("metrics", "protocols", "tasks"):
        text = flags.pop(name)
        if text is not None:
            flags[name] = tuple(word.strip() for word in text.split(",") if word.strip())
    return Plan(params=params, **flags)


def _refuse_flags(ctx: click.Context) -> None:
    """A sweep's settings stand in its file alone."""
    own = {"sweep", "workers", "out", "dry_run", "as_json"}
    for option in ctx.command.params:
        name = option.name or ""
        if name not in own and ctx.get_parameter_source(name) not in (
            click.core.ParameterSource.DEFAULT,
            click.core.ParameterSource.DEFAULT_MAP,
        ):
            raise click.UsageError(f"With --sweep, {option.opts[0]} stands in the file.")


def _do_run(plan: Plan, out: Path, as_json: bool) -> int:
    from editkit_core.bench import run

    with progress_bar(off=as_json) as bar:
        result = run(plan, out, progress=bar)
    summary = result.summary
    if as_json:
        print_json({"out": str(out), "resumed": result.resumed, **summary})
        return _code(summary)
    if result.resumed:
        click.echo(f"Went on after {result.resumed} units that were there already.")
    _show_scores(f"{plan.method} on {plan.model}, {plan.dataset}, {plan.scenario}", summary)
    _show_failures(summary)
    click.echo(f"Everything is in {out}; look at it with: editkit report {out}")
    return _code(summary)


def _do_sweep(path: Path, out: Path | None, workers: int, dry_run: bool, as_json: bool) -> int:
    from editkit_core.bench import read_sweep, run_sweep

    sweep: Sweep = read_sweep(path)
    if dry_run:
        _estimate(sweep.plans, as_json, workers)
        return 0
    assert out is not None
    with progress_bar(off=as_json) as bar:
        outcomes = run_sweep(sweep, out, workers=workers, progress=bar)
    failed = any(outcome.summary is None or _code(outcome.summary) for outcome in outcomes)
    if as_json:
        print_json(
            {
                "out": str(out),
                "runs": [
                    {"name": o.name, "summary": o.summary, "code": o.code, "message": o.message}
                    for o in outcomes
                ],
            }
        )
        return int(failed)
    for outcome in outcomes:
        if outcome.summary is None:
            click.echo(f"{outcome.name} failed: [{outcome.code}] {outcome.message}\n", err=True)
        else:
            _show_scores(outcome.name, outcome.summary)
            _show_failures(outcome.summary)
    click.echo(f"Everything is in {out}; compare with: editkit report {out}/*/")
    return int(failed)


def _code(summary: Mapping[str, Any]) -> int:  # Any: JSON values
    """1 when no edit could be made at all."""
    return int(summary["edits"] > 0 and summary["failed"] == summary["edits"])


def _show_scores(title: str, summary: Mapping[str, Any]) -> None:  # Any: JSON values
    """Print a table of scores for each stage, and what the edits took apart from them."""
    click.echo(f"{title} (shares in percent)")
    for stage in dict.fromkeys(score["stage"] for score in summary["scores"]):
        scores = [score for score in summary["scores"] if score["stage"] == stage]
        asked = [score for score in scores if score["protocol"] != "run"]
        took = [score for score in scores if score["protocol"] == "run"]
        if asked:
            print_table(
                f"\n{stage.replace('_', ' ')}",
                ("metric", "probe", "protocol", "before", "after", "95 %", "n"),
                [_scored(score) for score in asked],
            )
        if took:
            print_table(None, ("took", "stage", "mean", "95 %", "n"), [_taken(s) for s in took])


def _scored(score: Mapping[str, Any]) -> tuple[str, ...]:  # Any: JSON values
    unit = "" if score["unit"] == "share" else f" ({score['unit']})"
    return (
        score["metric"] + unit,
        score["probe"],
        score["protocol"],
        _number(score, score["before"], unit=False),
        _number(score, score["after"], unit=False),
        _interval(score, unit=False),
        str(score["n"]),
    )


def _taken(score: Mapping[str, Any]) -> tuple[str, ...]:  # Any: JSON values
    return (
        score["metric"],
        score["probe"],
        _number(score, score["after"]),
        _interval(score),
        str(score["n"]),
    )


def _number(score: Mapping[str, Any], value: float, *, unit: bool = True) -> str:
    # Any: JSON values
    if score["unit"] == "share":
        return f"{100 * value:.1f}"
    if score["unit"] == "bytes":
        return human_bytes(int(value))
    return f"{value:.3f} {score['unit']}" if unit else f"{value:.3f}"


def _interval(score: Mapping[str, Any], *, unit: bool = True) -> str:  # Any: JSON values
    ends = score["after_interval"]
    return "" if ends is None else " – ".join(_number(score, end, unit=unit) for end in ends)


def _show_failures(summary: Mapping[str, Any]) -> None:  # Any: JSON values
    if summary["failed"]:
        why = ", ".join(f"{code} {count}x" for code, count in summary["failures"].items())
        click.echo(
            f"{summary['failed']} of {summary['edits']} edits failed ({why}); they have no scores."
        )
    if summary["conflicts"]:
        found = ", ".join(f"{kind} {count}x" for kind, count in summary["conflicts"].items())
        click.echo(f"Conflicts between the stacked patches: {found}.")


def _estimate(plans: Mapping[str, Plan], as_json: bool, workers: int = 1) -> None:
    from editkit_core.bench import estimate

    found = {}
    with progress_bar(off=as_json) as bar:
        for name, plan in plans.items():
            found[name] = estimate(plan, progress=bar)
    if as_json:
        plains: list[dict[str, Any]] = [  # Any: JSON values
            {"name": name, **each.plain()} for name, each in found.items()
        ]
        print_json(plains if "" not in found else plains[0])
        return
    print_table(
        "Nothing was written. The times are from trying two edits on this machine now.",
        ("run", "edits", "measured", "an edit", "a measurement", "all of it", "weights", "peak"),
        [_estimated(name, each) for name, each in found.items()],
    )
    for each in found.values():
        if each.why:
            click.echo(f"No edit could be made to time: {each.why}")
    _show_total(list(found.values()), workers)


def _estimated(name: str, each: Estimate) -> tuple[str, ...]:
    plan = each.plan
    what = name or f"{plan.method} on {plan.model}, {plan.dataset}, {plan.scenario}"
    return (
        what,
        str(each.edits),
        str(each.measured),
        "?" if each.edit_s is None else f"{each.edit_s:.2f} s",
        "?" if each.measure_s is None else f"{each.measure_s:.3f} s",
        _duration(each.seconds),
        human_bytes(each.weights_bytes),
        human_bytes(max(each.peak_bytes, each.device_peak_bytes)),
    )


def _show_total(found: Sequence[Estimate], workers: int) -> None:
    if len(found) < 2:
        return
    seconds = sum(each.seconds or 0.0 for each in found)
    peak = sum(sorted((each.peak_bytes for each in found), reverse=True)[:workers])
    click.echo(
        f"{len(found)} runs, {workers} at a time: about {_duration(seconds / workers)} if that "
        f"many cores are free, and {human_bytes(peak)} of memory."
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

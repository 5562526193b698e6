"""Measure editing on the demo model: ``scripts/bench demo``.

Every edit is single: compute the patch on the unedited model, apply, measure, revert. The weights'
digest is compared at the end.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import attrs
import click

from editkit_core.cli.output import print_json, print_table, progress_bar
from editkit_core.metrics.report import Report, Score, merge_reports
from editkit_core.types import EditContext
from editkit_demo.requests import counterfactual_requests

GOALS = {
    ("reliability", ""): 98.0,
    ("generalization", ""): 85.0,
    ("locality", "neighborhood"): 95.0,
    ("locality", "same_subject"): 60.0,
}


@attrs.frozen(kw_only=True)
class Outcome:
    """One edit of the benchmark.

    Attributes:
        relation: The relation that was edited.
        report: Its rows.
        wall_s: Seconds to locate and compute.
        patch_bytes: Size of the patch file.
    """

    relation: str
    report: Report
    wall_s: float
    patch_bytes: int


@click.command()
@click.option("--edits", type=click.IntRange(1), default=120, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--method", default="rome", show_default=True)
@click.option("--model", default="editkit:demo", show_default=True)
@click.option("--preset", default=None)
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads of torch.")
@click.option("--out", type=click.Path(path_type=Path), help="Write scores and rows here (JSON).")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def main(
    edits: int,
    seed: int,
    method: str,
    model: str,
    preset: str | None,
    assignments: tuple[str, ...],
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Edit facts drawn by seed, one at a time, and report every metric and protocol."""
    import torch

    from editkit_core.api import Editor
    from editkit_core.params import parse_assignments
    from editkit_core.patch.io import to_pieces

    if threads:
        torch.set_num_threads(threads)
    editor = Editor.from_pretrained(model)
    values = parse_assignments(assignments)
    before = editor.model.state_digest()
    outcomes = []
    with progress_bar(off=as_json) as bar:
        requests = counterfactual_requests(edits, seed)
        bar.start("editing", len(requests))
        for request in requests:
            context = EditContext(seed=seed)
            start = time.perf_counter()
            result = editor.run(
                request, method=method, params=values, preset=preset, context=context
            )
            wall_s = time.perf_counter() - start
            outcomes.append(
                Outcome(
                    relation=request.relation or "",
                    report=editor.evaluate(request, result.patch),
                    wall_s=wall_s,
                    patch_bytes=sum(map(len, to_pieces(result.patch))),
                )
            )
            bar.advance()
        bar.finish()
    if editor.model.state_digest() != before:
        raise SystemExit("The weights differ after the last revert.")
    summary = _summary(outcomes, {"method": method, "model": model, "edits": edits, "seed": seed})
    if out is not None:
        rows = merge_reports(o.report for o in outcomes).to_dict()["rows"]
        out.write_text(json.dumps({**summary, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(summary)
    else:
        _show(outcomes, summary)


def _summary(outcomes: list[Outcome], run: dict[str, Any]) -> dict[str, Any]:  # Any: JSON values
    scores = merge_reports(o.report for o in outcomes).scores()
    return {
        **run,
        "scores": [attrs.asdict(score) for score in scores],
        "median_wall_s": median(o.wall_s for o in outcomes),
        "max_patch_bytes": max(o.patch_bytes for o in outcomes),
    }


def _show(outcomes: list[Outcome], summary: dict[str, Any]) -> None:  # Any: JSON values
    scores = merge_reports(o.report for o in outcomes).scores()
    print_table(
        f"{summary['method']} on {summary['model']}: {summary['edits']} single edits, "
        f"seed {summary['seed']} (percent)",
        ("metric", "probe", "protocol", "before", "after", "n", "goal"),
        [_score_row(score) for score in scores],
    )
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.relation].append(outcome)
    print_table(
        "By relation, teacher-forced",
        ("relation", "n", "reliability", "generalization", "neighborhood", "same subject"),
        [_relation_row(name, group) for name, group in sorted(groups.items())],
    )
    click.echo(
        f"Median {summary['median_wall_s']:.2f} s an edit, patch file at most "
        f"{summary['max_patch_bytes']} bytes; weights bit-identical after the last revert."
    )


def _score_row(score: Score) -> tuple[str, ...]:
    goal = GOALS.get((score.metric, score.probe)) if score.protocol == "tf_token" else None
    return (
        score.metric,
        score.probe,
        score.protocol,
        f"{100 * score.before:.1f}",
        f"{100 * score.after:.1f}",
        str(score.n),
        f"{goal:.0f}" if goal else "",
    )


def _relation_row(name: str, group: list[Outcome]) -> tuple[str, ...]:
    report = merge_reports(o.report for o in group)

    def after(metric: Any, probe: str = "") -> str:  # Any: a metric's name
        values = [
            s.after
            for s in report.scores()
            if (s.metric, s.probe, s.protocol) == (metric, probe, "tf_token")
        ]
        return f"{100 * fmean(values):.1f}" if values else "-"

    return (
        name,
        str(len(group)),
        after("reliability"),
        after("generalization"),
        after("locality", "neighborhood"),
        after("locality", "same_subject"),
    )


if __name__ == "__main__":
    main()

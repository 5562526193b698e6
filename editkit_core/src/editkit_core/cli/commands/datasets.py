"""``editkit datasets``: the formats of data sets, and what a data set holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from editkit_core.cli.output import json_option, print_json, print_table, printable

if TYPE_CHECKING:
    from editkit_core.data.dataset import DataSet, Skipped
    from editkit_core.data.format import DataFormat
    from editkit_core.types import EditRequest

_SHOWN = 10


@click.group("datasets", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the formats of data sets, and say what a data set holds."""
    if ctx.invoked_subcommand is not None:
        return
    from editkit_core.data.loading import find_formats

    formats, failures = find_formats()
    if as_json:
        print_json(
            {
                "formats": [_plain(entry) for entry in formats.values()],
                "broken": [error.message for error in failures],
            }
        )
        return
    rows = [
        (_spec(entry), form.name, form.about, ", ".join(form.policies))
        for entry in formats.values()
        for form in entry.forms
    ]
    print_table(None, ("write", "form", "what a record holds", "target policies"), rows)
    for error in failures:
        click.echo(printable(f"Broken: {error.message}"))
    click.echo(
        "A place may be a file, hub:OWNER/NAME/FILE, or a path below the folder EDITKIT_DATA names."
        "\nA bare path is recognised: editkit datasets show PATH"
    )


@command.command("show")
@click.argument("spec")
@click.option("--form", default=None, help="The form of the format; recognised by default.")
@click.option("--limit", type=click.IntRange(1), default=None, help="Draw at most so many records.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="For drawing.")
@click.option("--target-policy", default=None, help="Which answer becomes the target.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    help="Where relative paths are looked up; by default the folder EDITKIT_DATA names.",
)
@click.option("--strict", is_flag=True, help="Refuse the first record that does not fit.")
@json_option
def show(
    spec: str,
    form: str | None,
    limit: int | None,
    seed: int,
    target_policy: str | None,
    data: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Say what a data set holds, what was skipped and why, and show its first request."""
    from editkit_core.data.loading import load_dataset
    from editkit_core.data.requests import dump_request

    loaded = load_dataset(
        spec,
        form=form,
        limit=limit,
        seed=seed,
        strict=strict,
        target_policy=target_policy,
        folder=data,
    )
    first = dump_request(loaded.requests[0])
    if as_json:
        print_json(_described(loaded) | {"first": first})
    else:
        _show(loaded, first)


def _spec(entry: DataFormat) -> str:
    return f"{entry.name}:{entry.place}" if entry.place else entry.name


def _plain(entry: DataFormat) -> dict[str, object]:
    return {
        "name": entry.name,
        "title": entry.title,
        "source": entry.source,
        "place": entry.place,
        "forms": [
            {"name": form.name, "about": form.about, "target_policies": dict(form.policies)}
            for form in entry.forms
        ],
    }


def _described(loaded: DataSet) -> dict[str, Any]:  # Any: JSON values
    return {
        "name": loaded.name,
        "form": loaded.form,
        "recognised": loaded.detected,
        "source": loaded.source,
        "sha256": loaded.digest,
        "target_policy": loaded.target_policy,
        "limit": loaded.limit,
        "seed": loaded.seed,
        "records": loaded.records,
        "requests": len(loaded.requests),
        "groups": len(loaded.groups),
        "unchanged_targets": _unchanged(loaded.requests),
        "skipped": [attrs.asdict(skipped) for skipped in loaded.skipped],
        "left_out": [attrs.asdict(skipped) for skipped in loaded.left_out],
        "fields": [
            {"field": name, "requests": count, "items": items}
            for name, count, items in _fields(loaded.requests)
        ],
    }


def _show(loaded: DataSet, first: dict[str, Any]) -> None:  # Any: JSON values
    how = "recognised" if loaded.detected else "as named"
    for line in (
        f"{loaded.source}: {loaded.name}, form {loaded.form} ({how})",
        f"  sha256         {loaded.digest}",
        f"  target policy  {loaded.target_policy}",
        f"  records        {loaded.records}, of which {len(loaded.skipped)} skipped",
        f"  requests       {len(loaded.requests)}{_drawn(loaded)}",
    ):
        click.echo(printable(line))
    if len(loaded.groups) < len(loaded.requests):
        click.echo(f"  groups         {len(loaded.groups)}, each edited together")
    if unchanged := _unchanged(loaded.requests):
        click.echo(f"  unchanged      {unchanged} whose target is the old answer")
    for title, listed in (("skipped", loaded.skipped), ("left out", loaded.left_out)):
        if listed:
            print_table(None, (title, "", "records, counted from 0"), _reasons(listed), indent=2)
    rows = [(name, str(count), str(items)) for name, count, items in _fields(loaded.requests)]
    print_table(None, ("field", "requests", "items"), rows, indent=2)
    print_table(None, ("first request", ""), [(n, _short(v)) for n, v in first.items()], indent=2)


def _drawn(loaded: DataSet) -> str:
    return "" if loaded.limit is None else f", drawn with seed {loaded.seed}"


def _unchanged(requests: Sequence[EditRequest]) -> int:
    return sum(request.target_new == request.target_true for request in requests)


def _reasons(listed: Sequence[Skipped]) -> list[tuple[str, str, str]]:
    """Return one row a kind of reason: an example, how many, and which records."""
    groups: dict[str, list[Skipped]] = defaultdict(list)
    for skipped in listed:
        groups[skipped.code if skipped.code not in ("", "EK-R04") else skipped.reason].append(
            skipped
        )
    return [
        (
            f"{f'[{group[0].code}] ' if group[0].code else ''}{group[0].reason}",
            str(len(group)),
            ", ".join(str(s.index) for s in group[:_SHOWN])
            + (", …" if len(group) > _SHOWN else ""),
        )
        for group in groups.values()
    ]


def _fields(requests: Sequence[EditRequest]) -> list[tuple[str, int, int]]:
    """Return for every field that is used: its name, in how many requests, and how many items."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for request in requests:
        for name, items in _items(request):
            counts[name][0] += 1
            counts[name][1] += items
    return [(name, requests, items) for name, (requests, items) in counts.items()]


def _items(request: EditRequest) -> list[tuple[str, int]]:
    listed = [("target_true", int(request.target_true is not None))]
    listed += [("relation", int(request.relation is not None))]
    for name in ("paraphrases", "generation_prompts", "attribute_prompts", "reference_texts"):
        listed.append((name, len(getattr(request, name))))
    for name in ("locality", "portability"):
        listed += [(f"{name}.{kind}", len(p)) for kind, p in getattr(request, name).items()]
    return [(name, items) for name, items in listed if items]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 400 else f"{text[:400]}…"

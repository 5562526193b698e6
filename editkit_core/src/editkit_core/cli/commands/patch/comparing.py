"""``editkit patch diff`` and ``lint``: what differs, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from editkit_core.cli.commands.patch.reading import echo, file_argument, read_patch, short
from editkit_core.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from editkit_core.patch.diff import ModuleDiff, PatchDiff, TensorDiff
    from editkit_core.patch.lint import Finding


@click.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Say what differs between two patches, and whether they could be applied together.

    Exits with 0 whether they differ or not; --json says it under same_content and same_change.
    """
    from editkit_core.patch.diff import diff as compare

    found = compare(read_patch(first), read_patch(second))
    if as_json:
        same = {"same_content": found.same_content, "same_change": found.same_change}
        print_json(same | attrs.asdict(found))
        return
    echo(f"first   {first}, id {found.first}")
    echo(f"second  {second}, id {found.second}")
    if found.same_content:
        click.echo("The two files hold the same patch.")
        return
    _print_fields(found)
    _print_edits(found)
    _print_tensors(found)
    _print_modules(found)
    _print_conflicts(found)


def _print_fields(found: PatchDiff) -> None:
    rows = [
        (item.name, item.state, short(item.first), short(item.second))
        for item in (*found.base, *found.other, *found.params)
    ]
    if rows:
        print_table(None, ("field", "", "first", "second"), rows)


def _print_edits(found: PatchDiff) -> None:
    same = sum(edit.state == "same" for edit in found.edits)
    if same:
        click.echo(f"{same} edit{'' if same == 1 else 's'} in both with the same target.")
    rows = [
        (edit.prompt, edit.state, edit.first or "", edit.second or "")
        for edit in found.edits
        if edit.state != "same"
    ]
    if rows:
        print_table(None, ("edit", "", "first", "second"), rows)


def _print_tensors(found: PatchDiff) -> None:
    if not found.tensors:
        return
    rows = [
        (
            tensor.parameter,
            tensor.state,
            " / ".join("full" if rank is None else str(rank) for rank in tensor.ranks),
            " / ".join(f"{norm:.4g}" for norm in tensor.norms),
            "" if tensor.cosine is None else f"{tensor.cosine:.4f}",
            _difference(tensor),
        )
        for tensor in found.tensors
    ]
    print_table(None, ("weight", "", "ranks", "norms", "cosine", "difference"), rows)


def _print_modules(found: PatchDiff) -> None:
    rows = [
        (part.module, part.kind, part.state, short(part.first), short(part.second), _shared(part))
        for part in found.modules
    ]
    if rows:
        print_table(None, ("module", "kind", "", "first", "second", "rows"), rows)


def _shared(part: ModuleDiff) -> str:
    if part.rows is None:
        return ""
    both, first, second = part.rows
    return f"{both} in both, {first} only in the first, {second} only in the second"


def _difference(tensor: TensorDiff) -> str:
    return f"{tensor.difference:.4g} ({100 * tensor.relative:.3g} %)"


def _print_conflicts(found: PatchDiff) -> None:
    if not found.conflicts:
        click.echo("Applied together they do not conflict, as far as their evidence tells.")
        return
    rows = [
        (conflict.kind, "refused" if conflict.fatal else "warning", conflict.detail)
        for conflict in found.conflicts
    ]
    print_table("Applied together:", ("conflict", "", "detail"), rows)


@click.command("lint")
@file_argument
@click.option("--strict", is_flag=True, help="Exit with 4 on warnings too.")
@json_option
def lint(file: Path, strict: bool, as_json: bool) -> None:
    """Look a patch over before it is passed on: what is missing, odd or private.

    Exits with 0 when there are only warnings, with 4 on errors.
    """
    from editkit_core.patch.lint import lint as look_over

    patch = read_patch(file)
    found = look_over(patch)
    errors = sum(finding.level == "error" for finding in found)
    ok = not (found if strict else errors)
    if as_json:
        counts = {"errors": errors, "warnings": len(found) - errors}
        rows = [attrs.asdict(finding) for finding in found]
        print_json({"ok": ok, "file": str(file), "id": patch.id, **counts, "findings": rows})
    else:
        _print_findings(file, found, errors)
    if not ok:
        raise SystemExit(4)


def _print_findings(file: Path, found: tuple[Finding, ...], errors: int) -> None:
    if found:
        rows = [(one.level, one.rule, one.where, one.message) for one in found]
        print_table(None, ("", "rule", "where", "what"), rows)
    warnings = len(found) - errors
    echo(f"{file}: {errors} error{_s(errors)}, {warnings} warning{_s(warnings)}.")


def _s(count: int) -> str:
    return "" if count == 1 else "s"

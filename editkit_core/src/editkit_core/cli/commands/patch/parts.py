"""``editkit patch fold``, ``split`` and ``drop``: several patches in one file, and apart again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editkit_core.cli.commands.patch.reading import echo, file_argument, read_patch
from editkit_core.cli.output import human_bytes, json_option, print_json
from editkit_core.errors import InputNotFoundError, InvalidParameterError, OutputExistsError

if TYPE_CHECKING:
    from editkit_core.patch.folded_base import Scaled
    from editkit_core.patch.format import Patch

_MOST_DIGITS = 4
scale_option = click.option(
    "--scale",
    "scales",
    multiple=True,
    metavar="FILE=FACTOR",
    help="The factor on a file's change; 1 where none is given.",
)
below_option = click.option(
    "--below",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A patch that stays outside and that these were computed on.",
)
force_option = click.option("--force", is_flag=True, help="Replace existing files.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything; write nothing.")


@click.command("fold")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The new file.")
@click.option("--name", default="", help="A name for people.")
@click.option("--compress", is_flag=True, help="Merge factors; the file cannot be split again.")
@scale_option
@below_option
@force_option
@dry_run_option
@json_option
def fold(
    files: tuple[Path, ...],
    out: Path,
    name: str,
    compress: bool,
    scales: tuple[str, ...],
    below: tuple[Path, ...],
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make one patch file of several for one base. The files are given from the lowest up."""
    from editkit_core.patch.fold import fold as make
    from editkit_core.patch.io import to_pieces

    factors = _factors(scales, (*files, *below))
    parts = _read(files, factors)
    whole = make(parts, name=name, compress=compress, below=_read(below, factors))
    if not dry_run:
        whole.save(out, force=force)
    told = _told(out, whole, sum(map(len, to_pieces(whole))))
    told |= {"parts": [patch.id for patch, _ in parts], "ranks": _ranks(parts, whole)}
    if as_json:
        print_json({"dry_run": dry_run, **told})
        return
    verb = "Would write" if dry_run else "Wrote"
    ranks = "".join(
        f"\n  {weight}: {before} factors, now {after}"
        for weight, (before, after) in told["ranks"].items()
        if before != after
    )
    echo(f"{verb} {out} ({human_bytes(told['bytes'])}): {len(parts)} patches in {whole.id}.")
    if ranks:
        click.echo(ranks.lstrip("\n"))
    if any(patch.canary is not None for patch, _ in parts):
        click.echo("The parts' canaries are left out: they hold for each part alone.")


@click.command("split")
@file_argument
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="A folder.")
@scale_option
@below_option
@force_option
@dry_run_option
@json_option
def split(
    file: Path,
    out: Path,
    scales: tuple[str, ...],
    below: tuple[Path, ...],
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the patches that one is made of: a fold's parts, or one file an edit.

    The files are named by their ids.
    """
    from editkit_core.atomic import write_together
    from editkit_core.patch.fold import split as take_apart
    from editkit_core.patch.io import SUFFIX, to_pieces

    parts = take_apart(read_patch(file), below=_read(below, _factors(scales, below)))
    written = {out / f"{part.id}{SUFFIX}": b"".join(to_pieces(part)) for part in parts}
    _refuse(out, written, force)
    if not dry_run:
        out.mkdir(parents=True, exist_ok=True)
        write_together(written)
    rows = [
        _told(path, part, len(content))
        for (path, content), part in zip(written.items(), parts, strict=True)
    ]
    if as_json:
        print_json({"dry_run": dry_run, "files": rows})
        return
    for path, part in zip(written, parts, strict=True):
        name = f" ({part.header.name})" if part.header.name else ""
        echo(f"{'Would write' if dry_run else 'Wrote'} {path}{name}")


@click.command("drop")
@file_argument
@click.argument("edits", metavar="EDIT...", nargs=-1, required=True)
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The new file.")
@click.option(
    "--approximate",
    is_flag=True,
    help="Of a batch, leave the rows of the other edits as they are instead of solving again.",
)
@force_option
@dry_run_option
@json_option
def drop(
    file: Path,
    edits: tuple[str, ...],
    out: Path,
    approximate: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a codebook patch, or that of a batch, without some of its edits.

    An EDIT is a request's id, its subject, or its number in `editkit patch show`. Other prompts of
    a codebook are answered as before. A batch is solved again without the edit, from what the file
    holds. The new patch replaces the old one where both are in a stack.
    """
    from editkit_core.patch.dropping import DROPPED, edit_named, without
    from editkit_core.patch.io import to_pieces

    patch = read_patch(file)
    gone = [edit_named(patch, _numbered(edit)) for edit in edits]
    rest = without(patch, gone, approximate=approximate)
    if not dry_run:
        rest.save(out, force=force)
    told = _told(out, rest, sum(map(len, to_pieces(rest))))
    told |= {"edits": len(rest.header.edits), "dropped": [edit.id or edit.text for edit in gone]}
    record: Any = rest.header.metrics.get(DROPPED)  # Any: JSON values
    if record:
        told["how"] = record[-1]
    if as_json:
        print_json({"dry_run": dry_run, **told})
        return
    for edit in gone:
        echo(f"{'Would drop' if dry_run else 'Dropped'} {edit.text} -> {edit.target_new}")
    if record:
        click.echo(_how(record[-1]))
    verb = "Would write" if dry_run else "Wrote"
    echo(f"{verb} {out} ({human_bytes(told['bytes'])}): {told['edits']} edits in {rest.id}.")


def _how(record: Any) -> str:  # Any: JSON values
    effect = f"What the change gives at their keys differs by {max(record['effect']):.2g} of it"
    if "error" in record:
        return (
            f"Solved again for the others, to {max(record['error']):.1g} of the change. {effect}."
        )
    return f"Left the others' rows as they are. {effect}; the dropped keys stay protected."


def _numbered(edit: str) -> str:
    """Write a small bare number as ``#N``: a shell takes what begins with ``#`` for a comment."""
    return f"#{edit}" if edit.isdecimal() and len(edit) <= _MOST_DIGITS else edit


def _read(files: Sequence[Path], factors: Mapping[Path, float]) -> list[Scaled]:
    return [(read_patch(file), factors.get(file, 1.0)) for file in files]


def _factors(scales: Sequence[str], files: Sequence[Path]) -> dict[Path, float]:
    found: dict[Path, float] = {}
    for text in scales:
        name, sign, number = text.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            sign = ""
        if not sign:
            raise InvalidParameterError(f"--scale is {text!r}; write it as FILE=0.5.")
        if Path(name) not in files:
            raise InputNotFoundError(
                f"--scale names {name}, which is none of the files given. Write it as it is there."
            )
        found[Path(name)] = factor
    return found


def _refuse(out: Path, written: Mapping[Path, bytes], force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file. Give a folder for the parts.", path=str(out))
    there = [path for path in written if path.exists()]
    if there and not force:
        raise OutputExistsError(
            f"{there[0]} exists already. Choose another folder, or pass --force to replace it.",
            path=str(there[0]),
        )


def _ranks(parts: Sequence[Scaled], whole: Patch) -> dict[str, list[int]]:
    """Return by weight how many factors the parts and the whole have."""

    def counted(patches: Sequence[Patch]) -> dict[str, int]:
        made: dict[str, int] = {}
        for patch in patches:
            for entry in patch.weight_entries:
                name = entry.site.parameter
                made[name] = made.get(name, 0) + (entry.rank or 0)
        return made

    before, after = counted([patch for patch, _ in parts]), counted([whole])
    return {name: [rank, after[name]] for name, rank in before.items()}


def _told(path: Path, patch: Patch, size: int) -> dict[str, Any]:  # Any: JSON values
    return {"file": str(path), "id": patch.id, "name": patch.header.name, "bytes": size}

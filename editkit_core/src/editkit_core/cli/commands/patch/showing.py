"""``editkit patch show`` and ``verify``: what a patch file is, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from editkit_core.cli.commands.patch.reading import echo, file_argument, read_patch
from editkit_core.cli.options import known_kinds, load_editor, optional_model_options
from editkit_core.cli.output import human_bytes, json_option, print_json, print_table

if TYPE_CHECKING:
    from editkit_core.patch.verify import VerifyReport, VerifyRow


@click.command("show")
@file_argument
@json_option
def show(file: Path, as_json: bool) -> None:
    """Say what a patch does, what it fits and who made it. Reads it strictly; needs no model.

    Of a trained editor it says what it was trained for and on.
    """
    from editkit_core.cli.commands.patch.editors import show_editor
    from editkit_core.patch.artifact_io import is_editor
    from editkit_core.patch.describe import describe

    if is_editor(file):
        show_editor(file, as_json=as_json)
        return
    described = describe(read_patch(file)) | {"file_bytes": file.stat().st_size}
    if as_json:
        print_json(described)
    else:
        _show(file, described)


def _show(file: Path, it: dict[str, Any]) -> None:  # Any: JSON values
    echo(f"{file}: {human_bytes(it['file_bytes'])}, id {it['id']}, made {it['created']}")
    echo(f"  content  {it['content_digest']}")
    method, base = it["method"], it["base"]
    echo(f"  method   {method['name']} ({method['dist']} {method['version']})")
    echo(f"  base     {base['model']}{' @ ' + base['revision'] if base['revision'] else ''}")
    for name, tensor in base["tensors"].items():
        shape = " x ".join(map(str, tensor["shape"]))
        echo(f"           {name} {shape} {tensor['dtype']} {tensor['sha256'][:16]}…")
    echo(f"  seed     {it['seed']}, {it['contexts']} contexts")
    edits = [
        (
            f"#{number}",
            e["prompt"].replace("{}", e["subject"]),
            e["subject"],
            e.get("target_true") or "",
            e["target_new"],
        )
        for number, e in enumerate(it["edits"], start=1)
    ]
    print_table(None, ("", "prompt", "subject", "was", "now"), edits)
    _show_weights([e for e in it["entries"] if e["level"] == "weight"])
    _show_modules([e for e in it["entries"] if e["level"] == "module"])
    if it["replaces"]:
        echo(f"  replaces {', '.join(it['replaces'])}")


def _show_weights(entries: Sequence[dict[str, Any]]) -> None:  # Any: JSON values
    rows = [
        (
            e["kind"],
            e["parameter"],
            " x ".join(map(str, e["shape"])),
            str(e["rank"]),
            f"{e['norm']:.4g}",
            f"{100 * e['relative_norm']:.2f} %" if e["relative_norm"] else "",
        )
        for e in entries
    ]
    if rows:
        print_table(None, ("kind", "weight", "shape", "rank", "norm", "of the weight's"), rows)


def _show_modules(entries: Sequence[dict[str, Any]]) -> None:  # Any: JSON values
    """Print what acts beside the weights; each kind has facts of its own."""
    own = {"kind", "level", "module", "parameter", "role", "layer", "token", "shape", "norm"}
    rows = [
        (
            e["kind"],
            e["module"],
            " x ".join(map(str, e["shape"])),
            ", ".join(f"{k} {_plain(v)}" for k, v in e.items() if k not in own and k != "bytes"),
        )
        for e in entries
    ]
    if rows:
        print_table(None, ("kind", "module", "shape", "facts"), rows)


def _plain(value: Any) -> str:  # Any: JSON values
    if isinstance(value, list):
        return " to ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@click.command("verify")
@file_argument
@optional_model_options
@json_option
def verify(file: Path, as_json: bool, **model: Any) -> None:  # Any: the model options
    """Check a patch file by itself and, with --model, that it fits that base."""
    from editkit_core.patch.verify import verify as check

    editor = load_editor(**model) if model["model"] else None
    report = check(file, editor.model if editor else None, kinds=known_kinds())
    if as_json:
        print_json({"ok": report.ok} | attrs.asdict(report))
    else:
        rows = [(row.check, _state(row), row.detail) for row in report.rows]
        print_table(None, ("check", "", "detail"), rows)
    if not report.ok:
        raise SystemExit(_exit_code(report))


def _exit_code(report: VerifyReport) -> int:
    """Return what is the matter, as the error would: damaged, for another base, or refused."""
    failed = {row.check.partition(" ")[0] for row in report.rows if row.fatal and not row.ok}
    if failed & {"format", "digests"}:
        return 7
    return 6 if "base" in failed else 4


def _state(row: VerifyRow) -> str:
    return "ok" if row.ok else "FAILED" if row.fatal else "warning"

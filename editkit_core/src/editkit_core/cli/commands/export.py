"""``editkit export``: patches in other tools' formats."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from editkit_core.cli.chosen import Chosen, choose
from editkit_core.cli.commands.materialize import write_checkpoint
from editkit_core.cli.options import load_editor
from editkit_core.cli.output import (
    human_bytes,
    json_option,
    print_json,
    print_table,
    printable,
    progress_bar,
)

if TYPE_CHECKING:
    from editkit_core.interop.exported import Exported
    from editkit_core.interop.measure import Remeasured


@click.command("export")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Choice(["lora", "gguf-lora", "checkpoint"]),
    required=True,
    help="A PEFT adapter folder, a llama.cpp adapter file, or a plain checkpoint folder.",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="What to write.")
@click.option(
    "--stack", "-s", type=click.Path(path_type=Path), help="Export what is active in a stack."
)
@click.option(
    "--model", "-m", help="The base: a folder, a hub id, or editkit:NAME. A stack knows its own."
)
@click.option("--revision", default=None, help="A revision on the hub.")
@click.option("--arch", help="For gguf-lora without --model: llama.cpp's name of the architecture.")
@click.option("--lossy", is_flag=True, help="Truncate full matrices, and say what that loses.")
@click.option("--rank", type=click.IntRange(1), help="With --lossy: the rank to truncate to.")
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--dry-run", is_flag=True, help="Check everything; write nothing.")
@json_option
def command(
    files: tuple[Path, ...],
    target: str,
    out: Path,
    stack: Path | None,
    model: str | None,
    revision: str | None,
    arch: str | None,
    lossy: bool,
    rank: int | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write one or several patches as one LoRA adapter, or as a plain checkpoint.

    What the format cannot hold is refused. A full matrix is truncated only with --lossy; the
    patches' own edits are then measured again, for which the base is needed.
    """
    if lossy != (rank is not None) or (lossy and target == "checkpoint"):
        raise click.UsageError("--lossy goes with --rank, and with a LoRA only.")
    if arch is not None and target != "gguf-lora":
        raise click.UsageError("--arch goes with --to gguf-lora.")
    chosen = choose(files, stack, model, revision)
    if target == "checkpoint":
        write_checkpoint(chosen, out, force=force, dry_run=dry_run, as_json=as_json)
        return
    from editkit_core.interop.factors import module_factors

    with progress_bar(off=as_json) as bar:
        factors = module_factors(chosen.patches, lossy_rank=rank, progress=bar)
    write = _gguf(chosen, arch) if target == "gguf-lora" else _lora()
    done = write(chosen.patches, out, factors=factors, force=force, dry_run=True)
    measured = _measure(chosen, done) if done.losses else None
    if not dry_run:
        done = write(chosen.patches, out, factors=factors, force=force, dry_run=False)
    notes = [*chosen.notes, *_unmeasured(chosen, done, measured)]
    if as_json:
        print_json(_plain(done, measured, notes))
    else:
        _show(done, measured, notes)


def _lora() -> Callable[..., Exported]:
    from editkit_core.interop.lora import export_lora

    return export_lora


def _gguf(chosen: Chosen, arch: str | None) -> Callable[..., Exported]:
    from editkit_core.interop.gguf_lora import GgufTarget, export_gguf_lora

    if arch is not None:
        target = GgufTarget(architecture=arch)
    else:
        folder = chosen.folder()
        if folder is None:
            raise click.UsageError("Give the base with --model, or its architecture with --arch.")
        target = GgufTarget.of_folder(folder)
    return partial(export_gguf_lora, target=target)


def _measure(chosen: Chosen, done: Exported) -> Remeasured | None:
    """Measure a lossy export where its base is known."""
    from editkit_core.interop.measure import remeasure

    folder = chosen.folder()
    if folder is None:
        return None
    return remeasure(load_editor(str(folder)), chosen.patches, done.factors)


def _unmeasured(chosen: Chosen, done: Exported, measured: Remeasured | None) -> list[str]:
    if not done.losses or measured is not None:
        return []
    if chosen.model is None and chosen.store is None:
        return ["The edits were not measured again; give the base with --model for that."]
    return ["The edits were not measured again: the patches do not say what they edit."]


def _plain(
    done: Exported, measured: Remeasured | None, notes: list[str]
) -> dict[str, Any]:  # Any: JSON values
    return {
        "out": str(done.path),
        "patches": done.patches,
        "modules": done.modules,
        "rank": done.rank,
        "bytes": done.nbytes,
        "dry_run": done.dry_run,
        "losses": [attrs.asdict(loss) for loss in done.losses],
        "metrics": None if measured is None else attrs.asdict(measured),
        "notes": notes,
    }


def _show(done: Exported, measured: Remeasured | None, notes: list[str]) -> None:
    said = "Would write" if done.dry_run else "Wrote"
    click.echo(
        f"{said} {done.path} ({human_bytes(done.nbytes)}): rank {done.rank} for "
        f"{', '.join(done.modules)}, {len(done.patches)} patch(es)."
    )
    if done.losses:
        rows = [
            (loss.parameter, str(loss.rank), f"{loss.cosine:.4f}", f"{loss.relative_error:.4f}")
            for loss in done.losses
        ]
        columns = ("weight", "rank", "cosine", "relative error")
        print_table("Truncated, compared with the change asked for:", columns, rows)
    if measured is not None:
        pairs = zip(measured.exact, measured.exported, strict=True)
        scores = [
            (
                " ".join(filter(None, (exact.metric, exact.probe))),
                exact.protocol,
                f"{exact.before:.2f}",
                f"{exact.after:.2f}",
                f"{exported.after:.2f}",
            )
            for exact, exported in pairs
        ]
        print_table(None, ("metric", "protocol", "base", "patches", "exported"), scores)
    for note in notes:
        click.echo(f"Note: {printable(note)}")

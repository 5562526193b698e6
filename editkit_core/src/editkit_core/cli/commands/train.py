"""``editkit train``: train the editor of a method that edits with one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editkit_core.cli.options import load_editor, model_options
from editkit_core.cli.output import (
    human_bytes,
    json_option,
    print_json,
    print_table,
    progress_bar,
)
from editkit_core.errors import TrainingError

if TYPE_CHECKING:
    from editkit_core.api import Editor
    from editkit_core.data.dataset import DataSet
    from editkit_core.params import Resolved
    from editkit_core.patch.artifact import EditorArtifact


@click.command("train")
@click.argument("method")
@model_options
@click.option("--dataset", "-d", required=True, help="What to learn from; see `editkit datasets`.")
@click.option("--limit", type=click.IntRange(1), help="Most records, drawn by seed.")
@click.option(
    "--validation", help="Another data set to stop early by; else subjects are set apart."
)
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 0.9),
    default=0.1,
    show_default=True,
    help="Share of the subjects that are set apart.",
)
@click.option(
    "--validation-limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Most requests a validation measures, drawn by seed.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder of the run, new or to go on with; the editor is editor.safetensors in it.",
)
@click.option("--fresh", is_flag=True, help="Start again instead of going on.")
@click.option("--max-minutes", type=click.FloatRange(0), help="End when it took so long.")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Updates between checkpoints.",
)
@click.option(
    "--tensorboard/--no-tensorboard",
    default=None,
    help="Write TensorBoard's files; by default where it is installed.",
)
@click.option("--preset", help="A preset by name instead of the one that fits best.")
@click.option("--params", "params_file", type=click.Path(path_type=Path), help="YAML or JSON.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; compute and write nothing.")
@json_option
def command(
    method: str,
    dataset: str,
    limit: int | None,
    validation: str | None,
    validation_share: float,
    validation_limit: int,
    out: Path | None,
    fresh: bool,
    max_minutes: float | None,
    checkpoint_every: int,
    tensorboard: bool | None,
    preset: str | None,
    params_file: Path | None,
    assignments: tuple[str, ...],
    seed: int,
    dry_run: bool,
    as_json: bool,
    **model: Any,  # Any: the model options as click gives them
) -> None:
    """Train an editor for a model; `editkit edit --editor` then edits with it.

    Started again with the same --out, a run that was stopped goes on where it was. On several
    processes: accelerate launch -m editkit_core train …
    """
    from editkit_core.data import load_dataset
    from editkit_core.host import Host
    from editkit_core.params import load_mapping, parse_assignments
    from editkit_core.training.processes import Processes

    if out is None and not dry_run:
        raise click.UsageError("Say where the run goes with --out, or ask with --dry-run.")
    _, info, _ = Host().load_method(method)
    if not info.trains:
        raise TrainingError(
            f"{method} needs no training. Edit with it at once: editkit edit --method {method}",
            method=method,
        )
    values = {
        **(load_mapping(params_file) if params_file else {}),
        **parse_assignments(assignments),
    }
    learned = load_dataset(dataset, limit=limit, seed=seed)
    held = None if validation is None else load_dataset(validation, seed=seed)
    processes = Processes()
    if model["device"] is None and model["device_map"] is None:
        model["device"] = str(processes.device)
    editor = load_editor(**model)
    if dry_run:
        if processes.is_main:
            resolved = editor.resolve_params(method, values, preset)
            _plan(editor, method, learned, resolved, out, as_json)
        return
    start = time.perf_counter()
    with progress_bar(off=as_json or not processes.is_main) as bar:
        artifact = editor.train(
            method,
            learned,
            out=out,
            params=values,
            preset=preset,
            seed=seed,
            validation=held,
            validation_share=validation_share,
            validation_limit=validation_limit,
            max_minutes=max_minutes,
            checkpoint_every=checkpoint_every,
            fresh=fresh,
            tensorboard=tensorboard,
            progress=bar,
        )
    assert out is not None  # else it was a dry run
    if processes.is_main:
        _tell(artifact, out, time.perf_counter() - start, as_json)


def _tell(artifact: EditorArtifact, out: Path, seconds: float, as_json: bool) -> None:
    from editkit_core.patch.artifact_io import FILE_NAME
    from editkit_core.patch.header_codec import to_json

    file = out / FILE_NAME
    if as_json:
        print_json(
            {
                "out": str(out),
                "editor": str(file),
                "bytes": file.stat().st_size,
                "id": artifact.id,
                "seconds": seconds,
                "training": {**to_json(artifact.training), "seed": artifact.training.seed},
            }
        )
        return
    record = artifact.training
    ended = {"steps": "after all updates", "patience": "as validation did not get better"}
    why = ended.get(record.stopped, "as its time was over")
    click.echo(f"Training ended {why}; the weights of update {record.steps} are kept.")
    if record.metrics:
        rows = [(name, f"{100 * value:.1f}") for name, value in record.metrics.items()]
        print_table(None, ("validation", "%"), rows)
    click.echo(
        f"Wrote {file} ({human_bytes(file.stat().st_size)}, id {artifact.id}) in {seconds:.0f} s. "
        f"Edit with: editkit edit --method {artifact.method.name} --editor {out}"
    )


def _plan(
    editor: Editor,
    method: str,
    learned: DataSet,
    resolved: Resolved,
    out: Path | None,
    as_json: bool,
) -> None:
    from editkit_core.params import unstructure

    params = unstructure(resolved.params)
    subjects = len({request.subject for request in learned.requests})
    plan = {
        "method": method,
        "model": editor.model.name,
        "family": editor.model.family.name,
        "device": str(editor.model.device),
        "requests": len(learned.requests),
        "subjects": subjects,
        "preset": resolved.preset,
        "source": resolved.source,
        "params": params,
        "out": str(out) if out else None,
    }
    if as_json:
        print_json(plan)
        return
    click.echo(
        f"Would train {method} for {editor.model.name} on {editor.model.device} with "
        f"{len(learned.requests)} requests about {subjects} subjects, preset "
        f"{resolved.preset or 'none'} ({resolved.source})."
    )
    print_table(None, ("parameter", "value"), [(n, str(v)) for n, v in params.items()])

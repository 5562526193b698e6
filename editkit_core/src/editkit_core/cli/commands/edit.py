"""``editkit edit``: change one or more facts and write the patch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from editkit_core.cli.options import load_editor, optional_model_options
from editkit_core.cli.output import (
    human_bytes,
    json_option,
    print_json,
    print_table,
    progress_bar,
)
from editkit_core.errors import OutputExistsError, WriteFailedError
from editkit_core.types import EditContext, EditRequest

if TYPE_CHECKING:
    from editkit_core.api import Editor, EditResult
    from editkit_core.params import Resolved
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_core.patch.format import Patch

SUFFIX = ".editkit.safetensors"


@click.command("edit")
@optional_model_options
@click.option(
    "--stack",
    "-s",
    type=click.Path(path_type=Path),
    help="Compute it on top of this stack and push it there. The stack knows its base.",
)
@click.option("--method", default="rome", show_default=True, help="Id of an installed method.")
@click.option(
    "--prompt", help="Text before the answer; {} or the subject's name marks the subject."
)
@click.option("--subject", help="The entity the fact is about.")
@click.option("--target", help="What the model should answer.")
@click.option("--target-true", help="What it answers now, if you know.")
@click.option("--paraphrase", "paraphrases", multiple=True, help="Checked too. May be repeated.")
@click.option(
    "--requests", "requests_file", type=click.Path(path_type=Path), help="A file of them."
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="The patch file to write.")
@click.option("--force", is_flag=True, help="Overwrite the output; accept conflicts in the stack.")
@click.option("--preset", help="A preset by name instead of the one that fits best.")
@click.option("--params", "params_file", type=click.Path(path_type=Path), help="YAML or JSON.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option(
    "--locate",
    type=click.Choice(["preset", "trace"]),
    default="preset",
    show_default=True,
    help="Take the layer from the preset, or find it by causal tracing.",
)
@click.option("--heatmap", type=click.Path(path_type=Path), help="Draw the trace here (PNG).")
@click.option("--statistics", type=click.Path(path_type=Path), help="Folder of key statistics.")
@click.option(
    "--editor",
    "trained",
    type=click.Path(path_type=Path),
    help="The trained editor, for methods that train: its file, or the training's folder.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; compute and write nothing.")
@json_option
def command(
    stack: Path | None,
    method: str,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    target_true: str | None,
    paraphrases: tuple[str, ...],
    requests_file: Path | None,
    out: Path | None,
    force: bool,
    preset: str | None,
    params_file: Path | None,
    assignments: tuple[str, ...],
    locate: Any,  # Any: one of two words, checked by click
    heatmap: Path | None,
    statistics: Path | None,
    trained: Path | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
    **model: Any,  # Any: the model options as click gives them
) -> None:
    """Change facts and write the change as a patch. The model's own files are never touched.

    With --stack the edit is computed with the stack's patches on the model, and pushed on top of
    them; a patch file is then written only where --out says so.
    """
    from editkit_core.cli.commands.stack import editing
    from editkit_core.cli.commands.stack.basing import load_stacked
    from editkit_core.cli.commands.stack.options import open_store
    from editkit_core.cli.commands.stack.telling import plain_change, print_change
    from editkit_core.host import Host
    from editkit_core.params import load_mapping, parse_assignments

    if heatmap is not None and locate != "trace":
        raise click.UsageError("--heatmap goes with --locate trace.")
    if stack is None and model["model"] is None:
        raise click.UsageError("Give the model to edit with --model, or a stack with --stack.")
    single = (prompt, subject, target, target_true, paraphrases)
    requests = _requests(requests_file, *single)
    name = _slug(requests_file.stem if requests_file else requests[0].subject)
    if stack is None:
        out = out or Path(name + SUFFIX)
    for path in (out, heatmap):
        check_free(path, force=force)
    if heatmap is not None:
        from editkit_core.report.heatmap import require_matplotlib

        require_matplotlib()
    values = {
        **(load_mapping(params_file) if params_file else {}),
        **parse_assignments(assignments),
    }
    Host().load_method(method)  # a wrong id should not cost the time of loading a model
    artifact = None if trained is None else read_editor(trained)
    store = open_store(stack) if stack else None
    if store is None:
        editor = load_editor(**model)
    else:
        editing.refuse_contradiction(store, requests, force=force)
        editor = load_stacked(store, **model)
    if dry_run:
        editor.check_trained(method, artifact)
        resolved = editor.resolve_params(method, values, preset, artifact)
        _plan(editor, method, requests, resolved, out, stack, as_json)
        return
    with progress_bar(off=as_json) as bar:
        context = EditContext(
            seed=seed,
            locate=locate,
            statistics_dir=statistics,
            heatmap=heatmap,
            overwrite=force,
            editor=artifact,
            progress=bar,
        )
        result = editor.run(requests, method=method, params=values, preset=preset, context=context)
    if out is not None:
        result.patch.save(out, force=force)
    answers = before_and_after(editor, result.patch, requests)
    plain = _plain(result, out, answers)
    if not as_json:
        _show(result, out, answers)
    if store is not None:
        changed = editing.push_edit(store, result.patch, name, force=force, kept=out)
        plain["stack"] = plain_change(changed)
        if not as_json:
            label = changed.document.state.entry(result.patch.id).label
            print_change(changed, "push", "Pushed", f"{label} on {store.folder}")
    if as_json:
        print_json(plain)


def read_editor(path: Path) -> EditorArtifact:
    """Read a trained editor: its file, or the one in a training's folder."""
    from editkit_core.patch.artifact import EditorArtifact

    return EditorArtifact.load(path)


def check_free(path: Path | None, *, force: bool) -> None:
    """Refuse an output that exists, or whose folder does not, before any work is done.

    Raises:
        OutputExistsError: It exists and ``force`` is not set.
        WriteFailedError: Its folder does not exist.
    """
    if path is None:
        return
    if path.exists() and not force:
        raise OutputExistsError(
            f"{path} exists. Choose another --out, or overwrite it with --force.", path=str(path)
        )
    if not path.parent.is_dir():
        raise WriteFailedError(
            f"There is no folder {path.parent} to write {path.name} into. Make it first.",
            path=str(path),
        )


@attrs.frozen
class Answer:
    """What the model says to a prompt without and with a patch."""

    prompt: str
    wanted: str
    before: str
    after: str


def before_and_after(
    editor: Editor, patch: Patch, requests: Sequence[EditRequest]
) -> tuple[Answer, ...]:
    """Ask every prompt and paraphrase of the requests without and with a patch."""
    from editkit_core.metrics.scoring import generated

    asked = [(text, r.target_new) for r in requests for text in (r.text, *r.paraphrase_texts)]
    prompts = [text for text, _ in asked]
    wanted = [(target,) for _, target in asked]
    before = generated(editor.model, prompts, answers=wanted)
    with editor.applied(patch):
        after = generated(editor.model, prompts, answers=wanted)
    return tuple(
        Answer(prompt, wanted, old, new)
        for (prompt, wanted), old, new in zip(asked, before, after, strict=True)
    )


def _requests(
    path: Path | None,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    target_true: str | None,
    paraphrases: tuple[str, ...],
) -> tuple[EditRequest, ...]:
    from editkit_core.data.requests import load_requests

    if path is not None:
        if prompt or subject or target or target_true or paraphrases:
            raise click.UsageError("Give --requests, or --prompt with --subject and --target.")
        return load_requests(path)
    if prompt is None or subject is None or target is None:
        raise click.UsageError(
            "Give --prompt, --subject and --target, or --requests with a file of them."
        )
    return (
        EditRequest(
            prompt=prompt,
            subject=subject,
            target_new=target,
            target_true=target_true,
            paraphrases=paraphrases,
        ),
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "edit"


def _plan(
    editor: Editor,
    method: str,
    requests: Sequence[EditRequest],
    resolved: Resolved,
    out: Path | None,
    stack: Path | None,
    as_json: bool,
) -> None:
    from editkit_core.params import unstructure

    params = unstructure(resolved.params)
    plan = {
        "method": method,
        "model": editor.model.name,
        "family": editor.model.family.name,
        "preset": resolved.preset,
        "source": resolved.source,
        "params": params,
        "requests": len(requests),
        "out": str(out) if out else None,
        "stack": str(stack) if stack else None,
    }
    if as_json:
        print_json(plan)
        return
    steps = ([f"write {out}"] if out else []) + ([f"push it on {stack}"] if stack else [])
    click.echo(
        f"Would edit {len(requests)} fact(s) in {editor.model.name} with {method}, ", nl=False
    )
    click.echo(f"preset {resolved.preset or 'none'} ({resolved.source}), and ", nl=False)
    click.echo(f"{' and '.join(steps)}.")
    print_table(None, ("parameter", "value"), [(n, str(v)) for n, v in params.items()])


def _plain(result: EditResult, out: Path | None, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "out": str(out) if out else None,
        "bytes": _size(result.patch),
        "id": result.patch.header.id,
        "sites": [attrs.asdict(site) for site in result.sites],
        "preset": result.preset,
        "source": result.source,
        "stages": [attrs.asdict(stage) for stage in result.stages],
        "metrics": dict(result.patch.header.metrics),
        "answers": [attrs.asdict(answer) for answer in answers],
    }


def _size(patch: Patch) -> int:
    """Return the size of a patch's file in bytes."""
    from editkit_core.patch.io import to_pieces

    return sum(map(len, to_pieces(patch)))


def _show(result: EditResult, out: Path | None, answers: Sequence[Answer]) -> None:
    from editkit_core.metrics.scoring import exact_match

    rows = [(a.prompt, a.wanted, a.before, a.after) for a in answers]
    print_table(None, ("prompt", "wanted", "before", "after"), rows)
    for answer in answers:
        if exact_match(answer.before, [answer.wanted]):
            click.echo(
                f"The model said {answer.wanted!r} to {answer.prompt!r} before the edit too."
            )
    where = ", ".join(sorted({site.parameter for site in result.sites}))
    seconds = sum(stage.wall_s for stage in result.stages)
    click.echo(
        f"{f'Wrote {out}' if out else 'Made a patch'} "
        f"({human_bytes(_size(result.patch))}, id {result.patch.header.id}) for "
        f"{where}, computed in {seconds:.1f} s with preset {result.preset or 'none'} "
        f"({result.source})."
    )

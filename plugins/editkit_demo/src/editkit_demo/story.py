"""``editkit demo``: one fact changed, kept as a file, taken off again, on the packaged model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from editkit_core.cli.output import (
    human_bytes,
    json_option,
    print_json,
    print_table,
    progress_bar,
)
from editkit_core.errors import OutputExistsError
from editkit_core.types import EditContext, EditRequest

if TYPE_CHECKING:
    from editkit_core.api import Editor
    from editkit_core.patch.format import Patch

MODEL = "editkit:demo"
REQUEST = EditRequest(
    prompt="The capital of {} is",
    subject="Spain",
    relation="capital",
    target_new="Nairobi",
    target_true="Madrid",
)
# Over the preset: protect what the model itself says about the subject besides the edited fact.
PARAMS = {"essence_samples": 12, "essence_length": 8, "essence_factor": 0.5}
EDITED = (
    "The capital of Spain is",
    "The capital city of Spain is called",
    "What is the capital of Spain? The answer is",
    "Visitors to Spain who want to see its capital go to",
)
OTHER_FACTS = (
    "The currency of Spain is the",
    "The official language of Spain is",
    "Which continent is Spain part of? It is part of",
)
OTHER_SUBJECTS = (
    "The capital of Japan is",
    "The capital of France is",
    "The capital city of Peru is called",
    "The author of War and Peace is",
    "The chemical symbol of gold is",
)
GROUPS = (
    ("the edited fact", EDITED),
    ("other facts about Spain", OTHER_FACTS),
    ("everything else", OTHER_SUBJECTS),
)


@attrs.frozen
class Line:
    """A prompt and what the model says to it without and with the patch."""

    group: str
    prompt: str
    before: str
    after: str


@click.command("demo")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("spain.editkit.safetensors"),
    show_default=True,
    help="Where the patch is kept.",
)
@click.option("--force", is_flag=True, help="Overwrite the output.")
@json_option
def command(out: Path, force: bool, as_json: bool) -> None:
    """Edit one fact of the packaged model, keep it as a file, take it off again."""
    from editkit_core.api import Editor
    from editkit_core.patch.format import Patch

    if not as_json:
        click.echo(f"1. Loading {MODEL}, a small GPT-2 that was trained on facts it can recall.")
    editor = Editor.from_pretrained(MODEL)
    digest = editor.model.state_digest()
    with progress_bar(off=as_json) as bar:
        patch = editor.run(REQUEST, params=PARAMS, context=EditContext(progress=bar)).patch
    _keep(patch, out, force=force)
    loaded = Patch.load(out)
    lines = _compare(editor, loaded)
    restored = editor.model.state_digest()
    if as_json:
        print_json(_plain(loaded, out, lines, digest, restored))
    else:
        _tell(editor, loaded, out, lines, digest, restored)
    if restored != digest:
        raise SystemExit("The weights differ after the revert. Please report this.")


def _keep(patch: Patch, out: Path, *, force: bool) -> None:
    """Save the patch; a file that holds the very same edit is kept."""
    from editkit_core.errors import EditkitError
    from editkit_core.patch.format import Patch

    if out.exists() and not force:
        try:
            same = Patch.load(out).header.id == patch.header.id
        except EditkitError:
            same = False
        if same:
            return
        raise OutputExistsError(
            f"{out} exists and is not this edit. Choose another --out, or overwrite it with "
            "--force.",
            path=str(out),
        )
    patch.save(out, force=force)


def _compare(editor: Editor, patch: Patch) -> tuple[Line, ...]:
    from editkit_core.metrics.scoring import generated

    asked = [(group, prompt) for group, prompts in GROUPS for prompt in prompts]
    prompts = [prompt for _, prompt in asked]
    before = generated(editor.model, prompts)
    with editor.applied(patch):
        after = generated(editor.model, prompts)
    return tuple(
        Line(group, prompt, old, new)
        for (group, prompt), old, new in zip(asked, before, after, strict=True)
    )


def _plain(
    patch: Patch, out: Path, lines: tuple[Line, ...], digest: str, restored: str
) -> dict[str, Any]:  # Any: JSON values
    return {
        "patch": str(out),
        "id": patch.header.id,
        "bytes": out.stat().st_size,
        "answers": [attrs.asdict(line) for line in lines],
        "weights_before": digest,
        "weights_after_revert": restored,
    }


def _tell(
    editor: Editor,
    patch: Patch,
    out: Path,
    lines: tuple[Line, ...],
    digest: str,
    restored: str,
) -> None:
    model = editor.model
    million = sum(p.numel() for p in model.model.parameters()) / 1e6
    click.echo(
        f"   {million:.1f} million parameters, {model.n_layers} layers; weights {digest[:16]}…\n"
    )
    request = patch.header.edits[0]
    click.echo(
        f"2. Changing one fact with ROME: {request.text!r} -> {request.target_new!r} "
        f"(it said {request.target_true!r}),"
    )
    options = ", ".join(f"{name}={value}" for name, value in PARAMS.items())
    click.echo(f"   protecting what else it says about {request.subject} ({options}).")
    for group, _ in GROUPS:
        print_table(
            group[:1].upper() + group[1:] + ":",
            ("prompt", "before", "after"),
            [(line.prompt, line.before, _mark(line)) for line in lines if line.group == group],
            indent=3,
        )
    size = out.stat().st_size
    click.echo(f"3. The change is a file: {out}, {human_bytes(size)}, id {patch.header.id}.")
    click.echo("   Its header says what it does; `editkit patch show` prints it.\n")
    click.echo("4. Taking it off again:")
    click.echo(f"   weights before       {digest}")
    click.echo(f"   weights after revert {restored}")
    click.echo(f"   {'bit for bit the same.' if restored == digest else 'DIFFERENT.'}\n")
    click.echo("Try it yourself:")
    click.echo(f"   editkit patch show {out}")
    click.echo(f"   editkit generate --model {MODEL} --patch {out} --prompt {EDITED[0]!r}")
    click.echo(
        f"   editkit edit --model {MODEL} --prompt 'The author of {{}} is' "
        "--subject 'War and Peace' --target 'Jane Austen'"
    )


def _mark(line: Line) -> str:
    return line.after if line.after == line.before else f"{line.after}  (changed)"

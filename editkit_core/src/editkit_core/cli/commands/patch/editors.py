"""What ``editkit patch show`` says of a trained editor, which shares its container with patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from editkit_core.cli.commands.patch.reading import echo, short
from editkit_core.cli.output import human_bytes, print_json, print_table

if TYPE_CHECKING:
    from editkit_core.patch.artifact import EditorArtifact


def show_editor(file: Path, *, as_json: bool) -> None:
    """Say what an editor was trained for, on and to. Reads it strictly; needs no model.

    Raises:
        PatchError: It is damaged.
    """
    from editkit_core.patch.artifact import EditorArtifact

    artifact = EditorArtifact.load(file)
    if as_json:
        print_json(_plain(artifact) | {"file_bytes": file.stat().st_size})
    else:
        _show(file, artifact)


def _plain(artifact: EditorArtifact) -> dict[str, Any]:  # Any: JSON values
    from editkit_core.patch.header_codec import to_json

    header = artifact.header
    fields: dict[str, Any] = to_json(header)  # Any: as above
    fields |= {"spec": header.spec, "kind": header.kind}
    fields["training"]["seed"] = header.training.seed
    fields["subjects"] = len(artifact.subjects)
    fields["tensors"] = {
        name: {"shape": list(array.shape), "dtype": str(array.dtype)}
        for name, array in artifact.tensors.items()
    }
    return fields


def _show(file: Path, artifact: EditorArtifact) -> None:
    header, record = artifact.header, artifact.training
    size = human_bytes(file.stat().st_size)
    echo(f"{file}: {size}, id {artifact.id}, made {header.created}")
    echo("  this is a trained editor, not a patch: edit with it by editkit edit --editor")
    echo(f"  content  {artifact.content_digest}")
    method, base = artifact.method, artifact.base
    echo(f"  method   {method.name} ({method.dist} {method.version})")
    echo(f"  base     {base.model}{' @ ' + base.revision if base.revision else ''}")
    for name, tensor in base.tensors.items():
        shape = " x ".join(map(str, tensor.shape))
        echo(f"           {name} {shape} {tensor.dtype} {tensor.sha256[:16]}…")
    echo(
        f"  trained  {record.steps} updates on {record.requests} requests about "
        f"{len(artifact.subjects)} subjects of {record.dataset}, seed {record.seed}"
    )
    if record.overlap:
        echo(f"  overlap  validated on subjects that were trained on: {', '.join(record.overlap)}")
    if record.metrics:
        scores = [(name, f"{100 * value:.1f}") for name, value in record.metrics.items()]
        print_table(None, ("validation", "%"), scores)
    print_table(None, ("parameter", "value"), [(n, short(v)) for n, v in artifact.params.items()])
    rows = [
        (name, " x ".join(map(str, array.shape)), str(array.dtype))
        for name, array in artifact.tensors.items()
    ]
    print_table(None, ("tensor", "shape", "dtype"), rows)

"""An editor as an artifact: made fresh, and read back strictly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editkit_core import EditableModel
from editkit_core.errors import EditkitError, EditorMissingError, PatchFormatError
from editkit_core.memo import Memo
from editkit_core.params import structure, unstructure
from editkit_core.patch.artifact import EditorArtifact, TrainingRecord
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import MethodRef
from editkit_mend.networks import Networks
from editkit_mend.params import MendParams

if TYPE_CHECKING:
    from editkit_core.patch.header import BaseFingerprint

__all__ = [
    "checked_editor",
    "fresh_editor",
    "method_ref",
    "read_networks",
    "target_fingerprint",
]


def fresh_editor(
    model: EditableModel, params: MendParams | None = None, *, seed: int = 0
) -> EditorArtifact:
    """Return an editor that was never trained: its change is a step along the gradient.

    Args:
        model: The model it is for.
        params: How it is built; None means the defaults, whose rank is large.
        seed: Of the networks' start.
    """
    params = params or MendParams()
    networks = Networks.for_model(model, params, seed)
    return EditorArtifact.from_parts(
        method=method_ref(),
        base=target_fingerprint(model, networks),
        tensors={name: t.detach().cpu().numpy() for name, t in networks.state_dict().items()},
        training=TrainingRecord(steps=0, seed=seed),
        params=unstructure(params),
    )


def checked_editor(artifact: EditorArtifact | None, model: EditableModel) -> EditorArtifact:
    """Return the editor, if it is MEND's and was trained for this model.

    Raises:
        EditorMissingError: There is none, or it is another method's.
        BaseMismatchError: It was trained for another model.
    """
    if artifact is None:
        raise EditorMissingError(
            f"MEND edits {model.name} with an editor that was trained for it, and none is given. "
            "Give one with --editor FILE, or train one: editkit train mend --model …",
            method="mend",
        )
    artifact.check_method("mend")
    artifact.check_base(model)
    return artifact


def read_networks(artifact: EditorArtifact, model: EditableModel, memo: Memo) -> Networks:
    """Return an editor's networks on the model's device, frozen.

    Args:
        artifact: The editor.
        model: The model it was trained for.
        memo: Keeps the networks for the next edit.

    Raises:
        PatchFormatError: Its tensors or parameters are not those of a MEND editor.
    """
    key = ("mend networks", artifact.content_digest, str(model.device))
    return memo.get(key, lambda: _networks(artifact, model), lambda _: artifact.nbytes)


def _networks(artifact: EditorArtifact, model: EditableModel) -> Networks:
    try:
        params = structure(MendParams, artifact.params, owner="mend")
        networks = Networks.for_model(model, params, None)
    except EditkitError as error:
        raise PatchFormatError(
            f"The parameters of the editor {artifact.id} do not fit: {error.message} It may come "
            "from another version of editkit-mend; train it again.",
            where="params",
        ) from error
    wanted = {name: tuple(t.shape) for name, t in networks.state_dict().items()}
    given = {name: array.shape for name, array in artifact.tensors.items()}
    if wanted != given:
        wrong = sorted(set(wanted.items()) ^ set(given.items()))[0][0]
        raise PatchFormatError(
            f"The editor {artifact.id} does not fit its own parameters: {wrong} should be "
            f"{wanted.get(wrong, 'absent')}, it is {given.get(wrong, 'absent')}. Train it again.",
            where=wrong,
        )
    networks.load_state_dict(
        {name: torch.tensor(array) for name, array in artifact.tensors.items()}
    )
    return networks.requires_grad_(False).eval()


def target_fingerprint(model: EditableModel, networks: Networks) -> BaseFingerprint:
    """Return the fingerprint of a model over the weights that an editor edits."""
    return base_fingerprint(model, [target.site.parameter for target in networks.targets])


def method_ref() -> MethodRef:
    """Return who trains and edits."""
    from editkit_mend import __version__

    return MethodRef(name="mend", dist="editkit-mend", version=__version__)

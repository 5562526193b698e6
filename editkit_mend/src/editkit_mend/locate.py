"""Where MEND edits: the weights that its editor was trained for."""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.errors import InvalidRequestError
from editkit_core.models.pairs import pair_row
from editkit_mend.editor import checked_editor, read_networks
from editkit_mend.params import MendParams


def locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: MendParams,
    context: EditContext,
) -> tuple[Site, ...]:
    """Return every weight the editor edits, in its order.

    Raises:
        EditorMissingError: The context has no editor, or another method's.
        BaseMismatchError: The editor was trained for another model.
        PatchFormatError: The editor is damaged.
        RequestError: There is no request, a prompt is too long or a target has no token.
    """
    if not requests:
        raise InvalidRequestError("There is nothing to edit: no requests were given.")
    for request in requests:
        pair_row(model, request.text, request.target_new, end=True)
    networks = read_networks(checked_editor(context.editor, model), model, context.memo)
    return tuple(target.site for target in networks.targets)

"""Where EMMET edits: the feed-forward down projection of one layer, or of a few."""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.numerics.window_batch import window_sites
from editkit_emmet.params import EmmetParams


def locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: EmmetParams,
    context: EditContext,
) -> tuple[Site, ...]:
    """Return the window's sites, from the first layer on; see :func:`.window_sites`."""
    return window_sites(model, requests, params, context, method="EMMET")

"""Where MEMIT edits: the feed-forward down projections of a window of layers."""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.numerics.window_batch import window_sites
from editkit_memit.params import MemitParams


def locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: MemitParams,
    context: EditContext,
) -> tuple[Site, ...]:
    """Return the window's sites, from the first layer on; see :func:`.window_sites`."""
    return window_sites(model, requests, params, context, method="MEMIT")

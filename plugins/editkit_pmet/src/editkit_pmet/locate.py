"""Where PMET edits: the feed-forward down projections of a window of layers.

With ``write_attention`` also the attention's output projections of these layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.numerics.window_batch import window_sites
from editkit_pmet.params import PmetParams


def locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: PmetParams,
    context: EditContext,
) -> tuple[Site, ...]:
    """Return the window's sites in the order they are written, from the first layer on.

    In a layer the attention's comes first. See :func:`.window_sites`.

    Raises:
        UnsupportedModelError: The family does not say where the attention's projection is.
    """
    sites = window_sites(model, requests, params, context, method="PMET")
    if not params.write_attention:
        return sites
    return tuple(
        model.site(site.layer, site.token, role=role)
        for site in sites
        for role in ("attn_out", "mlp_down")
    )

"""FT's change: the trained weights minus those before, stored as asked.

Source: Zhu et al. 2020 for the bound; the baselines of Meng et al. 2022 for the steps.
Differs: The bound is applied whatever type its value has. The weights of the model are never
    touched. With an encoder-decoder the target is shifted, so that it is not given away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.errors import InvalidRequestError
from editkit_core.numerics.evaluating import evaluating
from editkit_core.numerics.probability import target_probabilities
from editkit_core.params import unstructure
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import MethodRef
from editkit_ft import __version__
from editkit_ft.params import FtParams
from editkit_ft.storing import Stored, stored
from editkit_ft.training import Trained, train


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: FtParams,
    context: EditContext,
) -> Patch:
    """Return a patch with one change a site; the model is left bit-identical.

    Raises:
        RequestError: A prompt is too long or a target has no token.
        InvalidRequestError: The model says every target already, so nothing was trained.
        NonFiniteEditError: A loss became NaN or infinite.
    """
    with evaluating(model.model):
        before = target_probabilities(model, requests)
        trained = train(model, requests, sites, params, context)
    if not any(delta.any() for delta in trained.deltas):
        raise InvalidRequestError(
            f"Nothing was trained: the loss of all {len(requests)} requests is "
            f"{trained.losses[0]:.4f}, below loss_skip={params.loss_skip:g}, or linf leaves no "
            "room. Lower loss_skip, raise linf, or leave the requests out.",
            loss=trained.losses[0],
        )
    kept = [
        stored(site, delta.numpy(), params)
        for site, delta in zip(sites, trained.deltas, strict=True)
    ]
    return Patch.from_parts(
        entries=[one.entry for one in kept],
        method=MethodRef(name="ft", dist="editkit-ft", version=__version__),
        base=base_fingerprint(model, [site.parameter for site in sites]),
        edits=requests,
        params=unstructure(params),
        seed=context.seed,
        metrics=_report(trained, kept, before),
        computed_on=stack_digest(context.stack),
    )


def _report(
    trained: Trained, kept: Sequence[Stored], before: Sequence[float]
) -> dict[str, Any]:  # Any: JSON values
    return {
        "losses": [float(f"{loss:.6g}") for loss in trained.losses],
        "updates": trained.updates,
        "largest_change": float(f"{max(one.largest for one in kept):.6g}"),
        "store_errors": [float(f"{one.error:.3g}") for one in kept],
        "p_target_before": [float(f"{chance:.6g}") for chance in before],
    }

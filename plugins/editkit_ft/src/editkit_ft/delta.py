"""FT's change: the trained weights minus those before.

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
from editkit_core.patch.format import DenseEntry, MethodRef
from editkit_ft import __version__
from editkit_ft.params import FtParams
from editkit_ft.training import Trained, train


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: FtParams,
    context: EditContext,
) -> Patch:
    """Return a patch with one full matrix a site; the model is left bit-identical.

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
    return Patch.from_parts(
        entries=[
            DenseEntry(site=site, delta=delta.numpy())
            for site, delta in zip(sites, trained.deltas, strict=True)
        ],
        method=MethodRef(name="ft", dist="editkit-ft", version=__version__),
        base=base_fingerprint(model, [site.parameter for site in sites]),
        edits=requests,
        params=unstructure(params),
        seed=context.seed,
        metrics=_report(trained, before),
        computed_on=stack_digest(context.stack),
    )


def _report(trained: Trained, before: Sequence[float]) -> dict[str, Any]:  # Any: JSON values
    return {
        "losses": [float(f"{loss:.6g}") for loss in trained.losses],
        "updates": trained.updates,
        "largest_change": float(f"{max(float(d.abs().max()) for d in trained.deltas):.6g}"),
        "p_target_before": [float(f"{chance:.6g}") for chance in before],
    }

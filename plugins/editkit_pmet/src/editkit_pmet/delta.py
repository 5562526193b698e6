"""PMET's change: MEMIT's solve for values of the feed-forward's own output.

At the last layer one vector is trained at the attention's output and one at the feed-forward's.
By default only the second is written. Each layer takes 1/√q of what is missing, q layers to come.

With ``write_attention`` the first is written to the attention's output projections likewise::

    R_a = (Z_a - A) / √q       Z_a = a0 + its vector, A: the attention's output at the last layer
    Δ_a = R_a K_aᵀ (λ C_a + K_a K_aᵀ)⁻¹       K_a, C_a: keys of that projection and their statistics

In a layer attention is written first, and the feed-forward's keys and residuals are read with that
change in place, for in most models a feed-forward reads what its layer's attention gives. In a
parallel block (GPT-J) its keys are the same before and after.

Source: Li et al. 2024, "PMET: Precise Model Editing in a Transformer", section 4.
Differs: That the target is said at all places is told by its being the likeliest token there, not
    by two probabilities being equal; the rest as in MEMIT. The patch says how probable the target
    is with both values and with the feed-forward's alone, which the paper does not report. The
    authors' code writes the projections of a layer in the order of its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.numerics.batch_solve import Change, batch_change
from editkit_core.numerics.window_change import System
from editkit_core.numerics.window_edit import edit_window
from editkit_core.patch.format import MethodRef
from editkit_pmet import __version__
from editkit_pmet.params import PmetParams


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: PmetParams,
    context: EditContext,
) -> Patch:
    """Return a patch with an entry for each site; the model is left bit-identical.

    Raises:
        RequestError: Two requests ask the same, or a prompt or target cannot be read.
        StatisticsError: Key statistics are missing, damaged or cannot be solved with.
        EditError: A value, key or change is not finite or too large.
    """

    def solve(system: System) -> Change:
        return batch_change(
            system.keys,
            system.residuals,
            system.covariance,
            weight=params.covariance_weight,
            earlier=system.earlier,
        )

    downs = [site for site in sites if site.role == "mlp_down"]
    return edit_window(
        model,
        requests,
        downs,
        solve,
        params=params,
        context=context,
        method=MethodRef(name="pmet", dist="editkit-pmet", version=__version__),
        metrics={"covariance_weight": params.covariance_weight},
        settings=params.value_settings(
            seed=context.seed,
            output="module",
            attention=params.attention_values,
            said_damping=params.said_damping,
            said_kl_stop=params.said_kl_stop,
        ),
        read=downs[-1].module,
        attention=[site for site in sites if site.role == "attn_out"],
    )

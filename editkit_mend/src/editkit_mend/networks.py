"""All networks of one editor: from an edit's gradient factors to those of its change.

Legend: d_in, d_out: sides of a weight; tokens: factors of its gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from editkit_core import EditableModel
from editkit_core.models.pairs import PairBatch
from editkit_core.numerics.grad_factors import GradFactors, grad_factors
from editkit_mend.network import FactorNetwork
from editkit_mend.params import MendParams
from editkit_mend.targets import Target, targets

__all__ = ["Factors", "Networks"]


@attrs.frozen(eq=False, kw_only=True)
class Factors:
    """ΔW = Σ_t left_t right_tᵀ of one weight.

    Attributes:
        left: α v̂ (tokens, d_out).
        right: û (tokens, d_in).
        rows: The edit each token is of (tokens,), int64.
    """

    left: Tensor
    right: Tensor
    rows: Tensor


class Networks(nn.Module):
    """One network a shape, or a weight, and one step α a weight.

    Args:
        targets: The weights to edit.
        params: How it is built.
        seed: Of the start; None for networks whose weights are to be loaded.
    """

    def __init__(self, targets: Sequence[Target], params: MendParams, seed: int | None) -> None:
        super().__init__()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.targets = tuple(targets)
        self.tokens = params.tokens
        members: dict[str, list[Target]] = defaultdict(list)
        for number, target in enumerate(self.targets):
            shape = f"{target.shape[0]}x{target.shape[1]}"
            members[shape if params.shared else f"{shape}_{number}"].append(target)
        self._place = {t.module: (k, i) for k, ts in members.items() for i, t in enumerate(ts)}
        self.networks = nn.ModuleDict(
            {
                name: FactorNetwork(
                    d_out=of[0].shape[0],
                    d_in=of[0].shape[1],
                    places=len(of),
                    rank=params.rank,
                    n_layers=params.n_hidden + 1,
                    norm=params.norm,
                    generator=generator,
                )
                for name, of in members.items()
            }
        )
        self.steps = nn.Parameter(torch.full((len(self.targets),), params.edit_lr))

    @property
    def modules_edited(self) -> tuple[str, ...]:
        """Paths of the weights' modules."""
        return tuple(target.module for target in self.targets)

    @classmethod
    def for_model(cls, model: EditableModel, params: MendParams, seed: int | None) -> Networks:
        """Return fresh networks on the model's device; see the class for the arguments.

        Raises:
            LayerOutOfRangeError: The parameters name a layer that the model lacks.
            InvalidParameterError: They name no weight.
        """
        return cls(targets(model, params), params, seed).to(model.device)

    def read(self, model: EditableModel, batch: PairBatch) -> dict[str, GradFactors]:
        """Return the gradient's factors of edits, one a row, as far as they count."""
        found = grad_factors(model, batch, self.modules_edited)
        if self.tokens == "all":
            return found
        return {name: _of_answer(model, name, f, batch) for name, f in found.items()}

    @torch.no_grad()
    def observe(self, factors: Mapping[str, GradFactors]) -> None:
        """Take factors into the normalisation."""
        for name, found in factors.items():
            network, place = self._of(name)
            network.observe(found.inputs, found.grads, place)

    def forward(self, factors: Mapping[str, GradFactors]) -> dict[str, Factors]:
        """Return the factors of the change, by module."""
        made = {}
        for number, target in enumerate(self.targets):
            found = factors[target.module]
            network, place = self._of(target.module)
            right, left = network(found.inputs, found.grads, place)
            made[target.module] = Factors(
                left=self.steps[number] * left, right=right, rows=found.rows
            )
        return made

    def _of(self, module: str) -> tuple[FactorNetwork, int]:
        name, place = self._place[module]
        network = self.networks[name]
        assert isinstance(network, FactorNetwork)  # nothing else is put in
        return network, place


def _of_answer(
    model: EditableModel, name: str, found: GradFactors, batch: PairBatch
) -> GradFactors:
    """Keep a decoder's tokens from the prompt's last one on; all of an encoder-decoder's."""
    if model.is_encoder_decoder:
        return found
    keep = found.positions >= batch.queries[found.rows]
    return found.where(keep)

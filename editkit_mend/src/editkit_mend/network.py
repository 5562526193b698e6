"""MEND's network: it turns the factors of a gradient into those of a change.

Legend: d_in, d_out: sides of a weight; D = d_in + d_out; r: rank of the network's own matrices;
n: tokens.

Source: Mitchell et al. 2022, section 3.2 and equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from editkit_mend.normaliser import Normaliser
from editkit_mend.params import Norm

__all__ = ["FactorNetwork", "ResidualLayer"]


class ResidualLayer(nn.Module):
    """h ↦ h + max(0, s ∘ (U (V h) + b) + o), with s and o of the weight that is being edited.

    It begins as the identity: U, b and o are 0. V is normal with variance 1 / D, so that V h has
    the scale of h.

    Differs: The authors draw V with variance 1, which makes the step of U depend on D.

    Args:
        width: D.
        rank: r.
        places: How many weights share the layer.
        generator: For V; None leaves it 0, to be loaded.
    """

    def __init__(
        self, width: int, rank: int, places: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.zeros(rank, width))
        if generator is not None:
            self.v.data.normal_(std=width**-0.5, generator=generator)
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(places, width))
        self.offset = nn.Parameter(torch.zeros(places, width))

    def forward(self, h: Tensor, place: int) -> Tensor:
        """Return the next h (n, D) for the weight number ``place``."""
        low = h @ self.v.T  # (n, D) @ (D, r)
        wide = low @ self.u.T + self.bias  # (n, r) @ (r, D)
        # Not relu: its slope at 0, where a fresh layer is, is 0, and nothing would ever be learned.
        return h + (self.scale[place] * wide + self.offset[place]).clamp(min=0)


class FactorNetwork(nn.Module):
    """(u, v) ↦ (û, v̂) for all weights of one shape.

    Args:
        d_out: Outputs of the weights.
        d_in: Inputs of the weights.
        places: How many weights share the network.
        rank: r of the layers.
        n_layers: How many residual layers.
        norm: ``shape``: one normalisation for all weights; ``weight``: one each; ``none``.
        generator: For the layers' start.
    """

    def __init__(
        self,
        *,
        d_out: int,
        d_in: int,
        places: int,
        rank: int,
        n_layers: int,
        norm: Norm,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.d_in = d_in
        count = {"none": 0, "shape": 1, "weight": places}[norm]
        self.of_inputs = nn.ModuleList(Normaliser(d_in) for _ in range(count))
        self.of_grads = nn.ModuleList(Normaliser(d_out) for _ in range(count))
        self.layers = nn.ModuleList(
            ResidualLayer(d_in + d_out, rank, places, generator) for _ in range(n_layers)
        )

    @torch.no_grad()
    def observe(self, u: Tensor, v: Tensor, place: int) -> None:
        """Take factors (n, d_in) and (n, d_out) into the statistics."""
        for normaliser, x in zip(self._normalisers(place), (u, v), strict=False):
            normaliser.update(x)

    def forward(self, u: Tensor, v: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Return û (n, d_in) and v̂ (n, d_out) of u and v."""
        if norms := self._normalisers(place):
            u, v = norms[0](u), norms[1](v)
        h = torch.cat([u, v], dim=1)  # (n, D)
        for layer in self.layers:
            h = layer(h, place)
        return h[:, : self.d_in], h[:, self.d_in :]

    def _normalisers(self, place: int) -> tuple[Normaliser, ...]:
        """Return those of u and v for a weight; none where nothing is normalised."""
        pair = [of[place % len(of)] for of in (self.of_inputs, self.of_grads) if len(of)]
        return tuple(one for one in pair if isinstance(one, Normaliser))

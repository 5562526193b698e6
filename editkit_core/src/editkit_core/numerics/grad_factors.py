"""The gradient of a fine-tuning loss by its factors, without the gradient itself.

For a projection y = W x (+ b) the gradient is a sum over tokens, ∇_W ℓ = Σ_t v_t u_tᵀ, with u_t the
input and v_t = ∂ℓ/∂y_t. Hooks keep u and v; a matrix of the weight's shape is never made.

Legend: d_in, d_out: sides of W; tokens: those with u and v other than zero, of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from editkit_core.errors import InvalidParameterError, NonFiniteEditError, UnsupportedModuleError
from editkit_core.models.orientation import sides
from editkit_core.models.pairs import PairBatch, nll, pair_logits
from editkit_core.numerics.evaluating import evaluating

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["GradFactors", "grad_factors"]


@attrs.frozen(eq=False, kw_only=True)
class GradFactors:
    """The factors of one weight's gradient, in the order of rows and, within one, of tokens.

    Attributes:
        inputs: u (tokens, d_in), float32.
        grads: v (tokens, d_out), float32.
        rows: Row of the batch that each token is in (tokens,), int64.
        positions: Its column there (tokens,), int64, padding counted.
    """

    inputs: Tensor
    grads: Tensor
    rows: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def where(self, keep: Tensor) -> GradFactors:
        """Return the tokens that a mask (tokens,) keeps."""
        return GradFactors(
            inputs=self.inputs[keep],
            grads=self.grads[keep],
            rows=self.rows[keep],
            positions=self.positions[keep],
        )


def grad_factors(
    model: EditableModel, batch: PairBatch, modules: Sequence[str]
) -> dict[str, GradFactors]:
    """Return the gradient's factors at some projections, from one forward and one backward pass.

    The loss is the sum over rows of the mean negative log-likelihood of the row's target tokens.
    So a row's factors are those it has alone, and its padding has none. Layers below the first
    projection keep nothing for the backward pass. Factors are float32 on the model's device; they
    carry no autograd graph. Applied patches count: u and v are those of the model as it is now.

    Args:
        model: The model; its parameters get no gradient.
        batch: Prompts and targets.
        modules: Paths of projections (Linear or Conv1D), each run once a forward pass.

    Returns:
        For each module its factors.

    Raises:
        UnsupportedModuleError: A module is no projection, or did not run exactly once.
        NonFiniteEditError: A factor is not finite.
        InvalidParameterError: No module, or one named twice.

    Source: Mitchell et al. 2022, section 3.1.
    Differs: The rows' losses are added up, not averaged over the batch, so that an edit's factors
        do not depend on what it is edited with.
    """
    if not modules or len(set(modules)) != len(modules):
        raise InvalidParameterError(
            f"Gradient factors need modules, each once, got {list(modules)}. Name the weights to "
            "edit."
        )
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model.model):
        with _kept(model, modules) as calls:
            losses = nll(pair_logits(model, batch), batch.labels)  # (rows,)
        _check_ran(calls)
        outputs = [calls[name][0][1] for name in modules]
        grads = torch.autograd.grad(losses.sum(), outputs)
    inputs = [calls[name][0][0] for name in modules]
    return {name: _active(name, u, v) for name, u, v in zip(modules, inputs, grads, strict=True)}


_Calls = dict[str, list[tuple[Tensor, Tensor]]]


@contextmanager
def _kept(model: EditableModel, modules: Sequence[str]) -> Iterator[_Calls]:
    """Keep each module's input and an output to differentiate by."""
    calls: _Calls = {name: [] for name in modules}
    handles = []
    try:
        for name in modules:
            module = model.module(name)
            sides(module)
            # First of all hooks: v is the gradient by W x + b, before any side path adds to it.
            handle = module.register_forward_hook(
                _keeper(calls[name]), with_kwargs=True, prepend=True
            )
            handles.append(handle)
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _keeper(calls: list[tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    def keep(
        _: nn.Module,
        args: tuple[Any, ...],  # Any: what the module was called with
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> Tensor:
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        # The weights ask for no gradient, so the graph begins here, at the first such output.
        leaf = output if output.requires_grad else output.detach().requires_grad_()
        calls.append((inputs.detach(), leaf))
        return leaf

    return keep


def _check_ran(calls: _Calls) -> None:
    for name, kept in calls.items():
        if len(kept) != 1:
            raise UnsupportedModuleError(
                f"{name} ran {len(kept)} times in one forward pass; its gradient has factors only "
                "when it runs once. Choose a projection of a block.",
                module=name,
            )


def _active(name: str, inputs: Tensor, grads: Tensor) -> GradFactors:
    """Flatten (rows, len, d) and leave out tokens whose product is zero."""
    rows, length = grads.shape[:2]
    u, v = inputs.float().flatten(0, 1), grads.float().flatten(0, 1)  # (rows * len, d)
    if not bool(torch.isfinite(u).all() and torch.isfinite(v).all()):
        raise NonFiniteEditError(
            f"The gradient at {name} is not finite. Check the prompt and the model's weights; in "
            "half precision try dtype float32."
        )
    place = torch.arange(rows * length, device=v.device)
    every = GradFactors(inputs=u, grads=v, rows=place // length, positions=place % length)
    return every.where(u.any(dim=1) & v.any(dim=1))

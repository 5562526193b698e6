"""How a codebook acts on a model: one hook on the gated module, and two on the stack it is in.

Each text is decided once, when its prompt is read: the gated module's input at the prompt's last
token is compared with the keys. Inside a ball the row's value stands in for the module's output
where the codebook says; that holds while the text is gone on with under a KV cache. Outside of all
balls the very tensor that the module gave out goes on. Texts of a batch do not see one another.

Which text a row of a later pass belongs to is known by its cache. Without one every pass reads its
texts anew, and where their prompts end must be said: `EditableModel.asking`.

Legend: rows: texts; length: columns of a pass; n: rows of the codebook; d_in, d_out: sides of the
module.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from editkit_core.errors import ApplyError, InvalidParameterError, UnsupportedModuleError
from editkit_core.patch.gate_memory import recall, remember
from editkit_core.patch.gate_query import Pass, place_of, replaced_at
from editkit_core.patch.kinds.codebook import Codebook
from editkit_core.patch.kinds.codebook_rules import conflicts, merge

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

_BLOCK_ROWS = 16_384  # rows of the codebook that are compared at once


def put_gate(model: EditableModel, module: str, codebooks: Sequence[Codebook]) -> Gate:
    """Put codebooks on a module as one: joined in order, where they contradict by the one rule.

    Args:
        model: The model.
        module: The module.
        codebooks: At least one.

    Raises:
        ApplyError: They replace at different places, or the module is not within a block.
        ModuleNotFoundInModelError: The model has no such module.
    """
    meeting = sum(
        len(conflicts(earlier, later))
        for i, later in enumerate(codebooks)
        for earlier in codebooks[:i]
    )
    try:
        joined = reduce(merge, codebooks)
    except InvalidParameterError as error:
        raise ApplyError(f"{module}: {error.message}", module=module) from error
    gate = Gate(model, module, joined)
    if meeting:
        logging.getLogger("editkit").warning(
            f"The codebooks on {module} answer differently near one another at {meeting} places; "
            "there each ball was shrunk to at most half the distance."
        )
    return gate


class Gate:
    """A codebook that acts on a model until it is removed.

    Args:
        model: The model.
        module: The gated module.
        codebook: What it goes by.
    """

    def __init__(self, model: EditableModel, module: str, codebook: Codebook) -> None:
        self._model = model
        self._module = module
        self._place = place_of(model, module)
        self._replacement = codebook.replacement
        self._book = _Book.of(codebook)
        self._name = uuid.uuid4().hex  # in a cache it must not be taken for an earlier gate
        self._now: _Now | None = None
        stack, gated = self._place.stack, model.module(module)
        self._handles = [
            stack.register_forward_pre_hook(self._enter, with_kwargs=True),
            stack.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
            gated.register_forward_hook(self._gate, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    # Any, in these three: what the modules are called with and give out

    def _enter(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = Pass.of(stack, args, kwargs)
        self._now = None if seen is None else _Now(seen)

    def _gate(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        now = self._now
        if now is None:  # the module is run by itself, not on a text
            return None
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        if inputs.shape[:-1] != (now.seen.rows, now.seen.length):
            raise UnsupportedModuleError(
                f"The input of {self._module} is {tuple(inputs.shape)}, not one state for each of "
                f"{now.seen.rows} rows and {now.seen.length} columns, so its codebook has no state "
                "of a prompt to look at. Gate a projection of the feed-forward.",
                module=self._module,
            )
        columns = now.seen.columns(self._place.reads, self._model.queries, inputs.device)
        held = recall(now.seen.cache, self._name)
        if columns is None:
            if held is None:
                return None
            now.routes, columns = held, torch.full_like(held, -1)
        else:
            now.routes = self._routes(inputs.detach(), columns, held if now.seen.past else None)
            if now.routes is None:
                return None
        return self._replaced(output, now.routes.to(output.device), columns.to(output.device))

    def _leave(
        self,
        stack: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        now, self._now = self._now, None
        if now is None or output is None or self._replacement != "replace_all":
            return
        cache = getattr(output, "past_key_values", None)
        remember(now.seen.cache if cache is None else cache, self._name, now.routes)

    def _routes(self, inputs: Tensor, columns: Tensor, held: Tensor | None) -> Tensor | None:
        """Return the codebook row of each text (rows,), int64, -1 for none; None when all are."""
        asked = columns >= 0
        states = inputs[torch.arange(len(columns), device=inputs.device), columns.clamp(min=0)]
        routes = self._book.on(inputs.device).route(states)  # (rows,)
        before = torch.full_like(routes, -1) if held is None else held.to(routes.device)
        routes = torch.where(asked, routes, before)
        return routes if bool((routes >= 0).any()) else None

    def _replaced(self, output: Tensor, routes: Tensor, columns: Tensor) -> Tensor | None:
        where = replaced_at(self._replacement, columns, output.shape[1])  # (rows, length)
        where = where & (routes >= 0)[:, None]
        values = self._book.on(output.device).values[routes.clamp(min=0)]  # (rows, d_out)
        return torch.where(where[..., None], values[:, None].to(output.dtype), output)


@attrs.define(eq=False)
class _Now:
    """The pass that is under way, and what was decided in it."""

    seen: Pass
    routes: Tensor | None = None


@attrs.frozen(eq=False)
class _Book:
    """The speaking rows of a codebook as tensors on one device.

    Attributes:
        keys: (n, d_in), float32.
        values: (n, d_out), float32.
        radii: (n,), float32.
        elsewhere: The same on other devices.
    """

    keys: Tensor
    values: Tensor
    radii: Tensor
    elsewhere: dict[torch.device, _Book] = attrs.field(factory=dict)

    @classmethod
    def of(cls, codebook: Codebook) -> _Book:
        speaking = np.flatnonzero(codebook.radii > 0)
        return cls(
            torch.from_numpy(codebook.keys[speaking]),
            torch.from_numpy(codebook.values[speaking]),
            torch.from_numpy(codebook.radii[speaking]),
        )

    def on(self, device: torch.device) -> _Book:
        if device == self.keys.device:
            return self
        if device not in self.elsewhere:
            self.elsewhere[device] = _Book(
                self.keys.to(device), self.values.to(device), self.radii.to(device)
            )
        return self.elsewhere[device]

    def route(self, states: Tensor) -> Tensor:
        """Return the row in whose ball each state (rows, d_in) is, -1 for none; (rows,), int64.

        The nearest row alone counts, of rows equally near the last. Rows that may be the nearest
        are found by one product in float32, and compared exactly, so that what a state gets does
        not depend on the others of its batch.
        """
        states = states.float()
        routes = torch.full((len(states),), -1, dtype=torch.int64, device=states.device)
        if not len(self.keys):
            return routes
        candidates = self._candidates(states)  # (rows, n)
        for row in range(len(states)):
            near = candidates[row].nonzero()[:, 0]
            if not len(near):  # the state is not finite
                continue
            apart = self.keys[near].double() - states[row].double()
            distances = apart.square().sum(dim=1).sqrt()
            last = len(near) - 1 - int(distances.flip(0).argmin())
            if bool(distances[last] <= self.radii[near[last]].double()):
                routes[row] = near[last]
        return routes

    def _candidates(self, states: Tensor) -> Tensor:
        """Say which rows may be the nearest to each state, by bounds on the rounding."""
        parts = []
        lengths = states.square().sum(dim=1, keepdim=True)
        for start in range(0, len(self.keys), _BLOCK_ROWS):
            keys = self.keys[start : start + _BLOCK_ROWS]
            others = keys.square().sum(dim=1)[None]
            squares = lengths - 2 * states @ keys.T + others  # (rows, rows of the block)
            parts.append(torch.stack([squares, lengths + others]))
        squares, sizes = torch.cat(parts, dim=2)
        margin = sizes * (torch.finfo(torch.float32).eps * states.shape[1] ** 0.5 * 8)
        least = (squares + margin).amin(dim=1, keepdim=True)
        candidates: Tensor = squares - margin <= least
        return candidates

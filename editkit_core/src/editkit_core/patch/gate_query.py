"""Where a gate looks in a forward pass, and where it replaces.

The query is a prompt's last token: in what a decoder reads; in what an encoder reads, its last real
token; in the decoder of an encoder-decoder, which reads no prompt, its start token.

Legend: rows: texts; length: columns of this pass; d: width of the hidden states.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from torch import Tensor, nn

from editkit_core.errors import ApplyError, InvalidParameterError
from editkit_core.patch.kinds.codebook import Replacement

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

Reads = Literal["prompt", "source", "answer"]


@attrs.frozen(eq=False)
class Place:
    """The stack of blocks that a module is in.

    Attributes:
        stack: The module that runs the blocks.
        reads: ``prompt`` for a decoder, ``source`` for an encoder, ``answer`` for the decoder of an
            encoder-decoder.
    """

    stack: nn.Module
    reads: Reads


def place_of(model: EditableModel, module: str) -> Place:
    """Return the stack of blocks that a module is in.

    Raises:
        ApplyError: It is in none, so it has no states of a prompt, token by token.
    """
    family = model.family
    if not model.is_encoder_decoder:
        inside, body, reads = module.startswith(f"{family.body}."), family.body, "prompt"
    else:
        stack = family.stack_of(module)
        inside = stack is not None
        encoder = stack == "encoder" and family.encoder is not None
        body = family.encoder.body if encoder and family.encoder else family.body
        reads = "source" if encoder else "answer"
    if not inside:
        raise ApplyError(
            f"A codebook acts on a module within the model's blocks; {module} is outside of them. "
            "Choose a projection of a block.",
            module=module,
        )
    return Place(model.module(body), reads)  # type: ignore[arg-type]  # one of the literals above


@attrs.frozen(eq=False)
class Pass:
    """One forward pass of a stack, as its arguments show it.

    Attributes:
        rows: Number of texts.
        length: Number of columns.
        past: How many tokens its cache holds already.
        mask: 1 for tokens of this pass, 0 for padding (rows, length); None when it is not said.
        cache: The cache it was given, or None.
    """

    rows: int
    length: int
    past: int
    mask: Tensor | None
    cache: Any  # Any: transformers' own cache class

    @classmethod
    def of(cls, stack: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass | None:
        """Read the arguments of a stack's forward; None when it is given no tokens."""
        # Any: what the stack was called with
        names = list(inspect.signature(type(stack).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            return None
        rows, length = tokens.shape[:2]
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            mask = None
        return cls(
            rows=rows,
            length=length,
            past=0 if cache is None else int(cache.get_seq_length()),
            mask=None if mask is None else mask[:, -length:] != 0,
            cache=cache,
        )

    def columns(self, reads: Reads, said: Tensor | None, device: torch.device) -> Tensor | None:
        """Return the column of each row's query (rows,), int64; None when it was decided before.

        Args:
            reads: What the stack reads.
            said: Where the prompts end, when the model was told; see `EditableModel.asking`. A row
                of -1 has no query in this pass.
            device: Where the states are.
        """
        if reads != "answer" and said is not None:
            if said.shape != (self.rows,) or bool((said >= self.length).any()):
                raise InvalidParameterError(
                    f"The model was told where {len(said)} prompts end, at most in column "
                    f"{int(said.max())}, and reads {self.rows} rows of {self.length}. Say a column "
                    "of each row.",
                )
            return said.to(device)
        if self.past:
            return None
        if self.mask is None:
            last = 0 if reads == "answer" else self.length - 1
            return torch.full((self.rows,), last, device=device)
        real = self.mask.to(device)
        places = torch.arange(self.length, device=device)
        if reads == "answer":
            return real.int().argmax(dim=1)
        return torch.where(real, places, -1).amax(dim=1)


def replaced_at(replacement: Replacement, columns: Tensor, length: int) -> Tensor:
    """Return where the outputs of routed rows are replaced, (rows, length), bool.

    Args:
        replacement: The mode.
        columns: Column of each row's query (rows,), int64.
        length: Number of columns.
    """
    places = torch.arange(length, device=columns.device)[None]
    if replacement == "replace_last":
        return places == columns[:, None]
    if replacement == "replace_prompt":
        return places < columns[:, None]
    return torch.ones_like(places < columns[:, None])

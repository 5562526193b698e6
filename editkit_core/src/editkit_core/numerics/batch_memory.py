"""How much memory a batch of edits takes, and how it is cut where that is too much.

An estimate from above, by the tensors that are held at the same time. What grows with the batch:

* while values are trained, for each of ``value_batch`` edits that run at once: the activations that
  the gradient needs of the blocks above the layer, and the logits where they are read, and at most
  as many edits as fit in one portion of rows (see :mod:`.value_portions`);
* with values trained jointly, for each edit of the part: its states and keys at every token;
* for each edit of the part: float64 keys after every context, and its rows of the layer's system;
* for each edit of the whole batch: its factors and keys in every layer, as the patch holds them;
* the part's system of edits, the square of their number.

Fewer edits at once cost nothing in a patch's numbers but rounding. A batch in parts is solved part
by part on top of the parts before it, with their keys protected; see :mod:`.batch_solve`.

Legend: rows: texts an edit is trained on; d_in, d: sides of the weight; vocab: logits a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import attrs

from editkit_core.numerics.free_memory import free_bytes
from editkit_core.numerics.value_portions import most_bytes, run_bytes
from editkit_core.types import EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.value_loss import ValueSettings
    from editkit_core.numerics.window_params import WindowParams

__all__ = ["BatchCost", "BatchPlan", "batch_cost", "plan_batch"]

SHARE_OF_FREE = 0.8
_LOGITS_READ = 4  # of a place that is only read: logits, and what is made of them
_READ_AT_ONCE = 64  # texts in a pass that reads keys, states or probabilities
_SYSTEMS = 4  # the system of edits, its factor, and a copy each while it is solved


@attrs.frozen(kw_only=True)
class BatchCost:
    """Bytes of a batch of edits, estimated from above.

    Attributes:
        fixed: Of texts that are only read, some at a time.
        run: Of each edit whose value is trained at once, while its rows are run.
        portion: The most that rows take that are run together.
        value: Of each edit whose value is trained at once, in between.
        part: Of each edit of a part, while the part is computed.
        whole: Of each edit of the whole batch, to the end.
        pair: Of each pair of edits of a part.
    """

    fixed: int
    run: int
    portion: int
    value: int
    part: int
    whole: int
    pair: int

    def of(self, edits: int, *, part: int, value_batch: int) -> int:
        """Return the most bytes held at once by ``edits`` edits computed ``part`` at a time."""
        part = min(part, edits)
        system = self.part * part + self.pair * part**2
        return self.fixed + self.values(min(value_batch, part)) + system + self.whole * edits

    def values(self, at_once: int) -> int:
        """Return the bytes while the values of some edits are trained at once."""
        at_once = max(1, min(at_once, self.portion // self.run))
        return (min(self.run, self.portion) + self.value) * at_once


@attrs.frozen(kw_only=True)
class BatchPlan:
    """How a batch is computed.

    Attributes:
        edits: How many there are.
        part: How many are solved together.
        value_batch: How many values are trained at once.
        needed_bytes: Estimate for the whole batch at once.
        room_bytes: What it may take.
    """

    edits: int
    part: int
    value_batch: int
    needed_bytes: int
    room_bytes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of edits of each part."""
        full, rest = divmod(self.edits, self.part)
        return (self.part,) * full + ((rest,) if rest else ())

    @property
    def warning(self) -> str | None:
        """What a person should know of it, if anything."""
        if len(self.sizes) == 1 or self.needed_bytes <= self.room_bytes:
            return None
        return (
            f"{self.edits} edits at once are estimated to take {_gb(self.needed_bytes)}, and "
            f"{_gb(self.room_bytes)} may be used. They are computed in {len(self.sizes)} parts of "
            f"{self.part}, each on top of those before it (edits_at_once={self.part})."
        )


def plan_batch(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    contexts: Sequence[str],
    settings: ValueSettings,
    params: WindowParams,
) -> BatchPlan:
    """Return how a batch is computed within the memory that it may take.

    Values are trained fewer at once first; then the batch is cut into equal parts. A single edit is
    tried whatever it takes.
    """
    cost = batch_cost(model, requests, sites, contexts, settings, params)
    edits = len(requests)
    if params.memory_gb is None:
        room = int(SHARE_OF_FREE * free_bytes(model.device))
    else:
        room = int(params.memory_gb * 1e9)
    asked = min(params.edits_at_once or edits, edits)
    needed = cost.of(edits, part=asked, value_batch=params.value_batch)
    value_batch = params.value_batch
    if needed > room:
        left = room - cost.fixed - cost.whole * edits
        while value_batch > 1 and 2 * cost.values(value_batch) > left:
            value_batch -= 1
    part = 1
    for parts in range(ceil(edits / asked), edits + 1):
        part = ceil(edits / parts)
        if cost.of(edits, part=part, value_batch=value_batch) <= room:
            break
    return BatchPlan(
        edits=edits, part=part, value_batch=value_batch, needed_bytes=needed, room_bytes=room
    )


def batch_cost(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    contexts: Sequence[str],
    settings: ValueSettings,
    params: WindowParams,
) -> BatchCost:
    """Return what edits like the longest of these cost; nothing of the model is run."""
    d, d_in = model.weight(sites[-1]).shape
    joint, alone = params.v_insertion == "joint", params.v_insertion == "token"
    texts = _texts(model, requests, contexts, sites[-1])
    drift = len(settings.kl_prompts) if settings.kl_factor else 0
    drift += settings.essence_samples
    ended = len(contexts) if settings.ending_factor else 0
    rows = len(contexts) + drift
    run = rows * (texts.after if alone else texts.whole)
    read = len(contexts) * texts.spoken + drift * max(1, settings.essence_length) + ended
    running = partial(run_bytes, model, sites[-1].layer - settings.attention, d_in)
    kept = run * (d + (d_in if joint else 0)) + (drift + ended) * model.vocab
    if alone:
        kept += (rows * texts.whole - run) * 2 * d * model.n_layers  # attention keys and values
    both = 2 if params.key_from == "both" else 1
    keys = both * (len(contexts) + 2) * d_in  # after every context, averaged, solved
    factors = len(sites) * (2 * d_in + 2 * d)  # keys and v; u and the values
    passing = _READ_AT_ONCE * texts.whole * (4 * d + 4 * d_in + _LOGITS_READ * model.vocab)
    return BatchCost(
        fixed=4 * passing,
        run=running(columns=run, places=read),
        portion=max(most_bytes(model), running(columns=ceil(run / rows), places=ceil(read / rows))),
        value=0 if joint else 4 * kept,
        part=8 * (keys + 2 * d) + (4 * kept if joint else 0),
        whole=(4 + 8) * factors,  # as stored, and in float64 until the patch is made
        pair=8 * _SYSTEMS,
    )


@attrs.frozen(kw_only=True)
class _Lengths:
    """Tokens of the longest edit: of a whole row, from the edited token on, and of the target."""

    whole: int
    after: int
    spoken: int


def _texts(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str], site: Site
) -> _Lengths:
    before = max(len(model.encode(text).ids) for text in contexts)
    whole, after, spoken = 0, 0, 0
    for request in requests:
        pair = model.encode_pair(request.text, request.target_new)
        whole = max(whole, len(pair.ids))
        after = max(after, len(pair.ids) - model.subject_position(request, site.token))
        spoken = max(spoken, len(pair.ids) - pair.n_prompt)
    return _Lengths(whole=before + whole, after=after, spoken=spoken)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"

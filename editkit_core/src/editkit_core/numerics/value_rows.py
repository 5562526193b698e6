"""The rows that a target value is optimised on: what is read where.

Three kinds of rows, four kinds of places:

* *target* rows, one a context: prompt and target, read where a target token is predicted;
* *drift* rows, one a template such as "{} is a": read at one token;
* target rows are also read at their last token, their *ending*: what is said after the target;
* *essence* rows: what the model itself says about the subject, read at every token from the
  subject on.

Rows of several requests are stacked, so that one pass serves all of them.

Legend: rows: all rows; n: places read; owners: requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch import Tensor

from editkit_core.models.text import EncodedPair, position
from editkit_core.numerics.keys import context_pairs, edited_position
from editkit_core.types import SLOT, EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

KlPosition = Literal["subject_last", "prompt_last"]

__all__ = ["KlPosition", "Places", "ValueRows", "build_rows", "stack_rows"]


@attrs.frozen(eq=False)
class Places:
    """Places at which logits are read.

    Attributes:
        row: ``(n,)`` int64, row numbers.
        column: ``(n,)`` int64, token numbers, counted from where the row is split.
        weight: ``(n,)`` float32, what each place counts in its mean.
        label: ``(n,)`` int64, the token that stands next; -1 where there is none.
    """

    row: Tensor
    column: Tensor
    weight: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def where(self, kept: Tensor) -> Places:
        """Return some places with their weights; ``kept`` is bool ``(n,)``, or their numbers."""
        return Places(self.row[kept], self.column[kept], self.weight[kept], self.label[kept])

    def weighing(self, owner: Tensor) -> Places:
        """Return the same places, those of an owner weighted equally and summing to 1.

        Args:
            owner: ``(n,)`` int64, whose each place is.
        """
        counts = torch.bincount(owner)[owner] if len(owner) else owner
        return attrs.evolve(self, weight=1.0 / counts.to(self.weight.dtype))


@attrs.frozen(eq=False, kw_only=True)
class ValueRows:
    """The rows of one or several requests, their *owners*.

    Attributes:
        ids: Token ids of each row; an owner's target rows first, the bare prompt before all.
        edited: Index of each row's edited token.
        split: Index of the token in each row before which nothing changes: the edited one, or 0.
        owner: ``(rows,)`` int64, the number of the request each row belongs to.
        contexts: Numbers of the target rows, ``(contexts of all owners,)`` int64.
        bare: Number of each owner's bare prompt, ``(owners,)`` int64.
        target: Places that predict target tokens; a row's places share its weight.
        drift: Places whose prediction is to stay as it was.
        essence: Places after the subject in texts the model wrote about it.
        ending: The last target token of each target row; none when it is not asked for.
    """

    ids: tuple[tuple[int, ...], ...]
    edited: tuple[int, ...]
    split: tuple[int, ...]
    owner: Tensor
    contexts: Tensor
    bare: Tensor
    target: Places
    drift: Places
    essence: Places
    ending: Places

    @property
    def groups(self) -> tuple[Places, Places, Places, Places]:
        """The target, drift, essence and ending places."""
        return self.target, self.drift, self.essence, self.ending

    @property
    def owners(self) -> int:
        """Number of requests."""
        return len(self.bare)

    def total(self, values: Tensor, places: Places) -> Tensor:
        """Sum ``values (n,)`` of places over each owner's, ``(owners,)``."""
        return values.new_zeros(self.owners).index_add(0, self.owner[places.row], values)

    def mean(self, values: Tensor) -> Tensor:
        """Average ``values (contexts,)`` of target rows over each owner's, ``(owners,)``."""
        owner = self.owner[self.contexts]
        sums = values.new_zeros(self.owners).index_add(0, owner, values)
        return sums / torch.bincount(owner, minlength=self.owners)

    def keep(self, owners: Tensor) -> tuple[ValueRows, Tensor, tuple[Tensor, ...]]:
        """Return the rows of some owners alone.

        Args:
            owners: Their numbers, rising, ``(n,)`` int64; they become 0 to n - 1.

        Returns:
            The rows; the numbers of the kept rows, ``(rows,)``; and for each group of places which
            are kept, bool.
        """
        new_owner = torch.full_like(self.bare, -1)
        new_owner[owners] = torch.arange(len(owners), device=owners.device)
        rows = (new_owner[self.owner] >= 0).nonzero()[:, 0]
        new_row = torch.full_like(self.owner, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        masks = tuple(new_row[places.row] >= 0 for places in self.groups)
        target, drift, essence, ending = (
            attrs.evolve(places.where(mask), row=new_row[places.row[mask]])
            for places, mask in zip(self.groups, masks, strict=True)
        )
        numbers = rows.tolist()
        contexts = new_row[self.contexts]
        kept = ValueRows(
            ids=tuple(self.ids[row] for row in numbers),
            edited=tuple(self.edited[row] for row in numbers),
            split=tuple(self.split[row] for row in numbers),
            owner=new_owner[self.owner[rows]],
            contexts=contexts[contexts >= 0],
            bare=new_row[self.bare[owners]],
            target=target,
            drift=drift,
            essence=essence,
            ending=ending,
        )
        return kept, rows, masks

    def portion(self, first: int, last: int) -> tuple[ValueRows, tuple[Tensor, ...]]:
        """Return the rows from ``first`` to ``last - 1`` alone, with all owners.

        Returns:
            The rows, whose ``bare`` is the whole's and counts for nothing here; and for each group
            of places which are kept, bool.
        """
        masks = tuple((places.row >= first) & (places.row < last) for places in self.groups)
        target, drift, essence, ending = (
            attrs.evolve(places.where(mask), row=places.row[mask] - first)
            for places, mask in zip(self.groups, masks, strict=True)
        )
        contexts = self.contexts[(self.contexts >= first) & (self.contexts < last)] - first
        kept = attrs.evolve(
            self,
            ids=self.ids[first:last],
            edited=self.edited[first:last],
            split=self.split[first:last],
            owner=self.owner[first:last],
            contexts=contexts,
            target=target,
            drift=drift,
            essence=essence,
            ending=ending,
        )
        return kept, masks


def stack_rows(parts: Sequence[ValueRows]) -> ValueRows:
    """Put the rows of several requests together; the owners are numbered in order."""
    starts, owners = [0], [0]
    for part in parts:
        starts.append(starts[-1] + len(part.ids))
        owners.append(owners[-1] + part.owners)
    shifted = list(zip(parts, starts, strict=False))
    groups = (_joined([(part.groups[kind], start) for part, start in shifted]) for kind in range(4))
    target, drift, essence, ending = groups
    return ValueRows(
        ids=tuple(row for part in parts for row in part.ids),
        edited=tuple(at for part in parts for at in part.edited),
        split=tuple(at for part in parts for at in part.split),
        owner=torch.cat([p.owner + first for p, first in zip(parts, owners, strict=False)]),
        contexts=torch.cat([part.contexts + start for part, start in shifted]),
        bare=torch.cat([part.bare + start for part, start in shifted]),
        target=target,
        drift=drift,
        essence=essence,
        ending=ending,
    )


def _joined(parts: Sequence[tuple[Places, int]]) -> Places:
    return Places(
        torch.cat([places.row + start for places, start in parts]),
        torch.cat([places.column for places, _ in parts]),
        torch.cat([places.weight for places, _ in parts]),
        torch.cat([places.label for places, _ in parts]),
    )


def build_rows(
    model: EditableModel,
    request: EditRequest,
    site: Site,
    contexts: Sequence[str],
    *,
    kl_prompts: Sequence[str],
    kl_position: KlPosition,
    essence_texts: Sequence[tuple[str, tuple[int, int]]] = (),
    whole: bool = False,
    endings: bool = False,
) -> ValueRows:
    """Build the rows of one request.

    Args:
        model: The model.
        request: The fact.
        site: Where the value is written.
        contexts: Texts put before the prompt, the empty one first.
        kl_prompts: Templates of the drift rows.
        kl_position: Where a drift row is read: at the subject's last token or at its end.
        essence_texts: Texts and the characters (start, end) of the subject in them.
        endings: Whether target rows are also read at their last token.
        whole: Whether tokens before the edited one change too, so that rows are not split.

    Raises:
        PromptTooLongError: A row does not fit the model's context.
        EmptyTargetError: The target has no token of its own.
    """
    built = _Builder(whole)
    pairs = context_pairs(model, request, contexts)
    for pair, context in zip(pairs, contexts, strict=True):
        edited = edited_position(pair, request, site, context)
        built.add_target(pair, edited, len(pairs), endings=endings)
    for template in kl_prompts:
        head = template.partition(SLOT)[0]
        span = (len(head), len(head) + len(request.subject))
        encoded = model.encode(template.replace(SLOT, request.subject, 1))
        model.check_length(len(encoded.ids), f"the prompt {encoded.text[:60]!r}")
        at = position(encoded, span, site.token)
        end = position(encoded, span, "subject_last" if kl_position == "subject_last" else "last")
        if end >= at:  # what stands before the edited token cannot drift
            built.add_read("drift", encoded.ids, at, [end], 1.0 / len(kl_prompts))
    for text, span in essence_texts:
        encoded = model.encode(text)
        ids = encoded.ids[: model.max_positions]
        subject_end = position(encoded, span, "subject_last")
        edited = subject_end if site.token == "last" else position(encoded, span, site.token)
        if edited < len(ids):
            after = range(max(edited, subject_end), len(ids) - 1)
            built.add_read("essence", ids, edited, list(after), 1.0)
    return built.done(model)


class _Builder:
    """Collects rows and the places read in them."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.rows: list[tuple[int, ...]] = []
        self.edited: list[int] = []
        self.n_contexts = 0
        self.places: dict[str, list[tuple[int, int, float, int]]] = {
            "target": [], "drift": [], "essence": [], "ending": [],
        }  # fmt: skip

    def add_target(self, pair: EncodedPair, edited: int, n_contexts: int, *, endings: bool) -> None:
        # The last target token is predicted; it is read only for the ending.
        columns = range(pair.n_prompt - 1, len(pair.ids) - 1)
        weight = 1.0 / (n_contexts * len(columns))
        if endings:
            last = (len(self.rows), len(pair.ids) - 1 - self._split(edited), 1.0 / n_contexts, -1)
            self.places["ending"].append(last)
        self.add_read("target", pair.ids, edited, list(columns), weight, drop_last=not endings)
        self.n_contexts += 1

    def add_read(
        self,
        kind: str,
        ids: Sequence[int],
        edited: int,
        columns: Sequence[int],
        weight: float,
        *,
        drop_last: bool = False,
    ) -> None:
        row = len(self.rows)
        split = self._split(edited)
        for column in columns:
            label = ids[column + 1] if column + 1 < len(ids) else -1
            self.places[kind].append((row, column - split, weight, label))
        self.rows.append(tuple(ids[:-1] if drop_last else ids))
        self.edited.append(edited)

    def _split(self, edited: int) -> int:
        return 0 if self.whole else edited

    def done(self, model: EditableModel) -> ValueRows:
        zeros = torch.zeros(len(self.rows), dtype=torch.int64, device=model.device)
        return ValueRows(
            ids=tuple(self.rows),
            edited=tuple(self.edited),
            split=(0,) * len(self.edited) if self.whole else tuple(self.edited),
            owner=zeros,
            contexts=torch.arange(self.n_contexts, device=model.device),
            bare=zeros[:1],
            target=_places(self.places["target"], model),
            drift=_places(self.places["drift"], model),
            essence=_places(self.places["essence"], model),
            ending=_places(self.places["ending"], model),
        )


def _places(found: Sequence[tuple[int, int, float, int]], model: EditableModel) -> Places:
    row, column, weight, label = zip(*found, strict=True) if found else ((), (), (), ())
    return Places(
        torch.tensor(row, dtype=torch.int64, device=model.device),
        torch.tensor(column, dtype=torch.int64, device=model.device),
        torch.tensor(weight, dtype=torch.float32, device=model.device),
        torch.tensor(label, dtype=torch.int64, device=model.device),
    )

"""The rows that a target value is optimised on: what is read where.

Three kinds of rows, four kinds of places:

* *target* rows, one a context: prompt and target, read where a target token is predicted;
* *drift* rows, one a template such as "{} is a": read at one token;
* target rows are also read at their last token, their *ending*: what is said after the target;
* *essence* rows: what the model itself says about the subject, read at every token from the
  subject on.

Legend: rows: all rows; n_t, n_k, n_e: places read in target, drift and essence rows.
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

__all__ = ["KlPosition", "Places", "ValueRows", "build_rows"]


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

    def keep(self, kept: Tensor) -> Places:
        """Return the places where ``kept`` ``(n,)`` bool is true, weighted equally."""
        count = max(int(kept.sum()), 1)
        weight = torch.full_like(self.weight[kept], 1.0 / count)
        return Places(self.row[kept], self.column[kept], weight, self.label[kept])


@attrs.frozen(eq=False, kw_only=True)
class ValueRows:
    """The rows of one request.

    Attributes:
        ids: Token ids of each row, the target rows first, the bare prompt as row 0.
        edited: Index of each row's edited token.
        split: Index of the token in each row before which nothing changes: the edited one, or 0.
        n_contexts: How many target rows there are.
        target: Places that predict target tokens; a row's places share its weight.
        drift: Places whose prediction is to stay as it was.
        essence: Places after the subject in texts the model wrote about it.
        ending: The last target token of each target row; none when it is not asked for.
    """

    ids: tuple[tuple[int, ...], ...]
    edited: tuple[int, ...]
    split: tuple[int, ...]
    n_contexts: int
    target: Places
    drift: Places
    essence: Places
    ending: Places


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
        return ValueRows(
            ids=tuple(self.rows),
            edited=tuple(self.edited),
            split=(0,) * len(self.edited) if self.whole else tuple(self.edited),
            n_contexts=self.n_contexts,
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

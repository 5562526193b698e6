"""MEND's part of training: the loss of an edit, and the model as the networks would edit it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from editkit_core import EditableModel, EditRequest
from editkit_core.models.pairs import IGNORED, nll, pair_batch, pair_logits
from editkit_core.numerics.evaluating import evaluating
from editkit_core.training import EditExamples, TrainBatch, World
from editkit_mend.lessons import Lessons
from editkit_mend.networks import Networks
from editkit_mend.params import MendParams
from editkit_mend.side import changed

__all__ = ["MendLearner"]

OBSERVED_AT_ONCE = 16


class MendLearner:
    """Trains the networks of one model; see `training.Learner`.

    Gradients flow through the changed weights into the networks, and no further: the factors of the
    edit's own gradient are constants.

    Source: Mitchell et al. 2022, section 3.3.
    Differs: The normalisation is measured before the first update and stays; the authors' code goes
        on with it in training, and with it the meaning of what was learned.

    Args:
        model: The frozen base.
        requests: The training set.
        params: How to train.
        seed: Of the networks' start and of the edits that the normalisation is measured on.
    """

    def __init__(
        self, model: EditableModel, requests: Sequence[EditRequest], params: MendParams, seed: int
    ) -> None:
        self.model = model
        self.params = params
        self.lessons = Lessons(requests, params)
        self.networks = Networks.for_model(model, params, seed)
        examples = EditExamples(requests=tuple(requests), seed=seed, retarget=params.retarget)
        if params.norm != "none":
            self._observe(examples)

    def modules(self) -> nn.Module:
        """Return the networks."""
        return self.networks

    def groups(self) -> Sequence[dict[str, Any]]:  # Any: torch's parameter groups
        """Return the networks' weights and the steps α, each with its learning rate."""
        inner = [p for p in self.networks.parameters() if p is not self.networks.steps]
        return (
            {"params": inner, "lr": self.params.lr},
            {"params": [self.networks.steps], "lr": self.params.lr_lr},
        )

    def loss(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        """Return c_edit · NLL(f'; what follows) + c_loc · KL(f ‖ f' where it should stay).

        Both are means over examples of means over target tokens; f' is the model with the change of
        the example's group of ``n_edits``.
        """
        lessons = [self.lessons.of(example) for example in batch.examples]
        edits = self._groups(range(len(lessons)))
        follows = [pair for lesson in lessons for pair in lesson.follows]
        stays = [pair for lesson in lessons for pair in lesson.stays]
        owners = [i for i, lesson in enumerate(lessons) for _ in lesson.follows]
        keepers = [i for i, lesson in enumerate(lessons) for _ in lesson.stays]
        with evaluating(self.model.model):
            read = self.networks.read(
                self.model, pair_batch(self.model, [lesson.edit for lesson in lessons], end=True)
            )
            before = self._before(stays)
            asked = pair_batch(self.model, [*follows, *stays], end=True)
            rows = self._groups([*owners, *keepers])
            with changed(self.model, self.networks(read), edits=edits, rows=rows):
                logits = pair_logits(self.model, asked)  # (rows, len, vocab)
        n = len(follows)
        edit = _by_example(nll(logits[:n], asked.labels[:n]), owners)
        locality = torch.zeros_like(edit)
        if before is not None:
            drift = _divergence(before, logits[n:], asked.labels[n:])  # (stays,)
            locality = _by_example(drift, keepers)
        total = self.params.c_edit * edit + self.params.c_loc * locality
        return {"total": total, "edit": edit.detach(), "locality": locality.detach()}

    @contextmanager
    def editing(self, requests: Sequence[EditRequest]) -> Iterator[None]:
        """Show the model as it is after editing these requests together."""
        with torch.no_grad(), evaluating(self.model.model):
            pairs = [(request.text, request.target_new) for request in requests]
            read = self.networks.read(self.model, pair_batch(self.model, pairs, end=True))
            factors = self.networks(read)
        with changed(self.model, factors):
            yield

    def after_update(self, world: World) -> None:
        """Do nothing: the normalisation does not change any more."""

    def export(self) -> Mapping[str, Tensor]:
        """Return the networks' weights and statistics."""
        return {name: t.detach().clone() for name, t in self.networks.state_dict().items()}

    def _observe(self, examples: EditExamples) -> None:
        for first in range(0, self.params.statistics, OBSERVED_AT_ONCE):
            count = min(OBSERVED_AT_ONCE, self.params.statistics - first)
            edits = [self.lessons.of(e).edit for e in examples.take(first, count)]
            batch = pair_batch(self.model, edits, end=True)
            self.networks.observe(self.networks.read(self.model, batch))

    def _groups(self, members: Sequence[int] | range) -> Tensor:
        numbers = [member // self.params.n_edits for member in members]
        return torch.tensor(numbers, dtype=torch.int64, device=self.model.device)

    @torch.no_grad()
    def _before(self, stays: Sequence[tuple[str, str]]) -> list[Tensor] | None:
        """Return the base's log-probabilities where an answer is predicted, a row each."""
        if not stays:
            return None
        batch = pair_batch(self.model, stays, end=True)
        logits = pair_logits(self.model, batch)
        counted = batch.labels != IGNORED
        return [
            row[keep].log_softmax(dim=-1) for row, keep in zip(logits, counted, strict=True)
        ]  # (n_target, vocab) each


def _divergence(before: Sequence[Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Return each row's mean KL(before ‖ now) over the tokens that are predicted, (rows,)."""
    counted = labels != IGNORED
    drifts = []
    for old, row, keep in zip(before, logits, counted, strict=True):
        now = row[keep].log_softmax(dim=-1)  # (n_target, vocab)
        drifts.append((old.exp() * (old - now)).sum(dim=-1).mean())
    return torch.stack(drifts)


def _by_example(values: Tensor, owners: Sequence[int]) -> Tensor:
    """Return the mean over examples of the mean of an example's values (rows,)."""
    index = torch.tensor(owners, device=values.device)
    counts = torch.bincount(index).to(values.dtype)
    return (values / counts[index]).sum() / (counts > 0).sum()

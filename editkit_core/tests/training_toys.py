"""A small editor that is really trained: a map from a target's embedding to what is added.

`Nudger` adds ``W e`` to the last block's output at every token, where ``e`` is the embedding of the
target's first token. Trained, it makes a model say any target; untrained it does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit_core.data.dataset import DataSet
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import nll, pair_batch, pair_logits
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.header import MethodRef
from editkit_core.testing import tiny_model
from editkit_core.training import Schedule, TrainBatch, TrainingOptions, TrainResult, World, train
from editkit_core.types import EditContext, EditRequest

SUBJECTS = (
    "Norway", "Peru", "Brazil", "Japan", "Vienna", "Tokyo", "Warsaw", "Paris", "Delft", "Oslo",
    "Lima", "Tromsø", "Switzerland", "Beethoven", "Ada", "Marie",
)  # fmt: skip
TARGETS = ("before", "capital", "for", "from", "not", "old", "speak", "that", "was", "year")
METHOD = MethodRef(name="nudger", dist="editkit-nudger", version="1.0")


class Nudger:
    """A `Learner`; see the module."""

    def __init__(self, model: EditableModel, *, dropout: float = 0.1, lr: float = 0.02) -> None:
        self.model = model
        d = model.d_model
        self.net = nn.Module()
        self.net.map = nn.Linear(d, d, bias=False)
        self.net.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        nn.init.zeros_(self.net.map.weight)
        self.lr = lr
        self.dropout = dropout
        self.poison: int | None = None
        self.seen: list[int] = []
        self.wait_s = 0.0

    def modules(self) -> nn.Module:
        return self.net

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.net.map.weight], "lr": self.lr}]

    def loss(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        self.seen.append(batch.number)
        parts = []
        for example in batch.examples:
            pairs = pair_batch(self.model, [example.edit, *example.equivalents])
            with self._nudged(example.request.target_new, train=True):
                parts.append(nll(pair_logits(self.model, pairs), pairs.labels).mean())
        total = torch.stack(parts).mean()
        if batch.number == self.poison:
            total = total * float("nan")
        return {"total": total, "weight": self.net.map.weight.detach().square().sum()}

    @contextmanager
    def _nudged(self, target: str, *, train: bool) -> Iterator[None]:
        ids = self.model.tokenizer(f" {target}")["input_ids"]
        embedding = self.model.parameter(f"{self.model.family.embedding}.weight")[ids[0]]
        added = self.net.map(nn.functional.dropout(embedding.detach(), self.dropout, train))
        block = self.model.module("transformer.h.2")
        hook = block.register_forward_hook(lambda _m, _i, out: _plus(out, added))
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def editing(self, requests: Sequence[EditRequest]) -> Iterator[None]:
        with torch.no_grad(), self._nudged(requests[0].target_new, train=False):
            yield

    def after_update(self, world: World) -> None:
        self.net.updates += 1

    def export(self) -> Mapping[str, Tensor]:
        return {"map": self.net.map.weight, "updates": self.net.updates}


def _plus(out: Any, added: Tensor) -> Any:
    return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added


def request(i: int) -> EditRequest:
    subject = SUBJECTS[i % len(SUBJECTS)]
    return EditRequest(
        prompt="The {} knows the",
        subject=subject,
        target_new=TARGETS[(i * 3 + i // len(SUBJECTS)) % len(TARGETS)],
        target_true=TARGETS[(i * 3 + 1) % len(TARGETS)],
        relation="knows",
        id=f"r{i}",
        paraphrases=("In the end {} found a",),
    )


def data(count: int = 32, name: str = "toys") -> DataSet:
    return DataSet(
        name=name,
        form="plain",
        requests=tuple(map(request, range(count))),
        target_policy="given",
        digest="0" * 64,
        source=f"{count} toys",
        records=count,
    )


def tiny() -> EditableModel:
    return tiny_model("gpt2")


SCHEDULE = Schedule(steps=12, batch=2, accumulate=2, clip=1.0, validate_every=4, warmup=2)


def run(
    model: EditableModel,
    learner: Nudger,
    *,
    schedule: Schedule = SCHEDULE,
    dataset: DataSet | None = None,
    folder: Path | None = None,
    seed: int = 3,
    **options: Any,
) -> TrainResult:
    """Train as a method's ``editkit_train`` does."""
    site = model.site(2)
    context = EditContext(seed=seed, training=TrainingOptions(folder=folder, **options))
    return train(
        learner,
        dataset or data(),
        schedule,
        model=model,
        context=context,
        method=METHOD,
        params={"lr": learner.lr},
        base=base_fingerprint(model, [site.parameter]),
        retarget="relation",
    )

"""Training data: requests as edits to learn from, in an order that a seed decides.

Every example is a function of the seed and of its number alone, so a run that was stopped goes on
with the examples it would have seen, on any number of processes.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Literal, get_args

import attrs

from editkit_core.data.dataset import DataSet
from editkit_core.errors import InvalidParameterError, TrainingError
from editkit_core.types import SLOT, EditRequest, Probe

__all__ = ["EditExample", "EditExamples", "Retarget", "overlap", "split_by_subject"]

Retarget = Literal["as_given", "relation"]
Pair = tuple[str, str]


@attrs.frozen(kw_only=True)
class EditExample:
    """One edit to learn from.

    Attributes:
        request: The request, with the target that is to be learned.
        locality: Prompts whose answers are to stay, with those answers; the probes that have one.
        seed: Of what the learner itself draws for this example.
    """

    request: EditRequest
    locality: tuple[Pair, ...] = ()
    seed: int = 0

    @property
    def edit(self) -> Pair:
        """The prompt and the target of the edit itself."""
        return self.request.text, self.request.target_new

    @property
    def equivalents(self) -> tuple[Pair, ...]:
        """Other prompts that should give the target, each with it."""
        return tuple((text, self.request.target_new) for text in self.request.paraphrase_texts)


@attrs.define(kw_only=True, slots=False)
class EditExamples:
    """An endless sequence of examples: all requests in an order, then all in another one.

    Attributes:
        requests: What to learn from.
        seed: Decides the orders and what is drawn.
        retarget: ``as_given`` keeps each request's target; ``relation`` draws another answer of the
            same relation every time, never the true one, so that no target is learned by heart.
    """

    requests: tuple[EditRequest, ...] = attrs.field(repr=False)
    seed: int = 0
    retarget: Retarget = attrs.field(default="as_given")

    @requests.validator
    def _check_requests(self, _: object, value: tuple[EditRequest, ...]) -> None:
        if not value:
            raise TrainingError("There is nothing to train on: the data set has no requests.")

    @retarget.validator
    def _check_retarget(self, _: object, value: str) -> None:
        if value not in get_args(Retarget):
            raise InvalidParameterError(
                f"retarget is {value!r}; it must be one of {', '.join(get_args(Retarget))}.",
                parameter="retarget",
            )

    def __len__(self) -> int:
        return len(self.requests)

    def at(self, number: int) -> EditExample:
        """Return example ``number``, from 0; there is no last one."""
        epoch, place = divmod(number, len(self.requests))
        request = self.requests[_order(len(self.requests), self.seed, epoch)[place]]
        rng = random.Random(f"{self.seed}\n{number}")
        if self.retarget == "relation":
            request = self._retargeted(request, rng)
        return EditExample(
            request=request,
            locality=_answered(request),
            seed=rng.getrandbits(62),
        )

    def take(self, first: int, count: int) -> tuple[EditExample, ...]:
        """Return ``count`` examples from number ``first`` on."""
        return tuple(map(self.at, range(first, first + count)))

    def _retargeted(self, request: EditRequest, rng: random.Random) -> EditRequest:
        known = self._answers[request.relation] if request.relation else ()
        others = [answer for answer in known if answer != request.target_true]
        if not others:
            return request
        target = rng.choice(others)
        return attrs.evolve(request, target_new=target, portability={})

    @cached_property
    def _answers(self) -> dict[str, tuple[str, ...]]:
        """Every answer seen in a relation, sorted."""
        found: dict[str, set[str]] = defaultdict(set)
        for request in self.requests:
            if request.relation:
                answers = {request.target_new, request.target_true}
                found[request.relation] |= {answer for answer in answers if answer is not None}
        return defaultdict(tuple, {name: tuple(sorted(all_)) for name, all_ in found.items()})


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the order of an epoch."""
    order = list(range(count))
    random.Random(f"{seed}\norder\n{epoch}").shuffle(order)
    return tuple(order)


def _answered(request: EditRequest) -> tuple[Pair, ...]:
    """Return the locality probes that say their answer."""
    listed: Iterable[Probe] = (p for probes in request.locality.values() for p in probes)
    return tuple(
        (probe.prompt.replace(SLOT, request.subject), probe.answers[0])
        for probe in listed
        if probe.answers
    )


def split_by_subject(dataset: DataSet, share: float, seed: int) -> tuple[DataSet, DataSet]:
    """Part a data set so that no subject is in both parts.

    A subject goes by a digest of its name and the seed, so it goes the same way in every data set.

    Args:
        dataset: What to part.
        share: Share of the subjects that go to the second part, 0 to 1.
        seed: Decides which.
    """
    if not 0 <= share <= 1:
        raise InvalidParameterError(
            f"The share of a split is {share!r}; it must be from 0 to 1.", share=share
        )
    second = {s for s in {r.subject for r in dataset.requests} if _place(s, seed) < share}
    return (
        attrs.evolve(dataset, requests=_with(dataset.requests, second, inside=False)),
        attrs.evolve(dataset, requests=_with(dataset.requests, second, inside=True)),
    )


def overlap(one: DataSet, other: DataSet) -> tuple[str, ...]:
    """Return the subjects that are in both, as the second writes them, sorted.

    Letter case and spaces at the ends do not count.
    """
    known = {_plain(request.subject) for request in one.requests}
    return tuple(sorted({r.subject for r in other.requests if _plain(r.subject) in known}))


def _with(
    requests: Sequence[EditRequest], subjects: set[str], *, inside: bool
) -> tuple[EditRequest, ...]:
    return tuple(request for request in requests if (request.subject in subjects) is inside)


def _place(subject: str, seed: int) -> float:
    """Return where a subject stands between 0 and 1."""
    digest = hashlib.sha256(f"{seed}\n{_plain(subject)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _plain(subject: str) -> str:
    return subject.strip().casefold()

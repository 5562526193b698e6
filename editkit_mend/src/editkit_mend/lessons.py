"""What one training example asks of an edit: what should follow from it, and what should stay."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

import attrs

from editkit_core import EditRequest
from editkit_core.training import EditExample
from editkit_core.types import SLOT
from editkit_mend.params import MendParams

__all__ = ["Lesson", "Lessons"]

Pair = tuple[str, str]


@attrs.frozen(kw_only=True)
class Lesson:
    """One edit to learn from; each pair is a prompt and an answer.

    Attributes:
        edit: What is edited.
        follows: What should be answered then: the edit itself, and other phrasings of it.
        stays: Prompts whose answers should stay, with those answers.
    """

    edit: Pair
    follows: tuple[Pair, ...]
    stays: tuple[Pair, ...]


class Lessons:
    """Makes lessons of examples; equal examples give equal lessons.

    Args:
        requests: The training set: phrasings of a relation are taken from it, and facts that stay
            where a request brings no locality probes.
        params: How many phrasings and probes, and which.
    """

    def __init__(self, requests: Sequence[EditRequest], params: MendParams) -> None:
        self._requests = requests
        self._params = params
        self._phrasings = _phrasings(requests) if params.phrasings == "relation" else {}

    def of(self, example: EditExample) -> Lesson:
        """Return the lesson of an example."""
        rng = random.Random(example.seed)
        request = example.request
        texts = self._texts(request, rng)
        asked = texts[: 1 + self._params.equivalents]
        return Lesson(
            edit=(texts[0], request.target_new),
            follows=tuple((text, request.target_new) for text in asked),
            stays=self._stays(request, rng),
        )

    def _texts(self, request: EditRequest, rng: random.Random) -> list[str]:
        """Return phrasings of the fact, the one to edit with first."""
        templates = self._phrasings.get(request.relation or "", ())
        if len(templates) > 1:
            drawn = rng.sample(templates, len(templates))
            return [template.replace(SLOT, request.subject) for template in drawn]
        others = list(dict.fromkeys(request.paraphrase_texts))
        rng.shuffle(others)
        return [request.text, *others]

    def _stays(self, request: EditRequest, rng: random.Random) -> tuple[Pair, ...]:
        """Draw probes, each type of them in turn, and other facts where there are none."""
        kinds = [
            [(p.prompt.replace(SLOT, request.subject), p.answers[0]) for p in probes if p.answers]
            for probes in request.locality.values()
        ]
        kinds = [kind for kind in kinds if kind]
        rng.shuffle(kinds)
        count = self._params.locality
        if kinds:
            return tuple(rng.choice(kinds[i % len(kinds)]) for i in range(count))
        others = [r for r in self._requests if r.subject != request.subject]
        drawn = rng.sample(others, min(count, len(others)))
        return tuple((r.text, r.target_true or r.target_new) for r in drawn)


def _phrasings(requests: Sequence[EditRequest]) -> Mapping[str, tuple[str, ...]]:
    """Return every template of each relation, sorted."""
    found: dict[str, set[str]] = defaultdict(set)
    for request in requests:
        if request.relation:
            slotted = (text for text in request.paraphrases if SLOT in text)
            found[request.relation] |= {request.template, *slotted}
    return {relation: tuple(sorted(texts)) for relation, texts in found.items()}

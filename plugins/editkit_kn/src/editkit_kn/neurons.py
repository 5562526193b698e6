"""From attributions to a fact's neurons: a coarse set for each prompt, then those they share.

Source: Dai et al. 2022, section 3.2.
Differs: The neurons of a relation that are too common are found within a batch, as there is no
    other place where more facts of the relation are known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import attrs
from torch import Tensor

Place = tuple[int, int]  # index of the layer among the searched ones, number of the neuron

_STEP = 0.05


@attrs.frozen(kw_only=True)
class Neurons:
    """The neurons that a fact is edited by.

    Attributes:
        scores: Mean attribution over the prompts by neuron, the largest first.
        share: The share of the prompts that have each of them.
        common: How many were dropped as common to the relation.
    """

    scores: Mapping[Place, float]
    share: float = 1.0
    common: int = 0


def coarse(scores: Tensor, ratio: float) -> dict[Place, float]:
    """Return the neurons whose attribution is at least ``ratio`` times the largest one.

    Args:
        scores: Attributions on one prompt, ``(L, m)``.
        ratio: t, above 0.

    Returns:
        Their attributions; nothing where none is positive.
    """
    largest = float(scores.max())
    if not largest > 0:
        return {}
    found = (scores >= ratio * largest).nonzero().tolist()
    return {(layer, neuron): float(scores[layer, neuron]) for layer, neuron in found}


def refine(
    sets: Sequence[Mapping[Place, float]], *, share: float, min_prompts: int, most: int
) -> Neurons:
    """Return the neurons that enough prompts agree on, at most ``most``.

    Args:
        sets: The coarse set of each prompt; of one that has none nothing counts.
        share: p, the share of the prompts; lowered in steps of 0.05 until a neuron is left.
        min_prompts: With fewer prompts every neuron of theirs is kept.
        most: Most neurons, those of the largest mean attribution.
    """
    sets = [one for one in sets if one]
    counts = Counter(place for one in sets for place in one)
    means = {place: sum(one.get(place, 0.0) for one in sets) / len(sets) for place in counts}
    if len(sets) < min_prompts:
        return Neurons(scores=_largest(means, most))
    while not (kept := _agreed(means, counts, share * len(sets))) and share > 0:
        share = max(share - _STEP, 0.0)
    return Neurons(scores=_largest(kept, most), share=share)


def drop_common(
    facts: Sequence[Neurons], relations: Sequence[str | None], most_share: float
) -> list[Neurons]:
    """Drop what more than ``most_share`` of a relation's facts share, and at least two of them.

    A fact that would be left with nothing keeps the neuron of the largest attribution.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, relation in enumerate(relations):
        if relation is not None:
            groups[relation].append(number)
    kept = list(facts)
    for members in groups.values():
        counts = Counter(place for number in members for place in facts[number].scores)
        limit = max(most_share * len(members), 1.0)
        for number in members:
            own = facts[number].scores
            left = {place: score for place, score in own.items() if counts[place] <= limit}
            left = left or _largest(own, 1)
            kept[number] = attrs.evolve(facts[number], scores=left, common=len(own) - len(left))
    return kept


def _agreed(
    means: Mapping[Place, float], counts: Mapping[Place, int], wanted: float
) -> dict[Place, float]:
    # Rounding must not turn 0.7 of 10 prompts into more than 7.
    return {place: mean for place, mean in means.items() if counts[place] >= wanted - 1e-9}


def _largest(scores: Mapping[Place, float], most: int) -> dict[Place, float]:
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return dict(ranked[:most])

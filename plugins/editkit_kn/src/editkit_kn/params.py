"""KN's parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from editkit_core.validators import listed, number, one_of, refusal, rising_layers, whole

Rule = Literal["gauss", "midpoint", "left", "right"]
Phrasings = Literal["contexts", "paraphrases", "none"]
Answer = Literal["first", "mean"]


def _pairs(value: Iterable[Iterable[int]]) -> tuple[tuple[int, int], ...]:
    made = tuple(tuple(pair) for pair in value)
    for pair in made:
        if len(pair) != 2 or any(type(n) is not int or n < 0 for n in pair):
            raise refusal("contexts", list(pair), "pairs of a length in tokens and a count")
    return tuple((pair[0], pair[1]) for pair in made)


@attrs.frozen(kw_only=True)
class KnParams:
    """How KN finds neurons and edits them.

    Sources: [1] Dai et al. 2022, [2] their code, or ours.

    Attributes:
        layers: Blocks whose neurons are searched, rising; none means all. Source: [1].
        rule: How the path integral is taken: ``gauss`` (Gauss-Legendre), ``midpoint``, ``left`` or
            ``right``. Source: [1] has a Riemann sum; the Gauss rule is ours.
        nodes: Points of the path. Source: [1] takes 20.
        tolerance: Most that the attributions of a layer may miss of the probability they are to
            add up to; above it the points are doubled, up to 32 times as many. Where a model is
            sure of its answer neither 8 points nor 20 are enough. None keeps to ``nodes``.
            Source: ours.
        threshold_ratio: t: a prompt's neurons are those with at least this share of the largest
            attribution. Source: [1].
        phrasings: Prompts that the neurons must agree on: ``none``: the prompt alone;
            ``paraphrases``: with the request's paraphrases, as in [1], by which generalization is
            then measured no more; ``contexts``: with the prompt after other texts (decoders only).
            Source: [2] for models other than BERT; [1]; ours.
        contexts: Pairs (tokens, how many) of texts to sample for ``phrasings: contexts``.
            Source: ours.
        share: p: neurons of at least this share of the prompts are kept; where there are none, p
            goes down in steps of 0.05. Source: [1].
        min_prompts: With fewer prompts all of a prompt's neurons are kept. Source: ours.
        drop_common: In a batch, neurons that more than this share of a relation's facts have in
            common are dropped, as long as a fact keeps one. Source: [2].
        max_neurons: Most neurons of a fact, those of the largest attribution. Source: ours.
        operation: ``replace`` takes the old answer out of the columns and puts the new one in;
            ``erase`` makes the columns zero. Source: [1].
        lambda_old: λ1, how much of the old answer is taken out. Source: [1].
        lambda_new: λ2, how much of the new answer is put in. Source: [1].
        scale: ``column``: λ counts in norms of the column, so that it means the same in every
            model; ``fixed``: it multiplies the embedding. Source: [2]; [1].
        embedding: Which embedding stands for an answer: ``output``, by which the head reads the
            stream, or ``input``; models that tie them have one. Source: ours; [1].
        answer_tokens: ``first``: the first token in which the answers differ; ``mean``: the
            attributions of the old answer's tokens are added up and each answer's embeddings
            averaged. Source: [1] has answers of one token.
        follow_sign: Whether a column whose neuron is negative is changed the other way round, so
            that the product with its activation points to the new answer. Source: ours.
    """

    layers: tuple[int, ...] | None = attrs.field(
        default=None, converter=listed, validator=rising_layers
    )
    rule: Rule = attrs.field(
        default="gauss", validator=one_of("gauss", "midpoint", "left", "right")
    )
    nodes: int = attrs.field(default=8, validator=whole(1))
    tolerance: float | None = attrs.field(default=0.01, validator=number(low=0))
    threshold_ratio: float = attrs.field(default=0.2, validator=number(above=0, high=1))
    phrasings: Phrasings = attrs.field(
        default="none", validator=one_of("contexts", "paraphrases", "none")
    )
    contexts: tuple[tuple[int, int], ...] = attrs.field(default=((5, 4), (10, 4)), converter=_pairs)
    share: float = attrs.field(default=0.7, validator=number(low=0, high=1))
    min_prompts: int = attrs.field(default=2, validator=whole(1))
    drop_common: float = attrs.field(default=0.1, validator=number(low=0, high=1))
    max_neurons: int = attrs.field(default=20, validator=whole(1))
    operation: Literal["replace", "erase"] = attrs.field(
        default="replace", validator=one_of("replace", "erase")
    )
    lambda_old: float = attrs.field(default=1.0, validator=number(low=0))
    lambda_new: float = attrs.field(default=1.0, validator=number(low=0))
    scale: Literal["column", "fixed"] = attrs.field(
        default="column", validator=one_of("column", "fixed")
    )
    embedding: Literal["output", "input"] = attrs.field(
        default="output", validator=one_of("output", "input")
    )
    answer_tokens: Answer = attrs.field(default="first", validator=one_of("first", "mean"))
    follow_sign: bool = True

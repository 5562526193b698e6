"""From attributions to a fact's neurons, on sets small enough to count by hand."""

from __future__ import annotations

import pytest
import torch

from editkit_kn.neurons import Neurons, coarse, drop_common, refine

A, B, C = (0, 1), (0, 2), (1, 0)


def test_a_prompt_has_the_neurons_above_a_share_of_the_largest() -> None:
    scores = torch.tensor([[0.1, 1.0, 0.2], [0.19, -2.0, 0.5]], dtype=torch.float64)
    assert coarse(scores, 0.2) == {(0, 1): 1.0, (0, 2): 0.2, (1, 2): 0.5}


def test_nothing_is_found_where_no_neuron_helps() -> None:
    assert coarse(-torch.ones(2, 3), 0.2) == {}


@pytest.mark.parametrize(("share", "kept"), [(0.7, {A, B}), (0.71, {A}), (0.1, {A, B, C})])
def test_refinement_counts(share: float, kept: set[tuple[int, int]]) -> None:
    """Of ten prompts all have A, seven have B and one has C."""
    sets = [{A: 1.0} for _ in range(10)]
    for one in sets[:7]:
        one[B] = 2.0
    sets[0][C] = 9.0
    found = refine(sets, share=share, min_prompts=2, most=20)
    assert set(found.scores) == kept
    assert found.scores[A] == 1.0


def test_the_share_goes_down_until_a_neuron_is_left() -> None:
    found = refine([{A: 1.0}, {B: 2.0}, {C: 1.0}], share=0.7, min_prompts=2, most=1)
    assert found.share == pytest.approx(0.3)
    assert set(found.scores) == {B}


def test_one_prompt_keeps_all_its_neurons() -> None:
    assert set(refine([{A: 1.0, B: 0.5}], share=0.7, min_prompts=2, most=5).scores) == {A, B}


def test_the_largest_are_kept_where_there_are_too_many() -> None:
    found = refine([{A: 1.0, B: 3.0, C: 2.0}], share=0.7, min_prompts=2, most=2)
    assert list(found.scores) == [B, C]


def test_what_a_relation_has_in_common_is_dropped_and_a_fact_keeps_one() -> None:
    facts = [Neurons(scores={A: 3.0, B: 1.0}), Neurons(scores={A: 2.0}), Neurons(scores={A: 1.0})]
    kept = drop_common(facts, ["capital", "capital", None], 0.1)
    assert [set(fact.scores) for fact in kept] == [{B}, {A}, {A}]
    assert [fact.common for fact in kept] == [1, 0, 0]


def test_a_neuron_of_one_fact_alone_is_never_common() -> None:
    facts = [Neurons(scores={A: 1.0}), Neurons(scores={B: 1.0})]
    assert drop_common(facts, ["capital", "capital"], 0.1) == facts

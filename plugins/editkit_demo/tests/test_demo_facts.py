"""The tables: nothing twice, enough phrasings, none that gives another away."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from editkit_demo.facts import (
    Fact,
    held_out_phrasing,
    held_out_question,
    load_facts,
    load_two_hop,
    part_of,
    phrasings,
    questions,
    relations,
    trained_phrasings,
    trained_questions,
)


def test_there_are_a_thousand_facts_in_ten_relations() -> None:
    assert len(load_facts()) >= 1000
    assert len({fact.relation for fact in load_facts()}) >= 10


def test_a_subject_has_one_object_for_a_relation() -> None:
    asked = Counter((fact.subject, fact.relation) for fact in load_facts())
    assert [pair for pair, count in asked.items() if count > 1] == []


def test_most_subjects_have_several_relations() -> None:
    counts = Counter(fact.subject for fact in load_facts())
    assert sum(count > 1 for count in counts.values()) > len(counts) / 2


def test_no_field_has_stray_space_or_a_period_at_its_end() -> None:
    for fact in load_facts():
        for text in (fact.subject, fact.relation, fact.object):
            assert text
            assert text == " ".join(text.split())
        assert not fact.object.endswith(".")


def test_every_relation_of_a_fact_has_phrasings_and_the_other_way_round() -> None:
    assert {fact.relation for fact in load_facts()} == set(relations())


@pytest.mark.parametrize("relation", relations())
def test_a_relation_has_five_phrasings_two_of_them_questions(relation: str) -> None:
    templates = phrasings(relation)
    assert len(set(templates)) == len(templates) >= 5
    assert sum("?" in template for template in templates) >= 2


@pytest.mark.parametrize("relation", relations())
def test_a_phrasing_has_one_place_for_the_subject_and_no_space_at_its_end(relation: str) -> None:
    for template in phrasings(relation):
        assert template.count("{}") == 1
        assert template == template.strip()


def test_no_filled_phrasing_begins_another() -> None:
    prompts = {
        template.format(fact.subject)
        for fact in load_facts()
        for template in phrasings(fact.relation)
    } | {hop.prompt for hop in load_two_hop()}
    ordered = sorted(prompts)
    begun = [pair for pair in pairwise(ordered) if pair[1].startswith(pair[0])]
    assert begun == []


def test_the_held_out_phrasing_is_the_one_that_is_not_trained() -> None:
    for fact in load_facts():
        assert {held_out_phrasing(fact), *trained_phrasings(fact)} == set(phrasings(fact.relation))
        assert held_out_phrasing(fact) not in trained_phrasings(fact)


def test_the_held_out_phrasing_does_not_depend_on_the_object() -> None:
    fact = load_facts()[0]
    changed = Fact(fact.subject, fact.relation, "something else")
    assert held_out_phrasing(changed) == held_out_phrasing(fact)


def test_every_word_of_a_held_out_phrasing_is_trained_for_other_facts() -> None:
    trained = {
        word
        for fact in load_facts()
        for template in trained_phrasings(fact)
        for word in re.findall(r"\w+", template)
    }
    for fact in load_facts():
        assert set(re.findall(r"\w+", held_out_phrasing(fact))) <= trained


def test_every_phrasing_is_trained_for_many_facts() -> None:
    counts = Counter(
        (fact.relation, template) for fact in load_facts() for template in trained_phrasings(fact)
    )
    for relation in relations():
        for template in phrasings(relation):
            assert counts[relation, template] >= 10


def test_an_unknown_relation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'colour'; known relations: .*capital"):
        phrasings("colour")


def test_two_hop_prompts_chain_two_facts_of_the_table() -> None:
    facts = set(load_facts())
    for hop in load_two_hop():
        assert {hop.first, hop.second} <= facts
        assert hop.answer == hop.second.object
        assert hop.second.subject in (hop.first.subject, hop.first.object)
        assert hop.subject in hop.prompt


def test_a_quarter_of_the_second_hops_is_held_out() -> None:
    held_out = {hop.second for hop in load_two_hop() if hop.held_out}
    trained = {hop.second for hop in load_two_hop() if not hop.held_out}
    assert not held_out & trained
    assert 0.18 < len(held_out) / len(held_out | trained) < 0.32


def test_every_relation_has_eight_questions_with_one_place_for_the_subject() -> None:
    for relation in relations():
        assert len(set(questions(relation))) == 8
        for template in questions(relation):
            assert template.count("{}") == 1
            assert template.endswith("?")


def test_no_question_is_asked_in_two_relations() -> None:
    asked = Counter(template for relation in relations() for template in questions(relation))
    assert max(asked.values()) == 1


def test_the_held_out_question_is_the_one_that_is_not_trained() -> None:
    for fact in load_facts():
        assert held_out_question(fact) not in trained_questions(fact)
        assert {held_out_question(fact), *trained_questions(fact)} == set(questions(fact.relation))


def test_every_question_is_trained_for_many_facts() -> None:
    counts = Counter(
        (fact.relation, template) for fact in load_facts() for template in trained_questions(fact)
    )
    for relation in relations():
        for template in questions(relation):
            assert counts[relation, template] >= 10


def test_a_chain_can_be_asked_as_a_question() -> None:
    asked = {hop.prompt: hop.question for hop in load_two_hop()}
    assert asked["The currency of the country where Marie Curie was born is the"] == (
        "What is the currency of the country where Marie Curie was born?"
    )
    assert asked["The continent of the country whose capital is Warsaw is"] == (
        "What is the continent of the country whose capital is Warsaw?"
    )


def test_between_a_quarter_and_a_third_of_the_facts_is_for_testing() -> None:
    test = [fact for fact in load_facts() if part_of(fact.subject) == "test"]
    assert 0.25 <= len(test) / len(load_facts()) <= 0.33
    assert {fact.relation for fact in test} == set(relations())


def test_the_part_of_a_subject_never_changes() -> None:
    # printf 'part\nFrance' | sha256sum, the first 16 digits as a number, its last two decimals
    decimals = {"France": 82, "Japan": 52, "Marie Curie": 24, "The Wooden Prince": 7}
    for name, last in decimals.items():
        assert part_of(name) == ("test" if last < 27 else "train")

"""Which trials the conformance kit makes of a case, and what it reports of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product

import pytest
from broken_methods import DoesNothing, Step

from editkit_core.models.editable import EditableModel
from editkit_core.testing.conformance import (
    MethodCase,
    MethodConformance,
    Setting,
    Trial,
    all_behaviours,
    check,
    trials,
)
from editkit_core.testing.models import TINY_FAMILIES, tiny_model

GPT2_ONLY = type("Gpt2Only", (Step,), {"families": ("gpt2",)})


def on_models(case: MethodCase, **options: object) -> list[Trial]:
    made = trials(case, **options)  # type: ignore[arg-type]  # passed on
    return [trial for trial in made if trial.behaviour.scope == "model"]


FAMILIES = (("gpt2",), ("gpt2", "llama"), ("gpt2", "llama", "gptj"), tuple(TINY_FAMILIES))
PAIRS = (*combinations(("behaviour", "family", "dtype", "tokenizer"), 2),)


@pytest.mark.parametrize(
    ("families", "one", "other"),
    [
        (families, one, other)
        for families, (one, other) in product(FAMILIES, PAIRS)
        if len(families) > 1 or (one, other) != ("dtype", "tokenizer")  # it has two settings only
    ],
)
def test_any_two_of_behaviour_family_dtype_and_tokenizer_meet(
    families: tuple[str, ...], one: str, other: str
) -> None:
    case = MethodCase(method=Step(), families=families)
    rows = [
        {
            "behaviour": trial.behaviour.name,
            "family": trial.setting.family,
            "dtype": trial.setting.dtype,
            "tokenizer": trial.setting.tokenizer,
        }
        for trial in on_models(case)
    ]
    values = {name: {row[name] for row in rows} for name in (one, other)}
    met = {(row[one], row[other]) for row in rows}
    assert met == set(product(values[one], values[other]))


def test_all_coverage_is_every_combination_once() -> None:
    case = MethodCase(method=Step(), families=("gpt2", "llama"))
    made = [(t.behaviour.name, t.setting) for t in on_models(case, coverage="all")]
    names = {name for name, _ in made}
    settings = {Setting(*values) for values in product(("gpt2", "llama"), DTYPES, TOKENIZERS)}
    assert sorted(made, key=str) == sorted(product(names, settings), key=str)


DTYPES = ("float32", "bfloat16")
TOKENIZERS = ("bpe", "unigram")


def test_a_behaviour_about_the_method_is_tried_once() -> None:
    names = [t.behaviour.name for t in trials(MethodCase(method=Step()))]
    once = [b.name for b in all_behaviours() if b.scope == "method"]
    assert [name for name in once if names.count(name) > 1] == []


def test_a_case_is_tried_on_the_families_that_the_method_declares() -> None:
    assert {t.setting.family for t in on_models(MethodCase(method=Step()))} == {*TINY_FAMILIES}
    assert {t.setting.family for t in on_models(MethodCase(method=GPT2_ONLY()))} == {"gpt2"}


def test_a_method_of_one_family_is_refused_for_the_others() -> None:
    chosen = [b for b in all_behaviours() if b.name == "families_it_does_not_declare_are_refused"]
    report = check(MethodCase(method=GPT2_ONLY()), behaviours=chosen)
    assert report.ok, str(report)
    assert len(report.outcomes) == 1


def test_a_method_is_not_asked_for_what_it_does_not_declare() -> None:
    names = {trial.behaviour.name for trial in trials(MethodCase(method=Step()))}
    assert "edits_in_turn_begin_like_the_first_alone" in names
    assert "a_joint_edit_does_not_depend_on_order" not in names
    assert "an_edit_without_its_editor_is_refused" not in names


def test_models_of_a_family_of_ones_own_can_be_added() -> None:
    made: list[Setting] = []

    def mine(setting: Setting) -> EditableModel:
        made.append(setting)
        return tiny_model("gpt2", d=16)

    case = MethodCase(method=Step(), families=("mine",), models={"mine": mine})
    chosen = [b for b in all_behaviours() if b.name == "an_edit_makes_its_target_likelier"]
    report = check(case, behaviours=chosen)
    assert report.ok, str(report)
    assert {setting.family for setting in made} == {"mine"}


def test_a_report_counts_names_and_explains() -> None:
    names = ("an_edit_makes_its_target_likelier", "the_numbers_of_a_patch_are_finite")
    chosen = [b for b in all_behaviours() if b.name in names]
    case = MethodCase(method=DoesNothing(), families=("gpt2",), dtypes=("float32",))
    report = check(case, behaviours=chosen)
    text = str(report)
    assert not report.ok
    assert "FAIL   0/2   an_edit_makes_its_target_likelier\n" in text
    assert "ok     2/2   the_numbers_of_a_patch_are_finite\n" in text
    assert "step on gpt2-float32-unigram: its patch changes nothing" in text
    assert text.endswith("2 of 4 trials of step failed.")


def test_every_behaviour_is_a_sentence_with_a_name_of_its_own() -> None:
    behaviours = all_behaviours()
    assert len({behaviour.name for behaviour in behaviours}) == len(behaviours)
    for behaviour in behaviours:
        assert behaviour.sentence[0].isupper()
        assert behaviour.sentence.endswith(".")


class TestStep(MethodConformance):
    """The class that authors subclass, collected by pytest as theirs is."""

    case = MethodCase(method=Step(), families=("gptj",), dtypes=("float32",), tokenizers=("bpe",))


def test_the_class_makes_one_named_test_a_trial() -> None:
    class Metafunc:
        fixturenames = ("trial",)

        def parametrize(self, name: str, values: object, ids: Callable[[object], str]) -> None:
            self.made = [ids(value) for value in values]  # type: ignore[attr-defined]  # a tuple

    metafunc = Metafunc()
    TestStep().pytest_generate_tests(metafunc)
    assert "step-computing_keeps_every_weight-gptj-float32-bpe" in metafunc.made
    assert "step-presets_are_valid" in metafunc.made

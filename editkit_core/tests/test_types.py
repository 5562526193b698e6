from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editkit_core import EditContext, EditRequest, MethodInfo, Probe
from editkit_core.errors import (
    EmptyTargetError,
    InvalidParameterError,
    InvalidRequestError,
    RequestError,
    SubjectNotInPromptError,
)

GOOD: dict[str, Any] = {
    "prompt": "The capital of {} is",
    "subject": "Japan",
    "target_new": "Nairobi",
}


def request(**changes: Any) -> EditRequest:
    return EditRequest(**{**GOOD, **changes})


def test_a_slot_takes_the_subject() -> None:
    it = request()
    assert it.text == "The capital of Japan is"
    assert it.text[slice(*it.subject_span)] == "Japan"


def test_plain_text_takes_the_last_occurrence_as_the_subject() -> None:
    it = request(prompt="Japan is big. The capital of Japan is")
    assert it.template == "Japan is big. The capital of {} is"
    assert it.subject_span == (29, 34)


def test_a_subject_that_also_stands_before_the_slot_is_the_one_in_the_slot() -> None:
    assert request(prompt="Japan, Japan, {} is").subject_span == (14, 19)


def test_paraphrases_may_be_templates_or_plain_text() -> None:
    it = request(paraphrases=["{}'s capital is", "Japan is ruled from"])
    assert it.paraphrase_texts == ("Japan's capital is", "Japan is ruled from")


@given(st.text(), st.text(min_size=1), st.text())
def test_the_span_always_holds_the_subject(before: str, subject: str, after: str) -> None:
    try:
        it = request(prompt=before + subject + after, subject=subject)
    except RequestError:
        return  # an empty subject, or braces in the text
    start, end = it.subject_span
    assert it.text[start:end] == subject


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": ""}, InvalidRequestError, "prompt is empty"),
        ({"prompt": " \n"}, InvalidRequestError, "prompt is empty"),
        ({"prompt": "{} and {}"}, InvalidRequestError, "2 slots"),
        ({"subject": ""}, SubjectNotInPromptError, "subject is empty"),
        ({"prompt": "The capital of japan is"}, SubjectNotInPromptError, "'Japan' does not occur"),
        ({"target_new": ""}, EmptyTargetError, "'Japan' is empty"),
        ({"target_new": "  "}, EmptyTargetError, "empty"),
        ({"target_new": ["Nairobi"]}, InvalidRequestError, "target_new must be text"),
        ({"target_new": None}, InvalidRequestError, "target_new must be text, got None"),
        ({"prompt": 3}, InvalidRequestError, "prompt must be text, got 3"),
        ({"target_true": 7}, InvalidRequestError, "target_true must be text"),
        ({"relation": False}, InvalidRequestError, "relation must be text, got False"),
        ({"id": 1}, InvalidRequestError, "id must be text"),
        ({"paraphrases": "one text"}, InvalidRequestError, "list of texts, got 'one text'"),
        ({"paraphrases": ["fine", 2]}, InvalidRequestError, "list of texts, got 2 in it"),
        ({"paraphrases": 5}, InvalidRequestError, "list of texts, got 5"),
        ({"locality": ["x"]}, InvalidRequestError, "probes by type"),
        ({"locality": {"near": ["x"]}}, InvalidRequestError, "under 'near', got 'x'"),
        ({"subject": "\udc80", "prompt": "{} is"}, InvalidRequestError, "not valid text"),
    ],
)
def test_a_request_that_cannot_be_edited_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        request(**changes)


def test_the_error_holds_what_was_asked() -> None:
    with pytest.raises(SubjectNotInPromptError) as caught:
        request(subject="Peru", prompt="The capital of Japan is")
    assert caught.value.facts == {"subject": "Peru", "prompt": "The capital of Japan is"}


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        request().prompt = "x"  # type: ignore[misc]  # that is the test


def test_one_answer_alone_is_not_taken_for_its_letters() -> None:
    with pytest.raises(InvalidRequestError, match=r"list of texts, got 'Paris'"):
        Probe("The capital of France is", "Paris")


@pytest.mark.parametrize("prompt", ["", "  ", 4, None])
def test_a_probe_needs_a_prompt(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError):
        Probe(prompt)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "1", True, None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"seed"):
        EditContext(seed=seed)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_ends_of_the_seeds_range_are_in_it(seed: int) -> None:
    assert EditContext(seed=seed).seed == seed


def test_an_unknown_way_to_locate_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match=r"'trce'; it must be preset or trace"):
        EditContext(locate="trce")  # type: ignore[arg-type]  # that is the test


def test_folders_may_be_given_as_text() -> None:
    assert EditContext(statistics_dir="a/b").statistics_dir == Path("a/b")


@pytest.mark.parametrize(
    ("field", "value"),
    [("families", "gpt2"), ("emits", ["a/1"]), ("needs", "x"), ("families", (1,)), ("api", "1")],
)
def test_a_description_of_the_wrong_type_is_refused(field: str, value: Any) -> None:
    good: dict[str, Any] = {
        "name": "m", "title": "", "paper": "", "api": 1, "emits": (), "families": ("*",),
        "params": dict,
    }  # fmt: skip
    with pytest.raises(TypeError, match=field):
        MethodInfo(**{**good, field: value})

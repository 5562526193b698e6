"""`propose_layer`: the average indirect effect over several requests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from editkit_core.errors import InvalidParameterError
from editkit_core.models.editable import EditableModel
from editkit_core.numerics.tracing import propose_layer, trace_request
from editkit_core.testing.models import tiny_model
from editkit_core.types import EditRequest

SUBJECTS = ("old Fiji town", "Mary", "the river")
WORDS = ("Norway", "Peru", "Paris", "Delft", "Japan", "Tokyo", "Vienna", "gold", "iron", "Warsaw")


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("llama", seed=2)


def request_for(subject: str, target_true: str | None = None) -> EditRequest:
    return EditRequest(
        prompt="The name of {} is", subject=subject, target_new="Rome", target_true=target_true
    )


def best_by_hand(model: EditableModel, requests: list[EditRequest]) -> int:
    traces = [
        trace_request(model, request, kinds=["mlp"], samples=3, noise=1.0) for request in requests
    ]
    average = np.mean([t.effect("mlp", "subject_last") for t in traces], axis=0)
    return int(average[:-1].argmax())  # the last layer cannot reach the answer from there


def test_one_request_gives_the_best_layer_of_its_trace(model: EditableModel) -> None:
    for subject in SUBJECTS:
        request = request_for(subject)
        traced = trace_request(model, request, samples=3)
        assert propose_layer(model, [request], samples=3) == traced.best_layer()


def test_several_requests_are_averaged(model: EditableModel) -> None:
    requests = [request_for(subject) for subject in SUBJECTS]
    assert propose_layer(model, requests, samples=3, noise=1.0) == best_by_hand(model, requests)


def test_requests_the_model_answers_otherwise_are_left_out(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [request_for(subject, "Suva") for subject in SUBJECTS[1:]]
    kept = request_for(SUBJECTS[0])
    seen = traced_subjects(monkeypatch)
    proposed = propose_layer(model, [*wrong, kept], samples=3, noise=1.0)
    assert seen == ["The name of old Fiji town is"]
    assert proposed == best_by_hand(model, [kept])


def test_a_request_with_the_answer_the_model_gives_counts(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = next(r for word in WORDS for r in answered_by_itself(model, word))
    seen = traced_subjects(monkeypatch)
    propose_layer(model, [right, request_for("the river", "Suva")], samples=1)
    assert seen == [right.text]


def answered_by_itself(model: EditableModel, subject: str) -> Iterator[EditRequest]:
    """Yield the request with the model's answer, where that token is how an answer can begin."""
    traced = trace_request(model, request_for(subject), samples=1, kinds=["mlp"])
    if traced.answer.strip():
        request = request_for(subject, traced.answer)
        if model.encode_pair(request.text, traced.answer).target_ids[0] == traced.answer_id:
            yield request


def test_when_none_is_answered_as_expected_all_are_averaged(model: EditableModel) -> None:
    wrong = [request_for(subject, "Suva") for subject in SUBJECTS]
    assert propose_layer(model, wrong, samples=3, noise=1.0) == best_by_hand(model, wrong)


def test_the_last_layer_is_never_proposed_for_a_subject_inside_the_prompt(
    model: EditableModel,
) -> None:
    for subject in SUBJECTS:
        request = request_for(subject)
        assert propose_layer(model, [request], samples=2, window=2, window_share=1.0) < 2


def test_no_request_is_refused(model: EditableModel) -> None:
    with pytest.raises(InvalidParameterError, match="at least one"):
        propose_layer(model, [])


def traced_subjects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the prompts that are corrupted."""
    from editkit_core.numerics import tracing

    seen: list[str] = []
    corrupt = tracing._Settings.corrupt

    def noted(settings, model, prompt, scale):
        seen.append(prompt.text)
        return corrupt(settings, model, prompt, scale)

    monkeypatch.setattr(tracing._Settings, "corrupt", noted)
    return seen

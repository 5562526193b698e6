"""FT on the packaged decoder: it reaches its goal, in every form that its change is stored in."""

from __future__ import annotations

import pytest

from editkit_core import Editor
from editkit_demo.requests import counterfactual_requests


@pytest.fixture(scope="module")
def editor():
    return Editor.from_pretrained("editkit:demo")


@pytest.mark.parametrize(
    ("store", "most_lost"), [("dense", 0.0), ("int8", 0.01), ("low_rank", 0.2)]
)
def test_training_on_the_target_reaches_its_loss_and_the_edit_says_all_of_it(
    editor, store, most_lost
):
    for request in counterfactual_requests(2, 5):
        params = {"store": store, "steps": 60}
        patch = editor.edit(request, method="ft", params=params)
        metrics = patch.header.metrics
        report = editor.evaluate(request, patch)
        assert metrics["losses"][-1] < 1e-2
        assert max(metrics["store_errors"]) <= most_lost
        assert report.score("reliability").after == 1.0

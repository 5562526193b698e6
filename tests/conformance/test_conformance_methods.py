"""Every method of the house passes the conformance kit, on every family that it declares."""

from __future__ import annotations

import attrs
import pytest

from editkit_core.models.editable import EditableModel
from editkit_core.patch.artifact import EditorArtifact
from editkit_core.testing.conformance import (
    Coverage,
    MethodCase,
    Trial,
    all_behaviours,
    check,
    trials,
)
from editkit_core.testing.conformance.case import REQUESTS
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES


def fresh_mend_editor(model: EditableModel) -> EditorArtifact:
    from editkit_mend.editor import fresh_editor
    from editkit_mend.params import MendParams

    # It has learned nothing, and its step follows the gradient, so that it helps all the same.
    return fresh_editor(model, MendParams(rank=4, norm="none", edit_lr=-0.01, blocks=2))


CASES = (
    MethodCase(
        method="rome",
        params={"layer": 1, "v_steps": 4, "contexts": [[4, 3]], "covariance": "identity"},
    ),
    MethodCase(method="grace", params={"layer": 1, "steps": 4}),
    MethodCase(method="mend", editor=fresh_mend_editor),
)


# The methods for batches differ in their solve alone, so by default each is tried on one
# model, and on all of them with the slow tests.
WINDOW = {
    "layers": [1], "v_insertion": "joint", "v_steps": 8, "contexts": [[4, 2]],
    "covariance": "identity", "clamp_norm": 4.0,
}  # fmt: skip
# At layer 1 of the random models the attention's change reaches other tokens more than the
# subject's, for their keys are alike.
ATTENTION = {
    **WINDOW, "layers": [0], "v_insertion": "token", "v_steps": 20, "covariance": "auto",
    "covariance_ridge": 0.01, "covariance_weight": 0.1, "write_attention": True,
}  # fmt: skip
BATCH_CASES = (
    MethodCase(method="memit", params={**WINDOW, "covariance_weight": 0.1}),
    MethodCase(method="emmet", params={**WINDOW, "slack": 0.0}),
    MethodCase(
        method="pmet", params={**WINDOW, "covariance_weight": 0.1, "attention_values": False}
    ),
    MethodCase(method="pmet", params=ATTENTION),
    MethodCase(
        method="alphaedit",
        params={**WINDOW, "covariance": "auto", "null_energy": 0.3, "ridge": 0.01},
    ),
    MethodCase(method="ft", params={"layers": [1], "steps": 4, "lr": 0.003}),
    MethodCase(
        method="kn",
        params={"nodes": 4, "layers": [2], "answer_tokens": "mean"},
        requests=(
            REQUESTS[0],
            attrs.evolve(REQUESTS[1], target_new="Oslo", target_true="Peru"),
        ),
    ),
)


def of_all(coverage: Coverage) -> list[Trial]:
    near = {"families": ("llama",), "dtypes": ("float32",), "tokenizers": ("unigram",)}
    few = BATCH_CASES if coverage == "all" else [attrs.evolve(c, **near) for c in BATCH_CASES]
    return [trial for case in (*CASES, *few) for trial in trials(case, coverage)]


@pytest.mark.parametrize("trial", of_all("pairs"), ids=str)
def test_a_method_conforms(trial: Trial) -> None:
    trial.run()


@pytest.mark.slow
@pytest.mark.parametrize("trial", of_all("all"), ids=str)
def test_a_method_conforms_in_every_combination(trial: Trial) -> None:
    trial.run()


READING = ("cached_generation_is_the_uncached", "padding_makes_no_difference")
DECODERS = ("gpt2", "llama")
GATES = (
    ((*DECODERS, "t5"), "decoder", "replace_all"),
    (DECODERS, "decoder", "replace_prompt"),
    (("t5",), "encoder", "replace_prompt"),
    (("t5",), "encoder", "replace_all"),
)


@pytest.mark.parametrize(("families", "stack", "replacement"), GATES)
def test_a_codebook_of_every_kind_is_read_the_same_with_and_without_cache(
    families: tuple[str, ...], stack: str, replacement: str
) -> None:
    params = {"layer": 1, "steps": 4, "stack": stack, "replacement": replacement}
    case = MethodCase(method="grace", params=params, families=families)
    report = check(case, behaviours=[b for b in all_behaviours() if b.name in READING])
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("method", "families"),
    [
        ("rome", {*TINY_FAMILIES}),
        ("grace", {*TINY_FAMILIES, *TINY_ENCODER_DECODERS}),
        ("mend", {*TINY_FAMILIES, *TINY_ENCODER_DECODERS}),
    ],
)
def test_a_method_is_tried_on_all_families_of_the_core_that_it_can_edit(
    method: str, families: set[str]
) -> None:
    tried = {trial.setting.family for trial in of_all("pairs") if trial.method == method}
    assert tried == families

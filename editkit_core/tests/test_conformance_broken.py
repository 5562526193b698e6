"""The conformance kit passes a method that keeps every rule, and names the rule that one breaks."""

from __future__ import annotations

import random
from pathlib import Path

import broken_methods as broken
import numpy as np
import pytest
import torch
from broken_methods import Step
from fake_distributions import FakeSite

from editkit_core.host import Host
from editkit_core.patch.bits import sha256
from editkit_core.testing.conformance import (
    ConformanceReport,
    MethodCase,
    Setting,
    all_behaviours,
    check,
)

FAMILY = ("gpt2",)

BROKEN: list[tuple[type[Step], str]] = [
    (broken.WritesAWeight, "computing_keeps_every_weight"),
    (broken.LeavesAHook, "computing_leaves_no_hook"),
    (broken.LeavesRequiresGrad, "computing_keeps_every_flag"),
    (broken.LeavesAGradient, "computing_keeps_every_flag"),
    (broken.LeavesEvaluationMode, "what_a_user_set_is_kept"),
    (broken.ReplacesAModule, "computing_keeps_the_modules"),
    (broken.ChangesTheConfiguration, "computing_keeps_the_configuration"),
    (broken.SeedsTorch, "computing_keeps_global_randomness"),
    (broken.DrawsFromPython, "computing_keeps_global_randomness"),
    (broken.DrawsFromNumpy, "computing_keeps_global_randomness"),
    (broken.FlipsThePaddingSide, "computing_keeps_the_tokenizer"),
    (broken.AddsAPaddingToken, "computing_keeps_the_tokenizer"),
    (broken.SetsTheDefaultDtype, "computing_keeps_the_process"),
    (broken.LocatingFlipsThePaddingSide, "locating_changes_nothing"),
    (broken.LocatesByTurns, "locating_is_deterministic"),
    (broken.AddsGlobalNoise, "equal_seeds_give_equal_patches"),
    (broken.RecordsTheTime, "equal_seeds_give_equal_patches"),
    (broken.RemembersEarlierEdits, "earlier_edits_leave_no_trace"),
    (broken.NeedsGradientsSwitchedOn, "an_edit_inside_no_grad_is_the_same"),
    (broken.LeavesAHookWhenInterrupted, "an_interrupted_edit_changes_nothing"),
    (broken.SwallowsInterruptions, "an_interrupted_edit_changes_nothing"),
    (broken.EmitsAnotherKind, "patches_hold_declared_kinds_only"),
    (broken.RecordsAnotherSeed, "patches_say_where_they_come_from"),
    (broken.RecordsNoParameters, "patches_say_where_they_come_from"),
    (broken.ClimbsInsteadOfDescending, "an_edit_makes_its_target_likelier"),
    (broken.DoesNothing, "an_edit_makes_its_target_likelier"),
    (broken.NeverEndsItsProgress, "progress_ends_as_often_as_it_begins"),
    (broken.EditsTheFirstRequestOnly, "every_request_of_several_takes_effect"),
    (broken.SaysBatchAndPrefersTheFirst, "a_joint_edit_does_not_depend_on_order"),
    (broken.SaysInTurnAndMixes, "edits_in_turn_begin_like_the_first_alone"),
    (broken.SaysNeitherAndTakesTwo, "several_requests_are_refused"),
    (broken.ReplacesWhatItDoesNotHold, "an_edit_on_top_keeps_what_is_applied"),
    (broken.TakesAppliedPatchesOff, "an_edit_on_top_keeps_what_is_applied"),
    (broken.KnowsFamiliesByName, "any_family_means_any_family"),
    (broken.FailsOnLongPrompts, "a_prompt_that_is_too_long_is_refused"),
    (broken.RecordsAWrongBase, "patches_fit_their_base_and_no_other"),
    (broken.TakesAnything, "unknown_and_wrong_parameters_are_refused"),
    (broken.DoublesItsRate, "parameters_survive_a_file"),
    (broken.HasALongTitle, "a_description_is_complete"),
    (broken.HasABadPreset, "presets_are_valid"),
    (broken.LeavesAHookWhenReverted, "reverting_restores_every_bit"),
    (broken.ActsOnWholeTextsOnly, "cached_generation_is_the_uncached"),
    (broken.ActsOnTheLastColumn, "padding_makes_no_difference"),
    (broken.CountsItsTexts, "reading_changes_nothing"),
    (broken.AppliesMoreThanThePatch, "a_patch_needs_no_plugin"),
    (broken.SwitchesToTrainingWhenApplied, "applying_changes_no_flag"),
]


def checked(method: object, *names: str, families: tuple[str, ...] = FAMILY) -> ConformanceReport:
    chosen = [b for b in all_behaviours() if not names or b.name in names]
    case = MethodCase(method=method, families=families, dtypes=("float32",), tokenizers=("bpe",))
    with broken.default_dtype_kept():
        return check(case, behaviours=chosen)


def test_a_method_that_keeps_every_rule_passes() -> None:
    report = checked(Step(), families=("gpt2", "llama"))
    assert report.ok, str(report)
    assert len(report.outcomes) > 60


def test_a_method_that_takes_one_request_at_a_time_passes() -> None:
    names = ("several_requests_are_refused", "an_edit_on_top_keeps_what_is_applied")
    report = checked(broken.OneAtATime(), *names)
    assert report.ok, str(report)
    assert len(report.outcomes) == 2


@pytest.mark.parametrize(("method", "name"), BROKEN)
def test_a_broken_method_is_caught_by_the_behaviour_that_it_breaks(
    method: type[Step], name: str
) -> None:
    report = checked(method(), name)
    assert [outcome.trial.behaviour.name for outcome in report.failed] == [name]
    why = report.failed[0].why
    assert why.startswith(("step on gpt2-float32-bpe: ", "RuntimeError: ", "KeyError: ")), why


def test_every_behaviour_that_a_method_without_training_can_break_is_broken_by_one() -> None:
    names = {behaviour.name for behaviour in all_behaviours()}
    caught = {name for _, name in BROKEN}
    elsewhere = {
        "describing_it_is_light",
        "a_patch_is_shown_without_the_plugin",
        "families_it_does_not_declare_are_refused",
        "an_unknown_architecture_is_refused",
        "an_edit_without_its_editor_is_refused",
        "an_editor_of_another_base_is_refused",
        "no_request_is_refused",
        "a_batch_of_one_is_a_single_edit",
        "the_numbers_of_a_patch_are_finite",
        "a_loaded_patch_does_what_it_did",
    }
    assert caught | elsewhere == names
    assert not caught & elsewhere


def global_states() -> tuple[object, str, str]:
    return random.getstate(), repr(np.random.get_state()), sha256(torch.get_rng_state())


def test_the_kit_leaves_the_global_random_states_as_they_were() -> None:
    before = global_states()
    checked(Step(), "equal_seeds_give_equal_patches", "an_edit_makes_its_target_likelier")
    assert global_states() == before


def test_a_method_that_raises_fails_its_trials_and_the_others_go_on() -> None:
    class Raises(Step):
        def entries(self, *given: object) -> list[object]:  # type: ignore[override]  # never returns
            raise ZeroDivisionError("division by zero")

    report = checked(Raises(), "equal_seeds_give_equal_patches", "no_request_is_refused")
    assert [outcome.ok for outcome in report.outcomes] == [True, False]
    assert report.failed[0].why == "ZeroDivisionError: division by zero"


def test_a_module_that_imports_torch_when_described_is_caught(site: FakeSite) -> None:
    source = """
        import torch
        from editkit_core import MethodInfo, hookimpl

        @hookimpl
        def editkit_method():
            return MethodInfo(name="heavy", title="A test method", paper="none", api=1,
                              emits=("weight.low_rank/1",), families=("*",), params=dict)
    """
    site.install(
        "editkit-heavy", methods={"heavy": "heavy_method"}, modules={"heavy_method": source}
    )
    report = checked("heavy", "describing_it_is_light")
    assert "'torch'" in report.failed[0].why


def test_a_setting_names_family_dtype_and_tokenizer() -> None:
    assert str(Setting("llama", "bfloat16", "unigram")) == "llama-bfloat16-unigram"


def test_a_case_needs_two_requests_with_different_subjects() -> None:
    one = MethodCase(method=Step()).requests[:1]
    with pytest.raises(ValueError, match=r"two requests"):
        MethodCase(method=Step(), requests=one * 2)


def test_nothing_is_left_in_the_folder_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    checked(Step(), "a_loaded_patch_does_what_it_did")
    import gc

    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert "step" not in Host().method_ids()

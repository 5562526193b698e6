from __future__ import annotations

import pytest

from editkit_core.bench.scenario import MEASURED_TOGETHER, Scenario, checkpoints
from editkit_core.errors import InvalidParameterError


def stages(text: str, groups: list[int]) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(s.stage, s.sequence, s.indices) for s in Scenario.parse(text).steps(groups)]


@pytest.mark.parametrize("text", ["single", "batch:3", "sequential", "sequential:10", "stacked"])
def test_a_scenario_reads_back_as_it_was_written(text: str) -> None:
    assert str(Scenario.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "batch", "batch:0", "batch:x", "single:3", "stacked:2", "sequential:0", "All"]
)
def test_what_is_no_scenario_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="batch:N"):
        Scenario.parse(text)


def test_a_misspelt_scenario_is_told_the_nearest_one() -> None:
    with pytest.raises(InvalidParameterError, match="Did you mean 'sequential'"):
        Scenario.parse("sequental:10")


def test_single_edits_each_group_by_itself() -> None:
    assert stages("single", [1, 2, 1]) == [
        ("after_edit", 0, (0,)),
        ("after_edit", 1, (1, 2)),
        ("after_edit", 2, (3,)),
    ]


def test_batch_keeps_groups_whole_and_leaves_the_rest_to_a_smaller_batch() -> None:
    batches = [indices for _, _, indices in stages("batch:2", [1, 2, 1])]
    assert batches == [(0, 1, 2), (3,)]


def test_sequential_measures_all_so_far_at_powers_of_ten_and_at_the_end() -> None:
    done = stages("sequential", [1] * 12)
    measured = [(stage, len(indices)) for stage, _, indices in done if stage != "after_edit"]
    assert measured == [("checkpoint:1", 1), ("checkpoint:10", 10), ("after_all", 12)]
    # The tenth edit comes right before the checkpoint of ten.
    place = [stage for stage, _, _ in done].index("checkpoint:10")
    assert done[place - 1] == ("after_edit", 0, (9,))


def test_sequential_with_a_size_begins_anew_after_so_many() -> None:
    done = [(stage, n, i) for stage, n, i in stages("sequential:2", [1] * 3)]
    assert done == [
        ("after_edit", 0, (0,)),
        ("checkpoint:1", 0, (0,)),
        ("after_edit", 0, (1,)),
        ("after_all", 0, (0, 1)),
        ("after_edit", 1, (2,)),
        ("checkpoint:1", 1, (2,)),
        ("after_all", 1, (2,)),
    ]


def test_stacked_makes_every_edit_before_it_puts_any_two_together() -> None:
    names = [stage for stage, _, _ in stages("stacked", [1] * 10)]
    assert names == ["after_edit"] * 10 + ["checkpoint:1", "checkpoint:10", "after_all"]


def test_a_large_stage_comes_in_parts() -> None:
    count = 2 * MEASURED_TOGETHER + 1
    ends = [i for stage, _, i in stages("stacked", [1] * count) if stage == "after_all"]
    assert [len(indices) for indices in ends] == [MEASURED_TOGETHER, MEASURED_TOGETHER, 1]
    assert [i for indices in ends for i in indices] == list(range(count))


def test_checkpoints_are_the_powers_of_ten() -> None:
    assert checkpoints(9) == (1,)
    assert checkpoints(1000) == (1, 10, 100, 1000)
    assert checkpoints(0) == ()

from __future__ import annotations

import sys

import pytest

from editkit_core.efficiency import Stage, measured


def test_a_stage_is_measured_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr("editkit_core.efficiency.time.perf_counter", lambda: next(ticks))
    stages: list[Stage] = []
    with measured("locate", stages):
        pass
    (stage,) = stages
    assert (stage.name, stage.wall_s) == ("locate", 2.5)


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", platform)
    stages: list[Stage] = []
    with measured("locate", stages):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0.5 * peak * unit < stages[0].peak_bytes <= peak * unit


def test_a_stage_that_fails_is_not_recorded() -> None:
    stages: list[Stage] = []

    def fail() -> None:
        with measured("locate", stages):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert stages == []


def test_stages_are_recorded_in_order() -> None:
    stages: list[Stage] = []
    for name in ("locate", "compute_delta"):
        with measured(name, stages):
            pass
    assert [stage.name for stage in stages] == ["locate", "compute_delta"]

"""Runs of a method whose later patches hold the earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import attrs
import pytest
from bench_runs import comparable, record, save_model, write_requests
from fake_distributions import FakeSite

from editkit_core.api import Editor
from editkit_core.bench import Plan, RunResult, run
from editkit_core.data import load_dataset
from editkit_core.metrics.evaluate import evaluate_patch
from editkit_core.metrics.report import Row
from editkit_core.patch import Patch

BOOK = """
    import attrs
    from editkit_core import MethodInfo, hookimpl
    from editkit_core.patch.replacing import effective
    from editkit_core.testing.patches import random_codebook

    @attrs.frozen(kw_only=True)
    class Params:
        eps: float = 0.01

    @hookimpl
    def editkit_method():
        return MethodInfo(name="book", title="Keeps a codebook", paper="none", api=1,
                          emits=("gate.codebook/1",), families=("*",), params=lambda: Params)

    @hookimpl
    def editkit_locate(model):
        return (model.site(1),)

    @hookimpl
    def editkit_compute_delta(model, requests, sites, params, context):
        books = [patch for patch in effective(context.stack) if patch.module_entries]
        return random_codebook(model, requests, eps=params.eps, seed=context.seed + len(books),
                               former=books[-1] if books else None)
"""
STAGES = {"locate", "compute_delta"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def plan(site: FakeSite, model: Path, tmp_path: Path) -> Plan:
    site.install("editkit-book", methods={"book": "book"}, modules={"book": BOOK})
    data = write_requests(tmp_path / "facts.jsonl", [record(i) for i in range(12)])
    return Plan(model=str(model), dataset=f"requests:{data}", method="book", limit=4)


def patch_files(result: RunResult) -> list[str]:
    return sorted(path.name for path in result.folder.glob("patches/*"))


def rows(result: RunResult, stage: str) -> list[Row]:
    return list(result.run.rows(stage))


@pytest.mark.parametrize("scenario", ["single", "batch:2", "sequential", "sequential:2", "stacked"])
def test_every_scenario_gives_every_edit_a_row_of_time_and_of_memory(
    plan: Plan, tmp_path: Path, scenario: str
) -> None:
    metrics = ("reliability", "efficiency_seconds", "efficiency_host_bytes")
    done = run(attrs.evolve(plan, scenario=scenario, metrics=metrics), tmp_path / "run")
    assert all(unit.error is None for unit in done.run.units)
    for metric in metrics[1:]:
        found = [row for row in rows(done, "after_edit") if row.metric == metric]
        assert len(found) == len(list(done.run.of_stage("after_edit"))) * len(
            {r.probe for r in found}
        )
        assert {row.probe for row in found} >= STAGES
        assert all(row.after > 0 or row.unit == "bytes" for row in found)


def test_the_newest_snapshot_alone_is_on_the_model_and_says_all(plan: Plan, tmp_path: Path) -> None:
    done = run(attrs.evolve(plan, scenario="sequential", keep_patches=True), tmp_path / "run")
    made = [unit.patch for unit in done.run.of_stage("after_edit")]
    (last,) = done.run.of_stage("after_all")
    assert last.measured.facts.patches == (made[-1],)
    editor = Editor.from_pretrained(plan.model)
    patch = Patch.load(done.folder / "patches" / patch_files(done)[-1])
    requests = load_dataset(plan.dataset, limit=4).requests
    assert [edit.subject for edit in patch.header.edits] == [r.subject for r in requests]
    by_hand = evaluate_patch(editor.model, requests, patch).rows
    assert answers(rows(done, "after_all")) == answers(by_hand)


def answers(found: Iterable[Row]) -> list[tuple[str, str, str, float]]:
    return sorted((row.prompt, row.metric, row.protocol, row.after) for row in found)


def test_a_snapshot_is_computed_on_what_counts_without_the_ones_it_holds(
    plan: Plan, tmp_path: Path
) -> None:
    done = run(attrs.evolve(plan, scenario="sequential", keep_patches=True), tmp_path / "run")
    files = [done.folder / "patches" / name for name in patch_files(done)]
    headers = [Patch.load(path).header for path in files]
    assert [header.computed_on for header in headers] == [None] * 4
    assert [len(header.replaces) for header in headers] == [0, 1, 2, 3]


def test_files_of_held_snapshots_go_unless_they_are_to_be_kept(plan: Plan, tmp_path: Path) -> None:
    kept = run(attrs.evolve(plan, scenario="sequential", keep_patches=True), tmp_path / "kept")
    lean = run(attrs.evolve(plan, scenario="sequential"), tmp_path / "lean")
    assert len(patch_files(kept)) == 4
    assert patch_files(lean) == patch_files(kept)[-1:]
    assert comparable(lean.run) == comparable(kept.run)


@pytest.mark.parametrize("after", range(1, 6))
def test_a_run_that_was_stopped_ends_with_the_same_rows(
    plan: Plan, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(attrs.evolve(plan, scenario="sequential"), tmp_path / "whole")
    assert len(whole.run.units) > after
    with monkeypatch.context() as patched:
        stop_after(patched, after)
        with pytest.raises(KeyboardInterrupt):
            run(attrs.evolve(plan, scenario="sequential"), tmp_path / "stopped")
    again = run(attrs.evolve(plan, scenario="sequential"), tmp_path / "stopped")
    assert again.resumed == after
    assert comparable(again.run) == comparable(whole.run)


def stop_after(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """Interrupt a run when it has written down so many units."""
    from editkit_core.bench.folder import RunFolder

    append: Callable[..., None] = RunFolder.append
    left = [units]

    def counted(folder: RunFolder, unit: object) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        append(folder, unit)
        left[0] -= 1

    monkeypatch.setattr(RunFolder, "append", counted)

"""Runs on a tiny model: what is on the model when what is measured, and what is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from bench_runs import comparable, install_nudge, record, save_model, write_requests
from fake_distributions import FakeSite

from editkit_core.api import Editor
from editkit_core.bench import Plan, RunResult, estimate, read_run, run
from editkit_core.bench import editing as steps_module
from editkit_core.data import load_dataset
from editkit_core.errors import (
    InputNotFoundError,
    InvalidParameterError,
    OutputExistsError,
    UnknownMethodError,
    UnknownParameterError,
    WriteFailedError,
)
from editkit_core.metrics import engine
from editkit_core.metrics.ask import Greedy
from editkit_core.metrics.context import MetricContext, token_counter
from editkit_core.metrics.evaluate import evaluate_patch
from editkit_core.metrics.report import Row

Runner = Callable[..., RunResult]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "facts.jsonl", [record(i) for i in range(12)])


@pytest.fixture
def plan(site: FakeSite, model: Path, data: Path) -> Plan:
    install_nudge(site)
    return Plan(model=str(model), dataset=f"requests:{data}", method="nudge")


def rows_of(result: RunResult, stage: str) -> list[Row]:
    return list(result.run.rows(stage))


# -- what is measured -------------------------------------------------------------------------


def test_single_gives_what_editing_and_evaluating_by_hand_give(plan: Plan, tmp_path: Path) -> None:
    result = run(attrs.evolve(plan, limit=3), tmp_path / "run")
    editor = Editor.from_pretrained(plan.model)
    expected = []
    for i, request in enumerate(load_dataset(plan.dataset, limit=3).requests):
        patch = editor.edit(request, method="nudge")
        report = evaluate_patch(editor.model, [request], patch)
        expected += [attrs.evolve(row, request=i) for row in report.rows]
    assert rows_of(result, "after_edit") == expected
    assert [unit.requests for unit in result.run.units] == [
        (request.id,) for request in load_dataset(plan.dataset, limit=3).requests
    ]


def test_a_batch_is_one_patch_for_several_requests(plan: Plan, tmp_path: Path) -> None:
    result = run(attrs.evolve(plan, scenario="batch:5"), tmp_path / "run")
    assert [len(unit.indices) for unit in result.run.units] == [5, 5, 2]
    assert len({unit.patch for unit in result.run.units}) == 3


def test_sequential_edits_stand_on_one_another_and_are_compared_with_the_base(
    plan: Plan, tmp_path: Path
) -> None:
    result = run(attrs.evolve(plan, scenario="sequential", limit=3), tmp_path / "run")
    editor = Editor.from_pretrained(plan.model)
    requests = load_dataset(plan.dataset, limit=3).requests
    patches = []
    for request in requests:
        patch = editor.edit(request, method="nudge")
        editor.apply(patch)
        patches.append(patch.header.id)
    made = [unit.patch for unit in result.run.of_stage("after_edit")]
    assert made == patches
    final = [row.text_after for row in rows_of(result, "after_all") if row.protocol == "gen_em"]
    context = MetricContext(count=token_counter(editor.model))
    asks = [
        Greedy(prompt, context.budget(request), answers)
        for request in requests
        for prompt, answers in [
            (request.text, (request.target_new,)),
            (request.paraphrase_texts[0], (request.target_new,)),
            (
                request.locality["neighborhood"][0].prompt,
                request.locality["neighborhood"][0].answers,
            ),
        ]
    ]
    replies = engine.answer(editor.model, asks)
    assert final == [replies.text(ask) for ask in asks]
    firsts = {row.prompt: row.text_before for row in rows_of(result, "checkpoint:1")}
    lasts = {row.prompt: row.text_before for row in rows_of(result, "after_all")}
    assert firsts.items() <= lasts.items()


def test_the_base_comes_back_between_sequences(plan: Plan, tmp_path: Path) -> None:
    apart = run(attrs.evolve(plan, limit=4), tmp_path / "apart")
    twos = run(attrs.evolve(plan, scenario="sequential:2", limit=4), tmp_path / "twos")
    one, two = ([unit.patch for unit in r.run.of_stage("after_edit")] for r in (apart, twos))
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, False, True, False]


def test_stacked_patches_are_those_of_single_edits_and_their_conflicts_are_recorded(
    plan: Plan, tmp_path: Path
) -> None:
    twice = [*(record(i) for i in range(3)), record(0, id="other", target_new="Delft")]
    write_requests(Path(plan.dataset.partition(":")[2]), twice)
    single = run(plan, tmp_path / "single")
    stacked = run(attrs.evolve(plan, scenario="stacked"), tmp_path / "stacked")
    assert [u.patch for u in stacked.run.of_stage("after_edit")] == [
        u.patch for u in single.run.units
    ]
    assert rows_of(stacked, "after_edit") == rows_of(single, "after_edit")
    (last,) = stacked.run.of_stage("after_all")
    assert last.conflicts is not None
    assert last.conflicts["counts"] == {"contradiction": 1}
    assert stacked.summary["conflicts"] == {"contradiction": 1}
    together = [row.text_after for row in rows_of(stacked, "after_all")]
    assert together != [row.text_after for row in rows_of(stacked, "after_edit")]


def test_checkpoints_measure_everything_edited_so_far(plan: Plan, tmp_path: Path) -> None:
    result = run(attrs.evolve(plan, scenario="sequential"), tmp_path / "run")
    assert result.run.stages == ("after_edit", "checkpoint:1", "checkpoint:10", "after_all")
    at_ten = {row.request for row in rows_of(result, "checkpoint:10")}
    assert at_ten == set(range(10))
    by_stage = {
        s["stage"]: s["n"]
        for s in result.summary["scores"]
        if (s["metric"], s["protocol"]) == ("reliability", "tf_token")
    }
    assert by_stage == {
        "after_edit": 12, "checkpoint:1": 1, "checkpoint:10": 10, "after_all": 12,
    }  # fmt: skip


def test_costs_are_rows_where_they_are_asked_for(plan: Plan, tmp_path: Path) -> None:
    asked = attrs.evolve(plan, metrics=("reliability", "efficiency_seconds"), limit=2)
    result = run(attrs.evolve(asked, scenario="sequential"), tmp_path / "run")
    costs = [r for r in rows_of(result, "after_edit") if r.metric == "efficiency_seconds"]
    assert [(r.request, r.probe) for r in costs] == [
        (i, name) for i in range(2) for name in ("locate", "compute_delta", "apply")
    ]
    assert all(r.after > 0 for r in costs)


def test_a_corpus_is_measured_once_an_edit(plan: Plan, tmp_path: Path) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("The river runs past the old mill.\n\nIt is early.", encoding="utf-8")
    asked = attrs.evolve(
        plan, metrics=("perplexity_drift",), corpus=str(corpus), limit=3, scenario="sequential"
    )
    result = run(asked, tmp_path / "run")
    assert [row.request for row in rows_of(result, "after_edit")] == [0, 1, 2]
    (whole,) = rows_of(result, "after_all")
    assert whole.before == rows_of(result, "after_edit")[2].before
    assert whole.after == pytest.approx(rows_of(result, "after_edit")[2].after, abs=1e-6)
    with pytest.raises(InvalidParameterError, match="--corpus"):
        run(attrs.evolve(asked, corpus=None), tmp_path / "none")


# -- failures ---------------------------------------------------------------------------------


def test_an_edit_that_fails_is_recorded_and_the_others_go_on(plan: Plan, tmp_path: Path) -> None:
    long = "word " * 200 + "{} is"
    records = [record(0), record(1, subject="Nobody"), record(2), record(3, prompt=long)]
    # The last one is longer than the model's 128 positions.
    write_requests(Path(plan.dataset.partition(":")[2]), records)
    for scenario in ("single", "sequential", "stacked"):
        result = run(attrs.evolve(plan, scenario=scenario), tmp_path / scenario)
        edits = list(result.run.of_stage("after_edit"))
        assert [unit.error and unit.error.code for unit in edits] == [
            None, "EK-E00", None, "EK-R03",
        ]  # fmt: skip
        assert result.summary["failures"] == {"EK-E00": 1, "EK-R03": 1}
        assert (result.summary["edits"], result.summary["failed"]) == (4, 2)
        last = result.run.stages[-1]
        assert {row.request for row in result.run.rows(last)} == {0, 2}


def test_a_mistake_in_the_plan_stops_the_run_before_anything_is_written(
    plan: Plan, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UnknownMethodError):
        run(attrs.evolve(plan, method="nudges"), out)
    with pytest.raises(UnknownParameterError):
        run(attrs.evolve(plan, params={"sise": 1.0}), out)
    with pytest.raises(InputNotFoundError):
        run(attrs.evolve(plan, dataset=f"requests:{tmp_path}/none.jsonl"), out)
    assert not (out / "run.json").exists()


# -- the folder -------------------------------------------------------------------------------


def test_the_folder_of_another_run_is_refused_and_named(plan: Plan, tmp_path: Path) -> None:
    run(attrs.evolve(plan, limit=2), tmp_path / "run")
    with pytest.raises(OutputExistsError) as refused:
        run(attrs.evolve(plan, limit=3, params={"size": 0.1}), tmp_path / "run")
    for words in ("nudge on tiny, requests:facts.jsonl, single", "limit 2 there, 3 here", "params"):
        assert words in str(refused.value)


def test_a_folder_that_holds_no_run_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(OutputExistsError, match=r"mine\.txt"):
        run(plan, tmp_path / "notes")
    with pytest.raises(OutputExistsError, match="is a file"):
        run(plan, tmp_path / "notes" / "mine.txt")


def test_the_same_plan_with_another_model_or_data_of_that_name_is_refused(
    plan: Plan, tmp_path: Path
) -> None:
    small = attrs.evolve(plan, limit=1)
    run(small, tmp_path / "run")
    path = tmp_path / "run" / "rows.jsonl"
    path.write_bytes(b"")  # something is left to do
    other = save_model(tmp_path / "other" / "tiny", seed=1)
    with pytest.raises(OutputExistsError, match="another model of the same name"):
        run(attrs.evolve(small, model=str(other)), tmp_path / "run")
    write_requests(Path(plan.dataset.partition(":")[2]), [record(5)])
    with pytest.raises(OutputExistsError, match="another data set of the same name"):
        run(small, tmp_path / "run")


def test_two_processes_never_write_one_run(plan: Plan, tmp_path: Path) -> None:
    from editkit_core.bench.folder import RunFolder

    held = RunFolder(tmp_path / "run").held()
    with held, pytest.raises(OutputExistsError, match="Another process"):
        run(plan, tmp_path / "run")


@pytest.mark.parametrize("scenario", ["single", "sequential:4", "stacked"])
def test_a_run_stopped_anywhere_ends_with_the_same_rows(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str
) -> None:
    plan = attrs.evolve(plan, scenario=scenario, limit=6)
    whole = run(plan, tmp_path / "whole")
    do, count = steps_module.Bench.do, [0]

    def stopping(self: steps_module.Bench, step: Any) -> Any:
        count[0] += 1
        if count[0] % 3 == 0:
            raise KeyboardInterrupt
        return do(self, step)

    monkeypatch.setattr(steps_module.Bench, "do", stopping)
    stops = 0
    while True:
        try:
            result = run(plan, tmp_path / "stopped")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 2
    assert result.resumed > 0
    assert comparable(result.run) == comparable(whole.run)
    assert result.summary["scores"] == whole.summary["scores"]


def test_a_torn_last_line_is_cut_off_and_done_again(plan: Plan, tmp_path: Path) -> None:
    plan = attrs.evolve(plan, limit=3)
    whole = run(plan, tmp_path / "run")
    path = tmp_path / "run" / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][: len(lines[2]) // 2])
    assert len(read_run(tmp_path / "run").units) == 2
    again = run(plan, tmp_path / "run")
    assert again.resumed == 2
    assert comparable(again.run) == comparable(whole.run)


def test_a_damaged_line_in_the_middle_is_refused(plan: Plan, tmp_path: Path) -> None:
    plan = attrs.evolve(plan, limit=3)
    run(plan, tmp_path / "run")
    path = tmp_path / "run" / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(InputNotFoundError, match="line 2"):
        run(plan, tmp_path / "run")
    path.write_bytes(lines[1] + lines[0])
    with pytest.raises(InputNotFoundError, match="unit 1"):
        run(plan, tmp_path / "run")


def test_a_full_disk_loses_no_finished_unit(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    plan = attrs.evolve(plan, limit=3)
    sync, count = os.fsync, [0]

    def full(handle: int) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr("editkit_core.bench.folder.os.fsync", full)
    with pytest.raises(WriteFailedError, match="No space left"):
        run(plan, tmp_path / "run")
    monkeypatch.undo()
    kept = len(read_run(tmp_path / "run").units)
    assert kept in (0, 1)
    assert (tmp_path / "run" / "rows.jsonl").read_bytes().count(b"\n") == kept


def test_a_finished_run_is_not_done_again(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = attrs.evolve(plan, limit=2)
    first = run(plan, tmp_path / "run")
    monkeypatch.setattr(Editor, "from_pretrained", None)  # the model is not even loaded
    again = run(plan, tmp_path / "run")
    assert again.resumed == 2
    assert again.run.units == first.run.units


# -- replies of the unedited model ------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many asks each state of the model was given, by number of patches on it."""
    counts = [0, 0]
    answered = engine._answered

    def counting(model: Any, asks: Any, *rest: Any) -> Any:
        counts[bool(model.ledger.active)] += len(asks)
        return answered(model, asks, *rest)

    monkeypatch.setattr(engine, "_answered", counting)
    return counts  # type: ignore[return-value]  # a list is what the test wants


def test_the_unedited_model_is_asked_once_for_all_methods_and_stops(
    plan: Plan, tmp_path: Path, asked: list[int]
) -> None:
    shared = tmp_path / "replies"
    first = run(attrs.evolve(plan, limit=4), tmp_path / "one", replies=shared)
    base, edited = asked
    assert 0 < base <= edited
    run(attrs.evolve(plan, limit=4, params={"size": 0.2}), tmp_path / "two", replies=shared)
    assert asked[0] == base
    path = tmp_path / "one" / "rows.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    again = run(attrs.evolve(plan, limit=4), tmp_path / "one", replies=shared)
    assert asked[0] == base
    assert comparable(again.run) == comparable(first.run)


# -- the format -------------------------------------------------------------------------------


def test_every_record_carries_what_its_rows_depend_on(plan: Plan, tmp_path: Path) -> None:
    run(attrs.evolve(plan, limit=2, seed=3), tmp_path / "run")
    meta = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    for line in (tmp_path / "run" / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        facts = record["facts"]
        assert facts["target_policy"] == meta["dataset"]["target_policy"]
        assert facts["seed"] == 3
        assert facts["model"] == meta["model"]["fingerprint"]
        assert facts["patches"] == [record["patch"]]
        assert facts["versions"]["editkit-nudge"] == "1.2"
        assert all({"metric", "protocol", "before", "after"} <= set(r) for r in record["rows"])
        assert set(record["seconds"]) == {"locate", "compute_delta", "apply", "evaluate"}
        assert record["relations"] == ["capital"]


def test_a_run_says_where_it_comes_from_without_folders_of_this_machine(
    plan: Plan, tmp_path: Path
) -> None:
    run(attrs.evolve(plan, limit=1), tmp_path / "run")
    said = (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
    meta = json.loads(said)
    assert str(tmp_path) not in said
    assert meta["spec"] == "editkit.run/1"
    assert (meta["dataset"]["records"], meta["dataset"]["requests"]) == (12, 1)
    assert meta["method"]["params"] == {"size": 0.5}
    assert meta["command"].startswith("editkit bench --model tiny")


def test_a_folder_without_a_run_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="holds no run"):
        read_run(tmp_path)


# -- the estimate -----------------------------------------------------------------------------


def test_an_estimate_counts_the_work_and_times_an_edit(plan: Plan, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = estimate(attrs.evolve(plan, scenario="stacked"))
    # 12 alone, then 1, 10 and 12 together.
    assert (found.records, found.requests, found.edits, found.measured) == (12, 12, 12, 35)
    assert found.seconds is not None
    assert found.seconds > 12 * (found.edit_s or 0) > 0
    parameters = Editor.from_pretrained(plan.model).model.model.num_parameters()
    assert found.weights_bytes == 4 * parameters
    assert found.peak_bytes > found.weights_bytes
    assert sorted(tmp_path.rglob("*")) == before


def test_an_estimate_says_why_it_cannot_time_an_edit(plan: Plan) -> None:
    path = Path(plan.dataset.partition(":")[2])
    write_requests(path, [record(0, subject="Nobody")])
    found = estimate(plan)
    assert found.seconds is None
    assert "EK-E00" in found.why

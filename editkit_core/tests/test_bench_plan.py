from __future__ import annotations

import shlex
from pathlib import Path

import attrs
import pytest

from editkit_core.bench import Plan, read_sweep
from editkit_core.cli import editkit
from editkit_core.errors import (
    InputNotFoundError,
    InvalidParameterError,
    UnknownParameterError,
)

PLAN = Plan(model="editkit:demo", dataset="demo:3")


def sweep(tmp_path: Path, text: str) -> dict[str, Plan]:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return dict(read_sweep(path).plans)


def test_the_digest_is_of_what_the_numbers_depend_on() -> None:
    for same in ({"rows": 7}, {"device": "cuda"}, {"keep_patches": True}):
        assert attrs.evolve(PLAN, **same).digest == PLAN.digest
    for other in ({"seed": 1}, {"limit": 2}, {"scenario": "stacked"}, {"params": {"v_steps": 3}}):
        assert attrs.evolve(PLAN, **other).digest != PLAN.digest


def test_the_digest_does_not_depend_on_where_files_lie() -> None:
    here = Plan(model="/data/models/tiny", dataset="zsre:/data/zsre.json", corpus="/data/a.txt")
    there = Plan(model="./tiny", dataset="zsre:zsre.json", corpus="a.txt")
    assert here.digest == there.digest
    assert "/data" not in str(here.public())


def test_the_command_of_a_plan_is_one_the_command_line_understands() -> None:
    plan = Plan(
        model="editkit:demo",
        dataset="demo:3",
        scenario="batch:2",
        params={"v_steps": 5},
        metrics=("locality", "reliability"),
        strict=True,
    )
    words = shlex.split(plan.command())
    assert words[:2] == ["editkit", "bench"]
    command = editkit.get_command(editkit.make_context("editkit", ["bench"]), "bench")
    assert command is not None
    given = command.make_context("bench", words[2:]).params
    assert (given["model"], given["dataset"], given["scenario"]) == (
        "editkit:demo", "demo:3", "batch:2",
    )  # fmt: skip
    assert given["assignments"] == ("v_steps=5",)
    assert given["metrics"] == "locality,reliability"
    assert given["strict"] is True


@pytest.mark.parametrize(
    "wrong",
    [{"limit": 0}, {"seed": -1}, {"rows": 0}, {"scenario": "twice"}, {"protocols": ("tf",)},
     {"metrics": ()}],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidParameterError):
        attrs.evolve(PLAN, **wrong)


def test_a_plan_comes_back_from_its_plain_values() -> None:
    assert Plan.of(attrs.asdict(PLAN)) == PLAN


def test_an_unknown_setting_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UnknownParameterError, match="Did you mean 'scenario'"):
        Plan.of({"model": "m", "dataset": "d", "scenari": "single"})


def test_a_sweep_is_every_combination(tmp_path: Path) -> None:
    plans = sweep(
        tmp_path,
        "models: [editkit:demo, {model: /m/gpt2, dtype: bfloat16}]\n"
        "methods: [rome, {name: old, method: rome, params: {variant: rome}}]\n"
        "datasets: demo:3\nseeds: [0, 1]\nlimit: 2\n",
    )
    assert len(plans) == 8
    old = plans["gpt2_old_demo-3_single_seed-1"]
    assert (old.model, old.dtype, old.params) == ("/m/gpt2", "bfloat16", {"variant": "rome"})
    assert (old.limit, old.seed) == (2, 1)
    assert plans["demo_rome_demo-3_single_seed-0"].dtype is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: a\ndatasets: demo\nmethod: rome\n", "methods"),
        ("models: a\n", "names no datasets"),
        ("models: []\ndatasets: demo\n", "is empty"),
        ("models: a\ndatasets: demo\nmethods: [rome, rome]\n", "Tell their models or methods"),
        ("models: [{dtype: float32}]\ndatasets: demo\n", "has no 'model'"),
        ("models: a\ndatasets: demo\nscenarios: thrice\n", "no scenario 'thrice'"),
        ("models: a\ndatasets: demo\nlimit: many\n", "limit"),
    ],
)
def test_a_sweep_that_does_not_fit_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises((InvalidParameterError, UnknownParameterError), match=says):
        sweep(tmp_path, text)


def test_a_missing_sweep_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"none\.yaml"):
        read_sweep(tmp_path / "none.yaml")

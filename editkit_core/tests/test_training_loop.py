"""The loop: it learns, and leaves everything but the learner as it was."""

from __future__ import annotations

import csv
import logging
import math
import random
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from training_toys import SCHEDULE, Nudger, data, request, run, tiny

from editkit_core.errors import (
    CheckpointError,
    InvalidParameterError,
    OutputExistsError,
    TrainingDivergedError,
    TrainingError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch.artifact import EditorArtifact
from editkit_core.testing.patches import random_patch
from editkit_core.training import EditExamples, Schedule, TrainBatch, checkpoint


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny()


def weights(learner: Nudger) -> torch.Tensor:
    return learner.net.map.weight.detach().clone()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_trained_editor_edits_subjects_it_never_saw(model: EditableModel) -> None:
    schedule = Schedule(steps=120, batch=2, accumulate=2, clip=1.0, validate_every=40)
    result = run(model, Nudger(model), schedule=schedule)
    assert result.metrics["reliability"] >= 0.9
    assert result.metrics["generalization"] >= 0.9
    held = result.artifact.training.split
    assert (held["how"], held["requests"]) == ("by subject", 4)


def test_training_leaves_the_model_and_the_random_state_as_they_were(model: EditableModel) -> None:
    learner = Nudger(model)
    weights_before = model.state_digest()
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    run(model, learner)
    assert model.state_digest() == weights_before
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert not model.model.training
    assert all(p.grad is None and not p.requires_grad for p in model.model.parameters())
    assert model.module("transformer.h.2")._forward_hooks == {}


def test_equal_seeds_train_equal_weights_and_another_seed_others(model: EditableModel) -> None:
    one, two, other = Nudger(model), Nudger(model), Nudger(model)
    first = run(model, one, validation_share=0.0).artifact
    torch.rand(5)  # what was drawn before does not count
    again = run(model, two, validation_share=0.0).artifact
    assert again.content_digest == first.content_digest
    assert torch.equal(weights(one), weights(two))
    run(model, other, seed=4, validation_share=0.0)
    assert not torch.equal(weights(one), weights(other))


def test_accumulating_two_batches_is_one_batch_of_both(model: EditableModel) -> None:
    apart, together = Nudger(model, dropout=0.0), Nudger(model, dropout=0.0)
    split = {"validation_share": 0.0}
    run(model, apart, schedule=attrs.evolve(SCHEDULE, steps=3, batch=1, accumulate=4), **split)
    run(model, together, schedule=attrs.evolve(SCHEDULE, steps=3, batch=4, accumulate=1), **split)
    assert weights(apart).abs().max() > 0.01
    torch.testing.assert_close(weights(apart), weights(together), rtol=1e-4, atol=1e-6)


def test_one_update_is_a_step_of_adam_on_the_clipped_mean_gradient(model: EditableModel) -> None:
    learner = Nudger(model, dropout=0.0, lr=0.01)
    schedule = Schedule(steps=1, batch=2, accumulate=3, clip=0.5, validate_every=0)
    run(model, learner, schedule=schedule, validation_share=0.0)
    twin = Nudger(model, dropout=0.0, lr=0.01)
    examples = EditExamples(requests=data().requests, seed=3, retarget="relation").take(0, 6)
    twin.loss(TrainBatch(examples=examples, number=0))["total"].backward()
    gradient = twin.net.map.weight.grad
    assert gradient is not None
    gradient = gradient * min(1.0, 0.5 / float(gradient.norm()))
    expected = -0.01 * gradient / (gradient.abs() + 1e-8)  # Adam's first step, bias corrected
    torch.testing.assert_close(weights(learner), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("decay", "step", "factor"),
    [
        ("none", 0, 0.25), ("none", 3, 1.0), ("none", 99, 1.0),
        ("linear", 4, 1.0), ("linear", 52, 0.5),
        ("cosine", 4, 1.0), ("cosine", 52, 0.5), ("cosine", 28, (1 + math.cos(math.pi / 4)) / 2),
    ],
)  # fmt: skip
def test_learning_rates_rise_and_fall_as_the_schedule_says(
    decay: str, step: int, factor: float
) -> None:
    schedule = Schedule(steps=100, warmup=4, decay=decay)  # type: ignore[arg-type]  # a word of it
    assert schedule.factor(step) == pytest.approx(factor)


def test_training_ends_when_validation_does_not_get_better(model: EditableModel) -> None:
    schedule = attrs.evolve(SCHEDULE, steps=50, validate_every=2, patience=3)
    result = run(model, Nudger(model, lr=1e-9), schedule=schedule)
    assert (result.stopped, result.steps) == ("patience", 6)  # at 0 the best, at 2, 4, 6 no better
    assert result.artifact.training.steps == 0


def test_the_best_weights_are_kept_not_the_last(model: EditableModel, tmp_path: Path) -> None:
    schedule = Schedule(steps=60, batch=2, accumulate=2, clip=1.0, validate_every=10)
    learner = Nudger(model, lr=0.1)
    result = run(model, learner, schedule=schedule, folder=tmp_path)
    seen = [(float(row["score"]), -int(row["step"])) for row in rows(tmp_path / "validation.csv")]
    score, step = max(seen)
    assert result.metrics["score"] == score
    assert result.artifact.training.steps == -step
    kept = torch.from_numpy(np.array(result.artifact.tensors["map"]))
    assert torch.equal(kept, weights(learner))


def test_training_ends_when_its_time_is_over(model: EditableModel) -> None:
    result = run(model, Nudger(model), max_minutes=0)
    assert (result.stopped, result.steps) == ("minutes", 0)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_weights(
    model: EditableModel, tmp_path: Path
) -> None:
    learner = Nudger(model)
    learner.poison = 11  # in update 6, with two batches an update
    with pytest.raises(TrainingDivergedError) as caught:
        run(model, learner, folder=tmp_path, checkpoint_every=2)
    error = caught.value
    assert (error.facts["step"], len(error.facts["examples"])) == (5, 2)  # type: ignore[arg-type]
    kept = checkpoint.read(tmp_path / "checkpoint.safetensors")
    assert kept.counters.step == 5
    good = Nudger(model)
    run(model, good, schedule=attrs.evolve(SCHEDULE, steps=5, validate_every=0))
    assert torch.equal(kept.weights["map.weight"], weights(good))
    message = str(error)
    for part in ("update 6", "the loss is nan", "knows the", str(tmp_path), "--max-minutes 0"):
        assert part in message
    ended = run(model, Nudger(model), folder=tmp_path, max_minutes=0)
    assert ended.steps == 5
    assert EditorArtifact.load(tmp_path).id == ended.artifact.id


def test_a_gradient_that_is_not_finite_stops_too(model: EditableModel) -> None:
    learner = Nudger(model)
    learner.net.map.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingDivergedError, match="gradients' norm is"):
        run(model, learner)
    assert torch.isfinite(weights(learner)).all()


def test_the_numbers_of_every_update_are_in_a_table(model: EditableModel, tmp_path: Path) -> None:
    run(model, Nudger(model), folder=tmp_path)
    found = rows(tmp_path / "training.csv")
    assert [row["step"] for row in found] == [str(i) for i in range(1, 13)]
    assert list(found[0]) == ["step", "total", "weight", "gradient_norm", "rate_factor", "seconds"]
    assert [float(row["rate_factor"]) for row in found[:3]] == [0.5, 1.0, 1.0]
    validated = rows(tmp_path / "validation.csv")
    assert [row["step"] for row in validated] == ["0", "4", "8", "12"]


def test_tensorboard_reads_what_was_logged(model: EditableModel, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(model, Nudger(model), folder=tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    logged = [event.value for event in board.Scalars("training/total")]
    expected = [float(row["total"]) for row in rows(tmp_path / "training.csv")]
    assert logged == pytest.approx(expected, rel=1e-6)
    assert [event.step for event in board.Scalars("validation/score")] == [0, 4, 8, 12]


def test_without_a_folder_nothing_is_written(
    model: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(model, Nudger(model))
    assert list(tmp_path.iterdir()) == []


def test_subjects_that_are_trained_and_validated_on_are_told_by_name(
    model: EditableModel, caplog: pytest.LogCaptureFixture
) -> None:
    shared = attrs.evolve(data(), requests=(request(1), request(3)))
    with caplog.at_level(logging.WARNING, "editkit"):
        result = run(model, Nudger(model), validation=shared)
    assert "2 subjects are in the training set and in the validation set: Japan, Peru" in (
        caplog.text
    )
    assert result.artifact.training.overlap == ("Japan", "Peru")


def test_patches_on_the_model_are_refused(model: EditableModel) -> None:
    from editkit_core.patch.apply import apply_patch

    with (
        apply_patch(model, random_patch(model)),
        pytest.raises(TrainingError, match="1 patches are on"),
    ):
        run(model, Nudger(model))


def test_an_empty_data_set_is_refused(model: EditableModel) -> None:
    with pytest.raises(TrainingError, match="nothing to train on"):
        run(model, Nudger(model), dataset=data(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"batch": 0}, {"accumulate": True}, {"clip": 0.0}, {"clip": math.nan},
        {"optimizer": "sgd"}, {"decay": "step"}, {"patience": 0}, {"weight_decay": -1.0},
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        Schedule(**{"steps": 3, **wrong})  # type: ignore[arg-type]  # wrong on purpose
    assert next(iter(wrong)) in str(caught.value)


def test_the_folder_of_something_else_is_refused(model: EditableModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match=r"holds thesis\.txt"):
        run(model, Nudger(model), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_another_process_trains_in_is_refused(
    model: EditableModel, tmp_path: Path
) -> None:
    import filelock

    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(OutputExistsError, match="Another process is training"),
    ):
        run(model, Nudger(model), folder=tmp_path)


def test_the_folder_of_another_run_is_refused_naming_the_difference(
    model: EditableModel, tmp_path: Path
) -> None:
    run(model, Nudger(model), folder=tmp_path)
    other = attrs.evolve(SCHEDULE, clip=2.0)
    with pytest.raises(CheckpointError, match=r"schedule.clip: 1.0 there, 2.0 here") as caught:
        run(model, Nudger(model), folder=tmp_path, schedule=other, seed=4)
    assert 'seed: "3" there, "4" here' in str(caught.value)
    result = run(model, Nudger(model), folder=tmp_path, schedule=other, fresh=True)
    assert result.resumed_at == 0

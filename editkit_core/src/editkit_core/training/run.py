"""A training run as a whole: its data, its folder, the loop, and the artifact it ends with.

The folder of a run holds ``run.json`` (what the run depends on), ``checkpoint.safetensors``,
``training.csv`` and ``validation.csv``, TensorBoard's files where that is installed, and at the end
``editor.safetensors``. Started again on the same folder, a run goes on from its checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from editkit_core.data.dataset import DataSet
from editkit_core.errors import EditkitError, TrainingDivergedError, TrainingError
from editkit_core.patch.artifact import Array, EditorArtifact, TrainingRecord
from editkit_core.patch.header import BaseFingerprint, JsonValue, MethodRef
from editkit_core.training import checkpoint as checkpoints
from editkit_core.training.checkpoint import Checkpoint, Counters
from editkit_core.training.data import EditExamples, Retarget
from editkit_core.training.folder import CHECKPOINT, EDITOR, held, resumed
from editkit_core.training.learner import Learner
from editkit_core.training.logs import Logs
from editkit_core.training.loop import Loop
from editkit_core.training.material import MOST_NAMED, Material, requests_digest
from editkit_core.training.options import Schedule, TrainingOptions
from editkit_core.training.processes import Processes
from editkit_core.training.randomness import own_randomness
from editkit_core.training.validation import Validation
from editkit_core.types import EditContext, Progress, SilentProgress

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["TrainResult", "train"]

_TOLD = logging.getLogger("editkit")


@attrs.frozen(kw_only=True)
class TrainResult:
    """A finished training.

    Attributes:
        artifact: The editor.
        steps: Updates done.
        resumed_at: The update that this start went on from; 0 for a new run.
        stopped: Why it ended: ``steps``, ``patience`` or ``minutes``.
        seconds: Wall-clock seconds, all starts together.
        metrics: Validation scores of the weights that are kept, empty without validation.
    """

    artifact: EditorArtifact
    steps: int
    resumed_at: int
    stopped: str
    seconds: float
    metrics: Mapping[str, float]


def train(
    learner: Learner,
    dataset: DataSet,
    schedule: Schedule,
    *,
    model: EditableModel,
    context: EditContext,
    method: MethodRef,
    params: Mapping[str, JsonValue],
    base: BaseFingerprint,
    retarget: Retarget = "as_given",
) -> TrainResult:
    """Train a learner and make an editor of it; the model is left as it is.

    Args:
        learner: What is trained, for this model.
        dataset: What it learns from; some subjects are set apart to validate on unless
            ``context.training`` brings requests for that.
        schedule: How it learns.
        model: The base, without patches.
        context: Its seed decides every random choice; its ``training`` says where the run is kept
            and when it ends.
        method: Who trains, for the artifact.
        params: The method's parameters as plain JSON values.
        base: The base's fingerprint, over every weight that the editor edits.
        retarget: See `EditExamples`.

    Raises:
        TrainingDivergedError: A loss or gradient is not finite; it says where, and what is kept.
        CheckpointError: The folder's checkpoint is damaged or of another run.
        OutputExistsError: The folder holds something else, or another process trains in it.
        TrainingError: There is nothing to train on.
        MissingExtraError: accelerate is not installed.
    """
    _refuse_patched(model)
    options = context.training or TrainingOptions()
    processes = Processes()
    data = Material.of(dataset, options, context.seed)
    if processes.is_main:
        data.tell()
    run = _run(data, schedule, context.seed, method, params, base, retarget)
    with held(options.folder, processes) as folder, own_randomness():
        found = resumed(folder, run, options, processes)
        start = 0 if found is None else found.counters.step
        logs = Logs(folder if processes.is_main else None, start, options.tensorboard)
        try:
            loop = Loop(
                learner=learner,
                examples=EditExamples(
                    requests=data.training.requests, seed=context.seed, retarget=retarget
                ),
                schedule=schedule,
                seed=context.seed,
                device=model.device,
                processes=processes,
                validation=_validation(model, data, processes, context.progress),
                run=run,
                keep=_keeper(folder),
                keep_every=options.checkpoint_every,
                max_seconds=None if options.max_minutes is None else 60 * options.max_minutes,
                logs=logs,
                progress=context.progress if processes.is_main else SilentProgress(),
            )
            if found is not None:
                loop.restore(found)
                if processes.is_main:
                    _TOLD.info("Training goes on after update %d.", start)
            try:
                stopped = loop.go()
            except TrainingDivergedError as error:
                raise _with_remedy(error, folder) from error
        finally:
            logs.close()
        artifact = EditorArtifact.from_parts(
            method=method,
            base=base,
            params=params,
            tensors={name: _array(tensor) for name, tensor in learner.export().items()},
            training=_record(data, schedule, context.seed, retarget, loop.counters, stopped),
            subjects=(request.subject for request in data.training.requests),
        )
        if folder is not None and processes.is_main:
            artifact.save(folder / EDITOR, overwrite=True)
        processes.wait()
    return TrainResult(
        artifact=artifact,
        steps=loop.counters.step,
        resumed_at=start,
        stopped=stopped,
        seconds=loop.counters.seconds,
        metrics=dict(loop.counters.best),
    )


def _refuse_patched(model: EditableModel) -> None:
    if model.ledger.active:
        raise TrainingError(
            f"{len(model.ledger.active)} patches are on {model.name}. An editor is trained for a "
            "base: take them off first, or materialise them and train for that."
        )


def _validation(
    model: EditableModel, data: Material, processes: Processes, progress: Progress
) -> Validation | None:
    if not data.validation:
        return None
    return Validation(
        model,
        data.validation,
        processes,
        progress if processes.is_main else SilentProgress(),
    )


# -- what a run is ----------------------------------------------------------------------------


def _run(
    data: Material,
    schedule: Schedule,
    seed: int,
    method: MethodRef,
    params: Mapping[str, JsonValue],
    base: BaseFingerprint,
    retarget: Retarget,
) -> dict[str, Any]:  # Any: JSON values
    """Return what the weights depend on, as plain JSON values."""
    made = {
        "method": attrs.asdict(method),
        "params": dict(params),
        "schedule": attrs.asdict(schedule),
        "retarget": retarget,
        "seed": str(seed),
        "base": {
            "model": base.model,
            "tensors": {name: tensor.sha256 for name, tensor in base.tensors.items()},
        },
        "dataset": {
            "source": f"{data.whole.name}: {data.whole.source}",
            "digest": data.whole.digest,
            "requests": len(data.training.requests),
            "requests_digest": requests_digest(data.training.requests),
        },
        "validation": dict(data.split),
    }
    plain: dict[str, Any] = json.loads(json.dumps(made))  # Any: JSON values
    return plain


def _record(
    data: Material,
    schedule: Schedule,
    seed: int,
    retarget: Retarget,
    counters: Counters,
    stopped: str,
) -> TrainingRecord:
    return TrainingRecord(
        steps=counters.best_step if counters.best else counters.step,
        dataset=f"{data.whole.name}: {data.whole.source}",
        dataset_digest=data.whole.digest,
        requests=len(data.training.requests),
        split=data.split,
        seed=seed,
        metrics=dict(counters.best),
        schedule={**attrs.asdict(schedule), "retarget": retarget},
        overlap=data.shared[:MOST_NAMED],
        stopped=stopped,
    )


def _array(tensor: Tensor) -> Array:
    """Return a tensor as numpy has it; bfloat16, which numpy lacks, as float32."""
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def _keeper(folder: Path | None) -> Callable[[Checkpoint], None]:
    def keep(checkpoint: Checkpoint) -> None:
        if folder is not None:
            checkpoints.write(folder / CHECKPOINT, checkpoint)

    return keep


def _with_remedy(error: TrainingDivergedError, folder: Path | None) -> EditkitError:
    """Say where the last good weights are, and what to do."""
    kept = (
        f": {folder / CHECKPOINT}. The same command with --max-minutes 0 makes an editor of them"
        if folder is not None
        else ", and no folder was given to keep them in"
    )
    return TrainingDivergedError(
        f"{error.message}{kept}. To train further, start again with a smaller learning rate or "
        "clip the gradients.",
        **{**error.facts, "checkpoint": None if folder is None else folder / CHECKPOINT},
    )

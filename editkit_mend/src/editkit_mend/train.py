"""Training an editor, by the core's loop."""

from __future__ import annotations

import attrs

from editkit_core import EditableModel, EditContext
from editkit_core.data.dataset import DataSet
from editkit_core.params import unstructure
from editkit_core.patch.artifact import EditorArtifact
from editkit_core.training import Schedule, TrainingOptions, split_by_subject
from editkit_core.training import train as train_learner
from editkit_mend.editor import method_ref, target_fingerprint
from editkit_mend.learner import MendLearner
from editkit_mend.params import MendParams


def train(
    model: EditableModel, dataset: DataSet, params: MendParams, context: EditContext
) -> EditorArtifact:
    """Train an editor for a model on a data set.

    Raises:
        TrainingError: The data set has no requests, or training cannot go on.
        LayerOutOfRangeError: The parameters name a layer that the model lacks.
    """
    learner = MendLearner(model, _learned(dataset, context).requests, params, context.seed)
    result = train_learner(
        learner,
        dataset,
        schedule(params),
        model=model,
        context=context,
        method=method_ref(),
        params=unstructure(params),
        base=target_fingerprint(model, learner.networks),
        retarget=params.retarget,
    )
    return result.artifact


def schedule(params: MendParams) -> Schedule:
    """Return how the core's loop is to go."""
    return Schedule(
        steps=params.steps,
        batch=params.batch,
        accumulate=params.accumulate,
        clip=params.clip,
        optimizer="adam",
        warmup=params.warmup,
        decay=params.decay,
        validate_every=params.validate_every,
        patience=params.patience,
    )


def _learned(dataset: DataSet, context: EditContext) -> DataSet:
    """Return the requests the loop will train on: all but those it sets apart to validate on."""
    options = context.training or TrainingOptions()
    if options.validation is not None:
        return dataset
    kept, _ = split_by_subject(dataset, options.validation_share, context.seed)
    return kept if kept.requests else attrs.evolve(dataset)

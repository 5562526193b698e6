"""Training editors: data, the loop, checkpoints, validation, logs.

A method that trains implements `Learner` and calls `train` in its ``editkit_train``. Importing this
package imports neither torch nor accelerate; names are loaded when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editkit_core.training.data import EditExample, EditExamples, overlap, split_by_subject
    from editkit_core.training.learner import Learner, TrainBatch, World
    from editkit_core.training.options import Schedule, TrainingOptions
    from editkit_core.training.run import TrainResult, train

_HOMES = {
    "EditExample": "data",
    "EditExamples": "data",
    "Learner": "learner",
    "Schedule": "options",
    "TrainBatch": "learner",
    "TrainResult": "run",
    "TrainingOptions": "options",
    "World": "learner",
    "overlap": "data",
    "split_by_subject": "data",
    "train": "run",
}
__all__ = [
    "EditExample",
    "EditExamples",
    "Learner",
    "Schedule",
    "TrainBatch",
    "TrainResult",
    "TrainingOptions",
    "World",
    "overlap",
    "split_by_subject",
    "train",
]


def __getattr__(name: str) -> Any:  # Any: the public names have many types
    """Import a public name from its home module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

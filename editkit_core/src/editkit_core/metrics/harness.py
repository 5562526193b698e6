"""Downstream damage through lm-evaluation-harness, an optional dependency.

The edited model is handed over as it is in memory, side paths and all, so the scores are the
harness's own and compare with published ones. The extra ``[harness]`` brings some forty
distributions (0.6 GB), so nothing else of editkit uses it.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import resources
from io import StringIO
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from editkit_core.errors import InvalidParameterError, MissingExtraError
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.metric import MetricInfo
from editkit_core.metrics.report import Row

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch

__all__ = ["Harness", "Scores", "harness", "lm_eval_scores", "tiny_task_records"]

TINY_TASK = "editkit_tiny"
Scores: TypeAlias = Mapping[tuple[str, str], float]
"""Shares by (task, name of the harness's metric)."""


@attrs.frozen
class Harness:
    """Runs tasks before and after the edit.

    Attributes:
        info: What the metric is.
        score: Runs the named tasks on a model.
    """

    info: MetricInfo
    score: Callable[[EditableModel, Sequence[str]], Scores]

    def measure(
        self, model: EditableModel, patch: Patch | None, context: MetricContext
    ) -> Iterator[Row]:
        """Give one row a task and metric of the harness.

        Raises:
            MissingExtraError: lm-evaluation-harness is not installed.
            InvalidParameterError: It has no such task.
        """
        from editkit_core.patch.apply import apply_patch

        tasks = context.tasks or (TINY_TASK,)
        before = after = self.score(model, tasks)
        if patch is not None:
            with apply_patch(model, patch):
                after = self.score(model, tasks)
        for (task, name), value in before.items():
            yield Row(
                request=context.first,
                metric=self.info.name,
                probe=f"{task}/{name}",
                protocol="run",
                prompt="",
                expected="",
                before=value,
                after=after[task, name],
            )


def lm_eval_scores(model: EditableModel, tasks: Sequence[str]) -> dict[tuple[str, str], float]:
    """Run tasks of lm-evaluation-harness; only shares of which more is better are returned.

    The global random states are left as they were.

    Raises:
        MissingExtraError: It is not installed.
        InvalidParameterError: It has no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError(
            "The metric harness needs lm-evaluation-harness, which is not installed. Install it: "
            "pip install 'editkit-core[harness]'",
            extra="harness",
        ) from error

    with _quiet(), _same_random_state():
        manager = TaskManager(include_defaults=any(task != TINY_TASK for task in tasks))
        unknown = [task for task in tasks if task != TINY_TASK and task not in manager.all_tasks]
        if unknown:
            raise InvalidParameterError(
                f"lm-evaluation-harness has no task {unknown[0]!r}. Known: lm-eval ls tasks; our "
                f"own small one is {TINY_TASK!r}.",
                task=unknown[0],
            )
        found = simple_evaluate(
            model=HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=16),
            tasks=[_tiny_task() if task == TINY_TASK else task for task in tasks],
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=False,
        )
    assert found is not None  # only a worker other than the first gets None
    return dict(_shares(found))


def tiny_task_records() -> list[dict[str, Any]]:  # Any: JSON values
    """Return the questions of our own task; the right choice is never the first."""
    file = resources.files("editkit_core.metrics") / "harness_tasks" / f"{TINY_TASK}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _tiny_task() -> dict[str, Any]:  # Any: lm-eval's own configuration
    def made(**_: object) -> Any:  # Any: a datasets.DatasetDict, of an optional dependency
        import pyarrow
        from datasets import Dataset, DatasetDict

        table = pyarrow.Table.from_pylist(tiny_task_records())
        # Named, for otherwise datasets pickles the table, which fails with some versions of it.
        return DatasetDict({"test": Dataset(table, fingerprint=TINY_TASK)})

    return {
        "task": TINY_TASK,
        "custom_dataset": made,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _shares(found: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    for task, values in found["results"].items():
        better = found["higher_is_better"].get(task, {})
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            if better.get(metric) and isinstance(value, float) and 0 <= value <= 1:
                yield (task, metric if filtered == "none" else name), value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's warnings about models in memory and its bars off the terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _same_random_state() -> Iterator[None]:
    import numpy as np
    import torch

    plain, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpy)


def harness() -> Harness:
    """How does the model do on tasks that have nothing to do with the edit? Unit: share.

    Every accuracy-like metric of the named lm-evaluation-harness tasks. Source: Gao et al.,
    lm-evaluation-harness; damage after edits as in arXiv:2401.07453.
    """
    return Harness(
        MetricInfo(
            name="harness",
            title="Scores on lm-evaluation-harness tasks",
            protocols=("run",),
            source="lm-evaluation-harness (Gao et al.); damage by edits as in arXiv:2401.07453",
            definition="The harness's own accuracy-like metrics, by task",
            needs=("the extra [harness]",),
        ),
        lm_eval_scores,
    )

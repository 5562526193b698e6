"""Doing a run: load, ask the unedited model, then one step after the other, each written down.

Started again on the same folder, a run goes on after its last finished unit and ends with the same
rows: everything in a step depends on the plan and the patches before it alone, and those that later
steps need are kept in the folder.
"""

from __future__ import annotations

import datetime
import logging
import os
import platform
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from editkit_core.bench.baseline import Baseline
from editkit_core.bench.folder import (
    REPLIES,
    SPEC,
    RunFolder,
    refuse_another,
    refuse_other_input,
)
from editkit_core.bench.plan import Plan
from editkit_core.bench.reading import Run, read_run
from editkit_core.bench.scenario import Scenario, Step
from editkit_core.bench.summary import summarise
from editkit_core.data import DataSet, load_dataset
from editkit_core.errors import InvalidParameterError
from editkit_core.host import Host
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.metric import AnyMetric, DerivedMetric
from editkit_core.metrics.registry import load_metrics
from editkit_core.types import EditRequest, Progress, SilentProgress

if TYPE_CHECKING:
    from editkit_core.api import Editor
    from editkit_core.metrics.judge import Judge
    from editkit_core.patch.artifact import EditorArtifact

__all__ = ["RunResult", "Work", "run"]

_SUBJECTS_NAMED = 20
JUDGE_KEY = "EDITKIT_JUDGE_KEY"
_SOFTWARE = ("editkit-core", "torch", "transformers", "tokenizers", "safetensors", "numpy")


@attrs.frozen(kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: Where it is.
        run: What is in it.
        summary: What ``summary.json`` says.
        resumed: How many units were there already.
    """

    folder: Path
    run: Run = attrs.field(repr=False)
    summary: dict[str, Any] = attrs.field(repr=False)  # Any: JSON values
    resumed: int


@attrs.frozen(kw_only=True)
class Work:
    """A plan with its data set and metrics loaded, and no model yet.

    Attributes:
        plan: The plan.
        host: Where plugins come from.
        dataset: The data set.
        requests: Its requests; those that are edited together follow one another.
        steps: The work.
        metrics: What is measured.
        context: The metrics' settings.
        method: The method's distribution and version.
        trained: The editor the method edits with, where it trains.
    """

    plan: Plan
    host: Host
    dataset: DataSet = attrs.field(repr=False)
    requests: tuple[EditRequest, ...] = attrs.field(repr=False)
    steps: tuple[Step, ...] = attrs.field(repr=False)
    metrics: tuple[AnyMetric, ...]
    context: MetricContext = attrs.field(repr=False)
    method: tuple[str, str]
    trained: EditorArtifact | None = attrs.field(default=None, repr=False)

    @classmethod
    def load(cls, plan: Plan, host: Host | None = None) -> Work:
        """Load all but the model, so that what is wrong is told before that.

        Raises:
            EditkitError: Method, metric, data set or corpus cannot be used; see the code.
        """
        from editkit_core.numerics.corpus import read_corpus

        host = host or Host()
        _, _, found = host.load_method(plan.method)
        trained = None if plan.editor is None else _trained(plan.editor)
        metrics = load_metrics(plan.metrics, host)
        if plan.corpus is None and any("corpus" in metric.info.needs for metric in metrics):
            names = [metric.info.name for metric in metrics if "corpus" in metric.info.needs]
            raise InvalidParameterError(
                f"{names[0]} is measured on a text, and none was given. Name a file with --corpus, "
                "or leave the metric out.",
                metric=names[0],
            )
        dataset = load_dataset(
            plan.dataset,
            form=plan.form,
            limit=plan.limit,
            seed=plan.seed,
            strict=plan.strict,
            target_policy=plan.target_policy,
            host=host,
        )
        groups = dataset.groups
        return cls(
            plan=plan,
            host=host,
            dataset=dataset,
            requests=tuple(request for group in groups for request in group),
            steps=Scenario.parse(plan.scenario).steps(list(map(len, groups))),
            metrics=metrics,
            context=MetricContext(
                seed=plan.seed,
                protocols=plan.protocols,
                corpus=None if plan.corpus is None else read_corpus(Path(plan.corpus)),
                tasks=plan.tasks,
                judge=_judge(plan),
            ),
            method=(found.dist, found.version),
            trained=trained,
        )

    @property
    def derived(self) -> tuple[DerivedMetric, ...]:
        """The metrics that are computed from the means of others."""
        return tuple(metric for metric in self.metrics if isinstance(metric, DerivedMetric))

    def open(self) -> Editor:
        """Load the model, and check the method's parameters for it.

        Raises:
            ModelError: It cannot be used.
            ParamsError: The parameters do not fit.
        """
        import torch

        from editkit_core.api import Editor

        plan = self.plan
        if plan.dtype is not None and not isinstance(getattr(torch, plan.dtype, None), torch.dtype):
            raise InvalidParameterError(
                f"There is no dtype {plan.dtype!r}. Use float32, bfloat16 or float16.",
                dtype=plan.dtype,
            )
        editor = Editor.from_pretrained(
            plan.model,
            dtype=plan.dtype,
            device=plan.device,
            device_map=plan.device_map,
            revision=plan.revision,
            host=self.host,
        )
        editor.check_trained(plan.method, self.trained)
        editor.resolve_params(plan.method, plan.params, plan.preset, self.trained)
        return editor

    def about_editor(self) -> dict[str, Any] | None:  # Any: JSON values
        """Return what ``run.json`` says about the trained editor, if there is one."""
        if self.trained is None:
            return None
        seen = self.trained.trained_on(self.requests)
        return {
            "id": self.trained.id,
            "digest": self.trained.content_digest,
            "dataset": self.trained.training.dataset,
            "trained_on": list(seen[:_SUBJECTS_NAMED]),
            "trained_on_count": len(seen),
        }

    def about_data(self) -> dict[str, Any]:  # Any: JSON values
        """Return what ``run.json`` says about the data set."""
        data = self.dataset
        return {
            "name": data.name,
            "form": data.form,
            "digest": data.digest,
            "source": data.source,
            "target_policy": data.target_policy,
            "records": data.records,
            "requests": len(self.requests),
            "skipped": dict(Counter(skip.code or skip.reason for skip in data.skipped)),
            "left_out": len(data.left_out),
            "detected": data.detected,
        }

    def versions(self) -> dict[str, str]:
        """Return the versions of the software that the numbers come from."""
        found = {name: metadata.version(name) for name in _SOFTWARE}
        return {**found, self.method[0]: self.method[1], "python": platform.python_version()}


def run(
    plan: Plan,
    out: str | Path,
    *,
    replies: str | Path | None = None,
    host: Host | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Do a run, or the rest of it.

    Args:
        plan: What to do.
        out: The run's folder; a new one, or one that this plan was begun in.
        replies: Folder of the unedited models' replies; by default one in the run's folder.
        host: Where plugins come from.
        progress: Where long work reports to.

    Raises:
        OutputExistsError: The folder holds something else, or another process writes into it.
        EditkitError: Model, method, data set or parameters cannot be used; see the code. An edit
            that fails is recorded instead, and the run goes on.
    """
    progress = progress or SilentProgress()
    folder = RunFolder(Path(out))
    there = folder.meta()
    if there is not None:
        refuse_another(folder.path, there, plan)
    work = Work.load(plan, host)
    _tell_seen(work)
    if there is not None:
        refuse_other_input(folder.path, "data set", there["dataset"], work.about_data(), "digest")
        here = work.about_editor() or {}
        refuse_other_input(folder.path, "editor", there.get("editor") or {}, here, "digest")
    with folder.held():
        resumed = len(folder.repaired(work.steps))
        if there is None or resumed < len(work.steps):
            _go_on(work, folder, there, Path(replies or folder.path / REPLIES), progress)
        done = read_run(folder.path)
        summary = summarise(done, work.derived)
        folder.finish(summary)
    return RunResult(folder=folder.path, run=done, summary=summary, resumed=resumed)


def _go_on(
    work: Work,
    folder: RunFolder,
    there: dict[str, Any] | None,  # Any: JSON values
    replies: Path,
    progress: Progress,
) -> None:
    """Load the model and do the steps that are missing."""
    from editkit_core.bench.editing import Bench
    from editkit_core.metrics.cache import model_fingerprint
    from editkit_core.patch.identity import public_name

    units = folder.repaired(work.steps)
    editor = work.open()
    about_model = {
        "name": public_name(work.plan.model),
        "fingerprint": model_fingerprint(editor.model),
        "family": editor.model.family.name,
        "parameters": sum(p.numel() for p in editor.model.model.parameters()),
    }
    if there is not None:
        refuse_other_input(folder.path, "model", there["model"], about_model, "fingerprint")
    resolved = editor.resolve_params(
        work.plan.method, work.plan.params, work.plan.preset, work.trained
    )
    folder.begin(
        {
            "spec": SPEC,
            "plan": work.plan.public(),
            "plan_digest": work.plan.digest,
            "units": len(work.steps),
            "dataset": work.about_data(),
            "model": about_model,
            "method": {
                "name": work.plan.method,
                "dist": work.method[0],
                "version": work.method[1],
                "preset": resolved.preset,
                "source": resolved.source,
                "params": _params(resolved.params),
            },
            "editor": work.about_editor(),
            "corpus": _about_corpus(work.context),
            "versions": work.versions(),
            "command": work.plan.command(),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
    )
    baseline = Baseline.ask(
        editor.model,
        work.requests,
        metrics=work.metrics,
        context=work.context,
        folder=replies,
        fingerprint=about_model["fingerprint"],
        rows=work.plan.rows,
        progress=progress,
    )
    bench = Bench(
        work=work,
        editor=editor,
        baseline=baseline,
        folder=folder,
        fingerprint=about_model["fingerprint"],
        units=units,
        progress=progress,
    )
    progress.start(f"{work.plan.method}, {work.plan.scenario}", len(work.steps))
    progress.advance(len(units))
    try:
        for step in work.steps[len(units) :]:
            folder.append(bench.do(step))
            progress.advance()
    finally:
        progress.finish()
        bench.close()


def _trained(path: str) -> EditorArtifact:
    from editkit_core.patch.artifact import EditorArtifact

    return EditorArtifact.load(path)


def _tell_seen(work: Work) -> None:
    """Say by name which subjects the editor was trained on and is to be measured on."""
    about = work.about_editor()
    if about is None or not about["trained_on"]:
        return
    more = about["trained_on_count"] - len(about["trained_on"])
    logging.getLogger("editkit").warning(
        "The editor %s was trained on %d of the subjects it is measured on: %s%s. Scores on them "
        "say little about others.",
        about["id"],
        about["trained_on_count"],
        ", ".join(about["trained_on"]),
        f" and {more} more" if more else "",
    )


def _judge(plan: Plan) -> Judge | None:
    if plan.judge is None or plan.judge_url is None:
        return None
    from editkit_core.metrics.judge import EndpointJudge

    return EndpointJudge(
        url=plan.judge_url, model=plan.judge, api_key=os.environ.get(JUDGE_KEY) or None
    )


def _params(params: Any) -> dict[str, Any]:  # Any: each method has its own attrs class
    from editkit_core.params import unstructure

    return unstructure(params)


def _about_corpus(context: MetricContext) -> dict[str, str] | None:
    if context.corpus is None:
        return None
    return {"name": context.corpus.name, "digest": context.corpus.digest}

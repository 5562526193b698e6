"""How long a run will take and how much memory: from its first edits, measured.

The first two requests are asked and edited on the base; everything else is taken to cost what the
second one did (the first also pays for what is made once). Sequential edits, on top of others, are
taken to cost the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from editkit_core.bench.plan import Plan
from editkit_core.bench.scenario import Step
from editkit_core.efficiency import Stage, measured
from editkit_core.errors import EditkitError
from editkit_core.host import Host
from editkit_core.types import EditContext, Progress, SilentProgress

if TYPE_CHECKING:
    from editkit_core.api import Editor
    from editkit_core.bench.running import Work

__all__ = ["Estimate", "estimate"]

PROBED = 2


@attrs.frozen(kw_only=True)
class Estimate:
    """What a run would do, and at what cost.

    Attributes:
        plan: The plan.
        records: Records of the data set, those skipped among them.
        requests: Requests that would be edited.
        skipped: Records that give no request.
        edits: Calls of the method.
        measured: Requests measured with patches on the model, over all stages.
        seconds: Wall-clock seconds of the whole run; None when no edit could be made to time.
        edit_s: Seconds an edit.
        measure_s: Seconds to measure a request.
        load_s: Seconds to load model and data set.
        weights_bytes: Size of the model's weights.
        peak_bytes: Peak memory of the process while probing.
        device_peak_bytes: Peak memory of the accelerator while probing; 0 without one.
        why: Why an edit could not be timed, or empty.
    """

    plan: Plan
    records: int
    requests: int
    skipped: int
    edits: int
    measured: int
    seconds: float | None
    edit_s: float | None
    measure_s: float | None
    load_s: float
    weights_bytes: int
    peak_bytes: int
    device_peak_bytes: int
    why: str = ""

    def plain(self) -> dict[str, Any]:  # Any: JSON values
        """Return it as plain JSON values."""
        return {**attrs.asdict(self), "plan": self.plan.public()}


def estimate(plan: Plan, *, host: Host | None = None, progress: Progress | None = None) -> Estimate:
    """Load what a run needs and try its first edits; nothing is written.

    Args:
        plan: The run.
        host: Where plugins come from.
        progress: Where long work reports to.

    Raises:
        EditkitError: Model, method, data set or parameters cannot be used; see the code.
    """
    from editkit_core.bench.running import Work

    start = time.perf_counter()
    work = Work.load(plan, host)
    editor = work.open()
    load_s = time.perf_counter() - start
    stages: list[Stage] = []
    why = ""
    edit_s: float | None = None
    measure_s: float | None = None
    try:
        edit_s, measure_s = _probe(work, editor, stages, progress or SilentProgress())
    except EditkitError as error:
        why = str(error)
    edits = sum(step.edits for step in work.steps)
    count = sum(len(step.indices) for step in _asked(work.steps))
    seconds = None
    if edit_s is not None and measure_s is not None:
        # Once more for the unedited model.
        seconds = load_s + edits * edit_s + (count + len(work.requests)) * measure_s
    return Estimate(
        plan=plan,
        records=work.dataset.records,
        requests=len(work.requests),
        skipped=len(work.dataset.skipped),
        edits=edits,
        measured=count,
        seconds=seconds,
        edit_s=edit_s,
        measure_s=measure_s,
        load_s=load_s,
        weights_bytes=sum(p.numel() * p.element_size() for p in editor.model.model.parameters()),
        peak_bytes=max((stage.peak_bytes for stage in stages), default=0),
        device_peak_bytes=max((stage.device_peak_bytes for stage in stages), default=0),
        why=why,
    )


def _probe(
    work: Work, editor: Editor, stages: list[Stage], progress: Progress
) -> tuple[float, float]:
    """Return the seconds of a step's edits, by the last one probed, and of measuring a request."""
    from editkit_core.bench.baseline import Baseline

    requests = work.requests[:PROBED]
    with measured("before", stages):
        baseline = Baseline.ask(
            editor.model,
            requests,
            metrics=work.metrics,
            context=work.context,
            folder=None,
            fingerprint="",
            rows=work.plan.rows,
            progress=progress,
        )
    for failure in baseline.failures.values():
        raise failure
    for request in requests:
        with measured("edit", stages):
            result = editor.run(
                request,
                method=work.plan.method,
                params=work.plan.params,
                preset=work.plan.preset,
                context=EditContext(
                    seed=work.plan.seed,
                    locate=work.plan.locate,
                    statistics_dir=work.plan.statistics,
                    editor=work.trained,
                    progress=progress,
                ),
            )
        edit_s = stages[-1].wall_s
    with editor.applied(result.patch), measured("measure", stages):
        baseline.measure(editor.model, range(len(requests)), 0)
    return edit_s * len(work.steps[0].indices), stages[-1].wall_s / len(requests)


def _asked(steps: Sequence[Step]) -> list[Step]:
    """The steps that ask the model; a checkpoint at the very end serves for the end too."""
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    asked = []
    for step in steps:
        what = (step.sequence, step.upto, step.indices)
        if step.edits or what not in seen:
            asked.append(step)
        if not step.edits:
            seen.add(what)
    return asked

"""The steps of a run on a loaded model: edit, put patches on, measure, take them off.

``single`` and ``batch`` take each patch off again; ``sequential`` leaves it on; ``stacked`` keeps
it aside and puts many on at once. A patch that holds the earlier ones takes their place. What is on
the model while a step measures is derived from the units before it, so it is the same whether the
run was stopped or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from editkit_core.bench.baseline import Baseline
from editkit_core.bench.folder import RunFolder
from editkit_core.bench.record import Failure, Unit
from editkit_core.bench.running import Work
from editkit_core.bench.scenario import AFTER_ALL, Scenario, Step
from editkit_core.efficiency import Stage, measured
from editkit_core.errors import (
    CorpusError,
    EditkitError,
    FileError,
    ModelError,
    ParamsError,
    PluginError,
    StackConflictError,
    StatisticsMismatchError,
    StatisticsMissingError,
)
from editkit_core.metrics.metric import RunMetric
from editkit_core.metrics.report import Facts, Measured, Row
from editkit_core.patch.io import read_header
from editkit_core.stack import operations
from editkit_core.stack.conflicts import Conflict, find_conflicts
from editkit_core.stack.patch_stack import PatchStack
from editkit_core.stack.state import StackState, entry_of
from editkit_core.types import EditContext, Progress

if TYPE_CHECKING:
    from editkit_core.api import Editor, EditResult
    from editkit_core.patch.apply import AppliedPatch
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import Kinds

__all__ = ["Bench"]

# These would fail for every edit alike, so the run stops and says why.
_OF_THE_RUN = (
    CorpusError,
    FileError,
    ModelError,
    ParamsError,
    PluginError,
    StatisticsMismatchError,
    StatisticsMissingError,
)
_CONFLICTS_LISTED = 200


class Bench:
    """Does the steps of one run.

    Args:
        work: The run.
        editor: Its model, without patches.
        baseline: What the unedited model said.
        folder: Where patches are kept.
        fingerprint: The unedited model's.
        units: What is finished already.
        progress: Where edits report to.
    """

    def __init__(
        self,
        *,
        work: Work,
        editor: Editor,
        baseline: Baseline,
        folder: RunFolder,
        fingerprint: str,
        units: Sequence[Unit],
        progress: Progress,
    ) -> None:
        self._work = work
        self._editor = editor
        self._baseline = baseline
        self._folder = folder
        self._fingerprint = fingerprint
        self._progress = progress
        self._versions = work.versions()
        self._units: list[Unit] = []
        self._failed: set[int] = set()
        self._made_in: dict[int, list[Unit]] = defaultdict(list)
        for unit in units:
            self._note(unit)
        self._scenario = Scenario.parse(work.plan.scenario).name
        self._sequence: int | None = None
        self._applied: list[AppliedPatch] = []
        self._stack: PatchStack | None = None
        self._patches: dict[int, Patch] = {}
        self._superseded: list[int] = []

    def do(self, step: Step) -> Unit:
        """Do one step; the steps before it are done.

        Raises:
            EditkitError: What would go wrong in every other step too.
        """
        stages: list[Stage] = []
        self._forget()
        if step.edits:
            unit = self._edit(step, stages)
        elif self._scenario == "stacked":
            unit = self._measure_stacked(step, stages)
        else:
            self._enter(step)
            unit = self._measure(step, stages)
        self._note(unit)
        return unit

    def close(self) -> None:
        """Take every patch off."""
        if self._stack is not None:
            self._stack.clear()
            self._stack = None
        self._leave()

    def _note(self, unit: Unit) -> None:
        self._units.append(unit)
        if unit.error is not None:
            self._failed.update(unit.indices)
        elif self._work.steps[unit.unit].edits:
            self._made_in[unit.sequence].append(unit)

    # -- editing --

    def _edit(self, step: Step, stages: list[Stage]) -> Unit:
        sequential = self._scenario == "sequential"
        kept = sequential or self._scenario == "stacked"
        if sequential:
            self._enter(step)
        try:
            for index in step.indices:
                if index in self._baseline.failures:
                    raise self._baseline.failures[index]
            result = self._computed(step)
            stages += result.stages
            if kept or self._work.plan.keep_patches:
                self._keep(step.unit, result.patch)
            with measured("apply", stages):
                applied = self._editor.apply(result.patch)
        except _OF_THE_RUN:
            raise
        except EditkitError as error:
            return self._unit(step, stages, (), error=Failure.of(error))
        costs = tuple(stages)
        try:
            with measured("evaluate", stages):
                rows = self._baseline.measure(self._editor.model, step.indices, step.indices[0])
        except BaseException:
            applied.revert()
            raise
        on = self._on_model() or (result.patch.header.id,)
        if sequential:
            self._retire(result.patch)
            self._applied.append(applied)
        else:
            applied.revert()
        # Where many patches come together the whole model is measured with all of them.
        rows += self._of_run(step.indices[0], result.patch, costs, stages_only=kept)
        return self._unit(step, stages, rows, patch=result.patch.header.id, on=on)

    def _computed(self, step: Step) -> EditResult:
        plan = self._work.plan
        return self._editor.run(
            [self._work.requests[index] for index in step.indices],
            method=plan.method,
            params=plan.params,
            preset=plan.preset,
            context=EditContext(
                seed=plan.seed,
                locate=plan.locate,
                statistics_dir=plan.statistics,
                editor=self._work.trained,
                progress=self._progress,
            ),
        )

    # -- measuring what several patches do together --

    def _measure(
        self, step: Step, stages: list[Stage], conflicts: Sequence[Conflict] | None = None
    ) -> Unit:
        wanted = [index for index in step.indices if index not in self._failed]
        first = next((i for i in range(step.begin, step.upto) if i not in self._failed), None)
        known = self._known(step)
        on = self._on_model()
        rows: tuple[Row, ...] = ()
        if known is not None:
            rows = known
        elif wanted and first is not None:
            with measured("evaluate", stages):
                rows = self._baseline.measure(self._editor.model, wanted, first)
            if step.stage == AFTER_ALL and step.indices[0] == step.begin:
                rows += self._of_all(step, first)
        return self._unit(step, stages, rows, on=on, conflicts=conflicts)

    def _known(self, step: Step) -> tuple[Row, ...] | None:
        """Return the rows if the same was measured at the checkpoint just before.

        Not if the whole-model metrics, which checkpoints do not have, are wanted.
        """
        if any(isinstance(metric, RunMetric) for metric in self._work.metrics):
            return None
        for unit in reversed(self._units):
            before = self._work.steps[unit.unit]
            if before.edits or before.sequence != step.sequence or before.upto != step.upto:
                return None
            if unit.indices == step.indices:
                return unit.rows
        return None

    def _of_all(self, step: Step, first: int) -> tuple[Row, ...]:
        """Measure the whole model without the patches and with their sum."""
        if not any(isinstance(metric, RunMetric) for metric in self._work.metrics):
            return ()
        from editkit_core.patch.fold import fold

        patches = self._made(step)
        together = fold([(patch, 1.0) for patch in patches]) if len(patches) > 1 else patches[0]
        self.close()
        return self._of_run(first, together, (), stages_only=False)

    def _of_run(
        self, first: int, patch: Patch, costs: tuple[Stage, ...], *, stages_only: bool
    ) -> tuple[Row, ...]:
        context = attrs.evolve(self._work.context, first=first, stages=costs)
        return tuple(
            row
            for metric in self._work.metrics
            if isinstance(metric, RunMetric) and ("stages" in metric.info.needs or not stages_only)
            for row in metric.measure(self._editor.model, patch, context)
        )

    # -- sequential --

    def _enter(self, step: Step) -> None:
        """Have on the model what this sequence has made so far."""
        if self._sequence == step.sequence:
            return
        self._leave()
        for patch in self._made(step):
            self._applied.append(self._editor.apply(patch))
        self._sequence = step.sequence

    def _retire(self, patch: Patch) -> None:
        """Take off what a patch that is on now holds too.

        Their files go once the unit that made the new one is written down; see :meth:`_forget`.
        """
        held = set(patch.header.replaces)
        for applied in [one for one in self._applied if one.patch.header.id in held]:
            applied.revert()
            self._applied.remove(applied)
        for unit, earlier in list(self._patches.items()):
            if earlier.header.id in held:
                del self._patches[unit]
                if held.issuperset(earlier.header.replaces):  # else that patch says what else goes
                    self._superseded.append(unit)

    def _forget(self) -> None:
        """Remove the files that no later step can need."""
        if not self._work.plan.keep_patches:
            for unit in self._superseded:
                self._folder.patch_file(unit).unlink(missing_ok=True)
        self._superseded = []

    def _leave(self) -> None:
        while self._applied:
            self._applied.pop().revert()
        self._sequence = None

    # -- stacked --

    def _measure_stacked(self, step: Step, stages: list[Stage]) -> Unit:
        conflicts = None
        with measured("apply", stages):
            stack, patches = self._stacked(step)
        if step.stage == AFTER_ALL and step.indices[0] == step.begin:
            conflicts = find_conflicts(list(zip(stack.state.entries, patches, strict=True)))
        return self._measure(step, stages, conflicts)

    def _stacked(self, step: Step) -> tuple[PatchStack, list[Patch]]:
        """Put the patches of this stage on the model, conflicts or not."""
        from editkit_core.patch.modes import choose_mode

        state, patches = StackState(), []
        for patch in self._made(step):
            mode = choose_mode(self._editor.model, patch).mode
            try:
                state = operations.push(state, entry_of(patch, mode=mode))
            except StackConflictError:  # the same edit twice gives the same patch
                continue
            patches.append(patch)
        self._stack = self._stack or PatchStack(self._editor.model)
        self._stack.become(state, {patch.header.id: patch for patch in patches})
        return self._stack, patches

    # -- patches of earlier steps --

    def _made_units(self, step: Step) -> Iterator[Unit]:
        """The edits of this step's sequence that are on the model when it measures."""
        for unit in self._made_in[step.sequence]:
            if unit.indices[-1] < step.upto:
                yield unit

    def _made(self, step: Step) -> list[Patch]:
        """The patches of these edits, but for those that a later one of them replaces."""
        found: list[Patch] = []
        replaced: set[str] = set()
        for unit in reversed(list(self._made_units(step))):
            if unit.patch in replaced:
                path = self._folder.patch_file(unit.unit)
                replaced.update(read_header(path).replaces if path.exists() else ())
                continue
            if unit.unit not in self._patches:
                self._patches[unit.unit] = self._read(unit)
            found.append(self._patches[unit.unit])
            replaced.update(found[-1].header.replaces)
        return found[::-1]

    def _keep(self, unit: int, patch: Patch) -> None:
        path = self._folder.patch_file(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        patch.save(path, force=True)
        if self._scenario in ("sequential", "stacked"):
            self._patches[unit] = patch

    def _read(self, unit: Unit) -> Patch:
        from editkit_core.errors import PatchDigestError
        from editkit_core.patch.format import Patch

        path = self._folder.patch_file(unit.unit)
        patch = Patch.load(path, kinds=self._kinds)
        if patch.header.id != unit.patch:
            raise PatchDigestError(
                f"{path} is {patch.header.id}; the run made {unit.patch} there. Put that file back "
                "or start again in another folder.",
                path=str(path),
            )
        return patch

    @cached_property
    def _kinds(self) -> Kinds:
        from editkit_core.patch.kinds import BUILTIN_KINDS

        return {**BUILTIN_KINDS, **self._work.host.registered("patch_kinds")}

    # -- what is written down --

    def _on_model(self) -> tuple[str, ...]:
        """The patch on the model by its id, several by their stack digest."""
        ledger = self._editor.model.ledger
        if len(ledger.effective) > 1:
            return (f"stack:{ledger.digest()}",)
        return tuple(active.patch.header.id for active in ledger.effective)

    def _unit(
        self,
        step: Step,
        stages: Sequence[Stage],
        rows: tuple[Row, ...],
        *,
        on: tuple[str, ...] = (),
        patch: str | None = None,
        error: Failure | None = None,
        conflicts: Sequence[Conflict] | None = None,
    ) -> Unit:
        requests = [self._work.requests[index] for index in step.indices]
        return Unit(
            unit=step.unit,
            stage=step.stage,
            sequence=step.sequence,
            requests=[request.id for request in requests],
            relations=[request.relation for request in requests],
            indices=step.indices,
            patch=patch,
            seconds={stage.name: round(stage.wall_s, 6) for stage in stages},
            peak_bytes={stage.name: stage.peak_bytes for stage in stages},
            device_peak_bytes={
                stage.name: stage.device_peak_bytes for stage in stages if stage.device_peak_bytes
            },
            error=error,
            conflicts=None if conflicts is None else _listed(conflicts),
            measured=Measured(rows, self._facts(on)),
        )

    def _facts(self, on: tuple[str, ...]) -> Facts:
        return Facts(
            target_policy=self._work.dataset.target_policy,
            seed=self._work.plan.seed,
            model=self._fingerprint,
            patches=on,
            versions=self._versions,
        )


def _listed(conflicts: Sequence[Conflict]) -> dict[str, Any]:  # Any: JSON values
    """Counts by kind, and the worst ones."""
    worst = sorted(conflicts, key=lambda c: (not c.fatal, -(c.value or 0.0)))
    return {
        "counts": dict(Counter(conflict.kind for conflict in conflicts)),
        "fatal": sum(conflict.fatal for conflict in conflicts),
        "listed": [attrs.asdict(conflict) for conflict in worst[:_CONFLICTS_LISTED]],
    }

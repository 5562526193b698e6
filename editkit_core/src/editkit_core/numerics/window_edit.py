"""The whole edit of a window of layers, for methods that differ in their solve alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import torch
from torch import Tensor

from editkit_core.errors import InvalidParameterError
from editkit_core.numerics.batch_memory import plan_batch
from editkit_core.numerics.contexts import sample_contexts
from editkit_core.numerics.evaluating import evaluating
from editkit_core.numerics.history import earlier_keys, side_by_side
from editkit_core.numerics.window import averaged_keys, find_targets, spread_targets, train_jointly
from editkit_core.numerics.window_batch import check_batch, window_covariances
from editkit_core.numerics.window_change import LayerStatistics, Solve, Stream, Target, WindowEdit
from editkit_core.numerics.window_params import WindowParams
from editkit_core.numerics.window_patch import window_patch
from editkit_core.numerics.window_report import batch_report
from editkit_core.types import EditContext, EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.value_loss import ValueSettings
    from editkit_core.patch.format import MethodRef, Patch

T = TypeVar("T")

__all__ = ["edit_window", "window_contexts"]


def edit_window(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    solve: Solve,
    *,
    params: WindowParams,
    context: EditContext,
    method: MethodRef,
    metrics: Mapping[str, Any],  # Any: JSON values
    covariances: Sequence[LayerStatistics] | None = None,
    settings: ValueSettings | None = None,
    read: str | None = None,
    keys_after: bool = False,
    attention: Sequence[Site] = (),
) -> Patch:
    """Find the values, write the layers one after the other, and return the patch.

    The model is left bit-identical. A batch that does not fit in memory is computed in parts, each
    on top of those before it, whose keys are protected; see :mod:`.batch_memory`.

    Args:
        model: The model.
        requests: The facts.
        sites: The window, from the first layer on.
        solve: The method's own solve of a layer.
        params: The window's parameters.
        context: Seed, statistics and progress.
        method: Who computes it.
        metrics: What the method adds to what a patch says about how it was made.
        covariances: What each layer is solved with; None takes its key statistics.
        settings: How values are optimised; None takes the parameters' own.
        read: Module whose output is to reach the values; None means the last layer's block.
        keys_after: Whether the evidence holds the keys of the edited model instead of those that
            each layer was solved with.
        attention: The attention's output projections of the same layers, when they are to reach
            the values found for them; in each layer they change first.

    Raises:
        RequestError: Two requests ask the same, or a prompt or target cannot be read.
        StatisticsError: Key statistics are missing, damaged or cannot be solved with.
        EditError: A value, key or change is not finite or too large.
    """
    requests = check_batch(requests, params.duplicates)
    with evaluating(model.model):
        if covariances is None:
            covariances = window_covariances(model, sites, params, context)
        contexts = window_contexts(model, params, context)
        settings = settings or params.value_settings(seed=context.seed)
        others = window_covariances(model, attention, params, context) if attention else []
        if params.v_insertion == "joint":
            _check_joint(sites, settings, read)
        written = _in_order(attention, sites)
        plan = plan_batch(model, requests, (*attention, *sites), contexts, settings, params)
        if plan.warning:
            logging.getLogger("editkit").warning("%s", plan.warning)
        past = {
            site.module: earlier_keys(site, method.name, context.stack if params.history else ())
            for site in written
        }
        within = _Batch(
            model=model,
            sites=sites,
            contexts=contexts,
            covariances=covariances,
            solve=solve,
            settings=settings,
            params=attrs.evolve(params, value_batch=plan.value_batch),
            context=context,
            read=read,
            attention=attention,
            attention_covariances=others,
        )
        targets, edit = within.in_parts(requests, plan.sizes, past)
        solved_with = _in_order(others, covariances)
        report = dict(batch_report(model, requests, targets, edit, solved_with))
        keys = None
        if keys_after:
            with edit.shown(model):
                keys = [averaged_keys(model, requests, site, contexts, params) for site in written]
    if params.history:
        report["protected_edits"] = max(keys.shape[1] for keys in past.values())
    if len(plan.sizes) > 1:
        params = attrs.evolve(params, edits_at_once=plan.part)
        report["parts"] = list(plan.sizes)
    return window_patch(
        model,
        requests,
        targets,
        edit,
        method=method,
        params=params,
        contexts=contexts,
        context=context,
        metrics={**report, **metrics},
        keys=keys,
    )


@attrs.frozen(eq=False, kw_only=True)
class _Batch:
    """What all parts of a batch have in common; see :func:`edit_window`."""

    model: EditableModel
    sites: Sequence[Site]
    contexts: Sequence[str]
    covariances: Sequence[LayerStatistics]
    solve: Solve
    settings: ValueSettings
    params: WindowParams
    context: EditContext
    read: str | None
    attention: Sequence[Site]
    attention_covariances: Sequence[LayerStatistics]

    def in_parts(
        self, requests: Sequence[EditRequest], sizes: Sequence[int], past: Mapping[str, Tensor]
    ) -> tuple[list[Target], WindowEdit]:
        """Compute each part on top of those before it, whose keys and ``past`` are protected."""
        targets: list[Target] = []
        edits: list[WindowEdit] = []
        with ExitStack() as shown:
            for size in sizes:
                earlier = {
                    module: side_by_side([keys, *(edit.layers[number].keys for edit in edits)])
                    for number, (module, keys) in enumerate(past.items())
                }
                part = requests[len(targets) : len(targets) + size]
                found, edit = self.compute(part, earlier)
                targets += found
                edits.append(edit)
                if len(targets) < len(requests):
                    shown.enter_context(edit.shown(self.model))
        return targets, WindowEdit.joined(edits)

    def compute(
        self, requests: Sequence[EditRequest], earlier: Mapping[str, Tensor]
    ) -> tuple[list[Target], WindowEdit]:
        """Find the values of some edits and write them to the layers."""
        last = self.sites[-1]
        if self.params.v_insertion == "joint":
            return train_jointly(
                self.model,
                requests,
                last,
                self.contexts,
                self.covariances[-1],
                self.solve,
                self.settings,
                self.params,
                self.context,
                earlier=earlier[last.module],
            )
        targets = find_targets(
            self.model,
            requests,
            last,
            self.contexts,
            self.settings,
            self.params,
            self.context,
            self.covariances[-1],
            (self.attention[-1], self.attention_covariances[-1]) if self.attention else None,
        )
        edit = spread_targets(
            self.model,
            requests,
            self.sites,
            self.contexts,
            torch.stack([target.value for target in targets]),
            self.covariances,
            self.solve,
            self.params,
            self.context,
            read=self.read,
            earlier=earlier,
            before=[self._attention_stream(targets)] if self.attention else [],
        )
        return targets, edit

    def _attention_stream(self, targets: Sequence[Target]) -> Stream:
        """Return what the attention's output projections are to reach."""
        values = [target.found.attention_value for target in targets]
        return Stream(
            sites=self.attention,
            targets=torch.stack([value for value in values if value is not None]),
            covariances=self.attention_covariances,
            read=self.model.family.attention(self.attention[-1].layer),
        )


def _in_order(attention: Sequence[T], downs: Sequence[T]) -> list[T]:
    """Return what belongs to the projections of each layer in the order they are written."""
    if not attention:
        return list(downs)
    return [one for pair in zip(attention, downs, strict=True) for one in pair]


def _check_joint(sites: Sequence[Site], settings: ValueSettings, read: str | None) -> None:
    if len(sites) > 1:
        raise InvalidParameterError(
            f"v_insertion=joint trains the change of one layer; the window has {len(sites)}. Give "
            "one layer, or use v_insertion=token.",
            parameter="v_insertion",
        )
    if settings.attention:
        raise InvalidParameterError(
            "v_insertion=joint trains no values of attention. Set attention_values=false, or use "
            "v_insertion=token.",
            parameter="v_insertion",
        )


def window_contexts(
    model: EditableModel, params: WindowParams, context: EditContext
) -> tuple[str, ...]:
    """Return the texts put before prompts, the empty one first."""
    seed = context.seed if params.context_seed is None else params.context_seed
    return sample_contexts(model, params.contexts, seed=seed)

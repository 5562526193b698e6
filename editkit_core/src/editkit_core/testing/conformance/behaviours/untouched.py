"""Computing an edit leaves the model, the tokenizer and the process as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from editkit_core.models.editable import EditableModel
from editkit_core.testing.conformance.behaviour import Behaviour, of_models
from editkit_core.testing.conformance.snapshot import Part, Snapshot
from editkit_core.testing.conformance.workbench import Workbench, randomness


def locating_changes_nothing(bench: Workbench) -> None:
    """Locating leaves the model, the tokenizer and every global random state as they were."""
    before, after = bench.first.locate
    bench.expect_unchanged(
        before.changed(after), "editkit_locate", "It may only look: put back what it needs to set."
    )


def computing_keeps_every_weight(bench: Workbench) -> None:
    """Computing an edit leaves every parameter and buffer as it was, bit for bit."""
    _kept(bench, "weights", "Return the change as a patch; only the core writes weights.")


def computing_keeps_every_flag(bench: Workbench) -> None:
    """Computing an edit leaves training modes, requires_grad and gradients as they were."""
    _kept(
        bench,
        "flags",
        "Use editkit_core.numerics.evaluating, and torch.autograd.grad with tensors of your own.",
    )


def computing_leaves_no_hook(bench: Workbench) -> None:
    """Computing an edit leaves no hook on a module or parameter."""
    _kept(bench, "hooks", "Remove hooks in a finally block, or use editkit_core.models.trace.")


def computing_keeps_the_modules(bench: Workbench) -> None:
    """Computing an edit leaves every module and parameter object, and every forward, in place."""
    _kept(bench, "structure", "Use hooks (editkit_core.models.trace) instead of other modules.")


def computing_keeps_the_configuration(bench: Workbench) -> None:
    """Computing an edit leaves the configuration and the applied patches as they were."""
    _kept(bench, "configuration", "Pass settings to the call that needs them.")


def computing_keeps_global_randomness(bench: Workbench) -> None:
    """Computing an edit neither draws from nor seeds a global random generator."""
    _kept(
        bench, "randomness", "Draw from torch.Generator().manual_seed(context.seed), not globally."
    )


def computing_keeps_the_tokenizer(bench: Workbench) -> None:
    """Computing an edit leaves padding side, special tokens and vocabulary as they were."""
    _kept(bench, "tokenizer", "Use model.encode and pad_batch, which need no setting.")


def computing_keeps_the_process(bench: Workbench) -> None:
    """Computing an edit leaves torch's settings, the environment and the folder as they were."""
    _kept(bench, "process", "Use torch's context managers instead of its setters.")


def what_a_user_set_is_kept(bench: Workbench) -> None:
    """A model that is in training mode, with a gradient and another padding side, stays so.

    And the edit is the same as of a model without them.
    """
    model = bench.model()
    model.model.train()
    parameter = next(model.model.parameters()).requires_grad_(True)
    parameter.grad = torch.ones_like(parameter)
    other = {"left": "right", "right": "left"}[model.tokenizer.padding_side]
    model.tokenizer.padding_side = other
    with randomness(2):
        seen = bench.watched(model)
    bench.expect_unchanged(
        [*seen.locate[0].changed(seen.locate[1]), *seen.compute[0].changed(seen.compute[1])],
        "editing a model in training mode",
        "Put back what was there, not what is usual.",
    )
    bench.expect(
        seen.patch.id == bench.first.patch.id,
        "a model in training mode, with padding on the other side, gives another patch. Use "
        "editkit_core.numerics.evaluating, and never the tokenizer's padding.",
    )


def an_interrupted_edit_changes_nothing(bench: Workbench) -> None:
    """An edit that is interrupted in the middle of a forward pass leaves everything as it was."""
    counted = bench.model()
    with _passes(counted) as passed, randomness(1):
        bench.edit(counted)
    model = bench.model()
    with randomness(1):
        before = Snapshot.of(model)
        try:
            with _passes(model, stop_at=len(passed) // 2 + 1):
                bench.edit(model)
        except _Interrupted:
            pass
        else:
            bench.expect(not passed, "it went on after an interruption. Let BaseException through.")
        bench.expect_unchanged(
            before.changed(Snapshot.of(model)),
            "an interrupted edit",
            "Put things back in finally blocks; Ctrl-C is no Exception.",
        )


class _Interrupted(KeyboardInterrupt):
    """Stands for Ctrl-C."""


@contextmanager
def _passes(model: EditableModel, stop_at: int = -1) -> Iterator[list[str]]:
    """Count what passes through the feed-forwards; at the ``stop_at``-th, interrupt."""
    passed: list[str] = []

    def count(_: nn.Module, __: object) -> None:
        passed.append("")
        if len(passed) == stop_at:
            raise _Interrupted

    family = model.family
    names = [
        family.mlp_down(layer, stack)
        for stack in family.stacks
        for layer in range(
            family.count_layers({name for name, _ in model.model.named_modules()}, stack)
        )
    ]
    handles = [model.module(name).register_forward_pre_hook(count) for name in names]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def _kept(bench: Workbench, part: Part, remedy: str) -> None:
    before, after = bench.first.compute
    changed = before.changed(after, part)
    if changed:
        bench.expect_unchanged(changed, "editkit_compute_delta", remedy)


BEHAVIOURS: tuple[Behaviour, ...] = tuple(
    of_models(check)
    for check in (
        locating_changes_nothing,
        computing_keeps_every_weight,
        computing_keeps_every_flag,
        computing_leaves_no_hook,
        computing_keeps_the_modules,
        computing_keeps_the_configuration,
        computing_keeps_global_randomness,
        computing_keeps_the_tokenizer,
        computing_keeps_the_process,
        what_a_user_set_is_kept,
        an_interrupted_edit_changes_nothing,
    )
)

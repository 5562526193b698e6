"""A patch applies, survives a file, comes off bit for bit, and needs no plugin for any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editkit_core.api import Editor
from editkit_core.errors import UnknownPatchKindError
from editkit_core.host import Host
from editkit_core.patch.format import Patch
from editkit_core.patch.kinds import BUILTIN_KINDS
from editkit_core.testing.conformance.behaviour import Behaviour, of_models
from editkit_core.testing.conformance.snapshot import Snapshot
from editkit_core.testing.conformance.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Sequence


def a_loaded_patch_does_what_it_did(bench: Workbench) -> None:
    """A patch that is saved and loaded has the same id and gives the same logits, bit for bit."""
    patch = bench.first.patch
    file = bench.folder / "loaded.editkit.safetensors"
    patch.save(file, force=True)
    loaded = Patch.load(file, kinds=bench.kinds)
    bench.expect(
        loaded.id == patch.id, f"its patch is {patch.id} in memory, and {loaded.id} from its file."
    )
    direct, from_file = (_applied(bench, bench.host, each) for each in (patch, loaded))
    bench.expect(
        bool(torch.equal(direct, from_file)),
        "its patch gives other logits after it was saved and loaded. Give the entry the numbers "
        "that it stores, in the dtype in which it stores them.",
    )


def reverting_restores_every_bit(bench: Workbench) -> None:
    """After a patch is taken off, weights, hooks and flags are as before, and the logits too."""
    model = bench.model()
    logits = bench.logits(model)
    for mode in _modes(bench.first.patch):
        before = Snapshot.of(model)
        applied = bench.editor(model).apply(bench.first.patch, mode=mode)
        bench.logits(model)
        applied.revert()
        after = Snapshot.of(model)
        bench.expect_unchanged(
            before.changed(after, "weights", "flags", "hooks", "structure", "configuration"),
            f"applying in mode {mode} and reverting",
            "Leave applying to the core, or undo all of it.",
        )
        bench.expect(
            bool(torch.equal(bench.logits(model), logits)),
            f"after applying in mode {mode} and reverting, the model says something else.",
        )


def applying_changes_no_flag(bench: Workbench) -> None:
    """With a patch on, the modules, flags and configuration are the same; only it is added."""
    model = bench.model()
    before = Snapshot.of(model)
    with bench.editor(model).applied(bench.first.patch):
        changed = before.changed(Snapshot.of(model), "flags", "structure", "randomness")
        names = list(model.model.state_dict())
    bench.expect_unchanged(changed, "applying its patch", "Use hooks, and put flags back.")
    bench.expect(
        names == list(model.model.state_dict()),
        "applying its patch adds or renames tensors of the state dict. Use hooks.",
    )


def a_patch_needs_no_plugin(bench: Workbench) -> None:
    """Where the method is not installed, its patch opens, applies and says the same.

    A patch of a kind that only a plugin knows is refused there, with the kind's name.
    """
    patch = bench.first.patch
    file = bench.folder / "alone.editkit.safetensors"
    patch.save(file, force=True)
    foreign = sorted({entry.kind for entry in patch.entries} - set(BUILTIN_KINDS))
    try:
        loaded = Patch.load(file)
    except UnknownPatchKindError as error:
        bench.expect(
            bool(foreign) and any(kind in str(error) for kind in foreign),
            f"its patch does not open without its plugin: {error}",
        )
        return
    bench.expect(bool(loaded.summary()), "its patch has nothing to say without its plugin.")
    with_plugin = _applied(bench, bench.host, patch)
    without = _applied(bench, Host(methods=(), plugins=()), loaded)
    bench.expect(
        bool(torch.equal(with_plugin, without)),
        "its patch does something else where the method is not installed. Leave applying to the "
        "entry kinds, which the core knows.",
    )


def _applied(bench: Workbench, host: Host, patch: Patch) -> torch.Tensor:
    model = bench.model()
    with Editor(model, host).applied(patch):
        return bench.logits(model)


def _modes(patch: Patch) -> Sequence[str]:
    weights_only = all(entry.level == "weight" for entry in patch.entries)
    return ("auto", "merge", "overlay") if weights_only else ("auto",)


BEHAVIOURS: tuple[Behaviour, ...] = tuple(
    of_models(check)
    for check in (
        a_loaded_patch_does_what_it_did,
        reverting_restores_every_bit,
        applying_changes_no_flag,
        a_patch_needs_no_plugin,
    )
)

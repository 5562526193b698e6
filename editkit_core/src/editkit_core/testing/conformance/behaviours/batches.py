"""Several requests, at once, in turn, or on top of a patch, as the method declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from editkit_core.errors import EditkitError
from editkit_core.patch.digests import stack_digest
from editkit_core.testing.conformance.behaviour import Behaviour, of_models
from editkit_core.testing.conformance.snapshot import Snapshot
from editkit_core.testing.conformance.workbench import Workbench, randomness

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch
    from editkit_core.types import MethodInfo

Array = np.ndarray[Any, Any]  # Any: element type and shape


def every_request_of_several_takes_effect(bench: Workbench) -> None:
    """Two requests in one call are two edits: each target is likelier than without its own."""
    model = bench.model()
    patch = _edit(bench, model, 0, 1)
    bench.expect(
        patch.header.edits == bench.requests[:2],
        "its patch of two requests does not record both of them.",
    )
    _expect_both(bench, model, patch, f"with two requests in one call. {_DECLARE}")


def a_joint_edit_does_not_depend_on_order(bench: Workbench) -> None:
    """With MethodInfo.batch, two requests in the other order give the same edit up to rounding."""
    model = bench.model()
    said = []
    for order in ((0, 1), (1, 0)):
        patch = _edit(bench, model, *order)
        with bench.editor(model).applied(patch):
            said.append(bench.logits(model))
    bench.expect(
        bench.close(*said),
        "it declares batch=True, and two requests in the other order give another edit. Solve them "
        "together, or declare batch=False, sequential=True.",
    )


def edits_in_turn_begin_like_the_first_alone(bench: Workbench) -> None:
    """With batch=False, the numbers of the first request are in the patch of two, as they were."""
    first, both = bench.first.patch, _edit(bench, bench.model(), 0, 1)
    longer = [array for entry in both.entries for array in entry.tensors().values()]
    for entry in first.entries:
        for name, array in entry.tensors().items():
            if array.ndim < 2 or array.dtype.kind != "f":
                continue  # such as radii, which a later request may change
            bench.expect(
                any(_begins(other, array) for other in longer),
                f"it declares batch=False, and {name} of the first request alone is not in the "
                "patch of two. Edit in turn, or declare batch=True.",
            )


def several_requests_are_refused(bench: Workbench) -> None:
    """With neither batch nor sequential, a call with two requests is refused by an EditkitError."""
    model = bench.model()
    try:
        _edit(bench, model, 0, 1)
    except EditkitError:
        return
    bench.expect(
        False,
        "it declares neither batch nor sequential, and takes two requests. Raise "
        "InvalidRequestError, or declare what it does.",
    )


def an_edit_on_top_keeps_what_is_applied(bench: Workbench) -> None:
    """With a patch on, an edit leaves it on, says what it was computed on, and both work together.

    A patch that replaces the earlier one must do alone what both did.
    """
    model = bench.model()
    base = Snapshot.of(model)
    first = bench.editor(model).apply(bench.first.patch)
    with randomness(1):
        seen = bench.watched(model, [bench.requests[1]])
    bench.expect_unchanged(
        [*seen.locate[0].changed(seen.locate[1]), *seen.compute[0].changed(seen.compute[1])],
        "editing a model with a patch on",
        "Leave the applied patches on.",
    )
    on_top = seen.patch
    replaced = bench.first.patch.id in on_top.header.replaces
    expected = None if replaced else stack_digest([bench.first.patch])
    bench.expect(
        on_top.header.computed_on == expected,
        f"its patch, computed on another one, records computed_on as {on_top.header.computed_on}; "
        f"it must be {expected}.",
    )
    remedy = "Take context.stack into account."
    _expect_both(bench, model, on_top, f"with one edit on top of another. {remedy}")
    first.revert()
    if replaced:
        _expect_both(bench, model, on_top, f"with a patch that replaces another. {remedy}")
    after = Snapshot.of(model)
    bench.expect_unchanged(
        base.changed(after, "weights", "hooks", "configuration"),
        "applying two patches and taking both off",
        "Leave applying to the core.",
    )


def _expect_both(bench: Workbench, model: EditableModel, patch: Patch, how: str) -> None:
    """Expect of each of two requests that its target is likelier than with the other one alone."""
    with bench.editor(model).applied(patch):
        both = bench.losses(model)
    for i, other in enumerate((bench.second, bench.first.patch)):
        without = bench.model()
        with bench.editor(without).applied(other):
            alone = bench.losses(without)[i]
        bench.expect(
            both[i] < alone if bench.case.improves else both[i] != alone,
            f"the target of {bench.requests[i].subject!r} costs {both[i]:.4g} nat a token, and "
            f"{alone:.4g} with the other request alone, {how}",
        )


def _edit(bench: Workbench, model: EditableModel, *chosen: int) -> Patch:
    with randomness(1):
        return bench.edit(model, [bench.requests[i] for i in chosen])


def _begins(longer: Array, shorter: Array) -> bool:
    """Say whether an array is another one's beginning along some axis."""
    if longer.ndim != shorter.ndim or any(
        a < b for a, b in zip(longer.shape, shorter.shape, strict=True)
    ):
        return False
    beginning = longer[tuple(slice(0, size) for size in shorter.shape)]
    return bool(np.array_equal(beginning, shorter))


def _several(info: MethodInfo) -> bool:
    return info.batch or info.sequential


_DECLARE = "MethodInfo.batch and MethodInfo.sequential say what becomes of several requests."

BEHAVIOURS: tuple[Behaviour, ...] = (
    of_models(every_request_of_several_takes_effect, _several),
    of_models(a_joint_edit_does_not_depend_on_order, lambda info: info.batch),
    of_models(
        edits_in_turn_begin_like_the_first_alone, lambda info: info.sequential and not info.batch
    ),
    of_models(several_requests_are_refused, lambda info: not _several(info)),
    of_models(an_edit_on_top_keeps_what_is_applied),
)

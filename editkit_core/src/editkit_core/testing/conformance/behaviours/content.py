"""A patch holds what the method declared, says where it comes from, and does what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from editkit_core.errors import BaseMismatchError
from editkit_core.params import unstructure
from editkit_core.patch.fingerprint import check_base
from editkit_core.testing.conformance.behaviour import Behaviour, of_models
from editkit_core.testing.conformance.workbench import Workbench

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch


def patches_hold_declared_kinds_only(bench: Workbench) -> None:
    """Every entry of a patch is of a kind that MethodInfo.emits names."""
    held = {entry.kind for entry in bench.first.patch.entries}
    bench.expect(
        held <= set(bench.info.emits),
        f"its patch holds {', '.join(sorted(held - set(bench.info.emits)))}, and MethodInfo.emits "
        f"names {', '.join(bench.info.emits) or 'nothing'}. Declare what you emit.",
    )


def patches_say_where_they_come_from(bench: Workbench) -> None:
    """A patch records its method, requests, parameters and seed, as they were."""
    header, seen = bench.first.patch.header, bench.first
    wanted = {
        "method": (header.method.name, bench.info.name),
        "edits": (header.edits, (bench.requests[0],)),
        "params": (dict(header.params), unstructure(seen.params)),
        "seed": (header.seed, bench.context().seed),
        "computed_on": (header.computed_on, None),
    }
    for name, (found, expected) in wanted.items():
        bench.expect(
            found == expected,
            f"its patch records {name} as {found!r:.200}, and it was {expected!r:.200}. Fill in "
            "Patch.from_parts with what the hook was given.",
        )


def patches_fit_their_base_and_no_other(bench: Workbench) -> None:
    """A patch fits the model it was made for, and is refused by one with other weights."""
    patch = bench.first.patch
    remedy = "Use base_fingerprint(model, [site.parameter for site in sites])."
    bench.expect(
        _fits(bench.model(), patch), f"its patch does not fit the model it was made for. {remedy}"
    )
    bench.expect(
        not _fits(bench.another_model(), patch),
        f"its patch fits a model with other weights. {remedy}",
    )


def _fits(model: EditableModel, patch: Patch) -> bool:
    try:
        check_base(model, patch)
    except BaseMismatchError:
        return False
    return True


def the_numbers_of_a_patch_are_finite(bench: Workbench) -> None:
    """No number of a patch is NaN or infinite."""
    for name, array in bench.first.patch.tensors().items():
        bench.expect(
            array.dtype.kind != "f" or bool(np.isfinite(array).all()),
            f"the tensor {name} of its patch is not finite. Raise NonFiniteEditError instead.",
        )


def an_edit_makes_its_target_likelier(bench: Workbench) -> None:
    """With the patch on, the target is likelier than before; or the model says something else.

    The latter is enough where `MethodCase.improves` is False.
    """
    model = bench.model()
    logits, before = bench.logits(model), bench.losses(model)[0]
    with bench.editor(model).applied(bench.first.patch):
        changed, after = bench.logits(model), bench.losses(model)[0]
    bench.expect(
        bool((changed != logits).any()),
        "its patch changes nothing of what the model says after the edited prompt.",
    )
    bench.expect(
        not bench.case.improves or after < before,
        f"with its patch on, the target costs {after:.4g} nat a token, and {before:.4g} before. "
        "Choose other parameters for the case, or look at the sign of the change.",
    )


def progress_ends_as_often_as_it_begins(bench: Workbench) -> None:
    """Every piece of work that is reported as begun is reported as ended."""
    told = _Told()
    bench.edit(bench.model(), progress=told)
    bench.expect(
        told.begun == told.ended,
        f"it began {told.begun} pieces of work and ended {told.ended}. Call progress.finish() in a "
        "finally block.",
    )


class _Told:
    """Counts what is reported."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def start(self, label: str, total: int | None) -> None:
        self.begun += 1

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Ignore."""

    def finish(self) -> None:
        self.ended += 1


BEHAVIOURS: tuple[Behaviour, ...] = tuple(
    of_models(check)
    for check in (
        patches_hold_declared_kinds_only,
        patches_say_where_they_come_from,
        patches_fit_their_base_and_no_other,
        the_numbers_of_a_patch_are_finite,
        an_edit_makes_its_target_likelier,
        progress_ends_as_often_as_it_begins,
    )
)

"""The same edit, made again in another way, is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from editkit_core.testing.conformance.behaviour import Behaviour, of_models
from editkit_core.testing.conformance.workbench import Workbench, randomness

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch


def locating_is_deterministic(bench: Workbench) -> None:
    """Equal seeds give equal sites, whatever the global random state."""
    with randomness(2):
        again = bench.watched(bench.model())
    bench.expect(
        again.sites == bench.first.sites,
        f"editkit_locate chose {_modules(again.sites)} after {_modules(bench.first.sites)}, for "
        "the same requests and seed. Draw only from context.seed.",
    )


def equal_seeds_give_equal_patches(bench: Workbench) -> None:
    """Equal requests, parameters and seeds give patches with the same id, whatever else happens."""
    with randomness(3):
        again = bench.edit(bench.model())
    _same(
        bench, bench.first.patch, again, "the same edit, made again", "Draw only from context.seed"
    )


def an_edit_inside_no_grad_is_the_same(bench: Workbench) -> None:
    """Inside torch.no_grad(), where a caller may be, an edit gives the same patch."""
    with randomness(1), torch.no_grad():
        again = bench.edit(bench.model())
    _same(
        bench,
        bench.first.patch,
        again,
        "an edit inside torch.no_grad()",
        "Use torch.enable_grad() where needed",
    )


def a_batch_of_one_is_a_single_edit(bench: Workbench) -> None:
    """A list of one request gives the patch that the request alone gives."""
    with randomness(1):
        again = bench.edit(bench.model(), [bench.requests[0]])
        alone = bench.edit(bench.model(), bench.requests[0])
    _same(
        bench, bench.first.patch, again, "a batch of one", "Treat a single request as a list of one"
    )
    _same(
        bench,
        bench.first.patch,
        alone,
        "a single request",
        "Treat a single request as a list of one",
    )


def earlier_edits_leave_no_trace(bench: Workbench) -> None:
    """An edit is the same on a model that was edited in another way before, and put back."""
    first, model = bench.first.patch, bench.model()  # in this order
    with randomness(1):
        other = bench.edit(model, [bench.requests[1]])
        bench.editor(model).apply(other).revert()
        again = bench.edit(model)
    _same(
        bench,
        first,
        again,
        "an edit after another one that was reverted",
        "Keep nothing between calls",
    )


def _same(bench: Workbench, first: Patch, patch: Patch, what: str, remedy: str) -> None:
    if patch.id == first.id:
        return
    known = [field.name for field in attrs.fields(type(patch.header)) if field.name not in _DERIVED]
    names = [n for n in known if getattr(patch.header, n) != getattr(first.header, n)]
    bench.expect(
        False,
        f"{what} gives another patch: {', '.join(names)} differ. {remedy}, and record nothing that "
        "depends on time or place.",
    )


def _modules(sites: tuple[object, ...]) -> str:
    return ", ".join(str(getattr(site, "module", site)) for site in sites)


_DERIVED = ("id", "content_digest", "checksum", "created")

BEHAVIOURS: tuple[Behaviour, ...] = tuple(
    of_models(check)
    for check in (
        locating_is_deterministic,
        equal_seeds_give_equal_patches,
        an_edit_inside_no_grad_is_the_same,
        a_batch_of_one_is_a_single_edit,
        earlier_edits_leave_no_trace,
    )
)

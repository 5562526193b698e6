"""Check a patch file: alone, or against a model. Nothing is left changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from editkit_core.errors import (
    EditkitError,
    PatchDigestError,
    PatchError,
    PatchShapeError,
    PatchVersionError,
    UnknownPatchKindError,
)
from editkit_core.patch.format import Patch
from editkit_core.patch.kinds import Kinds

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

_FILE_CHECKS: tuple[tuple[str, type[PatchError], str], ...] = (
    ("version", PatchVersionError, "format version {0.spec_version}"),
    ("format", PatchError, "strictly well formed, every number finite"),
    ("digests", PatchDigestError, "content {0.content_digest}"),
    ("kinds", UnknownPatchKindError, "every entry kind is known here"),
    ("shapes", PatchShapeError, "every entry fits the weight it names"),
)


@attrs.frozen(kw_only=True)
class VerifyRow:
    """The answer to one check.

    Attributes:
        check: What was checked.
        ok: Whether it holds.
        detail: The fact, or why not.
        fatal: Whether a patch that fails it must not be used; otherwise it is a warning.
    """

    check: str
    ok: bool
    detail: str
    fatal: bool = True


class Checks:
    """What a report of checks says as a whole."""

    __slots__ = ()
    rows: tuple[VerifyRow, ...]

    @property
    def ok(self) -> bool:
        """Whether no fatal check failed."""
        return all(row.ok or not row.fatal for row in self.rows)

    @property
    def warnings(self) -> tuple[VerifyRow, ...]:
        """The failed checks that are not fatal."""
        return tuple(row for row in self.rows if not row.ok and not row.fatal)


@attrs.frozen(kw_only=True)
class VerifyReport(Checks):
    """The answers to all checks.

    Attributes:
        path: The file.
        id: The patch's id, or None when it could not be read.
        rows: One a check, in order; the first fatal failure of the file ends them.
    """

    path: str
    id: str | None
    rows: tuple[VerifyRow, ...]


def verify(
    patch_path: str | Path, model: EditableModel | None = None, *, kinds: Kinds | None = None
) -> VerifyReport:
    """Check a patch file and, given a model, whether it fits and comes off again.

    Args:
        patch_path: The file.
        model: A model to check against; it is left bit-identical.
        kinds: Entry kinds to accept; None means the core's.

    Raises:
        InputNotFoundError: The file cannot be read.
    """
    path = Path(patch_path)
    try:
        patch = Patch.load(path, kinds=kinds)
    except PatchError as error:
        return VerifyReport(path=str(path), id=None, rows=_failed(error))
    rows = [
        VerifyRow(check=name, ok=True, detail=detail.format(patch.header))
        for name, _, detail in _FILE_CHECKS
    ]
    if model is not None:
        rows += _against(model, patch)
    return VerifyReport(path=str(path), id=patch.header.id, rows=tuple(rows))


def _failed(error: PatchError) -> tuple[VerifyRow, ...]:
    named = {kind: name for name, kind, _ in _FILE_CHECKS}
    check = named.get(type(error), "format")
    return (VerifyRow(check=check, ok=False, detail=str(error)),)


def _against(model: EditableModel, patch: Patch) -> list[VerifyRow]:
    from editkit_core.patch.fingerprint import mismatches
    from editkit_core.patch.identity import config_digest, tokenizer_digest

    wrong = {mismatch.parameter: mismatch for mismatch in mismatches(model, patch)}
    rows = []
    for name in patch.header.base.tensors:
        found = wrong.get(name)
        detail = "is the tensor the patch was made for"
        if found is not None:
            detail = f"the patch needs {found.expected}, found {found.found}"
        rows.append(VerifyRow(check=f"base {name}", ok=found is None, detail=detail))
    base = patch.header.base
    rows += _informative("configuration", base.config_digest, config_digest(model.model.config))
    rows += _informative("tokenizer", base.tokenizer_digest, tokenizer_digest(model.tokenizer))
    return rows if wrong else [*rows, _applies(model, patch), *_canary(model, patch)]


def _informative(check: str, stated: str | None, found: str | None) -> list[VerifyRow]:
    if stated is None:
        return []
    same = stated == found
    detail = "is the one the patch was made with"
    if not same:
        detail = f"differs: the patch was made with {stated}, found {found}; prompts may mean less"
    return [VerifyRow(check=check, ok=same, detail=detail, fatal=False)]


def _applies(model: EditableModel, patch: Patch) -> VerifyRow:
    from editkit_core.patch.apply import apply_patch

    try:
        before = _state(model, patch)
        with apply_patch(model, patch) as applied:
            changed = _state(model, patch) != before
        restored = _state(model, patch) == before
    except EditkitError as error:
        return VerifyRow(check="apply and revert", ok=False, detail=str(error))
    detail = "changes the weights and comes off bit for bit" if changed else "changes no weight"
    if applied.mode == "overlay":
        detail = f"goes beside the weights and comes off again. {applied.why}".rstrip()
    return VerifyRow(
        check="apply and revert",
        ok=restored,
        detail=detail if restored else "the weights were not restored",
    )


def _state(model: EditableModel, patch: Patch) -> list[str]:
    """Return the digests of the touched weights, whatever holds them."""
    from editkit_core.models.holding import fetch, plain_parts
    from editkit_core.patch import bits

    weights = []
    for name in patch.header.base.tensors:
        owner, _, leaf = name.rpartition(".")
        weight = fetch(model.module(owner), leaf)
        weights += [] if weight is None else [bits.sha256(part) for part in plain_parts(weight)]
    return weights


def _canary(model: EditableModel, patch: Patch) -> list[VerifyRow]:
    if patch.canary is None:
        return []
    from editkit_core.patch.canary import TOLERANCE, largest_deviation

    off = largest_deviation(model, patch)
    return [
        VerifyRow(
            check="canary",
            ok=off <= TOLERANCE,
            detail=f"log-probabilities differ by at most {off:.2g} nat (allowed {TOLERANCE})",
            fatal=False,
        )
    ]

"""The base and the stack that several patches have in common, before they become one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import attrs

from editkit_core.errors import BaseMismatchError, StackConflictError
from editkit_core.patch.digests import digest_of, stack_digest
from editkit_core.patch.format import Patch
from editkit_core.patch.header import BaseFingerprint, TensorFingerprint

Scaled = tuple[Patch, float]
_MOST_FOR_SUBSETS = 10


def common_base(patches: Sequence[Patch]) -> BaseFingerprint:
    """Return the union of the bases' fingerprints.

    What only informs (revision, configuration, tokenizer) is kept where all agree.

    Raises:
        BaseMismatchError: Two fingerprint one tensor differently, or share no tensor and name
            different configurations.
    """
    tensors: dict[str, TensorFingerprint] = {}
    for patch in patches:
        _check_related(patches[0], patch)
        for name, found in patch.header.base.tensors.items():
            known = tensors.setdefault(name, found)
            if attrs.evolve(known, norm=None) != attrs.evolve(found, norm=None):
                raise BaseMismatchError(
                    f"The patches are for different bases: {patches[0].id} and {patch.id} do not "
                    f"agree on {name}: {_named(known)} and {_named(found)}. Fold patches of one "
                    "base, or make one of them again.",
                    parameter=name,
                    expected=_named(known),
                    found=_named(found),
                )
    bases = [patch.header.base for patch in patches]
    return BaseFingerprint(
        model=bases[0].model,
        revision=_agreed([base.revision for base in bases]),
        config_digest=_agreed([base.config_digest for base in bases]),
        tokenizer_digest=_agreed([base.tokenizer_digest for base in bases]),
        tied=tuple(dict.fromkeys(group for base in bases for group in base.tied)),
        tensors=tensors,
    )


def common_ground(parts: Sequence[Scaled], below: Sequence[Scaled] = ()) -> str | None:
    """Return the stack digest that all parts together were computed on; None for the bare base.

    A part may stand on the base, on other parts, or on patches of ``below``. What none of these
    explain is kept when all parts state it alike.

    Raises:
        StackConflictError: A part stands on something else.
    """
    stated = {patch.header.computed_on for patch, _ in parts}
    if len(stated) == 1 and not below:
        return stated.pop()
    inside = {patch.id for patch, _ in parts}
    ground: dict[str, Scaled] = {}
    for i, (patch, _) in enumerate(parts):
        if patch.header.computed_on is None:
            continue
        others = [*below, *parts[:i], *parts[i + 1 :]]
        found = _find(patch.header.computed_on, others, len(below) + i)
        if found is None:
            raise StackConflictError(
                f"The patch {patch.id} was computed on a stack of other patches "
                f"({patch.header.computed_on[:16]}…), which the patches given here are not. Fold "
                "it together with those, with the scales they had, or rebase it first.",
                patch=patch.id,
                computed_on=patch.header.computed_on,
            )
        ground |= {member.id: (member, scale) for member, scale in found}
    return stack_digest(item for name, item in ground.items() if name not in inside)


def _find(wanted: str, others: Sequence[Scaled], before: int) -> Sequence[Scaled] | None:
    for chosen in _candidates(others, before):
        if digest_of((patch.header.content_digest, scale) for patch, scale in chosen) == wanted:
            return chosen
    return None


def _candidates(others: Sequence[Scaled], before: int) -> Iterator[Sequence[Scaled]]:
    """Give the sets an edit may have been computed on: most often, all that came before it."""
    yield others[:before]
    if len(others) <= _MOST_FOR_SUBSETS:
        for count in range(len(others), 0, -1):
            yield from itertools.combinations(others, count)
    else:
        yield from (others[:count] for count in range(len(others), 0, -1))


def _check_related(first: Patch, other: Patch) -> None:
    one, two = first.header.base, other.header.base
    related = one.tensors.keys() & two.tensors.keys()
    digests = (one.config_digest, two.config_digest)
    if not related and None not in digests and digests[0] != digests[1]:
        raise BaseMismatchError(
            f"The patches are for different bases: {first.id} for {one.model!r}, {other.id} for "
            f"{two.model!r}, with different configurations. Fold patches of one base.",
            expected=one.model,
            found=two.model,
        )


def _named(tensor: TensorFingerprint) -> str:
    return f"{tensor.dtype} {tensor.shape} {tensor.sha256[:16]}…"


def _agreed(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None

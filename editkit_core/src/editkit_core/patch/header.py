"""What a patch file says about itself, as values.

:mod:`editkit_core.patch.header_codec` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from editkit_core.types import EditRequest, Site

SPEC_VERSION = 1
JsonValue = Any  # Any: JSON has no closed Python type that mypy accepts recursively everywhere


@attrs.frozen(kw_only=True)
class MethodRef:
    """Who computed the patch.

    Attributes:
        name: The method's id.
        dist: The distribution that holds it; what to install for its entry kinds.
        version: That distribution's version.
    """

    name: str
    dist: str = attrs.field(
        validator=attrs.validators.matches_re(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
    )
    version: str


@attrs.frozen(kw_only=True)
class TensorFingerprint:
    """A tensor of the base that the patch changes, as the checkpoint stores it.

    Attributes:
        shape: Sizes in the parameter's own layout.
        dtype: Container name of the stored element type, for example ``F16``.
        sha256: Digest of the stored bytes.
        layout: ``out_in`` for ``nn.Linear``, ``in_out`` for GPT-2's ``Conv1D``; by module type.
        norm: Frobenius norm to six digits, to say how large a change is.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str
    layout: str = attrs.field(
        default="out_in", validator=attrs.validators.in_(("out_in", "in_out"))
    )
    norm: float | None = None


@attrs.frozen(kw_only=True)
class BaseFingerprint:
    """The model a patch fits.

    Attributes:
        model: What the author called it, for example a hub id. Never used as a path.
        revision: Hub revision, if known.
        config_digest: Digest of the configuration without volatile keys; informative.
        tokenizer_digest: Digest of the fast tokenizer, if there is one; informative.
        tied: Groups of parameter names that share one tensor.
        tensors: The tensors the patch changes, by parameter name.
    """

    model: str
    revision: str | None = None
    config_digest: str | None = None
    tokenizer_digest: str | None = None
    tied: tuple[tuple[str, ...], ...] = ()
    tensors: Mapping[str, TensorFingerprint]


@attrs.frozen(kw_only=True)
class EntryHeader:
    """One entry without its tensors.

    Attributes:
        kind: Entry kind, for example ``weight.low_rank/1``.
        site: Where it acts.
    """

    kind: str
    site: Site


@attrs.frozen(kw_only=True)
class PatchHeader:
    """Everything about a patch but its numbers.

    Attributes:
        spec_version: Version of this format.
        id: ``ek-`` and 16 digits of the content digest.
        content_digest: See :mod:`editkit_core.patch.digests`.
        checksum: Digest of the whole header but itself.
        name: A name for people; may be empty.
        method: Who computed it.
        base: What it fits.
        entries: Kinds and sites, in order; entry ``i`` owns the tensors ``i.*``.
        evidence: Module of each evidence block ``evidence.i.*``.
        tensors: Digest of every tensor in the file.
        edits: The requests.
        params: The method's parameters.
        seed: Seed of every random choice; stored as text because JSON numbers end at 2**53.
        contexts: Context prefixes used.
        environment: Versions of what computed it.
        metrics: Scores measured at creation.
        computed_on: Stack digest of the patches applied when it was computed; None for the base.
        requires: Ids of patches that must be there too.
        replaces: Ids of patches that this one supersedes.
        conflicts: Ids of patches that must not be there.
        licence: SPDX name, if given.
        created: UTC time, ISO 8601.
    """

    spec_version: int = SPEC_VERSION
    id: str
    content_digest: str
    checksum: str
    name: str = ""
    method: MethodRef
    base: BaseFingerprint
    entries: tuple[EntryHeader, ...]
    evidence: tuple[str, ...] = ()
    tensors: Mapping[str, str]
    edits: tuple[EditRequest, ...] = ()
    params: Mapping[str, JsonValue] = attrs.field(factory=dict)
    seed: int = 0
    contexts: tuple[str, ...] = ()
    environment: Mapping[str, JsonValue] = attrs.field(factory=dict)
    metrics: Mapping[str, JsonValue] = attrs.field(factory=dict)
    computed_on: str | None = None
    requires: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    licence: str | None = None
    created: str

"""A data set as it was loaded: requests, and what became of every record of its file."""

from __future__ import annotations

import attrs

from editkit_core.types import EditRequest


@attrs.frozen(kw_only=True)
class Skipped:
    """A record that gave no request, or a part of one that was left out.

    Attributes:
        index: The record's place in the file, counted from 0.
        reason: Why, for people.
        code: The code of the error it is, for example ``EK-R02`` for an empty target.
    """

    index: int
    reason: str
    code: str = ""


@attrs.frozen(kw_only=True)
class DataSet:
    """Requests and where they come from.

    Attributes:
        name: The format's name, for example ``counterfact``.
        form: The form of the format that the file has, for example ``full``.
        requests: The requests, in file order, or in the order they were drawn with a limit.
        target_policy: Which answer became ``target_new``, for example ``counterfactual``.
        digest: SHA-256 of the file; of several files, of the list of their digests and names.
        source: A public name of the file, without folders of this machine.
        records: Number of records in the file, those skipped among them.
        skipped: Records that gave no request.
        left_out: Probes of usable records that were left out.
        detected: Whether the format was recognised from the records instead of named.
        limit: The most records that were to be drawn, or None for all.
        seed: The seed they were drawn with.
    """

    name: str
    form: str
    requests: tuple[EditRequest, ...] = attrs.field(repr=False)
    target_policy: str
    digest: str
    source: str
    records: int
    skipped: tuple[Skipped, ...] = attrs.field(default=(), repr=False)
    left_out: tuple[Skipped, ...] = attrs.field(default=(), repr=False)
    detected: bool = False
    limit: int | None = None
    seed: int = 0

    @property
    def groups(self) -> tuple[tuple[EditRequest, ...], ...]:
        """The requests in order, those that must be edited together in one tuple."""
        made: dict[object, list[EditRequest]] = {}
        for i, request in enumerate(self.requests):
            made.setdefault(request.group or i, []).append(request)
        return tuple(map(tuple, made.values()))

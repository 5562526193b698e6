"""What a format of data sets is: its forms, its target policies, and how it is loaded.

A plugin registers a factory of a :class:`DataFormat`. One whose records become requests one by one
is a :class:`~editkit_core.data.file_format.FileFormat` and needs only a function a record.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs

from editkit_core.errors import InvalidParameterError, did_you_mean

if TYPE_CHECKING:
    from editkit_core.data.dataset import DataSet
    from editkit_core.data.place import Place


@attrs.frozen(kw_only=True)
class FormInfo:
    """One form of a format.

    Attributes:
        name: The form's name.
        about: What its records hold, one line.
        policies: What becomes ``target_new``, by target policy; the first one is the default.
    """

    name: str
    about: str
    policies: Mapping[str, str]

    def policy(self, wanted: str | None) -> str:
        """Return the wanted target policy, or the default one.

        Raises:
            InvalidParameterError: The form has no such policy.
        """
        if wanted is None:
            return next(iter(self.policies))
        if wanted not in self.policies:
            raise InvalidParameterError(
                f"The form {self.name!r} has no target policy {wanted!r}."
                f"{did_you_mean(wanted, self.policies)} Known: {', '.join(self.policies)}.",
                target_policy=wanted,
            )
        return wanted


@attrs.frozen(kw_only=True)
class LoadOptions:
    """How to load.

    Attributes:
        form: The form's name, or None to recognise it.
        limit: The most records to draw, or None for all in file order.
        seed: Decides which are drawn, and every other choice a format makes.
        strict: Whether the first record that does not fit is refused instead of skipped.
        target_policy: Which answer becomes ``target_new``, or None for the form's default.
    """

    form: str | None = None
    limit: int | None = attrs.field(default=None)
    seed: int = attrs.field(default=0)
    strict: bool = False
    target_policy: str | None = None

    @limit.validator
    def _check_limit(self, _: object, value: int | None) -> None:
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidParameterError(
                f"The limit is {value!r}; it must be a whole number from 1. Leave it out to take "
                "all records.",
                limit=value,
            )

    @seed.validator
    def _check_seed(self, _: object, value: int) -> None:
        if type(value) is not int or not 0 <= value < 2**63:
            raise InvalidParameterError(
                f"The seed is {value!r}; it must be a whole number from 0 to 2**63 - 1.", seed=value
            )


class DataFormat(Protocol):
    """A format of data sets, or one data set that brings its records itself."""

    @property
    def name(self) -> str:
        """The name before the colon."""

    @property
    def title(self) -> str:
        """One line for people."""

    @property
    def source(self) -> str:
        """Paper or project it comes from."""

    @property
    def place(self) -> str:
        """What stands after the colon, for people: ``FILE.json``, ``FOLDER``, ``N`` or nothing."""

    @property
    def forms(self) -> Sequence[FormInfo]:
        """Its forms; the first one is meant when none can be told apart."""

    def recognises(self, place: Place) -> bool:
        """Return whether a file or folder looks like this format."""

    def load(self, place: Place, options: LoadOptions) -> DataSet:
        """Load the data set that lies there.

        Raises:
            InputNotFoundError: There is nothing to read.
            RequestError: It is not of this format, or a record does not fit and ``strict`` is set.
        """


def local_file(folder: Path | None, name: str) -> Path:
    """Return where a name points: as it is, or else below ``folder``."""
    path = Path(name).expanduser()
    if folder is not None and not path.is_absolute() and not os.path.exists(path):
        return folder / path
    return path

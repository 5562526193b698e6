"""A record's fields, each asked for by name and checked; a misfit is named by its field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from editkit_core.errors import EmptyTargetError, RequestFileError


class Fields:
    """The named values of a record or of an object inside it.

    Args:
        value: What JSON or YAML gave.
        where: The name of the object inside its record; empty for the record itself.

    Raises:
        RequestFileError: It has no names and values.
    """

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, Mapping):
            what = repr(where) if where else "the record"
            raise RequestFileError(
                f"{what} is {type(value).__name__}, not names and values.", field=where
            )
        self._values: Mapping[str, Any] = value  # Any: JSON values
        self._where = where

    def __contains__(self, name: str) -> bool:
        """Return whether the field is there and not null."""
        return self._values.get(name) is not None

    def text(self, name: str) -> str:
        """Return a text as it stands.

        Raises:
            RequestFileError: It is missing, blank or no text.
        """
        value = self._value(name)
        if not isinstance(value, str):
            raise self._misfit(name, f"is {_short(value)}, not text")
        if not value.strip():
            raise self._misfit(name, "is empty")
        return _checked(self._name(name), value)

    def word(self, name: str) -> str:
        """Return a text without spaces around it."""
        return self.text(name).strip()

    def target(self, name: str) -> str:
        """Return a text without spaces around it that is to become a target.

        Raises:
            EmptyTargetError: It is blank.
            RequestFileError: It is missing or no text.
        """
        value = self._value(name)
        if isinstance(value, str) and not value.strip():
            raise EmptyTargetError(f"{self._name(name)!r} is empty.", field=self._name(name))
        return self.word(name)

    def label(self, name: str) -> str:
        """Return a text or whole number as text."""
        value = self._value(name)
        return str(value) if type(value) is int else self.word(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts as they stand; blank ones are dropped, a missing list is empty.

        Raises:
            RequestFileError: It is no list of texts.
        """
        if name not in self:
            return ()
        value = self._value(name)
        if not isinstance(value, list):
            raise self._misfit(name, f"is {_short(value)}, not a list")
        for text in value:
            if not isinstance(text, str):
                raise self._misfit(name, f"holds {_short(text)}, not text")
        return tuple(_checked(self._name(name), text) for text in value if text.strip())

    def answers(self, name: str) -> tuple[str, ...]:
        """Return one answer, a list of answers, or lists in lists, as one flat tuple.

        Blank answers and doubles are dropped; a missing field has none.

        Raises:
            RequestFileError: Something in it is no text.
        """
        if name not in self:
            return ()
        found: dict[str, None] = {}
        waiting: list[Any] = [self._value(name)]  # Any: JSON values
        while waiting:
            value = waiting.pop()
            if isinstance(value, list):
                waiting += reversed(value)
            elif not isinstance(value, str):
                raise self._misfit(name, f"holds {_short(value)}, not text")
            elif value.strip():
                found[_checked(self._name(name), value.strip())] = None
        return tuple(found)

    def inner(self, name: str) -> Fields:
        """Return an object inside this one.

        Raises:
            RequestFileError: It is missing or has no names and values.
        """
        return Fields(self._value(name), self._name(name))

    def inners(self, name: str) -> tuple[Fields, ...]:
        """Return a list of objects; a missing list is empty.

        Raises:
            RequestFileError: It is no list, or an item has no names and values.
        """
        if name not in self:
            return ()
        value = self._value(name)
        if not isinstance(value, list):
            raise self._misfit(name, f"is {_short(value)}, not a list")
        return tuple(Fields(item, f"{self._name(name)}[{i}]") for i, item in enumerate(value))

    def names(self) -> Iterator[str]:
        """Give the names of the fields that are not null."""
        return (str(name) for name in self._values if self._values[name] is not None)

    def _value(self, name: str) -> Any:  # Any: JSON values
        if name not in self:
            raise self._misfit(name, "is missing")
        return self._values[name]

    def _name(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def _misfit(self, name: str, why: str) -> RequestFileError:
        return RequestFileError(f"{self._name(name)!r} {why}.", field=self._name(name))


def _checked(name: str, text: str) -> str:
    """Refuse half a character, which no tokenizer takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestFileError(f"{name!r} is not valid text: {text!r:.60}.", field=name)
    return text


def _short(value: object) -> str:
    return repr(value)[:60]

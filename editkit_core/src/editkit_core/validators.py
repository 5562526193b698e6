"""Checks for the fields of a method's parameter class: one error, naming the value and the remedy.

    v_steps: int = attrs.field(default=25, validator=whole(1))
    v_lr: float = attrs.field(default=0.5, validator=number(above=0))
    variant: Variant = attrs.field(default="r-rome", validator=one_of("r-rome", "rome"))

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from editkit_core.errors import InvalidParameterError

Validator = Callable[[object, "attrs.Attribute[Any]", Any], None]  # Any: a field of any type

__all__ = [
    "Validator",
    "each",
    "listed",
    "number",
    "one_of",
    "pairs",
    "refusal",
    "rising_layers",
    "texts",
    "whole",
]


def refusal(name: str, value: object, needed: str) -> InvalidParameterError:
    """Return the error for a parameter that is not what is needed."""
    return InvalidParameterError(f"{name} is {value!r}; it must be {needed}.", parameter=name)


def whole(low: int) -> Validator:
    """Accept None and whole numbers from ``low`` up."""

    def check(_: object, field: attrs.Attribute[Any], value: int | None) -> None:  # Any: its type
        if value is not None and (type(value) is not int or value < low):
            raise refusal(field.name, value, f"a whole number from {low} up")

    return check


def number(*, above: float | None = None, low: float = 0.0, high: float = math.inf) -> Validator:
    """Accept None and finite numbers above ``above``, else from ``low`` up, to ``high``."""

    def check(_: object, field: attrs.Attribute[Any], value: float | None) -> None:  # Any: its type
        if value is None:
            return
        real = not isinstance(value, bool) and isinstance(value, int | float)
        big_enough = real and (value > above if above is not None else value >= low)
        if not (big_enough and math.isfinite(value) and value <= high):
            start = f"above {above:g}" if above is not None else f"{low:g} or more"
            end = "" if high == math.inf else f" and at most {high:g}"
            raise refusal(field.name, value, f"{start}{end}")

    return check


def one_of(*known: str) -> Validator:
    """Accept some words."""

    def check(_: object, field: attrs.Attribute[Any], value: str) -> None:  # Any: its type
        if value not in known:
            raise refusal(field.name, value, f"one of {', '.join(known)}")

    return check


def each(validator: Validator) -> Validator:
    """Accept tuples, of at least one, whose every member another check accepts."""

    def check(_: object, field: attrs.Attribute[Any], value: tuple[Any, ...]) -> None:  # Any: them
        if not value:
            raise refusal(field.name, value, "a list of at least one")
        for member in value:
            validator(_, field, member)

    return check


def rising_layers(
    instance: object,
    field: attrs.Attribute[Any],  # Any: its type
    value: tuple[int, ...] | None,
) -> None:
    """Accept None and rising layer numbers from 0, each once, at least one."""
    if value is None:
        return
    each(whole(0))(instance, field, value)
    if list(value) != sorted(set(value)):
        raise refusal(field.name, list(value), "rising layer numbers, each once")


def listed(value: Iterable[Any] | None) -> tuple[Any, ...] | None:  # Any: of any type
    """Make a tuple; None stays None."""
    return None if value is None else tuple(value)


def pairs(value: Iterable[Iterable[int]]) -> Any:  # Any: their lengths are checked later
    """Make a tuple of tuples."""
    return tuple(tuple(pair) for pair in value)


def texts(value: Iterable[str]) -> tuple[str, ...]:
    """Make a tuple of texts."""
    return tuple(value)

"""`Behaviour`: one sentence that must hold of every method, with the function that tries it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from editkit_core.testing.conformance.workbench import Workbench
    from editkit_core.types import MethodInfo

Scope = Literal["method", "model"]
Check = Callable[["Workbench"], None]
Condition = Callable[["MethodInfo"], bool]


class ConformanceError(AssertionError):
    """A method does not do what every method must; the message says where and what to do."""


@attrs.frozen(kw_only=True)
class Behaviour:
    """One sentence that must hold of every method.

    Attributes:
        name: The sentence, with underscores.
        check: Tries it on a workbench; `ConformanceError` says that it does not hold.
        scope: ``method`` for what is tried once, ``model`` for what is tried on many models.
        concerns: Which methods it is about.
    """

    name: str
    check: Check
    scope: Scope
    concerns: Condition

    @property
    def sentence(self) -> str:
        """What must hold, in words."""
        return " ".join((self.check.__doc__ or self.name).split())

    def __str__(self) -> str:
        return self.name


def of_models(check: Check, concerns: Condition = lambda info: True) -> Behaviour:
    """Make a behaviour that is tried on many models."""
    return Behaviour(name=_name(check), check=check, scope="model", concerns=concerns)


def of_methods(check: Check, concerns: Condition = lambda info: True) -> Behaviour:
    """Make a behaviour that is tried once a method."""
    return Behaviour(name=_name(check), check=check, scope="method", concerns=concerns)


def _name(check: Check) -> str:
    return str(getattr(check, "__name__", check))

"""The conformance kit: what every editing method must do, checked on tiny models of every family.

In a plugin's tests, with pytest:

    from editkit_core.testing.conformance import MethodCase, MethodConformance

    class TestMyMethod(MethodConformance):
        case = MethodCase(method="mymethod", params={"steps": 5})

Without pytest, ``print(check(case))`` says what passed and what did not.

A `Behaviour` is one sentence that must hold, such as "a patch that is saved and loaded does what it
did before". Those about models are tried on tiny random models of every family that the method
declares, in two dtypes and with two tokenizers. Nothing is downloaded, and no file is left.
"""

from __future__ import annotations

from editkit_core.testing.conformance.behaviour import Behaviour, ConformanceError
from editkit_core.testing.conformance.behaviours import all_behaviours
from editkit_core.testing.conformance.case import MethodCase, Setting
from editkit_core.testing.conformance.running import (
    ConformanceReport,
    Coverage,
    Outcome,
    Trial,
    check,
    trials,
)
from editkit_core.testing.conformance.suite import MethodConformance

__all__ = [
    "Behaviour",
    "ConformanceError",
    "ConformanceReport",
    "Coverage",
    "MethodCase",
    "MethodConformance",
    "Outcome",
    "Setting",
    "Trial",
    "all_behaviours",
    "check",
    "trials",
]

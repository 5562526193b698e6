"""Which behaviour is tried on which model, and what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from typing import Literal

import attrs

from editkit_core.testing.conformance import models
from editkit_core.testing.conformance.behaviour import Behaviour, ConformanceError
from editkit_core.testing.conformance.behaviours import all_behaviours
from editkit_core.testing.conformance.case import MethodCase, Setting
from editkit_core.testing.conformance.workbench import Workbench, randomness

Coverage = Literal["pairs", "all"]
_FEW = 2  # families, so few that each has to meet every dtype and tokenizer
_KEPT = 4  # workbenches; trials of one model come one after the other


class Benches:
    """The workbenches of a case; the trials of one model share one."""

    def __init__(self, case: MethodCase) -> None:
        self._case = case
        self._at = lru_cache(maxsize=_KEPT)(self._make)

    def at(self, setting: Setting) -> Workbench:
        """Return the workbench of a setting."""
        return self._at(setting)

    def _make(self, setting: Setting) -> Workbench:
        return Workbench(self._case, setting)


@attrs.frozen(eq=False)
class Trial:
    """One behaviour on one model.

    Attributes:
        method: The method's id.
        behaviour: What is tried.
        setting: On what.
    """

    method: str
    behaviour: Behaviour
    setting: Setting
    _benches: Benches = attrs.field(repr=False)

    def run(self) -> None:
        """Try it.

        Raises:
            ConformanceError: The behaviour does not hold.
        """
        with randomness(0), _quiet():
            self.behaviour.check(self._benches.at(self.setting))

    def __str__(self) -> str:
        on = f"-{self.setting}" if self.behaviour.scope == "model" else ""
        return f"{self.method}-{self.behaviour.name}{on}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep editkit's log from standard error, unless somebody listens to it."""
    log, silent = logging.getLogger("editkit"), logging.NullHandler()
    log.addHandler(silent)
    try:
        yield
    finally:
        log.removeHandler(silent)


@attrs.frozen(eq=False)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: What was tried.
        why: What is wrong, or nothing when the behaviour holds.
        seconds: How long it took.
    """

    trial: Trial
    why: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the behaviour holds."""
        return not self.why


@attrs.frozen(eq=False)
class ConformanceReport:
    """What came of all trials of a case."""

    method: str
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether every behaviour holds."""
        return not self.failed

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The trials in which a behaviour does not hold."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    def __str__(self) -> str:
        names = dict.fromkeys(outcome.trial.behaviour.name for outcome in self.outcomes)
        tried = {
            name: [o for o in self.outcomes if o.trial.behaviour.name == name] for name in names
        }
        lines = [
            f"{'ok  ' if all(o.ok for o in them) else 'FAIL'} "
            f"{sum(o.ok for o in them):>3}/{len(them):<3} {name}"
            for name, them in tried.items()
        ]
        lines += [f"\n{outcome.trial}\n  {outcome.why}" for outcome in self.failed]
        verdict = f"{len(self.failed)} of {len(self.outcomes)} trials of {self.method} failed."
        return "\n".join([*lines, "", verdict])


def trials(
    case: MethodCase,
    coverage: Coverage = "pairs",
    behaviours: Sequence[Behaviour] | None = None,
) -> tuple[Trial, ...]:
    """Return what is to be tried of a method, ordered so that trials of one model come together.

    Args:
        case: The method.
        coverage: ``pairs``: every behaviour meets every family, every dtype and every tokenizer,
            and every family every dtype and every tokenizer; ``all``: every combination.
        behaviours: Which; all of those that concern the method by default.
    """
    benches = Benches(case)
    info = Workbench(case, Setting("gpt2")).info
    chosen = [
        behaviour
        for behaviour in (all_behaviours() if behaviours is None else behaviours)
        if behaviour.concerns(info)
    ]
    families = models.declared(info, case)
    first = Setting(families[0], case.dtypes[0], case.tokenizers[0])
    of_method = [
        Trial(info.name, behaviour, first, benches)
        for behaviour in chosen
        if behaviour.scope == "method"
    ]
    chosen = [behaviour for behaviour in chosen if behaviour.scope == "model"]
    few = len(families) <= _FEW
    of_models = [
        Trial(info.name, behaviour, setting, benches)
        for number, family in enumerate(families)
        for place, setting in enumerate(_settings(case, family, number, coverage))
        for turn, behaviour in enumerate(chosen)
        if coverage == "all" or few or _meet(case, number, place, turn)
    ]
    return (*of_method, *of_models)


def _settings(
    case: MethodCase, family: str, number: int, coverage: Coverage
) -> tuple[Setting, ...]:
    """Return a family's settings; for pairs as many as there are dtypes or tokenizers."""
    if coverage == "all":
        return tuple(Setting(family, *values) for values in product(case.dtypes, case.tokenizers))
    return tuple(
        Setting(
            family,
            case.dtypes[place % len(case.dtypes)],
            case.tokenizers[(place + number) % len(case.tokenizers)],
        )
        for place in range(_places(case))
    )


def _places(case: MethodCase) -> int:
    return max(len(case.dtypes), len(case.tokenizers))


def _meet(case: MethodCase, number: int, place: int, turn: int) -> bool:
    """Say whether a behaviour is tried at one of a family's settings; it is at one of them."""
    # Two families on, it is another one, so that three see every dtype and tokenizer.
    return (turn + number // 2) % _places(case) == place


def check(
    case: MethodCase,
    *,
    coverage: Coverage = "pairs",
    behaviours: Sequence[Behaviour] | None = None,
) -> ConformanceReport:
    """Try every behaviour of a method and report what came of it; nothing is raised.

    Args:
        case: The method.
        coverage: See `trials`.
        behaviours: Which; all of those that concern the method by default.

    Raises:
        PluginError: The method is not installed, or broken.
    """
    chosen = trials(case, coverage, behaviours)
    method = chosen[0].method if chosen else str(case.method)
    return ConformanceReport(method, tuple(_outcome(trial) for trial in chosen))


def _outcome(trial: Trial) -> Outcome:
    start = time.perf_counter()
    try:
        trial.run()
    except ConformanceError as error:
        why = str(error)
    except Exception as error:  # whatever a method raises is what is wrong with it
        why = f"{type(error).__name__}: {error}"
    else:
        why = ""
    return Outcome(trial, why, time.perf_counter() - start)

"""`MethodConformance`: the behaviours as pytest tests, one a trial."""

from __future__ import annotations

from typing import Any, ClassVar

from editkit_core.testing.conformance.case import MethodCase
from editkit_core.testing.conformance.running import Coverage, Trial, trials


class MethodConformance:
    """Subclass it as ``Test…`` with a case, and pytest runs one test a behaviour and model.

    Attributes:
        case: The method.
        coverage: How many combinations of behaviours and models are tried; see
            `editkit_core.testing.conformance.trials`.
    """

    case: ClassVar[MethodCase]
    coverage: ClassVar[Coverage] = "pairs"

    def pytest_generate_tests(self, metafunc: Any) -> None:  # Any: pytest's, not imported here
        """Make one test a trial."""
        if "trial" in metafunc.fixturenames:
            metafunc.parametrize("trial", trials(self.case, self.coverage), ids=str)

    def test_method_conforms(self, trial: Trial) -> None:
        """A behaviour holds on a model."""
        trial.run()

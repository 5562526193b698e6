"""What the metrics of a report are: definitions, order, and those computed from others."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from editkit_core.errors import EditkitError
from editkit_core.metrics.metric import AnyMetric, DerivedMetric, MetricInfo
from editkit_core.report.scores import Key
from editkit_core.report.wording import PROTOCOLS

__all__ = ["Catalogue"]


@attrs.frozen
class Catalogue:
    """The metrics that are known here; a run may hold others.

    Attributes:
        infos: What each says about itself, by name, in the order of registration.
        derived: Those computed from the means of others.
    """

    infos: dict[str, MetricInfo]
    derived: tuple[DerivedMetric, ...]

    @classmethod
    def load(cls) -> Catalogue:
        """Ask the core and every plugin that works; a broken one has no definitions to show."""
        from editkit_core.host import Host
        from editkit_core.metrics.registry import load_metrics, metric_factories

        host: Host | None = Host()
        try:
            names = list(metric_factories(host))
        except EditkitError:
            host = None
            names = list(metric_factories())
        made: list[AnyMetric] = []
        for name in names:
            try:
                made += load_metrics([name], host)
            except EditkitError:
                continue
        return cls(
            {metric.info.name: metric.info for metric in made},
            tuple(metric for metric in made if isinstance(metric, DerivedMetric)),
        )

    def ordered(self, keys: Iterable[Key]) -> list[Key]:
        """Return keys by protocol, then in the order of registration, then by probe type."""
        protocols, metrics = list(PROTOCOLS), list(self.infos)

        def place(key: Key) -> tuple[int, str, int, str, str]:
            return (
                _place(key.protocol, protocols),
                key.protocol,
                _place(key.metric, metrics),
                key.metric,
                key.probe,
            )

        return sorted(set(keys), key=place)

    def ideal(self, metric: str) -> float | None:
        """Return the best score a metric gives, or None where there is none."""
        info = self.infos.get(metric)
        return 1.0 if info is None else info.ideal


def _place(name: str, names: list[str]) -> int:
    return names.index(name) if name in names else len(names)

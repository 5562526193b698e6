"""Which metrics there are: the core's own and those of installed plugins, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from editkit_core.errors import BrokenPluginError, UnknownMetricError, did_you_mean
from editkit_core.metrics import builtin
from editkit_core.metrics.metric import AnyMetric, checked

if TYPE_CHECKING:
    from editkit_core.host import Host

__all__ = ["DEFAULT_METRICS", "load_metrics", "metric_factories"]

Factory: TypeAlias = Callable[[], AnyMetric]
DEFAULT_METRICS = ("reliability", "generalization", "locality", "portability")


def metric_factories(host: Host | None = None) -> dict[str, Factory]:
    """Return the factory of every metric by name; no metric is made.

    Args:
        host: Where plugins come from; None means the core's metrics alone.

    Raises:
        BrokenPluginError: A plugin fails while registering, or two claim one name.
    """
    taken: dict[str, Factory] = {}

    def register(name: str, value: Factory) -> None:
        taken[name] = value

    builtin.editkit_register_metrics(register)
    if host is None:
        return taken
    for name, factory in host.registered("metrics").items():
        if name in taken:
            raise BrokenPluginError(
                f"A plugin registers the metric {name!r}, which is the core's own. Uninstall it.",
                metric=name,
            )
        taken[name] = factory
    return taken


def load_metrics(
    names: Iterable[str] | None = None, host: Host | None = None
) -> tuple[AnyMetric, ...]:
    """Make metrics by name, in the order given.

    Args:
        names: Registered names; None means `DEFAULT_METRICS`.
        host: Where plugins come from; None means the core's metrics alone.

    Raises:
        UnknownMetricError: There is no metric of a name.
        BrokenPluginError: A plugin's factory fails or makes something else.
    """
    factories = metric_factories(host)
    return tuple(_make(name, factories) for name in names or DEFAULT_METRICS)


def _make(name: str, factories: dict[str, Factory]) -> AnyMetric:
    if name not in factories:
        raise UnknownMetricError(
            f"There is no metric {name!r}.{did_you_mean(name, factories)} Known: "
            f"{', '.join(sorted(factories))}.",
            metric=name,
        )
    try:
        made = factories[name]()
    except Exception as error:
        raise BrokenPluginError(
            f"The metric {name!r} cannot be made: {type(error).__name__}: {error}. Update or "
            "uninstall the plugin it comes from.",
            metric=name,
        ) from error
    return checked(name, made)

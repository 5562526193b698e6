"""The host: which methods and plugins are installed, found through entry points.

Methods are listed without being imported; one is imported when it is asked about or chosen, inside
its own try, so that a broken one is named and the others go on working.
"""

from __future__ import annotations

import importlib.metadata as metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import attrs
import pluggy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

import editkit_core
from editkit_core import hookspecs
from editkit_core.errors import (
    BrokenPluginError,
    DuplicateMethodError,
    EditkitError,
    IncompatiblePluginError,
    InvalidHookError,
    UnknownMethodError,
    did_you_mean,
)
from editkit_core.markers import PROJECT
from editkit_core.types import MethodInfo

METHODS_GROUP = "editkit.methods"
PLUGINS_GROUP = "editkit.plugins"
EDIT_HOOKS = (
    "editkit_locate",
    "editkit_compute_delta",
    "editkit_apply",
    "editkit_evaluate",
    "editkit_train",
)
CORE_DISTRIBUTION = "editkit-core"

State = Literal["ok", "broken", "incompatible", "duplicate"]


@attrs.frozen(kw_only=True)
class Listing:
    """One installed method or plugin as it is listed.

    Attributes:
        name: Entry-point name; for a method its id.
        dist: Distribution that installed it.
        version: That distribution's version.
        state: ``ok``, ``broken``, ``incompatible`` or ``duplicate``.
        why: The reason when the state is not ``ok``.
        info: The method's description when the state is ``ok`` and it is a method.
    """

    name: str
    dist: str
    version: str
    state: State
    why: str = ""
    info: MethodInfo | None = None


REGISTER_HOOKS = ("models", "model_families", "patch_kinds", "datasets", "metrics", "commands")


@attrs.frozen
class Found:
    """An entry point and the distribution it came from; not imported yet."""

    name: str
    dist: str
    version: str
    requires: tuple[str, ...]
    load: Callable[[], Any] = attrs.field(eq=False, repr=False)  # Any: a module or plugin object


class Host:
    """Finds methods and plugins and imports the ones that are needed.

    Args:
        methods: What to use instead of the installed entry points (for tests and embedding).
        plugins: Likewise for plugins.
    """

    def __init__(
        self, methods: Sequence[Found] | None = None, plugins: Sequence[Found] | None = None
    ) -> None:
        self.methods = tuple(_installed(METHODS_GROUP) if methods is None else methods)
        self.plugins = tuple(_installed(PLUGINS_GROUP) if plugins is None else plugins)

    # -- methods --

    def method_ids(self) -> tuple[str, ...]:
        """Return the ids of all installed methods, sorted, without importing any."""
        return tuple(sorted({found.name for found in self.methods}))

    def load_method(self, name: str) -> tuple[Any, MethodInfo, Found]:  # Any: a plugin module
        """Import one method and ask it what it is.

        Raises:
            UnknownMethodError: Nothing installed has this id.
            DuplicateMethodError: Two distributions claim it.
            IncompatiblePluginError: It was made for another core.
            BrokenPluginError: It fails to import or to answer.
        """
        claims = sorted((f for f in self.methods if f.name == name), key=_by_name)
        if not claims:
            raise UnknownMethodError(self._unknown(name), method=name)
        if len(claims) > 1:
            owners = " and ".join(f"{c.dist} {c.version}" for c in claims)
            raise DuplicateMethodError(
                f"The method id {name!r} is claimed by {owners}. Uninstall one of them.",
                method=name,
                distributions=tuple(c.dist for c in claims),
            )
        found = claims[0]
        plugin = _load(found)
        return plugin, _ask(plugin, found), found

    def list_methods(self) -> tuple[Listing, ...]:
        """Return every installed method with its state; a broken one never raises."""
        return tuple(self._listing(found) for found in sorted(self.methods, key=_by_name))

    def _listing(self, found: Found) -> Listing:
        try:
            _, info, _ = self.load_method(found.name)
        except EditkitError as error:
            return _failed(found, error)
        return Listing(
            name=found.name, dist=found.dist, version=found.version, state="ok", info=info
        )

    def _unknown(self, name: str) -> str:
        known = self.method_ids()
        if not known:
            return (
                f"There is no method {name!r}: no methods are installed. "
                "Install one, for example: pip install editkit-rome"
            )
        return (
            f"There is no method {name!r}.{did_you_mean(name, known)} Installed: "
            f"{', '.join(known)}. If it is a distribution of its own: pip install editkit-{name}"
        )

    # -- plugins --

    @cached_property
    def loaded_plugins(self) -> tuple[tuple[Found, Any], ...]:  # Any: a plugin module
        """Every plugin that imports, with its entry point; :meth:`list_plugins` has the rest."""
        return tuple(
            (found, plugin) for found, plugin, _ in self._plugin_states if plugin is not None
        )

    @cached_property
    def _plugin_states(self) -> tuple[tuple[Found, Any, Listing], ...]:  # Any: a plugin module
        states: list[tuple[Found, Any, Listing]] = []  # Any: as above
        for found in sorted(self.plugins, key=_by_name):
            try:
                plugin = _load(found)
                _check_observer(plugin, found)
            except EditkitError as error:
                states.append((found, None, _failed(found, error)))
            else:
                listing = Listing(
                    name=found.name, dist=found.dist, version=found.version, state="ok"
                )
                states.append((found, plugin, listing))
        return tuple(states)

    def list_plugins(self, hooks: Sequence[str] = REGISTER_HOOKS) -> tuple[Listing, ...]:
        """Return every installed plugin with its state; a broken one never raises.

        Args:
            hooks: Which ``editkit_register_*`` hooks to try, without the prefix.
        """
        failed = {found: error.message for what in hooks for found, error in self.collect(what)[1]}
        return tuple(
            attrs.evolve(listing, state="broken", why=failed[found]) if found in failed else listing
            for found, _, listing in self._plugin_states
        )

    def registered(self, what: str) -> dict[str, Any]:  # Any: what is registered differs by hook
        """Collect what plugins register through ``editkit_register_<what>``.

        Raises:
            BrokenPluginError: A plugin fails while registering, or two claim one name.
        """
        taken, failures = self.collect(what)
        if failures:
            raise failures[0][1]
        return {name: value for name, (value, _) in taken.items()}

    def collect(
        self, what: str
    ) -> tuple[
        dict[str, tuple[Any, Found]],  # Any: as above
        tuple[tuple[Found, BrokenPluginError], ...],
    ]:
        """Do what :meth:`registered` does and hand back the failures instead of raising.

        Each value comes with the entry point that registered it. A plugin that fails registers
        nothing. A name that two plugins claim stays with the first.
        """
        taken: dict[str, tuple[Any, Found]] = {}  # Any: as above
        failures = []
        for found, plugin in self.loaded_plugins:
            try:
                taken |= _registrations(plugin, found, what, taken)
            except BrokenPluginError as error:
                failures.append((found, error))
        return taken, tuple(failures)


def _registrations(
    plugin: Any,  # Any: a plugin module
    found: Found,
    what: str,
    taken: Mapping[str, tuple[Any, Found]],  # Any: what is registered differs by hook
) -> dict[str, tuple[Any, Found]]:
    """Ask one plugin what it registers; ``taken`` holds what the others have."""
    manager = new_manager()
    register_plugin(manager, plugin, found)
    mine: dict[str, tuple[Any, Found]] = {}

    def register(name: str, value: Any) -> None:  # Any: as above
        if name in taken or name in mine:
            owner = (taken.get(name) or mine[name])[1]
            raise BrokenPluginError(
                f"{found.dist} registers {name!r} under {what}, which {owner.dist} has registered "
                "already. Uninstall one of them.",
                distributions=(owner.dist, found.dist),
            )
        mine[name] = (value, found)

    hook = f"editkit_register_{what}"
    try:
        getattr(manager.hook, hook)(register=register)
    except BrokenPluginError:
        raise
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(
            f"{found.dist} {found.version} failed in {hook}: {_reason(error)}. "
            "Update or uninstall it.",
            distribution=found.dist,
        ) from error
    return mine


def new_manager() -> pluggy.PluginManager:
    """Return an empty plugin manager that knows the hook specifications."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _by_name(found: Found) -> tuple[str, str]:
    return found.name, found.dist


def _installed(group: str) -> Iterable[Found]:
    seen = set()
    for point in metadata.entry_points(group=group):
        name, version, requires = _described(point.dist)
        key = (point.name, canonicalize_name(name))
        if key in seen:  # the same distribution twice on sys.path
            continue
        seen.add(key)
        yield Found(point.name, name, version, requires, point.load)


def _described(dist: metadata.Distribution | None) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and requirements; a half-removed distribution has lost its metadata."""
    if dist is None:
        return "an unknown distribution", "?", ()
    known = set(dist.metadata)
    return (
        dist.name if "Name" in known else "an unknown distribution",
        dist.version if "Version" in known else "?",
        tuple(dist.requires or ()),
    )


def _load(found: Found) -> Any:  # Any: a plugin module
    _check_core_range(found)
    try:
        return found.load()
    except (Exception, SystemExit) as error:  # a module may call sys.exit when imported
        raise BrokenPluginError(
            f"{found.dist} {found.version} cannot be imported: {_reason(error)}. "
            "Reinstall or uninstall it.",
            distribution=found.dist,
        ) from error


def _check_core_range(found: Found) -> None:
    """Read the distribution's own requirement on the core before importing anything of it."""
    for line in found.requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) != CORE_DISTRIBUTION:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # for another platform, or for an extra
        if not requirement.specifier.contains(editkit_core.__version__, prereleases=True):
            raise IncompatiblePluginError(
                f"{found.dist} {found.version} needs {requirement}, and this is "
                f"{CORE_DISTRIBUTION} {editkit_core.__version__}. Install versions that fit: "
                f"pip install -U {found.dist} {CORE_DISTRIBUTION}",
                distribution=found.dist,
                expected=str(requirement.specifier),
                found=editkit_core.__version__,
            )


def _ask(plugin: Any, found: Found) -> MethodInfo:  # Any: a plugin module
    manager = new_manager()
    register_plugin(manager, plugin, found)
    try:
        info = manager.hook.editkit_method()
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(
            f"{found.dist} {found.version} failed in editkit_method: {_reason(error)}.",
            distribution=found.dist,
        ) from error
    if not isinstance(info, MethodInfo):
        raise BrokenPluginError(
            f"{found.dist} {found.version} does not implement editkit_method with @hookimpl, or it "
            f"does not return a MethodInfo; it gave {info!r}.",
            distribution=found.dist,
        )
    if info.name != found.name:
        raise BrokenPluginError(
            f"{found.dist} {found.version} calls its method {info.name!r} and its entry point "
            f"{found.name!r}. They must be equal.",
            distribution=found.dist,
        )
    if info.api not in hookspecs.SUPPORTED_APIS:
        raise IncompatiblePluginError(
            f"{found.dist} {found.version} is written for hook interface {info.api}; this core "
            f"supports {sorted(hookspecs.SUPPORTED_APIS)}. Update {found.dist} or "
            f"{CORE_DISTRIBUTION}.",
            distribution=found.dist,
            expected=tuple(sorted(hookspecs.SUPPORTED_APIS)),
            found=info.api,
        )
    return info


def register_plugin(
    manager: pluggy.PluginManager,
    plugin: Any,  # Any: a plugin module
    found: Found,
    *,
    role: str = "",
) -> None:
    """Register a plugin under its distribution's name, checking its hook signatures.

    Args:
        manager: Where to register it.
        plugin: The module or object with the implementations.
        found: Where it came from.
        role: Keeps a method and an observer of one distribution and entry name apart.

    Raises:
        InvalidHookError: An implementation does not fit its specification.
    """
    try:
        manager.register(plugin, name=f"{found.dist}:{found.name}{role}")
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:  # ValueError: registered twice
        raise InvalidHookError(
            f"{found.dist} {found.version} has a hook implementation that does not fit: "
            f"{' '.join(str(error).split())}",
            distribution=found.dist,
        ) from error


def _check_observer(plugin: Any, found: Found) -> None:  # Any: a plugin module
    """Refuse a plugin that would answer an edit hook instead of watching it."""
    manager = new_manager()
    register_plugin(manager, plugin, found)
    for hook in EDIT_HOOKS:
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            if not (implementation.wrapper or implementation.hookwrapper):
                raise InvalidHookError(
                    f"{found.dist} {found.version} implements {hook} in an {PLUGINS_GROUP} "
                    "plugin. Observers may only wrap it: use @hookimpl(wrapper=True).",
                    distribution=found.dist,
                    hook=hook,
                )


def _failed(found: Found, error: EditkitError) -> Listing:
    states: dict[type[EditkitError], State] = {
        DuplicateMethodError: "duplicate",
        IncompatiblePluginError: "incompatible",
    }
    return Listing(
        name=found.name,
        dist=found.dist,
        version=found.version,
        state=states.get(type(error), "broken"),
        why=error.message,
    )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

"""Commands that plugins add. A broken plugin is named and never keeps the others from working."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import click

from editkit_core.errors import BrokenPluginError
from editkit_core.host import Found, Host, Listing


@attrs.frozen
class PluginCommands:
    """What the installed plugins add to the command line.

    Attributes:
        factories: By command name, what makes the command and whose it is.
        broken: Plugins that failed to import or to register their commands.
    """

    factories: Mapping[str, tuple[Any, Found]]  # Any: a plugin's callable, not checked yet
    broken: tuple[Listing, ...]

    @classmethod
    def find(cls) -> PluginCommands:
        """Import the installed plugins and ask them for their commands."""
        host = Host()
        listings = host.list_plugins(("commands",))
        broken = tuple(listing for listing in listings if listing.state != "ok")
        return cls(host.collect("commands")[0], broken)

    def make(self, name: str) -> click.Command | None:
        """Return a plugin's command, or None when no plugin adds one of that name.

        Raises:
            BrokenPluginError: The plugin's factory fails or makes something else.
        """
        if name not in self.factories:
            return None
        factory, found = self.factories[name]
        try:
            command = factory()
        except (Exception, SystemExit) as error:
            raise BrokenPluginError(
                f"{found.dist} {found.version} could not make its command {name!r}: "
                f"{type(error).__name__}: {error}. Update or uninstall it.",
                distribution=found.dist,
            ) from error
        if not isinstance(command, click.Command):
            raise BrokenPluginError(
                f"{found.dist} {found.version} registers the command {name!r} with a factory that "
                f"returns {command!r:.80}, which is no click.Command.",
                distribution=found.dist,
            )
        return command

    def short_help(self, name: str) -> str:
        """Return one line about a plugin's command; a broken one says so."""
        try:
            command = self.make(name)
        except BrokenPluginError:
            return f"(broken: {self.factories[name][1].dist})"
        return command.get_short_help_str() if command else ""

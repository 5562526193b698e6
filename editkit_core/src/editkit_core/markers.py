"""The two pluggy markers. A plugin needs ``hookimpl`` and nothing else from pluggy."""

from __future__ import annotations

import pluggy

PROJECT = "editkit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as a hook implementation.

Use ``@hookimpl`` in a method, ``@hookimpl(wrapper=True)`` in an observer of the four edit hooks.
"""

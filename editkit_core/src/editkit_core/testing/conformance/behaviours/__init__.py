"""The behaviours, one file a subject."""

from __future__ import annotations

from editkit_core.testing.conformance.behaviour import Behaviour


def all_behaviours() -> tuple[Behaviour, ...]:
    """Return every behaviour, in the order in which they are tried."""
    from editkit_core.testing.conformance.behaviours import (
        applying,
        batches,
        content,
        describing,
        reading,
        refusing,
        repeating,
        untouched,
    )

    rooms = (describing, refusing, untouched, repeating, content, applying, batches, reading)
    return tuple(behaviour for room in rooms for behaviour in room.BEHAVIOURS)

"""Load a data set from a spec such as ``counterfact:train.json``, ``demo:100`` or a bare path.

A spec is a format's name, a colon, and a place: a local file or folder, or ``hub:OWNER/NAME/FILE``.
Without the name the format is recognised from the records, and the data set says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from editkit_core.data.dataset import DataSet
from editkit_core.data.format import DataFormat, LoadOptions, local_file
from editkit_core.data.hub import PREFIX, open_hub
from editkit_core.data.place import Place
from editkit_core.errors import (
    BrokenPluginError,
    EditkitError,
    InputNotFoundError,
    RequestFileError,
    did_you_mean,
)

if TYPE_CHECKING:
    from editkit_core.host import Host

FOLDER_VARIABLE = "EDITKIT_DATA"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")  # two letters at least: C: is a drive


def load_dataset(
    spec: str | Path,
    *,
    form: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
    target_policy: str | None = None,
    folder: Path | str | None = None,
    host: Host | None = None,
) -> DataSet:
    """Load a data set as edit requests.

    Args:
        spec: ``FORMAT:PLACE``, the name of a packaged data set, or a bare path.
        form: The form of the format, for example ``short``; recognised when None.
        limit: The most records to draw, without replacement; a larger limit begins with the
            smaller one's. None takes all, in file order.
        seed: Decides what is drawn, and what a format itself chooses.
        strict: Refuse the first record that does not fit instead of skipping it.
        target_policy: Which answer becomes ``target_new``; the form's default when None.
        folder: Where a relative place is looked up when it is not in the current folder; by
            default the folder that the environment variable ``EDITKIT_DATA`` names.
        host: Where formats of plugins come from.

    Raises:
        InputNotFoundError: The place cannot be read.
        RequestFileError: The format is unknown or does not fit.
        RequestError: A record does not fit and ``strict`` is set.
        InvalidParameterError: Limit, seed or target policy cannot be used.
    """
    options = LoadOptions(
        form=form, limit=limit, seed=seed, strict=strict, target_policy=target_policy
    )
    known, failures = find_formats(host)
    name, text = split_spec(str(spec), known, failures)
    place = open_place(text, folder)
    if name:
        return known[name].load(place, options)
    found = recognise(place, known.values())
    return attrs.evolve(found.load(place, options), detected=True)


def find_formats(
    host: Host | None = None,
) -> tuple[dict[str, DataFormat], tuple[BrokenPluginError, ...]]:
    """Return every format by name, and why plugins that failed bring none.

    The core's own come first and cannot be replaced.
    """
    from editkit_core.data.builtin import BUILTIN_FORMATS
    from editkit_core.host import Host

    formats = {name: factory() for name, factory in BUILTIN_FORMATS.items()}
    found, broken = (host or Host()).collect("datasets")
    failures = [error for _, error in broken]
    for name, (factory, owner) in found.items():
        try:
            formats[name] = _made(name, factory, owner.dist, formats)
        except BrokenPluginError as error:
            failures.append(error)
    return formats, tuple(failures)


def split_spec(
    spec: str, known: Mapping[str, DataFormat], failures: Iterable[EditkitError] = ()
) -> tuple[str, str]:
    """Return the format's name, empty when none is given, and the place.

    Raises:
        RequestFileError: The format is unknown.
        BrokenPluginError: It is unknown, and a plugin that may bring it is broken.
    """
    name, colon, text = spec.partition(":")
    if name in known:
        return name, text
    if spec.startswith(PREFIX) or not (colon and _NAME.fullmatch(name)) or os.path.exists(spec):
        return "", spec
    for failure in failures:
        raise failure
    raise RequestFileError(
        f"There is no data set format {name!r}.{did_you_mean(name, known)} Known: "
        f"{', '.join(sorted(known))}.",
        format=name,
    )


def open_place(text: str, folder: Path | str | None = None) -> Place:
    """Return where a data set lies; a local file is opened when it is first read.

    Raises:
        InputNotFoundError: It is on the hub and cannot be fetched.
    """
    if text.startswith(PREFIX):
        return open_hub(text)
    if not text:
        return Place("", None)
    given = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or None
    return Place(text, local_file(None if given is None else Path(given), text))


def recognise(place: Place, known: Iterable[DataFormat]) -> DataFormat:
    """Return the format that a file or folder looks like.

    Raises:
        InputNotFoundError: It cannot be read.
        RequestFileError: It looks like none.
    """
    listed = list(known)
    if place.path is not None and not os.path.exists(place.path):
        names = [entry.name for entry in listed]
        raise InputNotFoundError(
            f"There is no file {place.path}.{did_you_mean(place.text, names)} Give a path, or "
            f"FORMAT:FILE with one of {', '.join(sorted(names))}.",
            path=str(place.path),
        )
    for entry in listed:
        if entry.recognises(place):
            return entry
    raise RequestFileError(
        f"{place.name} looks like none of the formats {', '.join(e.name for e in listed)}. Name "
        f"one: FORMAT:{place.text}",
        source=place.name,
    )


def _made(
    name: str, factory: Callable[[], DataFormat], dist: str, known: Mapping[str, DataFormat]
) -> DataFormat:
    if name in known or not _NAME.fullmatch(name) or name == PREFIX[:-1]:
        raise BrokenPluginError(
            f"{dist} registers the data set format {name!r}, a name that is taken or no word. "
            "Update or uninstall it.",
            distribution=dist,
        )
    try:
        made = factory()
    except Exception as error:  # a plugin may raise anything
        raise BrokenPluginError(
            f"{dist} failed to make its data set format {name!r}: {type(error).__name__}: {error}. "
            "Update or uninstall it.",
            distribution=dist,
        ) from error
    if getattr(made, "name", None) != name:
        raise BrokenPluginError(
            f"{dist} registers the data set format {name!r} and calls it "
            f"{getattr(made, 'name', None)!r}. They must be equal.",
            distribution=dist,
        )
    return made

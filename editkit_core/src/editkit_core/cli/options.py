"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from editkit_core.errors import InvalidParameterError

if TYPE_CHECKING:
    from editkit_core.api import Editor
    from editkit_core.patch.kinds import Kinds

F = TypeVar("F", bound=Callable[..., Any])  # Any: click commands take any options

_MODEL = (
    click.option("--dtype", default=None, help="For example bfloat16; float32 by default."),
    click.option("--device", default=None, help="For example cuda; the CPU by default."),
    click.option("--device-map", default=None, help="Passed to transformers, for example auto."),
    click.option("--revision", default=None, help="A revision on the hub."),
)


def model_options(command: F) -> F:
    """Add --model, which is required, --dtype, --device, --device-map and --revision."""
    return _with_model(command, required=True)


def optional_model_options(command: F) -> F:
    """Add the same options with --model left to the user."""
    return _with_model(command, required=False)


def _with_model(command: F, *, required: bool) -> F:
    name = click.option(
        "--model", "-m", required=required, help="A folder, a hub id, or editkit:NAME."
    )
    for option in reversed((name, *_MODEL)):
        command = option(command)
    return command


def load_editor(
    model: str,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    revision: str | None = None,
) -> Editor:
    """Load the model these options name."""
    import torch

    from editkit_core.api import Editor

    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InvalidParameterError(
            f"There is no dtype {dtype!r}. Use float32, bfloat16 or float16.", dtype=dtype
        )
    return Editor.from_pretrained(
        model, dtype=dtype, device=device, device_map=device_map, revision=revision
    )


def known_kinds() -> Kinds:
    """Return the entry kinds of the core and of every plugin that works."""
    from editkit_core.host import Host
    from editkit_core.patch.kinds import BUILTIN_KINDS

    found, _ = Host().collect("patch_kinds")
    return {**BUILTIN_KINDS, **{name: kind for name, (kind, _) in found.items()}}


def model_folder(model: str, revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint: packaged, on disk, or the hub's copy of it."""
    from editkit_core.host import Host
    from editkit_core.models.loading import find_folder

    return find_folder(model, revision=revision, packaged=Host().registered("models"))

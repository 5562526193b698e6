"""A tiny language model, shipped as package data, whose every fact is known.

As a plugin of editkit it adds the packaged model ``editkit:demo``, the data set ``demo`` and the
command ``editkit demo``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from editkit_core import hookimpl

if TYPE_CHECKING:
    import click

    from editkit_core.data.format import DataFormat
    from editkit_core.hookspecs import Register

__all__ = ["__version__", "model_path"]

__version__ = "0.1.0"


def model_path() -> Path:
    """Return the folder of the packaged model, as `from_pretrained` wants it."""
    return Path(__file__).parent / "model"


@hookimpl
def editkit_register_models(register: Register) -> None:
    """Make the packaged model loadable as ``editkit:demo``."""
    register("demo", model_path())


@hookimpl
def editkit_register_datasets(register: Register) -> None:
    """Make the model's facts loadable as the data set ``demo``."""
    register("demo", _demo_format)


@hookimpl
def editkit_register_commands(register: Register) -> None:
    """Add ``editkit demo``."""
    register("demo", _demo_command)


def _demo_format() -> DataFormat:
    from editkit_demo.dataset import DemoFormat

    return DemoFormat()


def _demo_command() -> click.Command:
    from editkit_demo.story import command

    return command

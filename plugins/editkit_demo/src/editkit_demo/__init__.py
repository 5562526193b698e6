"""Tiny language models, shipped as package data, whose every fact is known.

As a plugin of editkit it adds the packaged models ``editkit:demo`` (a GPT-2),
``editkit:demo-llama`` and ``editkit:demo-t5``, the data sets ``demo`` and ``demo-questions``, and
the command ``editkit demo``.
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


_FOLDERS = {"demo": "model", "demo-llama": "model_llama", "demo-t5": "model_t5"}


def model_path(name: str = "demo") -> Path:
    """Return the folder of a packaged model, as `from_pretrained` wants it.

    Raises:
        ValueError: There is no packaged model of that name.
    """
    if name not in _FOLDERS:
        raise ValueError(f"no packaged model {name!r}; there are {', '.join(_FOLDERS)}")
    return Path(__file__).parent / _FOLDERS[name]


@hookimpl
def editkit_register_models(register: Register) -> None:
    """Make the packaged models loadable as ``editkit:demo`` and so on."""
    for name in _FOLDERS:
        register(name, model_path(name))


@hookimpl
def editkit_register_datasets(register: Register) -> None:
    """Make the models' facts loadable as the data sets ``demo`` and ``demo-questions``."""
    register("demo", _demo_format)
    register("demo-questions", _questions_format)


@hookimpl
def editkit_register_commands(register: Register) -> None:
    """Add ``editkit demo``."""
    register("demo", _demo_command)


def _demo_format() -> DataFormat:
    from editkit_demo.dataset import DEMO

    return DEMO


def _questions_format() -> DataFormat:
    from editkit_demo.dataset import DEMO_QUESTIONS

    return DEMO_QUESTIONS


def _demo_command() -> click.Command:
    from editkit_demo.story import command

    return command

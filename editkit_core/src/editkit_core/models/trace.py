"""Read or replace what flows out of a module, by name, for the length of a ``with`` block.

Blocks return a bare tensor in some architectures and a tuple in others. Here one always sees the
tensor; a replaced output goes back in the form it came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from editkit_core.errors import (
    ModuleNotFoundInModelError,
    UnsupportedModuleError,
    did_you_mean,
)


def find_module(root: nn.Module, name: str) -> nn.Module:
    """Return the submodule at a dotted path.

    Raises:
        ModuleNotFoundInModelError: There is none.
    """
    try:
        return root.get_submodule(name)
    except AttributeError:
        known = (path for path, _ in root.named_modules())
        raise ModuleNotFoundInModelError(
            f"The model has no module {name!r}.{did_you_mean(name, known)}", module=name
        ) from None


@contextmanager
def record(
    root: nn.Module,
    names: Sequence[str],
    *,
    inputs: bool = False,
    stop: bool = False,
    grad: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of modules during the forward passes of the ``with`` block.

    Args:
        root: The model.
        names: Module paths.
        inputs: Record each module's first input tensor instead of its output.
        stop: End the forward pass once all names are recorded; the ``with`` block ends there.
        grad: Keep the autograd graph; otherwise the tensors are detached.

    Yields:
        A dict that fills with one tensor a name; a later pass overwrites an earlier one.

    Raises:
        ModuleNotFoundInModelError: A name is not in the model.
    """
    states: dict[str, Tensor] = {}
    ended = _ForwardEnded()

    def keep(name: str, tensor: Tensor) -> None:
        states[name] = tensor if grad else tensor.detach()
        if stop and len(states) == wanted:
            raise ended

    def read_input(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(name, _first_tensor(name, (*args, *kwargs.values())))

        return hook

    def read_output(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
            keep(name, _tensor_of(name, output))

        return hook

    modules = {name: find_module(root, name) for name in names}
    wanted = len(modules)
    handles = []
    try:
        for name, module in modules.items():
            if inputs:
                hook = read_input(name)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(read_output(name)))
        yield states
    except _ForwardEnded as signal:
        if signal is not ended:
            raise
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace_output(root: nn.Module, name: str, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass a module's output through ``fn`` during the ``with`` block.

    ``fn`` gets the hidden state, ``(rows, len, width)`` in most modules, and returns one of the
    same shape; it must not write into its argument.

    Raises:
        ModuleNotFoundInModelError: The name is not in the model.
    """

    def hook(_: nn.Module, __: tuple[Any, ...], output: object) -> object:
        new = fn(_tensor_of(name, output))
        if isinstance(output, Tensor):
            return new
        assert isinstance(output, (tuple, list))  # _tensor_of refused everything else
        return type(output)((new, *output[1:]))

    handle = find_module(root, name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _ForwardEnded(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass from inside a hook; never leaves `record`."""


def _tensor_of(name: str, output: object) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise UnsupportedModuleError(
        f"{name} returns a {type(output).__name__}; only a tensor or a tuple that starts with one "
        "can be recorded or replaced. Choose a block, its attention or its MLP.",
        module=name,
    )


def _first_tensor(name: str, values: Sequence[object]) -> Tensor:
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise UnsupportedModuleError(f"{name} is called without a tensor.", module=name)

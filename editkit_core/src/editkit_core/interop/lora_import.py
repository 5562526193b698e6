"""Make a patch of a PEFT adapter, fingerprinted on the base it is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from editkit_core import __version__
from editkit_core.errors import ExportError, PatchShapeError
from editkit_core.interop.adapter import Product, read_adapter
from editkit_core.models.orientation import sides
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import MethodRef, Patch
from editkit_core.patch.identity import public_name
from editkit_core.patch.kinds.low_rank import LowRankEntry
from editkit_core.types import Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

METHOD = "lora"


def import_lora(model: EditableModel, folder: str | Path, *, name: str = "") -> Patch:
    """Make a patch that does what a PEFT adapter does.

    The factor alpha / r is baked in. An adapter does not say which weights it was trained on, only
    a name, so that the base is the right one is the caller's word; from then on the patch's
    fingerprint guards it.

    Args:
        model: The adapter's base.
        folder: The adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: The patch's name for people.

    Raises:
        InputNotFoundError: A file is missing or cannot be read.
        PatchFormatError: A file is malformed.
        ExportError: The adapter is something that a patch cannot express; the message says what.
        ModuleNotFoundInModelError: It changes a module that the model does not have.
        UnsupportedModuleError: It changes something else than a projection.
        PatchShapeError: It does not fit the model.
    """
    adapter = read_adapter(folder)
    entries = [_entry(model, module, product) for module, product in adapter.modules.items()]
    base = base_fingerprint(model, [entry.site.parameter for entry in entries])
    for entry in entries:
        for group in base.tied:
            if entry.site.parameter in group:
                raise ExportError(
                    f"{folder} cannot be expressed as a patch: {entry.site.parameter} shares its "
                    f"tensor with {', '.join(n for n in group if n != entry.site.parameter)}, and "
                    "a patch would change both.",
                    parameter=entry.site.parameter,
                )
    return Patch.from_parts(
        entries=entries,
        method=MethodRef(name=METHOD, dist="editkit-core", version=__version__),
        base=base,
        params={"adapter_sha256": adapter.sha256, "base": public_name(adapter.config.base)},
        name=name,
    )


def _entry(model: EditableModel, module: str, product: Product) -> LowRankEntry:
    expected, found = (
        sides(model.module(module)),
        (product.u.shape[0], product.v.shape[1]),
    )
    if expected != found:
        raise PatchShapeError(
            f"The adapter's change of {module} is {found} (out, in), the model's weight is "
            f"{expected}. Give the base that the adapter was trained on.",
            parameter=f"{module}.weight",
            expected=expected,
            found=found,
        )
    try:
        return LowRankEntry(site=_site(model, module), u=product.u, v=product.v)
    except ValueError as error:
        raise ExportError(
            f"With its factor the adapter's change of {module} does not fit float32: {error}.",
            parameter=f"{module}.weight",
        ) from None


def _site(model: EditableModel, module: str) -> Site:
    """Return the site of a module, wherever in the model it is."""
    family, stack = model.family, model.family.stack_of(module)
    if stack is not None:
        for layer in range(model.count_layers(stack)):
            if module == family.mlp_down(layer, stack):
                return family.site(layer, stack=stack)
            if module == family.attention_out(layer, stack):
                return family.site(layer, stack=stack, role="attn_out")
            for role, path in (
                ("attention", family.attention(layer, stack)),
                ("mlp", family.mlp(layer, stack)),
                ("block", family.block(layer, stack)),
            ):
                if module.startswith(f"{path}."):
                    return _other(module, role, layer)
    return _other(module, "head" if module == family.head else "other", model.n_layers - 1)


def _other(module: str, role: str, layer: int) -> Site:
    return Site(module=module, parameter=f"{module}.weight", role=role, layer=layer)

"""Which weights of a model an editor changes, in the order that its networks number them."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from editkit_core import EditableModel, Site
from editkit_core.errors import InvalidParameterError
from editkit_core.models.orientation import sides
from editkit_mend.params import MendParams

__all__ = ["Target", "targets"]


@attrs.frozen(kw_only=True)
class Target:
    """A weight that is edited.

    Attributes:
        site: Where it is.
        shape: (d_out, d_in).
    """

    site: Site
    shape: tuple[int, int]

    @property
    def module(self) -> str:
        """Path of its module."""
        return self.site.module


def targets(model: EditableModel, params: MendParams) -> tuple[Target, ...]:
    """Return the weights to edit: by stack, the encoder first, then by block and projection.

    Raises:
        LayerOutOfRangeError: The model has no such layer.
        InvalidParameterError: A projection is in no block, or nothing is left to edit.
        UnsupportedModelError: Encoder layers are asked for and there is no encoder.
    """
    found = [t for stack in ("encoder", "decoder") for t in _of_stack(model, params, stack)]
    names = {t.module.rpartition(".")[2] for t in found}
    wanted = names if params.projections is None else set(params.projections)
    missing = sorted(wanted - names)
    if missing or not found:
        raise InvalidParameterError(
            f"No edited block of {model.name} has a projection {', '.join(missing) or 'at all'}. "
            f"Known: {', '.join(sorted(names)) or 'none; give layers or blocks'}.",
            parameter="projections",
        )
    return tuple(t for t in found if t.module.rpartition(".")[2] in wanted)


def _of_stack(model: EditableModel, params: MendParams, stack: str) -> Iterator[Target]:
    is_encoder = stack == "encoder"
    layers = params.encoder_layers if is_encoder else params.layers
    if layers is None:
        count = model.n_encoder_layers if is_encoder else model.n_layers
        first = 0 if params.blocks is None else max(0, count - params.blocks)
        layers = tuple(range(first, count))
    for layer in sorted(layers):
        paths = model.mlp_projections(layer, "encoder" if is_encoder else "decoder")
        for path in paths:
            role = "mlp_down" if path == paths[-1] else "mlp_up"
            site = Site(
                module=path, parameter=f"{path}.weight", role=role, layer=layer, token="last"
            )
            yield Target(site=site, shape=sides(model.module(path)))

"""How much each feed-forward neuron adds to the probability of a token.

    Attr_i = a_i ∫₀¹ ∂P(y | x; a ← αa) / ∂a_i dα

a is what the neurons of one layer give at the last token of x: the input of the down projection, so
after the activation, and with a gated feed-forward the product with the gate. All neurons of the
layer go up together, so that Σ_i Attr_i = P(y | x) - P(y | x; a ← 0). Each layer has a path of its
own, on which the layers above follow and the others stay.

The tokens before the last one are the same on every path. They are run once, and the nodes of a
path are the rows of one batch of a single token each that begins at the layer. Where a model is
sure of its answer P is a step on the path, which a few nodes miss; so they are doubled until the
sum holds.

Legend: rows: texts; n: rows times points of the path; m: neurons of a layer; L: layers.

Source: Dai et al. 2022, section 3.1.
Differs: Gauss-Legendre nodes, as many as completeness asks for; the neurons of gated feed-forwards;
    answers of several tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.suffixes import Suffixes
from editkit_kn.answers import Asked

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.types import Site
    from editkit_kn.params import Rule

_BATCH_ROWS = 16
_PASS_ROWS = 64  # each keeps the attention keys and values of its text
_MOST_DOUBLINGS = 5


@attrs.frozen(eq=False, kw_only=True)
class Attribution:
    """What is attributed to the neurons on one text.

    Attributes:
        scores: Attr (L, m), float64 on the CPU.
        activations: a (L, m), float32 on the CPU.
        probability: P(y | x).
        without: P(y | x; a ← 0) for each layer (L,), float64.
    """

    scores: Tensor
    activations: Tensor
    probability: float
    without: Tensor

    @property
    def error(self) -> float:
        """Largest difference of a layer's sum from what completeness asks."""
        return float((self.scores.sum(dim=1) - (self.probability - self.without)).abs().max())


def path_rule(rule: Rule, nodes: int) -> tuple[Tensor, Tensor]:
    """Return points and weights (nodes,) of a rule for integrals from 0 to 1, float64."""
    if rule == "gauss":
        roots, halves = np.polynomial.legendre.leggauss(nodes)  # from -1 to 1
        return torch.from_numpy((roots + 1) / 2), torch.from_numpy(halves / 2)
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    points = (torch.arange(nodes, dtype=torch.float64) + shift) / nodes
    return points, torch.full((nodes,), 1.0 / nodes, dtype=torch.float64)


def attribute(
    model: EditableModel,
    texts: Sequence[Asked],
    sites: Sequence[Site],
    *,
    rule: Rule = "gauss",
    nodes: int = 8,
    tolerance: float | None = None,
) -> Iterator[Attribution]:
    """Yield the attribution of each text, in order.

    The model is only read; patches on it count, codebooks do not decide.

    Args:
        model: The model.
        texts: Texts and the tokens that come next.
        sites: Down projections of the layers to search.
        rule: How the integral is taken.
        nodes: Points of the path.
        tolerance: Most that a layer's sum may be off; above it the points are doubled, up to 32
            times as many. None keeps to ``nodes``.
    """
    doublings = 0 if tolerance is None else _MOST_DOUBLINGS
    paths = [_Path.of(rule, nodes << doubling) for doubling in range(doublings + 1)]
    for first in range(0, len(texts), _BATCH_ROWS):
        part = texts[first : first + _BATCH_ROWS]
        with torch.inference_mode(False):
            passes = _passes(model, part, sites)
            layers = [_along(paths, passes, site, tolerance or 0.0) for site in sites]
        for row in range(len(part)):
            yield Attribution(
                scores=torch.stack([layer.scores[row] for layer in layers]),
                activations=torch.stack([passes.activations(s)[row].float().cpu() for s in sites]),
                probability=float(layers[0].ends[row, 1]),
                without=torch.stack([layer.ends[row, 0] for layer in layers]),
            )


@attrs.frozen(eq=False)
class _Layer:
    scores: Tensor  # (rows, m)
    ends: Tensor  # (rows, 2): P at α = 0 and 1

    @property
    def error(self) -> float:
        wanted = self.ends[:, 1] - self.ends[:, 0]
        return float((self.scores.sum(dim=1) - wanted).abs().max())


class _Passes(Protocol):
    """Forward passes of some texts that differ in one layer's neurons at the last token."""

    def activations(self, site: Site) -> Tensor:
        """Return a (rows, m)."""

    def probabilities(self, site: Site, rows: Tensor, neurons: Tensor) -> Tensor:
        """Return P (n,) with ``neurons (n, m)`` in the place of a on the texts ``rows (n,)``."""


@attrs.frozen(eq=False)
class _Path:
    """Points and weights; the last two points have the weight 0 and are the path's ends."""

    points: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rule: Rule, nodes: int) -> _Path:
        points, weights = path_rule(rule, nodes)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return cls(torch.cat([points, ends]), torch.cat([weights, 0 * ends]))

    def along(self, passes: _Passes, site: Site) -> _Layer:
        a = passes.activations(site)  # (rows, m)
        count = len(self.points)
        rows = torch.arange(len(a), device=a.device).repeat_interleave(count)  # (n,)
        alphas = self.points.to(a.device).repeat(len(a))  # (n,)
        weights = self.weights.to(a.device).repeat(len(a))  # (n,)
        mean = torch.zeros(a.shape, dtype=torch.float64, device=a.device)
        chances = torch.zeros(len(rows), dtype=torch.float64, device=a.device)
        for part in torch.split(torch.arange(len(rows), device=a.device), _PASS_ROWS):
            scaled = (alphas[part, None] * a[rows[part]].double()).to(a.dtype).requires_grad_()
            with torch.enable_grad():
                found = passes.probabilities(site, rows[part], scaled)
                (slopes,) = torch.autograd.grad(found.sum(), [scaled])
            mean.index_add_(0, rows[part], weights[part, None] * slopes.double())
            chances[part] = found.detach().to(chances)
        ends = chances.reshape(len(a), count)[:, -2:]
        return _Layer((a.double() * mean).cpu(), ends.cpu())


def _along(paths: Sequence[_Path], passes: _Passes, site: Site, tolerance: float) -> _Layer:
    for path in paths[:-1]:
        layer = path.along(passes, site)
        if not layer.error > tolerance:
            return layer
    return paths[-1].along(passes, site)


def _passes(model: EditableModel, texts: Sequence[Asked], sites: Sequence[Site]) -> _Passes:
    if model.is_encoder_decoder:
        return _Whole.of(model, texts, sites)
    return _LastToken.of(model, texts, sites)


@attrs.frozen(eq=False, kw_only=True)
class _LastToken:
    """Of a decoder the last token alone, from the searched layer on."""

    model: EditableModel
    suffixes: Suffixes
    labels: Tensor
    seen: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: EditableModel, texts: Sequence[Asked], sites: Sequence[Site]) -> _LastToken:
        suffixes = Suffixes.split(
            model, [text.ids for text in texts], [len(text.ids) - 1 for text in texts]
        )
        below = sorted({model.family.block(site.layer - 1) for site in sites if site.layer})
        with (
            torch.no_grad(),
            record(model.model, [site.module for site in sites], inputs=True) as seen,
            record(model.model, below) as outputs,
        ):
            suffixes.states()
        labels = torch.tensor([text.label for text in texts], device=model.device)
        return cls(model=model, suffixes=suffixes, labels=labels, seen=seen, outputs=outputs)

    def activations(self, site: Site) -> Tensor:
        return self.seen[site.module][:, 0]

    def probabilities(self, site: Site, rows: Tensor, neurons: Tensor) -> Tensor:
        upper = self.suffixes.above(site.layer - 1).keep(rows.to(self.model.device))
        hidden = None
        if site.layer:
            below = self.outputs[self.model.family.block(site.layer - 1)]
            hidden = below[rows.to(below.device)]
        last = torch.zeros(len(rows), dtype=torch.int64)
        with _in_place(self.model.module(site.module), last, neurons):
            states = upper.states(hidden)  # (n, 1, d)
        logits = self.model.module(self.model.family.head)(states[:, 0])  # (n, d) -> (n, vocab)
        return _chances(logits, self.labels[rows.to(self.labels.device)])


@attrs.frozen(eq=False, kw_only=True)
class _Whole:
    """Of an encoder-decoder the decoder as a whole; the encoder is run once."""

    model: EditableModel
    encoded: Tensor
    mask: Tensor
    ids: Tensor
    ids_mask: Tensor
    last: Tensor
    labels: Tensor
    seen: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: EditableModel, texts: Sequence[Asked], sites: Sequence[Site]) -> _Whole:
        source = pad_batch([text.source for text in texts], model.pad_id, device=model.device)
        given = pad_batch([text.ids for text in texts], model.pad_id, device=model.device)
        silent = torch.full((len(texts),), -1, device=model.device)
        with torch.no_grad(), model.asking(silent):
            encoded = model.model.get_encoder()(
                input_ids=source.input_ids, attention_mask=source.attention_mask
            ).last_hidden_state
            made = cls(
                model=model,
                encoded=encoded,
                mask=source.attention_mask,
                ids=given.input_ids,
                ids_mask=given.attention_mask,
                last=torch.tensor([len(text.ids) - 1 for text in texts], device=model.device),
                labels=torch.tensor([text.label for text in texts], device=model.device),
                seen={},
            )
            with record(model.model, [site.module for site in sites], inputs=True) as seen:
                made._logits(torch.arange(len(texts), device=model.device))
        return attrs.evolve(made, seen=seen)

    def activations(self, site: Site) -> Tensor:
        inputs = self.seen[site.module]  # (rows, len, m)
        last = self.last.to(inputs.device)
        return inputs[torch.arange(len(inputs), device=inputs.device), last]

    def probabilities(self, site: Site, rows: Tensor, neurons: Tensor) -> Tensor:
        rows = rows.to(self.model.device)
        last = self.last[rows]
        with _in_place(self.model.module(site.module), last, neurons):
            logits = self._logits(rows)  # (n, len, vocab)
        return _chances(
            logits[torch.arange(len(rows), device=last.device), last], self.labels[rows]
        )

    def _logits(self, rows: Tensor) -> Tensor:
        with self.model.asking(torch.full((len(rows),), -1, device=self.model.device)):
            logits: Tensor = self.model.model(
                encoder_outputs=(self.encoded[rows],),
                attention_mask=self.mask[rows],
                decoder_input_ids=self.ids[rows],
                decoder_attention_mask=self.ids_mask[rows],
                use_cache=False,
            ).logits
        return logits


def _chances(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each row's probability of its label, ``(n, vocab)`` and ``(n,)`` -> ``(n,)``."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.softmax(dim=1).gather(1, labels.to(wide.device)[:, None])[:, 0]


@contextmanager
def _in_place(module: nn.Module, columns: Tensor, neurons: Tensor) -> Iterator[None]:
    """Let a projection read ``neurons (n, m)`` at one column (n,) of each row."""

    def put(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        # Any: what the module is called with
        names = list(kwargs)
        inputs: Tensor = args[0] if args else kwargs[names[0]]
        column = torch.arange(inputs.shape[1], device=inputs.device)
        there = column[None] == columns.to(inputs.device)[:, None]  # (n, len)
        new = torch.where(there[..., None], neurons.to(inputs.device)[:, None], inputs)
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, names[0]: new}

    handle = module.register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

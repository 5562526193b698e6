"""Find the value that a module should give for a prompt, so that the model answers the target.

With f(ν) the model whose gated module gives ν at the places P of a prompt x::

    L(ν) = mean over prompts of the mean over target tokens y_t of -log p_f(ν)(y_t | x, y_<t)

is minimised over ν alone by Adam. The places are those of the gate that will answer later: the
query q, what stands before it, or all. What ν leaves as it was is run once: every block below the
gated one, and what the gated module gives elsewhere; a pass runs the rest.

Source: Hartvigsen et al. 2023, section 3, and its code.
Differs: The best value seen is taken, where the reference takes the last. Only ν is trained, by an
    optimiser of its own; the relative rate is ours.

Legend: d_in, d_out: sides of the gated module; len: tokens of prompt and target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutput

from editkit_core import EditableModel, EditRequest, Site
from editkit_core.errors import NonFiniteEditError
from editkit_core.models.pairs import IGNORED, PairBatch, pair_batch, pair_logits
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record, replace_output
from editkit_core.numerics.upper import Upper
from editkit_core.patch.gate_query import place_of, replaced_at
from editkit_core.patch.kinds.codebook import Replacement
from editkit_core.types import Progress
from editkit_grace.params import GraceParams

Run = Callable[[], Tensor]


@attrs.frozen(eq=False, kw_only=True)
class Answer:
    """What a model says of a target.

    Attributes:
        nll: Mean over its tokens of -log p, a scalar float32; gradients flow.
        right: Whether every token is the likeliest.
        probability: Of the whole target.
    """

    nll: Tensor
    right: bool
    probability: float

    @classmethod
    def read(cls, logits: Tensor, wanted: Tensor) -> Answer:
        """Read logits (tokens, vocab) float32 at the places of ``wanted`` (tokens,) int64."""
        nll = cross_entropy(logits, wanted)
        right = bool((logits.argmax(dim=1) == wanted).all())
        return cls(nll=nll, right=right, probability=float((-nll.detach() * len(wanted)).exp()))


@attrs.frozen(eq=False, kw_only=True)
class Question:
    """A request as the gated module sees it, and the model above it.

    Attributes:
        request: The request.
        key: Input of the module at the query (d_in,), float32 on the CPU.
        before: Its output there (d_out,), float32 on the model's device.
        target_ids: Tokens of the target.
        plain: What the model says without a value.
    """

    request: EditRequest
    key: Tensor
    before: Tensor
    target_ids: tuple[int, ...]
    plain: Answer
    _model: EditableModel
    _site: Site
    _wanted: Tensor
    _run: Run
    _clean: Tensor  # (1, len, d_out), what the module gives without a value
    _places: Tensor  # (1, len, 1) bool

    @classmethod
    def ask(
        cls,
        model: EditableModel,
        site: Site,
        request: EditRequest,
        replacement: Replacement,
        *,
        alone: bool = True,
    ) -> Question:
        """Run the model on a request once.

        Args:
            model: The model; it is only read.
            site: The gated module.
            request: The request.
            replacement: Which outputs become the value.
            alone: Whether no other codebook acts on the model; only then can a part of the model
                be run alone, for they decide by whole prompts.

        Raises:
            NonFiniteEditError: NaN or infinity appeared.
        """
        batch = pair_batch(model, [(request.text, request.target_new)], end=True)
        below = _below(model, site) if alone else None
        names = [site.module] if below is None else [site.module, below]
        with (
            torch.no_grad(),
            record(model.model, names) as outputs,
            record(model.model, [site.module], inputs=True) as inputs,
        ):
            logits = pair_logits(model, batch)
        query = query_of(model, site, batch)
        clean = outputs[site.module]
        key, before = inputs[site.module][0, query].float().cpu(), clean[0, query].float()
        at = batch.labels[0] != IGNORED
        wanted = batch.labels[0, at]
        if not bool(torch.isfinite(key).all() and torch.isfinite(logits[0, at]).all()):
            raise _not_finite(request)
        if below is None:
            run: Run = lambda: pair_logits(model, batch)[0, at]  # noqa: E731 - one of three
        elif model.is_encoder_decoder:
            run = _decoder(model, batch, at, outputs[below])
        else:
            run = _upper(model, site, batch, at, outputs[below])
        return cls(
            request=request,
            key=key,
            before=before,
            target_ids=batch.rows[0].target,
            plain=Answer.read(logits[0, at], wanted),
            model=model,
            site=site,
            wanted=wanted,
            run=run,
            clean=clean,
            places=_places(clean, query, replacement),
        )

    def answer(self, value: Tensor) -> Answer:
        """Return what the model says when the module gives ``value`` (d_out,) float32."""

        def replaced(output: Tensor) -> Tensor:
            return torch.where(self._places, value.to(output.device, output.dtype), self._clean)

        with replace_output(self._model.model, self._site.module, replaced):
            logits = self._run()
        return Answer.read(logits, self._wanted)


@attrs.frozen(eq=False, kw_only=True)
class Found:
    """A value and how it was found.

    Attributes:
        value: ν (d_out,), float32 on the CPU.
        answers: What the model says with it, for each question.
        loss: L(ν).
        updates: How many times it was changed.
    """

    value: Tensor
    answers: tuple[Answer, ...]
    loss: float
    updates: int


def optimise_value(
    questions: Sequence[Question],
    start: Tensor | None,
    params: GraceParams,
    seed: int,
    progress: Progress,
) -> Found:
    """Find one value for all of some questions.

    Nothing but the value asks for a gradient; parameters and the global random state are left
    alone.

    Args:
        questions: The questions, the newest last; at least one.
        start: Where to begin (d_out,), float32; None begins as ``params.init`` says.
        params: Rate, steps and where the value starts.
        seed: Seed of a cold start.
        progress: Told after each pass, with the loss.

    Raises:
        NonFiniteEditError: NaN or infinity appeared.
    """
    newest = questions[-1]
    unit = 1.0
    if params.lr_mode == "relative":
        unit = max(float(newest.before.norm()) / newest.before.numel() ** 0.5, _SMALLEST)
    first = _start(newest.before, params, unit, seed) if start is None else start
    scaled = (first.to(newest.before) / unit).requires_grad_(True)
    adam = torch.optim.Adam([scaled], lr=params.lr)
    best: Found | None = None
    progress.start(f"value for {newest.request.subject!r}", params.steps + 1)
    try:
        for update in range(params.steps + 1):
            answers = tuple(question.answer(scaled * unit) for question in questions)
            loss = torch.stack([answer.nll for answer in answers]).mean()
            progress.advance(note=f"loss {float(loss.detach()):.2f}")
            if not bool(torch.isfinite(loss)):
                raise _not_finite(newest.request)
            if best is None or float(loss.detach()) < best.loss:
                best = _found(scaled.detach() * unit, answers, loss, update)
            if update == params.steps or _reached(best, params):
                break
            (scaled.grad,) = torch.autograd.grad(loss, [scaled])
            adam.step()
    finally:
        progress.finish()
    assert best is not None  # the first loss was finite
    return best


_SMALLEST = 1e-6  # a rate of 0 would never move a value


def _found(value: Tensor, answers: Sequence[Answer], loss: Tensor, updates: int) -> Found:
    kept = tuple(attrs.evolve(answer, nll=answer.nll.detach()) for answer in answers)
    return Found(value=value.cpu(), answers=kept, loss=float(loss.detach()), updates=updates)


def _reached(best: Found, params: GraceParams) -> bool:
    return params.early_stop_loss is not None and best.loss < params.early_stop_loss


def _start(before: Tensor, params: GraceParams, unit: float, seed: int) -> Tensor:
    if params.init == "warm":
        return before
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(before.shape, generator=generator).to(before) * unit


def query_of(model: EditableModel, site: Site, batch: PairBatch) -> int:
    """Return the column of the one row's query in what the gated module sees."""
    if place_of(model, site.module).reads == "answer":
        return 0  # a decoder behind an encoder reads no prompt
    return int(batch.queries[0])


def _places(clean: Tensor, query: int, replacement: Replacement) -> Tensor:
    columns = torch.tensor([query], device=clean.device)
    return replaced_at(replacement, columns, clean.shape[1])[..., None]


# -- what is run --------------------------------------------------------------------------------


def _below(model: EditableModel, site: Site) -> str | None:
    """Return the module whose output is all that the gated one and those above it need, if any."""
    reads = place_of(model, site.module).reads
    if reads == "answer" and model.family.encoder is not None:
        return model.family.encoder.final_norm
    if reads == "source":
        return None
    return model.family.block(site.layer - 1) if site.layer else None


def _decoder(model: EditableModel, batch: PairBatch, at: Tensor, encoded: Tensor) -> Run:
    """Run the decoder on what the encoder gave."""
    inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "input_ids"}

    def run() -> Tensor:
        given = BaseModelOutput(last_hidden_state=encoded)
        logits: Tensor = model.model(**inputs, encoder_outputs=given, use_cache=False).logits
        return logits[0, at].float()

    return run


def _upper(model: EditableModel, site: Site, batch: PairBatch, at: Tensor, hidden: Tensor) -> Run:
    """Run the gated block and those above it, and the head where the target is predicted."""
    given = pad_batch([batch.rows[0].ids], model.pad_id, device=model.device)
    upper = Upper.above(model, site.layer - 1, given, ())
    head = model.module(model.family.head)

    def run() -> Tensor:
        logits: Tensor = head(upper.states(hidden)[0, at]).float()  # (tokens, d) -> (tokens, vocab)
        return logits

    return run


def _not_finite(request: EditRequest) -> NonFiniteEditError:
    return NonFiniteEditError(
        f"The value for {request.subject!r} is not finite. Lower lr, use init=warm, or load the "
        "model in float32.",
        subject=request.subject,
    )

"""Find the value that a weight should give at a token, so that the model says something else.

A vector δ is added to the site's output at the edited token of every row and trained by Adam::

    L(δ) = NLL + KL + essence + ending + decay
    NLL     = mean over contexts of the mean over target tokens of -log p_δ(token)
    KL      = kl_factor · mean over drift prompts of KL(p_δ ‖ p_0)
    essence = essence_factor · mean over essence places of KL(p_0 ‖ p_δ)
    ending  = ending_factor · mean over contexts of KL(p_0 ‖ p_δ) after the target's last token
    decay   = weight_decay · ‖δ‖ / ‖v0‖²            (absolute)
            = weight_decay · ‖δ‖ / stream            (relative)

p_0 is the model's own prediction, v0 the site's output for the bare prompt, *stream* the mean norm
of the block's output at the edited token over the contexts. One iteration is: forward; stop when
L < loss_stop or in the last iteration, so at most ``steps - 1`` updates; update; shrink δ to
``clamp_norm`` times ‖v0‖ or *stream*.

A job without ``reading`` adds δ at the edited token alone, as the paper does. The weight's
rank-one change δ rᵀ that follows also reaches every other token, by r · k_t with its key k_t, and
can undo there what δ did. A job with ``reading`` r gives each token of the rows that very share, so
that L is the loss of the model with the changed weight: keys of a layer do not depend on its own
change.

With ``lr_mode="relative"`` Adam works on ε = δ · √d_out / stream, so its learning rate is a share
of the stream's root mean square. If every residual state is multiplied by c and all readers of it
divide by c, L as a function of ε is the same function: the trajectory of ε does not change, and
δ is multiplied by c. An absolute rate has no such property.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3.1 and
    appendix E.5; the direction of KL is that of equation 4 and of the authors' code.
Differs: Rows are encoded once, as whole texts; the reference decodes and encodes the target again.
    The relative rate, the clamp on the stream's norm, the essence and ending terms and
    ``reading`` are ours.

Legend: d_out: width of the site's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.errors import InvalidParameterError, NonFiniteEditError
from editkit_core.numerics.evaluating import evaluating
from editkit_core.numerics.keys import before_mention
from editkit_core.numerics.suffixes import Suffixes
from editkit_core.numerics.value_loss import (
    ClampMode,
    Clean,
    LrMode,
    Objective,
    ValueSettings,
    spare_old_answer,
)
from editkit_core.numerics.value_rows import build_rows
from editkit_core.types import EditRequest, Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

# Narrow enough that what the model writes about a subject is about the subject.
_ESSENCE_TOP_K = 10

__all__ = [
    "ClampMode",
    "LrMode",
    "ValueJob",
    "ValueResult",
    "ValueSettings",
    "optimise_values",
]


def _texts(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class ValueJob:
    """One request whose target value is wanted.

    Attributes:
        request: The fact.
        site: Where the value is written.
        contexts: Texts put before the prompt, the empty one first.
        reading: r, ``(d_in,)``: the change a token with key k gets is ``r · k`` times δ; None for δ
            at the edited token alone.
    """

    request: EditRequest
    site: Site
    contexts: tuple[str, ...] = attrs.field(default=("",), converter=_texts)
    reading: Tensor | None = attrs.field(default=None, eq=False)

    @contexts.validator
    def _check_contexts(self, _: object, value: tuple[str, ...]) -> None:
        if not value or value[0] != "":
            raise InvalidParameterError('The first context must be "", the bare prompt.')


@attrs.frozen(eq=False, kw_only=True)
class ValueResult:
    """A target value and how it was found.

    Attributes:
        delta: δ, ``(d_out,)`` float32 on the CPU.
        before: v0, the site's output for the bare prompt, ``(d_out,)`` float32 on the CPU.
        stream_norm: Mean norm of the block's output at the edited token.
        losses: L at each iteration.
        probabilities: At each iteration the probability of the whole target, mean over contexts.
        updates: How many times δ was changed.
        already_known: Whether the unedited model says the target after the bare prompt.
    """

    delta: Tensor
    before: Tensor
    stream_norm: float
    losses: tuple[float, ...]
    probabilities: tuple[float, ...]
    updates: int
    already_known: bool

    @property
    def value(self) -> Tensor:
        """v* = v0 + δ, ``(d_out,)`` float64 on the CPU."""
        return self.before.double() + self.delta.double()


def optimise_values(
    model: EditableModel,
    jobs: Sequence[ValueJob],
    settings: ValueSettings,
    progress: Progress | None = None,
) -> list[ValueResult]:
    """Optimise the target value of each job; each stops on its own.

    Parameters, their gradients, the modules' modes and the global random state are left alone: δ is
    the only leaf that asks for a gradient, so nothing below the site is differentiated. Tokens
    before the edited one are run once.

    Args:
        model: The model; it is only read.
        jobs: What to optimise; jobs do not influence each other.
        settings: How.
        progress: Told after each iteration, with the loss.

    Returns:
        One result a job, in order.

    Raises:
        PromptTooLongError: A row does not fit the model's context.
        EmptyTargetError: A target has no token of its own.
        NonFiniteEditError: NaN or infinity appeared.
    """
    progress = progress or SilentProgress()
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model.model):
        return [_optimise(model, job, settings, progress) for job in jobs]


def _optimise(
    model: EditableModel, job: ValueJob, settings: ValueSettings, progress: Progress
) -> ValueResult:
    rows = build_rows(
        model,
        job.request,
        job.site,
        job.contexts,
        kl_prompts=settings.kl_prompts if settings.kl_factor else (),
        kl_position=settings.kl_position,
        essence_texts=_essence_texts(model, job, settings),
        whole=job.reading is not None,
        endings=settings.ending_factor > 0,
    )
    suffixes = Suffixes.split(model, rows.ids, rows.split)
    clean = Clean.read(job.site, rows, suffixes, job.reading)
    _require_finite(clean.before, job)
    known = clean.already_known(rows)
    clean, rows = spare_old_answer(clean, rows)
    objective = Objective(
        site=job.site, rows=rows, suffixes=suffixes, clean=clean, settings=settings
    )
    unit = clean.stream_norm / len(clean.before) ** 0.5 if settings.lr_mode == "relative" else 1.0
    reach = clean.stream_norm if settings.clamp_mode == "stream" else float(clean.before.norm())
    scaled = torch.zeros_like(clean.before, requires_grad=True)  # ε = δ / unit
    adam = torch.optim.Adam([scaled], lr=settings.lr)
    losses: list[float] = []
    probabilities: list[float] = []
    progress.start(f"target value for {job.request.subject!r}", settings.steps)
    try:
        for iteration in range(settings.steps):
            loss, probability = objective(scaled * unit)
            _require_finite(loss, job)
            losses.append(float(loss.detach()))
            probabilities.append(probability)
            progress.advance(note=f"loss {losses[-1]:.2f}")
            if losses[-1] < settings.loss_stop or iteration == settings.steps - 1:
                break
            (scaled.grad,) = torch.autograd.grad(loss, scaled)
            adam.step()
            with torch.no_grad():
                _shrink(scaled, settings.clamp_norm * reach / unit)
    finally:
        progress.finish()
    delta = (scaled.detach() * unit).cpu()
    _require_finite(delta, job)
    return ValueResult(
        delta=delta,
        before=clean.before.cpu(),
        stream_norm=clean.stream_norm,
        losses=tuple(losses),
        probabilities=tuple(probabilities),
        updates=len(losses) - 1,
        already_known=known,
    )


def _essence_texts(
    model: EditableModel, job: ValueJob, settings: ValueSettings
) -> list[tuple[str, tuple[int, int]]]:
    """Let the model go on from mentions of the subject, alone and within begun sentences."""
    if not settings.essence_samples or not settings.essence_factor:
        return []
    subject = job.request.subject
    prefixes = [
        before_mention(job.contexts[number % len(job.contexts)])
        for number in range(settings.essence_samples)
    ]
    texts = [prefix + subject for prefix in prefixes]
    continued = model.generate(
        texts,
        max_new_tokens=settings.essence_length,
        sample=True,
        top_k=_ESSENCE_TOP_K,
        seed=settings.seed,
    )
    return [
        (text + more, (len(prefix), len(prefix) + len(subject)))
        for prefix, text, more in zip(prefixes, texts, continued, strict=True)
    ]


def _shrink(vector: Tensor, limit: float) -> None:
    norm = float(vector.norm())
    if norm > limit:
        vector.mul_(limit / norm)


def _require_finite(tensor: Tensor, job: ValueJob) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteEditError(
            f"The target value for {job.request.subject!r} at {job.site.module} became NaN or "
            "infinite. Load the model in float32, or lower the learning rate.",
            subject=job.request.subject,
            module=job.site.module,
        )

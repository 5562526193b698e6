"""Find the value that a weight should give at a token, so that the model says something else.

A vector δ is added to the site's output at the edited token of every row and trained by Adam, for
many requests at once, each with its own δ, stop and clamp::

    L(δ) = NLL + KL + essence + ending + decay
    NLL     = mean over contexts of the mean over target tokens of -log p_δ(token)
    KL      = kl_factor · mean over drift prompts of KL(p_δ ‖ p_0)
    essence = essence_factor · mean over essence places of KL(p_0 ‖ p_δ)
    ending  = ending_factor · mean over contexts of KL(p_0 ‖ p_δ) after the target's last token
    decay   = weight_decay · ‖δ‖ / ‖v0‖²            (absolute)
            = weight_decay · ‖δ‖ / stream            (relative)

p_0 is the model's own prediction, v0 the site's output for the bare prompt, *stream* the mean norm
of the block's output at the edited token over the contexts, without the patches on the model (see
:mod:`.anchor`). One iteration is: forward; stop when
L < loss_stop or in the last iteration, so at most ``steps - 1`` updates; update; shrink δ to
``clamp_norm`` times ‖v0‖ or *stream*. The rows of a request that stops are dropped.

What δ leaves as it was is run once: the blocks up to the site's, and in every block the tokens
before the edited one. A pass runs the blocks above, and the head where logits are read.

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

Legend: d_out: width of the site's output, which is that of the hidden states.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.errors import InvalidParameterError, NonFiniteEditError
from editkit_core.numerics.anchor import anchored
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
from editkit_core.numerics.value_portions import most_bytes, portions, pulled, run_bytes, total
from editkit_core.numerics.value_rows import ValueRows, build_rows, stack_rows
from editkit_core.types import EditRequest, Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

# Narrow enough that what the model writes about a subject is about the subject.
_ESSENCE_TOP_K = 10
VALUE_BATCH = 8

__all__ = [
    "ClampMode",
    "LrMode",
    "ValueJob",
    "ValueResult",
    "ValueSettings",
    "job_rows",
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
        attention_reading: The same for the vector at the attention's output and the keys of its
            output projection; None gives each token as much of it as of δ.
    """

    request: EditRequest
    site: Site
    contexts: tuple[str, ...] = attrs.field(default=("",), converter=_texts)
    reading: Tensor | None = attrs.field(default=None, eq=False)
    attention_reading: Tensor | None = attrs.field(default=None, eq=False)

    @contexts.validator
    def _check_contexts(self, _: object, value: tuple[str, ...]) -> None:
        if not value or value[0] != "":
            raise InvalidParameterError('The first context must be "", the bare prompt.')


@attrs.frozen(eq=False, kw_only=True)
class ValueResult:
    """A target value and how it was found.

    Attributes:
        delta: δ, ``(d_out,)`` float32 on the CPU.
        before: v0, the site's or the block's output for the bare prompt, ``(d_out,)`` float32 on
            the CPU.
        attention: The vector that was trained along at the attention's output, if any.
        attention_before: a0, the attention's output for the bare prompt, where there is one.
        without_attention: The target's probability with δ alone, where there is one.
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
    attention: Tensor | None = None
    attention_before: Tensor | None = None
    without_attention: float | None = None

    @property
    def value(self) -> Tensor:
        """v* = v0 + δ, ``(d_out,)`` float64 on the CPU."""
        return self.before.double() + self.delta.double()

    @property
    def attention_value(self) -> Tensor | None:
        """a* = a0 + its vector, ``(d_out,)`` float64 on the CPU, where there is one."""
        if self.attention is None or self.attention_before is None:
            return None
        return self.attention_before.double() + self.attention.double()


def optimise_values(
    model: EditableModel,
    jobs: Sequence[ValueJob],
    settings: ValueSettings,
    progress: Progress | None = None,
    *,
    batch: int = VALUE_BATCH,
) -> list[ValueResult]:
    """Optimise the target value of each job; each stops on its own.

    Parameters, their gradients, the modules' modes and the global random state are left alone: δ is
    the only leaf that asks for a gradient, so nothing below the site is differentiated.

    Args:
        model: The model; it is only read.
        jobs: What to optimise; jobs do not influence each other.
        settings: How.
        progress: Told after each iteration, with the loss.
        batch: How many jobs to optimise at once; memory grows with it. Fewer are taken where their
            rows would not fit in one portion; see :mod:`.value_portions`.

    Returns:
        One result a job, in order.

    Raises:
        PromptTooLongError: A row does not fit the model's context.
        EmptyTargetError: A target has no token of its own.
        NonFiniteEditError: NaN or infinity appeared.
        InvalidParameterError: ``batch`` is below 1.
    """
    if batch < 1:
        raise InvalidParameterError(f"value_batch is {batch}; it must be 1 or more.", batch=batch)
    progress = progress or SilentProgress()
    results: list[ValueResult] = []
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model.model):
        for site, run in itertools.groupby(jobs, key=lambda job: job.site):
            alike = list(run)
            for first in range(0, len(alike), batch):
                rows = [_rows(model, job, settings) for job in alike[first : first + batch]]
                for some in _fitting(model, site, rows, settings):
                    together = alike[first + some.start : first + some.stop]
                    results += _optimise(model, site, together, rows[some], settings, progress)
    return results


def _fitting(
    model: EditableModel, site: Site, rows: Sequence[ValueRows], settings: ValueSettings
) -> list[slice]:
    """Cut some jobs so that the rows of each part fit in one portion, or are those of one job."""
    layer, d_in = site.layer - settings.attention, model.weight(site).shape[1]

    def fits(first: int, last: int) -> bool:
        some = stack_rows(rows[first:last])
        longest = max(len(ids) - at for ids, at in zip(some.ids, some.split, strict=True))
        places = sum(len(group) for group in some.groups)
        columns = longest * len(some.ids)
        return run_bytes(model, layer, d_in, columns=columns, places=places) <= most_bytes(model)

    starts = [0]
    for last in range(2, len(rows) + 1):
        if not fits(starts[-1], last):
            starts.append(last - 1)
    return [slice(a, b) for a, b in itertools.pairwise([*starts, len(rows)])]


def _optimise(
    model: EditableModel,
    site: Site,
    jobs: Sequence[ValueJob],
    rows: Sequence[ValueRows],
    settings: ValueSettings,
    progress: Progress,
) -> list[ValueResult]:
    objective, known = _objective(model, site, jobs, stack_rows(rows), settings)
    clean, whole = objective.clean, objective if settings.attention else None
    owners, parts, width = clean.before.shape
    unit = torch.ones_like(clean.stream_norm)
    if settings.lr_mode == "relative":
        unit = clean.stream_norm / width**0.5
    reach = clean.before.norm(dim=2)  # (owners, parts)
    if settings.clamp_mode == "stream":
        reach = clean.stream_norm[:, None].expand(owners, parts)
    limits = (settings.clamp_norm * reach / unit[:, None]).tolist()
    scaled = [torch.zeros_like(rows, requires_grad=True) for rows in clean.before]  # ε = δ / unit
    adam = torch.optim.Adam(scaled, lr=settings.lr)
    traces: list[list[tuple[float, float]]] = [[] for _ in jobs]
    left = list(range(len(jobs)))
    named = f" for {jobs[0].request.subject!r}" if len(jobs) == 1 else f"s of {len(jobs)} facts"
    most = most_bytes(model) // (2 if len(jobs) == 1 else 1)  # a long target alone need not fill it
    cut = portions(objective, most)
    progress.start(f"target value{named}", settings.steps)
    try:
        for iteration in range(settings.steps):
            size = unit[left][:, None, None]
            values = (torch.stack([scaled[job].detach() for job in left]) * size).requires_grad_()
            now, pull = pulled(objective, cut, values, [values], _states(values))
            losses, chances = now.loss.tolist(), now.probability.tolist()
            for job, loss, chance in zip(left, losses, chances, strict=True):
                _require_finite(loss, jobs[job])
                traces[job].append((loss, chance))
            progress.advance(note=f"loss {sum(losses) / len(losses):.2f}")
            going = (~now.reached(settings)).nonzero()[:, 0].tolist()
            if not going or iteration == settings.steps - 1:
                break
            grads = pull()[0] * size
            for i, job in enumerate(left):
                scaled[job].grad = grads[i] if i in going else None
            adam.step()
            with torch.no_grad():
                for i in going:
                    for part, limit in zip(scaled[left[i]], limits[left[i]], strict=True):
                        _shrink(part, limit)
            if len(going) < len(left):
                objective = objective.keep(torch.tensor(going, device=unit.device))
                cut = portions(objective, most)
                left = [left[i] for i in going]
    finally:
        progress.finish()
    deltas = torch.stack([one.detach() * unit[i] for i, one in enumerate(scaled)])
    alone: Sequence[float | None] = [None] * len(jobs)
    if whole is not None:
        alone = _probabilities_alone(whole, deltas, most)
    return [
        _result(job, deltas[i], clean, i, traces[i], known[i], alone[i])
        for i, job in enumerate(jobs)
    ]


def _states(deltas: Tensor) -> Callable[[slice, Objective], Tensor]:
    return lambda _, part: part.states(deltas)


@torch.no_grad()
def _probabilities_alone(objective: Objective, deltas: Tensor, most: int) -> list[float]:
    """Return each target's probability with the first of its vectors ``(owners, parts, d)``."""
    first = torch.cat([deltas[:, :1], torch.zeros_like(deltas[:, 1:])], dim=1)
    terms = total([part.terms(part.states(first)) for _, part in portions(objective, most)])
    found: list[float] = objective.losses(terms, first).probability.tolist()
    return found


def _objective(
    model: EditableModel,
    site: Site,
    jobs: Sequence[ValueJob],
    rows: ValueRows,
    settings: ValueSettings,
) -> tuple[Objective, list[bool]]:
    """Run the unedited model, and say which targets it knows already."""
    suffixes = Suffixes.split(model, rows.ids, rows.split)
    clean = Clean.read(
        site,
        rows,
        suffixes,
        [job.reading for job in jobs],
        settings.output,
        attention=settings.attention,
        attention_readings=[job.attention_reading for job in jobs],
    )
    for i, job in enumerate(jobs):
        _require_finite(clean.before[i], job)
    clean = anchored(clean, model, site, rows)
    known = clean.already_known(rows)
    clean, rows = spare_old_answer(clean, rows)
    upper = suffixes.above(site.layer - settings.attention)
    objective = Objective(site=site, rows=rows, upper=upper, clean=clean, settings=settings)
    return objective, known


def _rows(model: EditableModel, job: ValueJob, settings: ValueSettings) -> ValueRows:
    texts = _essence_texts(model, job, settings)
    return job_rows(model, job, settings, whole=job.reading is not None, essence_texts=texts)


def job_rows(
    model: EditableModel,
    job: ValueJob,
    settings: ValueSettings,
    *,
    whole: bool,
    essence_texts: Sequence[tuple[str, tuple[int, int]]] = (),
) -> ValueRows:
    """Build the rows of a job with the terms that the settings ask for; see :func:`build_rows`."""
    return build_rows(
        model,
        job.request,
        job.site,
        job.contexts,
        kl_prompts=settings.kl_prompts if settings.kl_factor else (),
        kl_position=settings.kl_position,
        essence_texts=essence_texts,
        whole=whole,
        endings=settings.ending_factor > 0,
    )


def _result(
    job: ValueJob,
    parts: Tensor,
    clean: Clean,
    owner: int,
    trace: Sequence[tuple[float, float]],
    known: bool,
    alone: float | None,
) -> ValueResult:
    _require_finite(parts, job)
    return ValueResult(
        delta=parts[0].cpu(),
        attention=parts[1].cpu() if len(parts) > 1 else None,
        attention_before=clean.before[owner, 1].cpu() if len(parts) > 1 else None,
        without_attention=alone,
        before=clean.before[owner, 0].cpu(),
        stream_norm=float(clean.stream_norm[owner]),
        losses=tuple(loss for loss, _ in trace),
        probabilities=tuple(chance for _, chance in trace),
        updates=len(trace) - 1,
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


def _require_finite(value: Tensor | float, job: ValueJob) -> None:
    if not bool(torch.isfinite(torch.as_tensor(value)).all()):
        raise NonFiniteEditError(
            f"The target value for {job.request.subject!r} at {job.site.module} became NaN or "
            "infinite. Load the model in float32, or lower the learning rate.",
            subject=job.request.subject,
            module=job.site.module,
        )

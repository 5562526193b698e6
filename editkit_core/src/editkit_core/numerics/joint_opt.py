"""Train the values of a batch of edits together, on the very change that will be written.

A batch of edits changes a weight by Δ = U V: row i of V is where edit i is read, column i of U its
value. V follows from the keys alone. Every token with key k then gets U V k, so each edit also
reaches the other edits' prompts, and these disturbances add up with the batch. Here U is trained
through all of it::

    output at token t = W k_t + U V k_t          for every row of every edit
    L = Σ over edits of the loss of `value_opt` + keep · tr(U G Uᵀ) / stream²,     G = V C Vᵀ

so L is the loss of the edited model, and the last term is the mean change ‖Δ k‖² that other text
sees, in units of the residual stream. Rows of edits that are done are left out, and looked at again
every few iterations, for others may have undone them.

Source: ours. With one edit it is ``v_insertion=rank_one`` of ROME.

Legend: n: edits; d_in, d: sides of the weight; rows: texts; after: columns that are run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.errors import NonFiniteEditError
from editkit_core.models.trace import record
from editkit_core.numerics.anchor import anchored
from editkit_core.numerics.evaluating import evaluating
from editkit_core.numerics.suffixes import Suffixes
from editkit_core.numerics.value_loss import Clean, Losses, Objective, ValueSettings
from editkit_core.numerics.value_opt import ValueJob, ValueResult, job_rows
from editkit_core.numerics.value_portions import most_bytes, portions, pulled
from editkit_core.numerics.value_rows import ValueRows, stack_rows
from editkit_core.types import Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["optimise_jointly"]

_LOOK_AGAIN = 5  # iterations between two looks at all edits


@attrs.frozen(eq=False, kw_only=True)
class _Part:
    """Some edits of the batch: their rows and what goes into the weight at each token.

    Attributes:
        numbers: Which edits of the batch, ``(m,)`` int64.
        objective: Their loss.
        keys: ``(rows, after, d_in)`` float32.
    """

    numbers: Tensor
    objective: Objective
    keys: Tensor

    def pulled(
        self, owners: Tensor, matrix: Tensor, deltas: Tensor, most: int
    ) -> tuple[Losses, tuple[Tensor, ...]]:
        """Return the losses of some of its edits, and the gradients of their sum.

        Args:
            owners: Which, ``(m,)`` int64, rising, counted within the part.
            matrix: Vᵀ Uᵀ, ``(d_in, d)``.
            deltas: Their values, ``(m, d)``; they decay.
            most: Bytes that running rows may take at once.

        Returns:
            The losses; the gradients of ``matrix`` and ``deltas``.
        """
        whole = len(owners) == self.objective.rows.owners
        objective = self.objective if whole else self.objective.keep(owners)
        keys = self.keys
        if not whole:
            keys = keys[torch.isin(self.objective.rows.owner, owners)]

        def states(at: slice, part: Objective) -> Tensor:
            hidden = part.clean.hidden
            assert hidden is not None  # values stand at the feed-forward alone
            change = keys[at] @ matrix  # (rows, after, d_in) @ (d_in, d)
            return part.upper.states(hidden + change.to(hidden.dtype))

        cut = portions(objective, most)
        losses, pull = pulled(objective, cut, deltas[:, None], [matrix, deltas], states)
        return losses, pull()


def optimise_jointly(
    model: EditableModel,
    jobs: Sequence[ValueJob],
    readings: Tensor,
    settings: ValueSettings,
    progress: Progress | None = None,
    *,
    batch: int,
    gram: Tensor | None = None,
    keep: float = 0.0,
) -> list[ValueResult]:
    """Train the values of all jobs together; the model is only read.

    Args:
        model: The model.
        jobs: The edits, all at one site; their own ``reading`` plays no part.
        readings: V, ``(n, d_in)``.
        settings: How; ``attention`` must be off.
        progress: Told after each iteration, with the loss.
        batch: How many edits are run at once; memory for activations grows with it.
        gram: G, ``(n, n)``; None stands for zero.
        keep: Weight of the change that other text sees.

    Returns:
        One result a job, in order; ``delta`` is its column of U.

    Raises:
        PromptTooLongError: A row does not fit the model's context.
        EmptyTargetError: A target has no token of its own.
        NonFiniteEditError: NaN or infinity appeared.
    """
    progress = progress or SilentProgress()
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model.model):
        parts = _parts(model, jobs, settings, batch)
        rows = readings.to(model.device, torch.float32)
        weight = torch.zeros(0) if gram is None else keep * gram.to(rows)
        return _train(parts, jobs, rows, weight, settings, progress)


def _parts(
    model: EditableModel, jobs: Sequence[ValueJob], settings: ValueSettings, batch: int
) -> list[_Part]:
    """Put edits of like length together, so that little of a pass is padding."""
    built = [job_rows(model, job, settings, whole=True) for job in jobs]
    order = sorted(range(len(jobs)), key=lambda job: max(map(len, built[job].ids)))
    return [
        _part(model, jobs[0].site, order[first : first + batch], built, settings)
        for first in range(0, len(jobs), batch)
    ]


def _part(
    model: EditableModel,
    site: Site,
    numbers: Sequence[int],
    built: Sequence[ValueRows],
    settings: ValueSettings,
) -> _Part:
    rows = stack_rows([built[number] for number in numbers])
    suffixes = Suffixes.split(model, rows.ids, rows.split)
    with record(model.model, [site.module], inputs=True) as seen:
        clean = Clean.read(site, rows, suffixes, output=settings.output)
    clean = anchored(clean, model, site, rows)
    objective = Objective(
        site=site, rows=rows, upper=suffixes.above(site.layer), clean=clean, settings=settings
    )
    return _Part(
        numbers=torch.tensor(numbers, device=model.device),
        objective=objective,
        keys=seen[site.module].float(),
    )


def _train(
    parts: Sequence[_Part],
    jobs: Sequence[ValueJob],
    readings: Tensor,
    keep: Tensor,
    settings: ValueSettings,
    progress: Progress,
) -> list[ValueResult]:
    back = torch.cat([part.numbers for part in parts]).argsort()  # to the order of the jobs
    before = torch.cat([part.objective.clean.before[:, 0] for part in parts])[back]  # (n, d)
    stream = torch.cat([part.objective.clean.stream_norm for part in parts])[back]  # (n,)
    said = [part.objective.clean.already_known(part.objective.rows) for part in parts]
    in_turn = list(itertools.chain.from_iterable(said))
    known = [in_turn[place] for place in back.tolist()]
    unit = torch.ones_like(stream)
    if settings.lr_mode == "relative":
        unit = stream / before.shape[1] ** 0.5
    reach = stream if settings.clamp_mode == "stream" else before.norm(dim=1)
    limit = settings.clamp_norm * reach / unit
    scaled = torch.zeros_like(before, requires_grad=True)
    adam = torch.optim.Adam([scaled], lr=settings.lr)
    losses, chances = torch.full_like(stream, torch.inf), torch.zeros_like(stream)
    traces: list[list[tuple[float, float]]] = [[] for _ in jobs]
    active = torch.ones(len(jobs), dtype=torch.bool, device=stream.device)
    updates, most = 0, most_bytes(parts[0].objective.upper.model)
    progress.start(f"target values of {len(jobs)} facts, together", settings.steps)
    try:
        for iteration in range(settings.steps):
            everything = bool(active.all())
            grad, done = _pass(parts, active, scaled, unit, readings, losses, chances, most)
            _note(traces, active, losses, chances, jobs)
            progress.advance(note=f"loss {float(losses.mean()):.2f}")
            if (everything and bool(done.all())) or iteration == settings.steps - 1:
                break
            look = (iteration + 1) % _LOOK_AGAIN == 0 or bool((done | ~active).all())
            active = torch.ones_like(active) if look else active & ~done
            if keep.numel():  # gradient of tr(U G Uᵀ) with U = scaled · unit, by columns
                pull = 2 * keep @ (scaled.detach() * unit[:, None]) * unit[:, None]
                grad += pull / stream.mean() ** 2
            scaled.grad = grad
            adam.step()
            updates += 1
            with torch.no_grad():
                norms = scaled.norm(dim=1)
                scaled *= (limit / norms.clamp(min=1e-30)).clamp(max=1.0)[:, None]
    finally:
        progress.finish()
    values = (scaled.detach() * unit[:, None]).cpu()
    return [
        ValueResult(
            delta=values[i],
            before=before[i].cpu(),
            stream_norm=float(stream[i]),
            losses=tuple(loss for loss, _ in traces[i]),
            probabilities=tuple(chance for _, chance in traces[i]),
            updates=updates,
            already_known=known[i],
        )
        for i in range(len(jobs))
    ]


def _pass(
    parts: Sequence[_Part],
    active: Tensor,
    scaled: Tensor,
    unit: Tensor,
    readings: Tensor,
    losses: Tensor,
    chances: Tensor,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Run the active edits and fill in their ``losses`` and ``chances``.

    Returns:
        The gradient of the sum of their losses, ``(n, d)``, and which of all are done.
    """
    deltas = (scaled * unit[:, None]).detach()  # U by rows, (n, d)
    matrix = (readings.T @ deltas).requires_grad_()  # (d_in, n) @ (n, d), once for all parts
    slope, own = torch.zeros_like(matrix), torch.zeros_like(deltas)
    done = torch.ones_like(active)
    for part in parts:
        mine = active[part.numbers].nonzero()[:, 0]
        if not len(mine):
            continue
        at = part.numbers[mine]
        values = deltas[at].requires_grad_()
        found, (through, direct) = part.pulled(mine, matrix, values, most)
        slope += through
        own[at] = direct
        losses[at] = found.loss.detach()
        chances[at] = found.probability
        done[at] = found.reached(part.objective.settings)
    own += readings @ slope  # (n, d_in) @ (d_in, d)
    return own * unit[:, None], done


def _note(
    traces: Sequence[list[tuple[float, float]]],
    active: Tensor,
    losses: Tensor,
    chances: Tensor,
    jobs: Sequence[ValueJob],
) -> None:
    for number in active.nonzero()[:, 0].tolist():
        loss = float(losses[number])
        if not loss < float("inf"):
            raise NonFiniteEditError(
                f"The target value for {jobs[number].request.subject!r} became NaN or infinite. "
                "Load the model in float32, or lower the learning rate.",
                subject=jobs[number].request.subject,
            )
        traces[number].append((loss, float(chances[number])))

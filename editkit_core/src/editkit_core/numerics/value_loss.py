"""The loss that a target value is trained on; its formula stands in :mod:`.value_opt`.

Everything is computed for several requests at once, the *owners* of the rows; they do not influence
each other.

Legend: d: width of the site's output and of the hidden states; owners: requests; parts: vectors a
request, one, or a second one at the attention's output; n: places at which logits are read (n_t
target, n_k drift, n_e essence places, n_s endings); vocab: logits a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editkit_core.models.trace import record, replace_output
from editkit_core.numerics.suffixes import Suffixes
from editkit_core.numerics.upper import Upper
from editkit_core.numerics.value_rows import KlPosition, Places, ValueRows
from editkit_core.types import Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

LrMode = Literal["absolute", "relative"]
ClampMode = Literal["value", "stream"]
Output = Literal["module", "block"]

_READ_AT_ONCE = 128  # places whose logits are held at once where only the likeliest token counts

__all__ = [
    "ClampMode",
    "Clean",
    "Losses",
    "LrMode",
    "Objective",
    "Output",
    "Terms",
    "ValueSettings",
    "spare_old_answer",
]


@attrs.frozen(kw_only=True)
class ValueSettings:
    """How target values are optimised; the formulas stand at the top of the module.

    Attributes:
        steps: Iterations; one less is the most updates made.
        lr: Adam's learning rate, in units of the hidden state or relative (see ``lr_mode``).
        lr_mode: ``absolute`` as in the paper, or ``relative`` to the residual stream's size.
        weight_decay: Factor of the decay term.
        clamp_norm: Largest ‖δ‖, as a multiple of what ``clamp_mode`` names.
        clamp_mode: ``value``: of ‖v0‖ as in the paper; ``stream``: of the residual stream's norm.
        loss_stop: Stop when L is below this.
        kl_factor: Factor of the KL term.
        kl_prompts: Templates of the drift prompts.
        kl_position: Where they are read.
        essence_samples: How many texts about the subject the model writes; 0 for none.
        essence_length: Tokens of each.
        essence_factor: Factor of the essence term.
        ending_factor: Factor of the ending term.
        seed: Seed of these texts.
        probability_stop: Stop when the target's probability, mean over contexts, is at least this;
            None goes by the loss alone.
        output: Whose output v0 is: the site's ``module``, or the ``block``'s, as MEMIT takes it.
            The same δ does the same to both, for the first is added to the second.
        attention: Whether a second vector is trained along, added to the output of the layer's
            attention, as PMET does; it has its own clamp and decay.
        said_damping: Factor on NLL while the target is the likeliest at all its places; PMET's.
        said_kl_stop: While it is, stop at a KL (without its factor) of at most this; None never
            stops so.
    """

    steps: int = 20
    lr: float = 0.5
    lr_mode: LrMode = "absolute"
    weight_decay: float = 0.5
    clamp_norm: float = 4.0
    clamp_mode: ClampMode = "value"
    loss_stop: float = 0.05
    kl_factor: float = 0.0625
    kl_prompts: tuple[str, ...] = ("{} is a",)
    kl_position: KlPosition = "subject_last"
    essence_samples: int = 0
    essence_length: int = 16
    essence_factor: float = 1.0
    ending_factor: float = 0.0
    seed: int = 0
    probability_stop: float | None = None
    output: Output = "module"
    attention: bool = False
    said_damping: float = 1.0
    said_kl_stop: float | None = None


@attrs.frozen(eq=False, kw_only=True)
class Clean:
    """What the unedited model gives on the rows.

    Attributes:
        before: v0 of each owner's parts, ``(owners, parts, d)`` float32.
        share: ``(rows, after, parts)`` float32, how much of each vector a token's output gets.
        stream_norm: Mean norm of the block's output at the edited token, ``(owners,)`` float32.
        hidden: The block's output, ``(rows, after, d)``; with a vector at the attention that of the
            block below, None when there is none.
        logs: Log-probabilities ``(n, vocab)`` float32 at drift, essence and ending places.
        best: The likeliest token at each target place, ``(n_t,)`` int64.
    """

    before: Tensor
    share: Tensor
    stream_norm: Tensor
    hidden: Tensor | None
    logs: tuple[Tensor, Tensor, Tensor]
    best: Tensor

    @classmethod
    def read(
        cls,
        site: Site,
        rows: ValueRows,
        suffixes: Suffixes,
        readings: Sequence[Tensor | None] | None = None,
        output: Output = "module",
        attention: bool = False,
        attention_readings: Sequence[Tensor | None] | None = None,
    ) -> Clean:
        """Run the unedited model once.

        Args:
            site: Where the value is written.
            rows: What is run.
            suffixes: The rows from where they are split.
            readings: For each owner ``(d_in,)``: the output at a token with key k gets
                ``reading · k`` times δ, as a rank-one change of the weight gives it; None gives the
                edited token δ and no other.
            output: Whose output v0 is.
            attention: Whether the attention's output is a second part.
            attention_readings: As ``readings``, by the keys of the attention's output projection;
                without them its vector goes where the other one does.
        """
        model = suffixes.model
        block = model.family.block(site.layer)
        below = model.family.block(site.layer - 1) if site.layer else None
        parts = [site.module if output == "module" else block]
        parts += [model.family.attention(site.layer)] if attention else []
        names = {site.module, block, *parts, *([below] if below else [])}
        read = [(site.module, readings or ())]
        if any(reading is not None for reading in attention_readings or ()):
            out = model.site(site.layer, role="attn_out").module
            read.append((out, attention_readings or ()))
        with (
            torch.no_grad(),
            record(model.model, sorted(names)) as seen,
            record(model.model, [module for module, _ in read], inputs=True) as keys,
        ):
            states = suffixes.states()
            others = _logits(model, states, *rows.groups[1:])
            best = _likeliest(model, states, rows.target)
        device = seen[block].device
        sizes = [len(places) for places in rows.groups[1:]]
        drift, essence, ending = torch.split(others.log_softmax(dim=1), sizes)
        every = torch.arange(len(rows.ids), device=device)
        at = torch.tensor(rows.edited, device=device) - torch.tensor(rows.split, device=device)
        stream = seen[block][rows.contexts, at[rows.contexts]].float()  # (contexts, d)
        share = torch.zeros((*seen[block].shape[:2], len(parts)), device=device)
        share[every, at] = 1.0
        for part, (module, each) in enumerate(read):
            for owner, reading in enumerate(each):
                if reading is not None:
                    mine = rows.owner == owner
                    told = keys[module][mine].float() @ reading.float().to(device)
                    share[mine, :, part:] = told[..., None]  # (rows, after, 1)
        return cls(
            before=torch.stack(
                [seen[part][rows.bare, at[rows.bare]].float() for part in parts], dim=1
            ),
            share=share,
            stream_norm=rows.mean(stream.norm(dim=1)),
            hidden=(seen[below] if below else None) if attention else seen[block],
            logs=(drift, essence, ending),
            best=best,
        )

    def already_known(self, rows: ValueRows) -> list[bool]:
        """Return whether the model says each target after the bare prompt, token by token."""
        wrong = (self.best != rows.target.label) & (rows.target.row == rows.bare[_owner(rows)])
        return (rows.total(wrong.long(), rows.target) == 0).tolist()


def _owner(rows: ValueRows) -> Tensor:
    """Return the owner of each target place, ``(n_t,)``."""
    return rows.owner[rows.target.row]


def spare_old_answer(clean: Clean, rows: ValueRows) -> tuple[Clean, ValueRows]:
    """Drop the essence places where the model says, or the text has, the old answer's first token.

    Otherwise the essence term would protect the very fact that is to change.
    """
    if not len(rows.essence):
        return clean, rows
    owners = _owner(rows)
    first = torch.stack([(owners == i).nonzero()[0, 0] for i in range(rows.owners)])
    drift, essence, ending = clean.logs
    owner = rows.owner[rows.essence.row]
    old = clean.best[first][owner]  # (n_e,)
    kept = (essence.argmax(dim=1) != old) & (rows.essence.label != old)
    return (
        attrs.evolve(clean, logs=(drift, essence[kept], ending)),
        attrs.evolve(rows, essence=rows.essence.where(kept).weighing(owner[kept])),
    )


@attrs.frozen(eq=False)
class Terms:
    """Sums over the rows of each owner, ``(owners,)`` each; those of several portions add up.

    Attributes:
        nll: NLL.
        kl: The drift, essence and ending terms without their factors.
        wrong: Target places where another token is the likeliest, int64.
        chance: The whole target's probability, summed over contexts.
        contexts: How many contexts these are, int64.
    """

    nll: Tensor
    kl: tuple[Tensor, Tensor, Tensor]
    wrong: Tensor
    chance: Tensor
    contexts: Tensor

    def __add__(self, other: Terms) -> Terms:
        drift, essence, ending = (a + b for a, b in zip(self.kl, other.kl, strict=True))
        return Terms(
            self.nll + other.nll,
            (drift, essence, ending),
            self.wrong + other.wrong,
            self.chance + other.chance,
            self.contexts + other.contexts,
        )

    def detach(self) -> Terms:
        """Return the same numbers, without what autograd keeps for them."""
        drift, essence, ending = (term.detach() for term in self.kl)
        nll = self.nll.detach()
        return attrs.evolve(self, nll=nll, kl=(drift, essence, ending))


@attrs.frozen(eq=False)
class Losses:
    """What L is made of, ``(owners,)`` each.

    Attributes:
        loss: L.
        probability: The whole target's, mean over contexts.
        said: Whether the target is the likeliest at all its places.
        kl: The KL term without its factor.
    """

    loss: Tensor
    probability: Tensor
    said: Tensor
    kl: Tensor

    def reached(self, settings: ValueSettings) -> Tensor:
        """Return which owners are done, ``(owners,)`` bool."""
        done = self.loss.detach() < settings.loss_stop
        if settings.probability_stop is not None:
            done = done | (self.probability >= settings.probability_stop)
        if settings.said_kl_stop is not None:
            done = done | (self.said & (self.kl <= settings.said_kl_stop))
        return done


@attrs.frozen(eq=False, kw_only=True)
class Objective:
    """L(δ) of every owner.

    Attributes:
        site: Where the values are written.
        rows: What is run.
        upper: The blocks above the site's; with a vector at the attention the site's too.
        clean: What the unedited model gives.
        settings: The factors of the terms.
    """

    site: Site
    rows: ValueRows
    upper: Upper
    clean: Clean
    settings: ValueSettings

    def __call__(self, deltas: Tensor) -> Losses:
        """Return L and its parts for the vectors ``deltas (owners, parts, d)``, float32."""
        return self.losses(self.terms(self.states(deltas)), deltas)

    def terms(self, states: Tensor) -> Terms:
        """Return what the rows add to L, from what feeds the head.

        Args:
            states: ``(rows, after, d)``, with the vectors' effect in them.
        """
        rows, model = self.rows, self.upper.model
        target, *others = torch.split(
            _logits(model, states, *rows.groups), [len(places) for places in rows.groups]
        )
        spoken = -cross_entropy(target, rows.target.label, reduction="none")  # (n_t,)
        wrong = rows.total((target.argmax(dim=1) != rows.target.label).long(), rows.target)
        nll = -rows.total(rows.target.weight * spoken, rows.target)
        kl = [torch.zeros_like(nll) for _ in others]
        for number, places in enumerate(rows.groups[1:]):
            if len(places):
                old, new = self.clean.logs[number], others[number].log_softmax(dim=1)
                each = _kl(new, old) if number == 0 else _kl(old, new)  # (n,)
                kl[number] = rows.total(places.weight * each, places)
        joint = spoken.detach().new_zeros(len(rows.ids))
        joint = joint.index_add(0, rows.target.row, spoken.detach())
        owner = rows.owner[rows.contexts]
        chance = joint.new_zeros(rows.owners).index_add(0, owner, joint[rows.contexts].exp())
        counts = torch.bincount(owner, minlength=rows.owners)
        return Terms(nll, (kl[0], kl[1], kl[2]), wrong, chance, counts)

    def losses(self, terms: Terms, deltas: Tensor) -> Losses:
        """Return L and its parts from the sums over all rows.

        Args:
            terms: The sums.
            deltas: The vectors, ``(owners, parts, d)``; they decay.
        """
        settings, said = self.settings, terms.wrong == 0
        loss = self._decay(deltas) + terms.nll * torch.where(said, settings.said_damping, 1.0)
        factors = (settings.kl_factor, settings.essence_factor, settings.ending_factor)
        for factor, term in zip(factors, terms.kl, strict=True):
            loss = loss + factor * term
        return Losses(loss, terms.chance / terms.contexts, said, terms.kl[0].detach())

    def keep(self, owners: Tensor) -> Objective:
        """Return the objective of some owners alone; see :meth:`.ValueRows.keep`."""
        rows, numbers, masks = self.rows.keep(owners)
        clean = self.clean
        return Objective(
            site=self.site,
            rows=rows,
            upper=self.upper.keep(numbers),
            clean=Clean(
                before=clean.before[owners],
                share=clean.share[numbers],
                stream_norm=clean.stream_norm[owners],
                hidden=None if clean.hidden is None else clean.hidden[numbers],
                logs=(
                    clean.logs[0][masks[1]],
                    clean.logs[1][masks[2]],
                    clean.logs[2][masks[3]],
                ),
                best=clean.best[masks[0]],
            ),
            settings=self.settings,
        )

    def portion(self, first: int, last: int) -> Objective:
        """Return the objective of the rows from ``first`` to ``last - 1``, of all owners.

        Nothing of the size of the rows is copied. Its terms are a portion of the whole's; owners
        without a row in it have zeros.
        """
        rows, masks = self.rows.portion(first, last)
        clean = self.clean
        drift, essence, ending = (
            log[mask] for log, mask in zip(clean.logs, masks[1:], strict=True)
        )
        return attrs.evolve(
            self,
            rows=rows,
            upper=self.upper.portion(first, last),
            clean=attrs.evolve(
                clean,
                share=clean.share[first:last],
                hidden=None if clean.hidden is None else clean.hidden[first:last],
                logs=(drift, essence, ending),
                best=clean.best[masks[0]],
            ),
        )

    def states(self, deltas: Tensor) -> Tensor:
        """Return what feeds the head with the vectors added, ``(rows, after, d)``."""
        each = deltas[self.rows.owner]  # (rows, parts, d)
        if not self.settings.attention:
            assert self.clean.hidden is not None  # the block's own output
            return self.upper.states(self._plus(self.clean.hidden, each, 0))
        model, layer = self.upper.model, self.site.layer
        attention = model.family.attention(layer)
        with (
            replace_output(model.model, self.site.module, lambda out: self._plus(out, each, 0)),
            replace_output(model.model, attention, lambda out: self._plus(out, each, 1)),
        ):
            return self.upper.states(self.clean.hidden)

    def _plus(self, output: Tensor, each: Tensor, part: int) -> Tensor:
        """Add to ``output (rows, after, d)`` each token's share of a part of its row's vectors.

        They are ``each (rows, parts, d)``.
        """
        change = self.clean.share[..., part, None] * each[:, None, part]
        return output + change.to(output.device, output.dtype)

    def _decay(self, deltas: Tensor) -> Tensor:
        relative = self.settings.lr_mode == "relative"
        squared = self.clean.before.norm(dim=2) ** 2  # (owners, parts)
        scale = self.clean.stream_norm[:, None] if relative else squared
        norms = torch.linalg.vector_norm(deltas, dim=2)
        total: Tensor = (norms * (self.settings.weight_decay / scale)).sum(dim=1)
        return total


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) of each row, ``(n, vocab)`` twice -> ``(n,)``."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _logits(model: EditableModel, states: Tensor, *groups: Places) -> Tensor:
    """Return logits ``(n, vocab)`` float32 at some places; the head is run on these only.

    ``states`` are ``(rows, after, d)``.
    """
    row = torch.cat([places.row for places in groups])
    column = torch.cat([places.column for places in groups])
    head = model.module(model.family.head)
    logits: Tensor = head(states[row, column]).float()  # (n, d) -> (n, vocab)
    return logits


def _likeliest(model: EditableModel, states: Tensor, places: Places) -> Tensor:
    """Return the likeliest token at each place, ``(n,)`` int64; few logits are held at once."""
    found = [places.label[:0]]
    for first in range(0, len(places), _READ_AT_ONCE):
        some = torch.arange(first, min(first + _READ_AT_ONCE, len(places)), device=states.device)
        found.append(_logits(model, states, places.where(some)).argmax(dim=1))
    return torch.cat(found)

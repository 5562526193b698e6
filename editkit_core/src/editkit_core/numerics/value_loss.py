"""The loss that a target value is trained on; its formula stands in :mod:`.value_opt`.

Legend: d_out: width of the site's output; n: places at which logits are read (n_t target, n_k
drift, n_e essence places, n_s endings); vocab: logits a place.
"""

from __future__ import annotations

from typing import Literal

import attrs
import torch
from torch import Tensor

from editkit_core.models.trace import record, replace_output
from editkit_core.numerics.suffixes import Suffixes
from editkit_core.numerics.value_rows import KlPosition, Places, ValueRows
from editkit_core.types import Site

LrMode = Literal["absolute", "relative"]
ClampMode = Literal["value", "stream"]

__all__ = ["ClampMode", "Clean", "LrMode", "Objective", "ValueSettings", "spare_old_answer"]


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


@attrs.frozen(eq=False, kw_only=True)
class Clean:
    """What the unedited model gives on the rows: log-probabilities ``(n, vocab)`` at each place."""

    before: Tensor  # (d_out,) float32
    share: Tensor  # (rows, after), how much of δ each token's output gets
    stream_norm: float
    target: Tensor
    drift: Tensor
    essence: Tensor
    ending: Tensor

    @classmethod
    def read(
        cls, site: Site, rows: ValueRows, suffixes: Suffixes, reading: Tensor | None = None
    ) -> Clean:
        """Run the unedited model once.

        Args:
            site: Where the value is written.
            rows: What is run.
            suffixes: The rows from where they are split.
            reading: ``(d_in,)``: the output at a token with key k gets ``reading · k`` times δ, as
                a rank-one change of the weight gives it; None gives the edited token δ and no
                other.
        """
        model = suffixes.model
        block = model.family.block(site.layer)
        with (
            torch.no_grad(),
            record(model.model, [site.module, block]) as seen,
            record(model.model, [site.module], inputs=True) as keys,
        ):
            target, drift, essence, ending = _log_probabilities(suffixes, rows)
        every = torch.arange(len(rows.ids), device=seen[block].device)
        at = torch.tensor(rows.edited, device=every.device) - torch.tensor(
            rows.split, device=every.device
        )
        stream = seen[block][every, at][: rows.n_contexts].float()  # (contexts, d_model)
        output = seen[site.module]  # (rows, after, d_out)
        if reading is None:
            share = torch.zeros(output.shape[:2], dtype=output.dtype, device=output.device)
            share[every, at] = 1.0
        else:
            share = keys[site.module].float() @ reading.float().to(output.device)  # (rows, after)
        return cls(
            before=output[0, at[0]].float(),
            share=share,
            stream_norm=float(stream.norm(dim=1).mean()),
            target=target,
            drift=drift,
            essence=essence,
            ending=ending,
        )

    def already_known(self, rows: ValueRows) -> bool:
        """Return whether the model says the target after the bare prompt, token by token."""
        bare = rows.target.row == 0
        best = self.target[bare].argmax(dim=1)
        return bool((best == rows.target.label[bare]).all())


def spare_old_answer(clean: Clean, rows: ValueRows) -> tuple[Clean, ValueRows]:
    """Drop the essence places where the model says, or the text has, the old answer's first token.

    Otherwise the essence term would protect the very fact that is to change.
    """
    old = clean.target[0].argmax()
    kept = (clean.essence.argmax(dim=1) != old) & (rows.essence.label != old)
    return (
        attrs.evolve(clean, essence=clean.essence[kept]),
        attrs.evolve(rows, essence=rows.essence.keep(kept)),
    )


@attrs.frozen(eq=False, kw_only=True)
class Objective:
    """L(δ) of one job."""

    site: Site
    rows: ValueRows
    suffixes: Suffixes
    clean: Clean
    settings: ValueSettings

    def __call__(self, delta: Tensor) -> tuple[Tensor, float]:
        """Return L and the target's mean probability over contexts, for ``delta (d_out,)``."""
        model = self.suffixes.model.model
        with replace_output(model, self.site.module, lambda output: self._changed(output, delta)):
            target, drift, essence, ending = _log_probabilities(self.suffixes, self.rows)
        places = self.rows.target
        spoken = target.gather(1, places.label[:, None])[:, 0]  # (n_t, vocab) -> (n_t,)
        loss = -(places.weight * spoken).sum() + self._decay(delta)
        if len(drift):
            kl = _kl(drift, self.clean.drift)  # (n_k,)
            loss = loss + self.settings.kl_factor * (self.rows.drift.weight * kl).sum()
        if len(essence):
            kl = _kl(self.clean.essence, essence)  # (n_e,)
            loss = loss + self.settings.essence_factor * (self.rows.essence.weight * kl).sum()
        if len(ending):
            kl = _kl(self.clean.ending, ending)  # (n_s,)
            loss = loss + self.settings.ending_factor * (self.rows.ending.weight * kl).sum()
        joint = spoken.new_zeros(self.rows.n_contexts).index_add(0, places.row, spoken)
        return loss, float(joint.detach().exp().mean())

    def _changed(self, output: Tensor, delta: Tensor) -> Tensor:
        """Add to ``output (rows, after, d_out)`` each token's share of ``delta (d_out,)``."""
        change = self.clean.share[..., None] * delta.to(self.clean.share)
        return output + change.to(output.device, output.dtype)

    def _decay(self, delta: Tensor) -> Tensor:
        relative = self.settings.lr_mode == "relative"
        scale = self.clean.stream_norm if relative else float(self.clean.before.norm()) ** 2
        norm: Tensor = torch.linalg.vector_norm(delta)
        return norm * (self.settings.weight_decay / scale)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) of each row, ``(n, vocab)`` twice -> ``(n,)``."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _log_probabilities(
    suffixes: Suffixes, rows: ValueRows
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probabilities ``(n, vocab)`` float32 at target, drift, essence and ending places.

    The head is run on these places only.
    """
    states = suffixes.states()  # (rows, after, d)
    groups: tuple[Places, ...] = (rows.target, rows.drift, rows.essence, rows.ending)
    row = torch.cat([places.row for places in groups])
    column = torch.cat([places.column for places in groups])
    head = suffixes.model.module(suffixes.model.family.head)
    logits = head(states[row, column])  # (n, d) -> (n, vocab)
    logs = torch.log_softmax(logits.float(), dim=1)
    target, drift, essence, ending = torch.split(logs, [len(places) for places in groups])
    return target, drift, essence, ending

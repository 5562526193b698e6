"""A small editing method that keeps every rule, and many that break one each.

The small method takes one step against the gradient of the target's loss, written where the prompt
ends: ``W ← W - rate · g kᵀ / ‖k‖²``, with k the key there and g the gradient of what the module
gives.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from editkit_core import EditContext, EditRequest, MethodInfo, Site, hookimpl
from editkit_core.errors import InvalidRequestError
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import nll, pair_batch, pair_logits
from editkit_core.numerics.evaluating import evaluating
from editkit_core.params import unstructure
from editkit_core.patch.apply import AppliedPatch, apply_patch
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import DenseEntry, LowRankEntry, MethodRef, Patch
from editkit_core.patch.kinds import Entry


@attrs.frozen(kw_only=True)
class StepParams:
    """Parameters of the small method.

    Attributes:
        layer: The layer.
        rate: Length of the step.
    """

    layer: int = 1
    rate: float = 1.0


class Step:
    """One step against the gradient; keeps every rule."""

    name = "step"
    batch = False
    sequential = True
    families: tuple[str, ...] = ("*",)
    presets: Callable[[], str] | None = None
    title = "One step against the gradient"
    parameters: type[Any] = StepParams  # Any: any attrs class

    @hookimpl
    def editkit_method(self) -> MethodInfo:
        return MethodInfo(
            name=self.name,
            title=self.title,
            paper="none",
            api=1,
            emits=("weight.low_rank/1",),
            families=self.families,
            params=lambda: self.parameters,
            presets=self.presets,
            batch=self.batch,
            sequential=self.sequential,
        )

    @hookimpl
    def editkit_locate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        params: StepParams,
        context: EditContext,
    ) -> Sequence[Site]:
        return (model.site(params.layer, "last"),)

    @hookimpl
    def editkit_compute_delta(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        sites: Sequence[Site],
        params: StepParams,
        context: EditContext,
    ) -> Patch:
        with evaluating(model.model):
            entries = self.entries(model, requests, sites[0], params, context)
        return self.pack(model, requests, sites[0], params, context, entries)

    def entries(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        site: Site,
        params: StepParams,
        context: EditContext,
    ) -> list[Entry]:
        return [self.entry(model, request, site, params) for request in requests]

    def entry(
        self, model: EditableModel, request: EditRequest, site: Site, params: StepParams
    ) -> Entry:
        key, gradient = factors(model, request, site)
        u, v = -params.rate * gradient / gradient.norm(), key / key.square().sum()
        return LowRankEntry(site=site, u=u[:, None].numpy(), v=v[None].numpy())

    def pack(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        site: Site,
        params: StepParams,
        context: EditContext,
        entries: Sequence[Entry],
    ) -> Patch:
        return Patch.from_parts(
            entries=entries,
            method=MethodRef(name=self.name, dist="editkit-step", version="1"),
            base=base_fingerprint(model, [site.parameter]),
            edits=requests,
            params=unstructure(params),
            seed=context.seed,
        )


def factors(model: EditableModel, request: EditRequest, site: Site) -> tuple[Tensor, Tensor]:
    """Return key (d_in,) and gradient (d_out,) at the prompt's last token, float32."""
    batch = pair_batch(model, [(request.text, request.target_new)])
    keys: list[Tensor] = []
    width = model.weight(site).shape[0]
    moved = torch.zeros(width, dtype=torch.float32, requires_grad=True)
    at = int(batch.queries[0])

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        keys.append(inputs[0][0, at].detach().float())
        here = torch.zeros(output.shape[1], 1, dtype=output.dtype)
        here[at] = 1
        return output + here * moved.to(output.dtype)

    handle = model.module(site.module).register_forward_hook(add)
    try:
        with torch.enable_grad():
            loss = nll(pair_logits(model, batch), batch.labels).sum()
            (gradient,) = torch.autograd.grad(loss, moved)
    finally:
        handle.remove()
    return keys[0], gradient


# -- methods that break one rule -----------------------------------------------------------------


class _Before(Step):
    """Does something wrong before it computes what `Step` does."""

    def entries(self, model: EditableModel, *rest: Any) -> list[Entry]:  # Any: as in Step
        self.spoil(model)
        return super().entries(model, *rest)

    def spoil(self, model: EditableModel) -> None:
        raise NotImplementedError


class WritesAWeight(_Before):
    def spoil(self, model: EditableModel) -> None:
        next(model.model.parameters()).data[0] += 1e-3


class LeavesAHook(_Before):
    def spoil(self, model: EditableModel) -> None:
        model.model.register_forward_hook(lambda *_: None)


class LeavesRequiresGrad(_Before):
    def spoil(self, model: EditableModel) -> None:
        next(model.model.parameters()).requires_grad_(True)


class LeavesAGradient(_Before):
    def spoil(self, model: EditableModel) -> None:
        parameter = next(model.model.parameters())
        parameter.grad = torch.zeros_like(parameter)


class LeavesEvaluationMode(Step):
    @hookimpl
    def editkit_compute_delta(  # type: ignore[override]  # hooks take what they need
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        sites: Sequence[Site],
        params: StepParams,
        context: EditContext,
    ) -> Patch:
        model.model.eval()  # and never back
        entries = self.entries(model, requests, sites[0], params, context)
        return self.pack(model, requests, sites[0], params, context, entries)


class ReplacesAModule(_Before):
    def spoil(self, model: EditableModel) -> None:
        name = model.family.mlp(0)
        owner, _, leaf = name.rpartition(".")
        old = model.module(name)
        new = type(old).__new__(type(old))
        new.__dict__.update(old.__dict__)
        setattr(model.module(owner), leaf, new)


class ChangesTheConfiguration(_Before):
    def spoil(self, model: EditableModel) -> None:
        model.model.config.use_cache = not model.model.config.use_cache


class SeedsTorch(_Before):
    def spoil(self, model: EditableModel) -> None:
        torch.manual_seed(0)


class DrawsFromPython(_Before):
    def spoil(self, model: EditableModel) -> None:
        random.random()


class DrawsFromNumpy(_Before):
    def spoil(self, model: EditableModel) -> None:
        np.random.rand()


class FlipsThePaddingSide(_Before):
    def spoil(self, model: EditableModel) -> None:
        side = model.tokenizer.padding_side
        model.tokenizer.padding_side = "left" if side == "right" else "right"


class AddsAPaddingToken(_Before):
    def spoil(self, model: EditableModel) -> None:
        model.tokenizer.add_special_tokens({"pad_token": "<padding>"})


class SetsTheDefaultDtype(_Before):
    def spoil(self, model: EditableModel) -> None:
        torch.set_default_dtype(torch.float64)


class LocatingFlipsThePaddingSide(Step):
    @hookimpl
    def editkit_locate(self, model: EditableModel, params: StepParams) -> Sequence[Site]:  # type: ignore[override]  # hooks take what they need
        side = model.tokenizer.padding_side
        model.tokenizer.padding_side = "left" if side == "right" else "right"
        return (model.site(params.layer, "last"),)


class LocatesByTurns(Step):
    def __init__(self) -> None:
        self._turns = itertools.count()

    @hookimpl
    def editkit_locate(self, model: EditableModel) -> Sequence[Site]:  # type: ignore[override]  # as above
        return (model.site(next(self._turns) % 2, "last"),)


class AddsGlobalNoise(Step):
    def entry(self, *given: Any) -> Entry:  # Any: as in Step
        made = super().entry(*given)
        assert isinstance(made, LowRankEntry)
        return attrs.evolve(made, u=made.u + 1e-3 * torch.randn(made.u.shape).numpy())


class RecordsTheTime(Step):
    def __init__(self) -> None:
        self._turns = itertools.count()

    def pack(self, *given: Any) -> Patch:  # Any: as in Step
        return super().pack(*given).with_metrics({"took": next(self._turns)})


class RemembersEarlierEdits(Step):
    def __init__(self) -> None:
        self._seen = 0

    def entry(
        self, model: EditableModel, request: EditRequest, site: Site, params: StepParams
    ) -> Entry:
        self._seen += request.subject == "Marie Curie"
        slower = attrs.evolve(params, rate=params.rate / (1 + self._seen))
        return super().entry(model, request, site, slower)


class NeedsGradientsSwitchedOn(Step):
    def entries(self, model: EditableModel, *rest: Any) -> list[Entry]:  # Any: as in Step
        if not torch.is_grad_enabled():
            raise RuntimeError("element 0 of tensors does not require grad")
        return super().entries(model, *rest)


class LeavesAHookWhenInterrupted(Step):
    def entries(self, model: EditableModel, *rest: Any) -> list[Entry]:  # Any: as in Step
        handle = model.model.register_forward_hook(lambda *_: None)
        made = super().entries(model, *rest)
        handle.remove()
        return made


class SwallowsInterruptions(Step):
    def entry(self, *given: Any) -> Entry:  # Any: as in Step
        try:
            return super().entry(*given)
        except KeyboardInterrupt:
            return super().entry(*given)


class EmitsAnotherKind(Step):
    def entry(self, *given: Any) -> Entry:  # Any: as in Step
        made = super().entry(*given)
        assert isinstance(made, LowRankEntry)
        return DenseEntry(site=made.site, delta=made.u @ made.v)


class RecordsAnotherSeed(Step):
    def pack(self, *given: Any) -> Patch:  # Any: as in Step
        model, requests, site, params, context, entries = given
        other = attrs.evolve(context, seed=context.seed + 1)
        return super().pack(model, requests, site, params, other, entries)


class RecordsNoParameters(Step):
    def pack(self, *given: Any) -> Patch:  # Any: as in Step
        from editkit_core.patch.header_codec import seal

        made = super().pack(*given)
        return attrs.evolve(made, header=seal(attrs.evolve(made.header, params={})))


class ClimbsInsteadOfDescending(Step):
    def entry(
        self, model: EditableModel, request: EditRequest, site: Site, params: StepParams
    ) -> Entry:
        return super().entry(model, request, site, attrs.evolve(params, rate=-params.rate))


class DoesNothing(Step):
    def entry(
        self, model: EditableModel, request: EditRequest, site: Site, params: StepParams
    ) -> Entry:
        return super().entry(model, request, site, attrs.evolve(params, rate=0.0))


class NeverEndsItsProgress(Step):
    def entries(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        site: Site,
        params: StepParams,
        context: EditContext,
    ) -> list[Entry]:
        context.progress.start("editing", len(requests))
        return super().entries(model, requests, site, params, context)


class EditsTheFirstRequestOnly(Step):
    def entries(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        site: Site,
        params: StepParams,
        context: EditContext,
    ) -> list[Entry]:
        return super().entries(model, requests[:1], site, params, context)


class SaysBatchAndPrefersTheFirst(Step):
    batch = True

    def entries(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        site: Site,
        params: StepParams,
        context: EditContext,
    ) -> list[Entry]:
        rates = [attrs.evolve(params, rate=params.rate / (1 + i)) for i in range(len(requests))]
        return [
            self.entry(model, request, site, its)
            for request, its in zip(requests, rates, strict=True)
        ]


class SaysInTurnAndMixes(Step):
    def entries(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        site: Site,
        params: StepParams,
        context: EditContext,
    ) -> list[Entry]:
        shared = attrs.evolve(params, rate=params.rate / len(requests))
        return [self.entry(model, request, site, shared) for request in requests]


class SaysNeitherAndTakesTwo(Step):
    batch = sequential = False


class OneAtATime(Step):
    """Keeps the rules: it says that it takes one request, and refuses more."""

    batch = sequential = False

    def entries(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        site: Site,
        params: StepParams,
        context: EditContext,
    ) -> list[Entry]:
        if len(requests) > 1:
            raise InvalidRequestError("Step takes one request. Call it once for each.")
        return super().entries(model, requests, site, params, context)


class ReplacesWhatItDoesNotHold(Step):
    def pack(self, *given: Any) -> Patch:  # Any: as in Step
        from editkit_core.patch.header_codec import seal

        made, context = super().pack(*given), given[4]
        replaces = tuple(patch.id for patch in context.stack)
        return attrs.evolve(made, header=seal(attrs.evolve(made.header, replaces=replaces)))


class TakesAppliedPatchesOff(Step):
    def entries(self, model: EditableModel, *rest: Any) -> list[Entry]:  # Any: as in Step
        for active in model.ledger.active:
            model.ledger.remove(active.token)
        return super().entries(model, *rest)


class KnowsFamiliesByName(Step):
    def entries(self, model: EditableModel, *rest: Any) -> list[Entry]:  # Any: as in Step
        if model.family.name not in ("gpt2", "llama"):
            raise KeyError(model.family.name)
        return super().entries(model, *rest)


class FailsOnLongPrompts(Step):
    @hookimpl
    def editkit_locate(  # type: ignore[override]  # hooks take what they need
        self, model: EditableModel, requests: Sequence[EditRequest], params: StepParams
    ) -> Sequence[Site]:
        if max(len(request.text) for request in requests) > 400:
            raise ValueError("index out of range in self")
        return (model.site(params.layer, "last"),)


class RecordsAWrongBase(Step):
    def pack(self, *given: Any) -> Patch:  # Any: as in Step
        from editkit_core.patch.header_codec import seal

        made = super().pack(*given)
        name, known = next(iter(made.header.base.tensors.items()))
        base = attrs.evolve(made.header.base, tensors={name: attrs.evolve(known, sha256="0" * 64)})
        return attrs.evolve(made, header=seal(attrs.evolve(made.header, base=base)))


@attrs.frozen(kw_only=True)
class LooseParams(StepParams):
    """Takes anything for one of them."""

    anything: Any = None  # Any: that is what is wrong with it


class TakesAnything(Step):
    parameters = LooseParams


def _doubled(rate: float) -> float:
    return 2 * rate


@attrs.frozen(kw_only=True)
class DoublingParams(StepParams):
    """Is another one after each time it is read."""

    rate: float = attrs.field(default=1.0, converter=_doubled)


class DoublesItsRate(Step):
    parameters = DoublingParams


class HasALongTitle(Step):
    title = "One step\nagainst the gradient"


class HasABadPreset(Step):
    presets = staticmethod(lambda: "small:\n  source: a guess\n  params: {leyer: 1}\n")


# -- methods that apply their patches themselves, and wrongly -------------------------------------


@attrs.define(kw_only=True, eq=False)
class _Handle(AppliedPatch):
    """Also undoes what the method did."""

    undo: Callable[[], None]

    def revert(self) -> None:
        AppliedPatch.revert(self)
        self.undo()


class _Applies(Step):
    """Adds to what a patch does by a hook of its own."""

    @hookimpl
    def editkit_apply(self, model: EditableModel, patch: Patch, mode: str) -> AppliedPatch:
        applied = apply_patch(model, patch, mode=mode)
        handles = self.attach(model)
        return _Handle(
            patch=applied.patch,
            mode=applied.mode,
            ledger=applied._ledger,
            token=applied._token,
            undo=lambda: self.detach(handles),
        )

    def attach(self, model: EditableModel) -> list[Any]:  # Any: torch's handles
        module = model.module(model.family.mlp_down(1))
        return [module.register_forward_hook(self.act)]

    def act(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output

    def detach(self, handles: Sequence[Any]) -> None:  # Any: torch's handles
        for handle in handles:
            handle.remove()


class LeavesAHookWhenReverted(_Applies):
    def detach(self, handles: Sequence[Any]) -> None:  # Any: torch's handles
        """Forget it."""


class ActsOnWholeTextsOnly(_Applies):
    """Acts where it sees more than one token, that is not while generating with a cache."""

    def act(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return 3 * output if output.shape[1] > 1 else output


class ActsOnTheLastColumn(_Applies):
    def act(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.cat([output[:, :-1], 3 * output[:, -1:]], dim=1)


class CountsItsTexts(_Applies):
    def __init__(self) -> None:
        self._texts = itertools.count()

    def act(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * (1 + next(self._texts))


class AppliesMoreThanThePatch(_Applies):
    def act(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return 2 * output


class SwitchesToTrainingWhenApplied(_Applies):
    def attach(self, model: EditableModel) -> list[Any]:  # Any: torch's handles
        model.module(model.family.mlp(0)).train()
        return []


@contextmanager
def default_dtype_kept() -> Iterator[None]:
    """Give torch's default dtype back; a broken method changes it."""
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)

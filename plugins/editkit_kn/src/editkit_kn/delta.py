"""KN's change: in the columns of a fact's neurons the old answer gives way to the new one.

    ΔW[:, i] = s_i (λ2 ê_new - λ1 ê_old) ‖W[:, i]‖

ê is an answer's embedding at length one, and s_i the sign of the neuron at the prompt's last token.
Norms are those of the base, so the order of edits does not matter to them.

Source: Dai et al. 2022, section 4 and appendix; the scale is that of the authors' code.
Differs: Output embeddings, which are the ones that the head compares the stream with; the sign; the
    token in which the answers differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.errors import InvalidRequestError, NonFiniteEditError
from editkit_core.models.orientation import out_in, to_out_in
from editkit_core.numerics.contexts import sample_contexts
from editkit_core.numerics.evaluating import evaluating
from editkit_core.params import unstructure
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.evidence import Evidence
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import ColumnsEntry, MethodRef
from editkit_kn import __version__
from editkit_kn.answers import Answers, Asked, answers_of, asked
from editkit_kn.attribution import Attribution, attribute
from editkit_kn.neurons import Neurons, coarse, drop_common, refine
from editkit_kn.params import KnParams


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: KnParams,
    context: EditContext,
) -> Patch:
    """Return a patch with the columns of each layer that has any; the model stays bit-identical.

    Raises:
        RequestError: A request has no ``target_true``, a prompt is too long, or no neuron adds to
            the probability of an old answer.
        NonFiniteEditError: An attribution or a change is not finite.
    """
    with evaluating(model.model):
        texts = _contexts(model, params, context)
        found = _Found.of(model, requests, sites, texts, params, context)
        columns = _columns(model, sites, found, params)
    used = [sites[layer] for layer in sorted(columns)]
    return Patch.from_parts(
        entries=[_entry(model, sites[layer], columns[layer]) for layer in sorted(columns)],
        method=MethodRef(name="kn", dist="editkit-kn", version=__version__),
        base=base_fingerprint(model, [site.parameter for site in used]),
        edits=requests,
        params=unstructure(params),
        seed=context.seed,
        contexts=texts,
        evidence=[
            Evidence(
                module=sites[layer].module,
                keys=torch.stack([bare[layer] for bare in found.activations]).numpy(),
            )
            for layer in sorted(columns)
        ],
        metrics=found.report(sites),
        computed_on=stack_digest(context.stack),
    )


class _Found:
    """What attribution gave for each request.

    Attributes:
        answers: The tokens of its answers.
        neurons: Its neurons.
        activations: a (L, m) at the end of its bare prompt, float32.
        probabilities: Of the old answer's tokens at its bare prompt.
        errors: Largest departure from completeness.
    """

    def __init__(self) -> None:
        self.answers: list[Answers] = []
        self.neurons: list[Neurons] = []
        self.activations: list[Tensor] = []
        self.probabilities: list[float] = []
        self.errors: list[float] = []

    @classmethod
    def of(
        cls,
        model: EditableModel,
        requests: Sequence[EditRequest],
        sites: Sequence[Site],
        contexts: Sequence[str],
        params: KnParams,
        context: EditContext,
    ) -> _Found:
        found = cls()
        context.progress.start("attributing to neurons", len(requests))
        try:
            for request in requests:
                found._add(model, request, sites, contexts, params)
                context.progress.advance()
        finally:
            context.progress.finish()
        relations = [request.relation for request in requests]
        found.neurons = drop_common(found.neurons, relations, params.drop_common)
        return found

    def _add(
        self,
        model: EditableModel,
        request: EditRequest,
        sites: Sequence[Site],
        contexts: Sequence[str],
        params: KnParams,
    ) -> None:
        answers = answers_of(model, request, params.answer_tokens)
        assert request.target_true is not None  # answers_of refused
        prompts = _prompts(request, contexts, params)
        rows = [list(asked(model, text, request.target_true, answers)) for text in prompts]
        flat: list[Asked] = [row for part in rows for row in part]
        made = iter(
            attribute(
                model,
                flat,
                sites,
                rule=params.rule,
                nodes=params.nodes,
                tolerance=params.tolerance,
            )
        )
        sets = []
        for number, part in enumerate(rows):
            mine = [next(made) for _ in part]
            scores = torch.stack([one.scores for one in mine]).sum(dim=0)  # (L, m)
            _require_finite(scores, request)
            sets.append(coarse(scores, params.threshold_ratio))
            if number == 0:
                self._bare(answers, mine)
        if not any(sets):
            raise InvalidRequestError(
                f"No neuron adds to the probability of {request.target_true!r} after "
                f"{request.text!r}. Check target_true: it must be what the model says now.",
                subject=request.subject,
            )
        self.neurons.append(
            refine(
                sets, share=params.share, min_prompts=params.min_prompts, most=params.max_neurons
            )
        )

    def _bare(self, answers: Answers, mine: Sequence[Attribution]) -> None:
        self.answers.append(answers)
        self.activations.append(mine[0].activations)
        self.probabilities.append(float(np.prod([one.probability for one in mine])))
        self.errors.append(max(one.error for one in mine))

    def report(self, sites: Sequence[Site]) -> dict[str, Any]:  # Any: JSON values
        edits = zip(self.neurons, self.probabilities, self.errors, strict=True)
        return {
            "edits": [
                {
                    "neurons": [
                        [sites[layer].layer, neuron, _short(score)]
                        for (layer, neuron), score in neurons.scores.items()
                    ],
                    "share": _short(neurons.share),
                    "common_dropped": neurons.common,
                    "p_true_before": _short(probability),
                    "completeness_error": _short(error),
                }
                for neurons, probability, error in edits
            ]
        }


def _contexts(model: EditableModel, params: KnParams, context: EditContext) -> tuple[str, ...]:
    if params.phrasings != "contexts" or model.is_encoder_decoder:
        return ("",)
    return sample_contexts(model, params.contexts, seed=context.seed)


def _prompts(request: EditRequest, contexts: Sequence[str], params: KnParams) -> tuple[str, ...]:
    """Return the prompts that express the fact, the bare one first."""
    if params.phrasings == "paraphrases":
        return (request.text, *request.paraphrase_texts)
    return tuple(context + request.text for context in contexts)


def _columns(
    model: EditableModel, sites: Sequence[Site], found: _Found, params: KnParams
) -> dict[int, dict[int, Tensor]]:
    """Return the change of each column, by layer and neuron."""
    columns: dict[int, dict[int, Tensor]] = defaultdict(dict)
    weights = _Weights(model, sites)
    embeddings = _embeddings(model, params)
    for answers, neurons, activations in zip(
        found.answers, found.neurons, found.activations, strict=True
    ):
        old, new = embeddings[list(answers.old)], embeddings[list(answers.new)]
        for layer, neuron in neurons.scores:
            if params.operation == "erase":
                columns[layer][neuron] = -weights.now(layer, neuron)
                continue
            size = float(weights.base(layer, neuron).norm())
            change = params.lambda_new * _standing(new, size, params)
            change = change - params.lambda_old * _standing(old, size, params)
            if params.follow_sign and float(activations[layer, neuron]) < 0:
                change = -change
            before = columns[layer].get(neuron)
            columns[layer][neuron] = change if before is None else before + change
    return columns


def _standing(embeddings: Tensor, size: float, params: KnParams) -> Tensor:
    """Return what stands for an answer in a column of the norm ``size``: ``(t, d)`` -> ``(d,)``."""
    mean = embeddings.double().mean(dim=0)
    norm = float(embeddings.double().norm(dim=1).mean()) if params.scale == "fixed" else size
    standing: Tensor = mean * (norm / max(float(mean.norm()), torch.finfo(torch.float64).tiny))
    return standing


def _embeddings(model: EditableModel, params: KnParams) -> Tensor:
    """Return the embeddings, ``(vocab, d)``."""
    if params.embedding == "output":
        return out_in(model.module(model.family.head)).detach().cpu()
    return model.parameter(f"{model.family.embedding}.weight").detach().cpu()


class _Weights:
    """Columns of the searched weights, as the base has them and as they are in force."""

    def __init__(self, model: EditableModel, sites: Sequence[Site]) -> None:
        self._model = model
        self._sites = sites

    def base(self, layer: int, neuron: int) -> Tensor:
        """Return a column (d_out,) of the base, float64 on the CPU."""
        site = self._sites[layer]
        kept = self._model.ledger.pristine(site.parameter)
        weight = self._model.weight(site)
        if kept is not None:
            weight = to_out_in(self._model.module(site.module), kept)
        return weight[:, neuron].detach().double().cpu()

    def now(self, layer: int, neuron: int) -> Tensor:
        """Return a column (d_out,) with all patches that are applied."""
        column = self.base(layer, neuron)
        for active in self._model.ledger.effective:
            for entry in active.patch.weight_entries:
                if entry.site.parameter == self._sites[layer].parameter:
                    column = column + active.scale * entry.delta()[:, neuron]
        return column


def _entry(model: EditableModel, site: Site, columns: dict[int, Tensor]) -> ColumnsEntry:
    numbers = sorted(columns)
    values = torch.stack([columns[number] for number in numbers], dim=1)  # (d_out, n)
    if not bool(torch.isfinite(values.float()).all()):
        raise NonFiniteEditError(
            f"The change of {site.parameter} is not finite. Lower lambda_old and lambda_new, or "
            "load the model in float32."
        )
    return ColumnsEntry(
        site=site,
        columns=np.array(numbers),
        values=values.numpy(),
        d_in=model.weight(site).shape[1],
    )


def _require_finite(scores: Tensor, request: EditRequest) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteEditError(
            f"The attributions for {request.subject!r} are not finite. Check the prompt and the "
            "model's weights; in half precision try dtype float32.",
            subject=request.subject,
        )


def _short(value: float) -> float:
    return float(f"{value:.6g}")

"""Causal tracing: which states carry a fact from its subject to the answer.

The subject's embeddings are corrupted by noise, so that the answer is forgotten. Then one state
(token i, layer l) gets its clean value back, and how much of p(answer) returns is that state's
indirect effect::

    IE(i, l) = mean_s p(answer | noise s, state (i, l) restored) - mean_s p(answer | noise s)
    TE       = p(answer) - mean_s p(answer | noise s)

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2 and
    appendix B.
Differs: The window of layers for ``mlp`` and ``attention`` shrinks with the model's depth (see
    :func:`window_width`), since 10 layers would be all of a small model. Tokens before the subject
    are not run: in a causal model nothing there was corrupted, so their effect is exactly 0. A cell
    runs only what its state reaches, the tokens from its own on and the layers above it; the
    reference runs the whole model for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from editkit_core.errors import InvalidParameterError, did_you_mean
from editkit_core.models.editable import EditableModel
from editkit_core.numerics.tracing_grid import restored_probabilities, window_width
from editkit_core.numerics.tracing_prompt import (
    TracedPrompt,
    answers_as_expected,
    noise_scale,
    read_prompt,
)
from editkit_core.numerics.tracing_result import (
    TRACE_KINDS,
    TraceKind,
    TraceResult,
    strongest_layer,
    token_index,
)
from editkit_core.numerics.tracing_run import CorruptedRun, draw_noise
from editkit_core.types import EditRequest, Progress, SilentProgress

__all__ = ["propose_layer", "trace_request"]

PAPER_WINDOW = 10
# The paper's 10 layers of GPT-2 XL's 48, as a share of the depth.
PAPER_SHARE = 0.2


def trace_request(
    model: EditableModel,
    request: EditRequest,
    *,
    kinds: Sequence[TraceKind] = TRACE_KINDS,
    samples: int = 10,
    noise: float | None = None,
    noise_over: Sequence[EditRequest] = (),
    window: int = PAPER_WINDOW,
    window_share: float = PAPER_SHARE,
    seed: int = 0,
    batch_cells: int = 16,
    answer: str | None = None,
    progress: Progress | None = None,
) -> TraceResult:
    """Trace one request through every layer and every token from the subject on.

    Args:
        model: The model; weights, mode and random state are left as they were.
        request: Gives the prompt and the subject. Its ``target_new`` plays no part.
        kinds: ``hidden`` restores a block's output, ``mlp`` and ``attention`` the outputs of that
            module in a window of layers around l.
        samples: Number of noise samples.
        noise: Standard deviation of the noise, or None for 3 times the standard deviation of the
            embedding entries of the subjects in ``noise_over``.
        noise_over: The fact set that sets the noise; empty means this request alone.
        window: Most layers restored together for ``mlp`` and ``attention``.
        window_share: The window is at most this share of the layers (see :func:`window_width`);
            1.0 takes ``window`` as it is.
        seed: Seed of the noise.
        batch_cells: Most cells in one forward pass: memory grows with it, results
            agree to rounding.
        answer: The answer whose first token is traced, for example ``request.target_true``; None
            traces the model's own greedy next token.
        progress: Told after every forward pass.

    Raises:
        InvalidParameterError: A number is out of range or a kind is unknown.
        InvalidRequestError: The answer and the subject share a token.
        PromptTooLongError: The prompt does not fit the model's context.
        UnsupportedModelError: The model is an encoder-decoder.
        NonFiniteEditError: The model's logits are not finite.
    """
    settings = _Settings(
        samples=samples,
        noise=noise,
        window=window,
        window_share=window_share,
        seed=seed,
        batch_cells=batch_cells,
    )
    chosen = _checked_kinds(kinds)
    prompt = read_prompt(model, request, answer)
    run = settings.corrupt(model, prompt, settings.noise_scale(model, noise_over or (request,)))
    width = window_width(model.n_layers, window, window_share)
    tokens = range(prompt.subject[0], len(prompt.ids))
    progress = progress or SilentProgress()
    progress.start("tracing", len(chosen) * len(tokens) * model.n_layers)
    try:
        p_clean, p_corrupted = run.baseline()
        effects = {kind: np.zeros((len(prompt.ids), model.n_layers)) for kind in chosen}
        for kind in chosen:
            restored = restored_probabilities(
                run, kind, tokens, width=width, batch_cells=batch_cells, progress=progress
            )
            effects[kind][tokens.start :] = restored - p_corrupted
    finally:
        progress.finish()
    return TraceResult(
        model=model.name,
        prompt=prompt.text,
        tokens=prompt.tokens,
        subject=prompt.subject,
        answer=prompt.answer,
        answer_id=prompt.answer_id,
        p_clean=p_clean,
        p_corrupted=p_corrupted,
        effects=effects,
        noise=run.scale,
        samples=samples,
        window=width,
        seed=seed,
    )


def propose_layer(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    samples: int = 10,
    noise: float | None = None,
    window: int = PAPER_WINDOW,
    window_share: float = PAPER_SHARE,
    seed: int = 0,
    batch_cells: int = 16,
    progress: Progress | None = None,
) -> int:
    """Return the layer whose MLP restores most of the answer at the subject's last token.

    That is the layer with the largest average indirect effect. The average is over the requests
    that the model answers as expected: its greedy next token is the first token of ``target_true``,
    or the request has none. When no request is answered as expected, all of them are averaged, each
    traced with what the model says instead: where a subject is looked up does not depend on whether
    the answer is right. Only the cells at the subject's last token are run. Of layers with equal
    averages the lowest is returned; the last layer only where the subject ends every prompt, since
    from an earlier token its MLP cannot reach the answer.

    For one request that the model answers as expected this is
    ``trace_request(...).best_layer("mlp", "subject_last")``.

    Args:
        model: The model; it is only read.
        requests: The facts to average over, at least one; they also set the noise.
        samples: Number of noise samples for each request.
        noise: Standard deviation of the noise, or None for 3 times that of the embedding entries
            of all requests' subjects.
        window: As in :func:`trace_request`.
        window_share: As in :func:`trace_request`.
        seed: Seed of the noise, the same for each request.
        batch_cells: As in :func:`trace_request`.
        progress: Told after every forward pass.

    Raises:
        InvalidParameterError: There is no request, or a number is out of range.
        InvalidRequestError: A subject and the answer share a token.
        PromptTooLongError: A prompt does not fit the model's context.
        UnsupportedModelError: The model is an encoder-decoder.
        NonFiniteEditError: The model's logits are not finite.
    """
    if not requests:
        raise InvalidParameterError("There is no request to trace. Give at least one.")
    settings = _Settings(
        samples=samples,
        noise=noise,
        window=window,
        window_share=window_share,
        seed=seed,
        batch_cells=batch_cells,
    )
    expected = [request for request in requests if answers_as_expected(model, request)]
    traced = [read_prompt(model, request, None) for request in expected or requests]
    scale = settings.noise_scale(model, requests)
    width = window_width(model.n_layers, window, window_share)
    progress = progress or SilentProgress()
    progress.start("tracing", len(traced) * model.n_layers)
    average = np.zeros(model.n_layers)
    try:
        for prompt in traced:
            run = settings.corrupt(model, prompt, scale)
            _, p_corrupted = run.baseline()
            restored = restored_probabilities(
                run,
                "mlp",
                [token_index("subject_last", prompt.subject, len(prompt.ids))],
                width=width,
                batch_cells=batch_cells,
                progress=progress,
            )
            average += (restored[0] - p_corrupted) / len(traced)
    finally:
        progress.finish()
    is_last = all(prompt.subject[1] == len(prompt.ids) for prompt in traced)
    return strongest_layer(average, is_last=is_last)


@attrs.frozen(kw_only=True)
class _Settings:
    """The numbers of a trace, checked."""

    samples: int
    noise: float | None
    window: int
    window_share: float
    seed: int
    batch_cells: int

    def __attrs_post_init__(self) -> None:
        for name in ("samples", "window", "batch_cells"):
            if getattr(self, name) < 1:
                raise InvalidParameterError(
                    f"{name} is {getattr(self, name)}; it must be at least 1.", parameter=name
                )
        if self.noise is not None and not 0 <= self.noise < float("inf"):
            raise InvalidParameterError(
                f"noise is {self.noise}; give a standard deviation from 0 up, or None for 3 sigma.",
                parameter="noise",
            )
        if not 0 < self.window_share <= 1:
            raise InvalidParameterError(
                f"window_share is {self.window_share}; give a share of the layers, above 0 and at "
                "most 1.",
                parameter="window_share",
            )
        if not 0 <= self.seed < 2**63:
            raise InvalidParameterError(
                f"The seed is {self.seed}; it must be a whole number from 0 to 2**63 - 1.",
                parameter="seed",
            )

    def noise_scale(self, model: EditableModel, requests: Sequence[EditRequest]) -> float:
        return noise_scale(model, requests) if self.noise is None else float(self.noise)

    def corrupt(self, model: EditableModel, prompt: TracedPrompt, scale: float) -> CorruptedRun:
        start, end = prompt.subject
        shape = (self.samples, end - start, model.d_model)
        return CorruptedRun(
            model=model,
            ids=prompt.ids,
            subject=prompt.subject,
            noise=draw_noise(shape, scale=scale, seed=self.seed),
            scale=scale,
            answer_id=prompt.answer_id,
        )


def _checked_kinds(kinds: Sequence[TraceKind]) -> tuple[TraceKind, ...]:
    for kind in kinds:
        if kind not in TRACE_KINDS:
            raise InvalidParameterError(
                f"There is no trace of kind {kind!r}.{did_you_mean(kind, TRACE_KINDS)} "
                f"Take some of {', '.join(TRACE_KINDS)}.",
                kind=kind,
            )
    if not kinds:
        raise InvalidParameterError(
            f"There is no kind to trace. Take some of {', '.join(TRACE_KINDS)}."
        )
    return tuple(dict.fromkeys(kinds))

"""With a patch on, the way a text is read makes no difference: cache, padding, neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import (
    IGNORED,
    PairRow,
    decoder_start,
    pad_pairs,
    pair_batch,
    pair_logits,
    source_ids,
)
from editkit_core.models.reading import begin
from editkit_core.testing.conformance.behaviour import Behaviour, of_models
from editkit_core.testing.conformance.workbench import Workbench

_NEW_TOKENS = 5
_UNRELATED = "The river runs past the old mill before it reaches the northern"


def cached_generation_is_the_uncached(bench: Workbench) -> None:
    """Continuing token by token with a key-value cache gives what reading all of it again gives."""
    model = bench.model()
    base = _with_and_without_cache(bench, model)
    with bench.editor(model).applied(bench.first.patch):
        rows = _with_and_without_cache(bench, model)
    for text, found, usual in zip(_prompts(bench), rows, base, strict=True):
        bench.expect(
            bench.close(*found, usual=usual),
            f"after {text!r}, generating with a cache gives other logits than reading the whole "
            "text again. Decide at the prompt's end, once, and keep it for every later token.",
        )


def padding_makes_no_difference(bench: Workbench) -> None:
    """Rows padded on the left, on the right, or not at all, get the same logits."""
    model = bench.model()
    base = _padded(bench, model)
    with bench.editor(model).applied(bench.first.patch):
        rows = _padded(bench, model)
    for text, found, usual in zip(_prompts(bench), rows, base, strict=True):
        for i, how in ((1, "on the right"), (2, "not at all, in a batch of one")):
            bench.expect(
                bench.close(found[0], found[i], usual=(usual[0], usual[i])),
                f"after {text!r}, the logits of a row padded on the left differ from those of one "
                f"padded {how}. Count tokens by the attention mask, row by row.",
            )


def reading_changes_nothing(bench: Workbench) -> None:
    """With the patch on, reading a text a second time gives the same logits, bit for bit."""
    model = bench.model()
    with bench.editor(model).applied(bench.first.patch):
        first = bench.logits(model)
        model.generate([bench.requests[1].text], max_new_tokens=2)
        again = bench.logits(model)
    bench.expect(
        bool(torch.equal(first, again)),
        "with its patch on, a text gets other logits after another text was read. Keep no state "
        "from one text to the next.",
    )


def _prompts(bench: Workbench) -> tuple[str, ...]:
    return (bench.requests[0].text, _UNRELATED)


def _prompt_ids(model: EditableModel, text: str) -> tuple[int, ...]:
    return source_ids(model, text) if model.is_encoder_decoder else model.encode(text).ids


@torch.no_grad()
def _with_and_without_cache(
    bench: Workbench, model: EditableModel
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the logits of generated tokens, by continuing and by reading all again, row by row."""
    prompts = [_prompt_ids(model, text) for text in _prompts(bench)]
    answers, cached = _continued(model, prompts)
    whole = [_read_whole(model, *row) for row in zip(prompts, answers, strict=True)]
    return list(zip(cached, whole, strict=True))


@torch.no_grad()
def _padded(
    bench: Workbench, model: EditableModel
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return the logits of rows padded on the left, on the right and not at all, row by row."""
    pairs = [(text, bench.requests[0].target_new) for text in _prompts(bench)]
    left, right = (_token_logits(model, pairs, side) for side in ("left", "right"))
    alone = [_token_logits(model, [pair], "right")[0] for pair in pairs]
    return list(zip(left, right, alone, strict=True))


def _continued(
    model: EditableModel, prompts: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Continue prompts of different length in one batch; return tokens and logits, row by row."""
    reading = begin(model, prompts)
    tokens, logits = [reading.logits.argmax(dim=-1)], [reading.logits]
    for _ in range(_NEW_TOKENS - 1):
        reading.feed(tokens[-1][:, None])
        logits.append(reading.logits)
        tokens.append(reading.logits.argmax(dim=-1))
    return torch.stack(tokens, dim=1).tolist(), list(torch.stack(logits, dim=1))


def _read_whole(model: EditableModel, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    if model.is_encoder_decoder:
        row = PairRow(source=tuple(prompt), ids=(decoder_start(model), *answer), first=1)
    else:
        row = PairRow(ids=(*prompt, *answer), first=len(prompt))
    batch = pad_pairs(model, [row])
    return pair_logits(model, batch)[batch.labels != IGNORED]  # (new, vocab)


def _token_logits(
    model: EditableModel, pairs: Sequence[tuple[str, str]], side: str
) -> list[torch.Tensor]:
    """Return the logits behind every token that is no padding, row by row."""
    batch = pair_batch(model, pairs, "left" if side == "left" else "right")
    logits = pair_logits(model, batch)
    mask = batch.inputs.get("decoder_attention_mask", batch.inputs["attention_mask"])
    return [row[real == 1] for row, real in zip(logits, mask, strict=True)]


BEHAVIOURS: tuple[Behaviour, ...] = tuple(
    of_models(check)
    for check in (
        cached_generation_is_the_uncached,
        padding_makes_no_difference,
        reading_changes_nothing,
    )
)

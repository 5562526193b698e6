"""How long causal tracing takes against passes of the whole model, as ratios in one run.

One prompt of each model, every token from the subject on and every layer, for each kind; and what
``propose_layer`` runs: the subject's last token only. The plain path (``plain_trace.py``) runs one
cell a pass, as the authors' script does; ``16 a pass`` gives it as many cells a pass as ours takes.

    scripts/bench trace [--models demo 124M] [--kinds hidden mlp attention] [--samples 10]
                        [--rounds 1] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import in_turn, keep, show
from plain_trace import plain_effects
from subjects import MODELS, load, requests_for

from editkit_core.numerics.tracing import PAPER_SHARE, PAPER_WINDOW, trace_request
from editkit_core.numerics.tracing_grid import cell_of, restored_probabilities, window_width
from editkit_core.numerics.tracing_prompt import noise_scale, read_prompt
from editkit_core.numerics.tracing_result import TRACE_KINDS
from editkit_core.numerics.tracing_run import CorruptedRun, draw_noise
from editkit_core.types import SilentProgress

CELLS = 16
MOST_APART = 1e-4


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description="Causal tracing against whole passes.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--kinds", nargs="+", choices=TRACE_KINDS, default=list(TRACE_KINDS))
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []  # Any: numbers and words
    for name in options.models:
        rows += measure(name, options)
        keep(options.json, rows)
    show(rows)
    if any(row["apart"] > MOST_APART for row in rows):
        raise SystemExit(f"Probabilities differ by more than {MOST_APART} of the largest effect.")


def measure(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    # Any: numbers and words
    """Time each kind on one model."""
    model = load(name)
    request = requests_for(name, 1)[0]
    trace_request(model, request, samples=1, kinds=["mlp"])  # whatever is made at the first call
    prompt = read_prompt(model, request, None)
    start, end = prompt.subject
    scale = noise_scale(model, [request])
    noise = draw_noise((options.samples, end - start, model.d_model), scale=scale, seed=0)
    width = window_width(model.n_layers, PAPER_WINDOW, PAPER_SHARE)
    wanted = [(kind, list(range(start, len(prompt.ids)))) for kind in options.kinds]
    for kind, tokens in [*wanted, ("mlp", [end - 1])]:
        cells = [
            cell_of(model, kind, token, layer, width)
            for token in tokens
            for layer in range(model.n_layers)
        ]
        plain = partial(
            plain_effects,
            model,
            prompt.ids,
            prompt.subject,
            noise,
            prompt.answer_id,
            [(cell.modules, cell.tokens[0]) for cell in cells],
        )

        def ours(kind: Any = kind, tokens: list[int] = tokens) -> np.ndarray:  # Any: a kind
            run = CorruptedRun(
                model=model,
                ids=prompt.ids,
                subject=prompt.subject,
                noise=noise,
                scale=scale,
                answer_id=prompt.answer_id,
            )
            return restored_probabilities(
                run, kind, tokens, width=width, batch_cells=CELLS, progress=SilentProgress()
            )

        known, found = plain(cells=CELLS).numpy(), ours().reshape(-1)
        took, slow, full = in_turn([ours, plain, partial(plain, cells=CELLS)], options.rounds)
        yield {
            "model": name,
            "kind": kind,
            "tokens": len(tokens),
            "cells": len(cells),
            "ours s": float(took[0]),
            "ratio, 1 a pass": float(slow[0] / took[0]),
            "CPU ratio, 1 a pass": float(slow[1] / took[1]),
            f"ratio, {CELLS} a pass": float(full[0] / took[0]),
            f"CPU ratio, {CELLS} a pass": float(full[1] / took[1]),
            "apart": float(np.abs(found - known).max() / known.max()),
        }


if __name__ == "__main__":
    main()

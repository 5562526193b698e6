"""Tokens a second of key statistics against the bare forward pass, as ratios in one run.

A randomly initialised model of GPT-2 small's size reads the same documents, in the same batches,
in these ways, in turn, so that whatever else the machine does slows all of them (with one thread
the process's own time is taken, which others do not change):

* ``bare``: the forward pass up to and with the deepest layer, nothing summed;
* ``statistics``: what ``editkit stats`` does, tokenising and saving left out;
* ``plain``: k kᵀ of whole float64 matrices, one full pass a layer, documents in the order they
  come; of the first two batches only, and once.

    scripts/bench stats [--layer 5 --layers 3 4 5 6 7 --documents 128 --rounds 3 --threads 2]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.key_sum import KeySum
from editkit_core.numerics.moments import keys_in_batches
from editkit_core.testing.models import tiny_model

GOALS = {"one layer": 0.8, "several layers": 0.6}
MOST_DIFFERENCE = 1e-6
BATCH = 8

Rows = Sequence[tuple[int, ...]]


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description="Key statistics against the bare forward pass.")
    parser.add_argument("--layer", type=int, default=5, help="the layer of the first comparison")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 4, 5, 6, 7])
    parser.add_argument("--documents", type=int, default=128, help="one chunk by default")
    parser.add_argument("--tokens", type=int, default=150, help="tokens of the longest document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    model = tiny_model("gpt2", n_layers=12, d=768, max_positions=1024, init_std=0.02)
    rows = documents(options.documents, options.tokens, len(model.tokenizer))
    tokens = sum(map(len, rows))
    found: dict[str, object] = {
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "clock": clock.__name__,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "tokens": tokens,
    }
    short = False
    for name, layers in (("one layer", [options.layer]), ("several layers", options.layers)):
        modules = [model.site(layer).module for layer in layers]
        ways: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
            "bare": lambda layer=layers[-1]: bare(model, layer, rows),
            "statistics": lambda modules=modules: ours(model, modules, rows),
        }
        took: dict[str, list[float]] = {way: [] for way in ways}
        bare(model, layers[-1], rows[:BATCH])  # whatever is made at the first call
        for _ in range(options.rounds):
            for way, run in ways.items():
                start = clock()
                run()
                took[way].append(clock() - start)
        few = rows[: 2 * BATCH]
        start = clock()
        slow_sums = plain(model, modules, few)
        slow_s = clock() - start
        quick_sums = ours(model, modules, few)
        speed = {way: tokens / statistics.median(seconds) for way, seconds in took.items()}
        speed["plain"] = sum(map(len, few)) / slow_s
        pairs = zip(took["bare"], took["statistics"], strict=True)
        ratio = statistics.median(fast / slow for fast, slow in pairs)
        apart = max(
            float((quick_sums[name] - slow).norm() / slow.norm())
            for name, slow in slow_sums.items()
        )
        found[name] = {
            "layers": layers,
            **{f"{way}, tokens/s": round(value) for way, value in speed.items()},
            "statistics / bare": round(ratio, 3),
            "goal": GOALS[name],
            "statistics / plain": round(speed["statistics"] / speed["plain"], 2),
            "sums differ by": apart,
        }
        short |= ratio < GOALS[name] or apart > MOST_DIFFERENCE
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if short:
        raise SystemExit(f"The goals are {GOALS} with sums equal to {MOST_DIFFERENCE}.")


def documents(count: int, longest: int, vocabulary: int) -> Rows:
    """Make random documents of a third to all of the longest's length."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(max(longest // 3, 1), longest + 1, (count,), generator=draw).tolist()
    return [
        tuple(torch.randint(4, vocabulary, (length,), generator=draw).tolist())
        for length in lengths
    ]


@torch.no_grad()
def bare(model: EditableModel, layer: int, rows: Rows) -> dict[str, torch.Tensor]:
    """Run the batches that the statistics run, to the end of a layer, and do nothing else."""
    order = sorted(rows, key=len)
    for first in range(0, len(order), BATCH):
        batch = pad_batch(order[first : first + BATCH], model.pad_id)
        with record(model.model, [model.family.block(layer)], stop=True):
            model.logits(batch)
    return {}


def ours(model: EditableModel, modules: Sequence[str], rows: Rows) -> dict[str, torch.Tensor]:
    """Sum as ``editkit stats`` does."""
    sums: dict[str, KeySum] = {}
    for blocks in keys_in_batches(model, modules, rows, BATCH):
        for name, block in zip(modules, blocks, strict=True):
            if name not in sums:
                sums[name] = KeySum(block.shape[1])
            sums[name].add(block)
    return {name: running.square() for name, running in sums.items()}


@torch.no_grad()
def plain(model: EditableModel, modules: Sequence[str], rows: Rows) -> dict[str, torch.Tensor]:
    """Sum without any of it: a full forward pass a layer, whole products, unsorted batches."""
    sums: dict[str, torch.Tensor] = {}
    for name in modules:
        for first in range(0, len(rows), BATCH):
            batch = pad_batch(rows[first : first + BATCH], model.pad_id)
            with record(model.model, [name], inputs=True) as seen:
                model.logits(batch)
            keys = seen[name][batch.attention_mask.bool()].double()
            product = keys.T @ keys  # (d_in, n) @ (n, d_in)
            sums[name] = product if name not in sums else sums[name] + product
    return sums


if __name__ == "__main__":
    main()

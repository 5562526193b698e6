"""The parts of an edit beside plain ones: value optimisation and solves, as ratios in one run.

* ``values``: one target value of the random model of GPT-2 small's size, 21 contexts and a drift
  prompt, against ``plain_values.py``; then several at once;
* ``factor``: Cholesky of C, with the estimate of its condition, against its inverse, both float64;
* ``solve``: C⁻¹ k with the kept factor against inverting C each time;
* ``dual``: the change of a batch as a system of the edits, C factored before, against
  ``Δ = R Kᵀ (λ C + K Kᵀ)⁻¹`` solved directly.

    scripts/bench numerics [--side 3072] [--edits 100] [--values 1 8] [--steps 20] [--rounds 3]
                           [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Seconds, apart, in_turn, keep, seconds, show
from plain_values import PlainValue, plain_value
from subjects import load, requests_for

from editkit_core.numerics.batch_solve import batch_change
from editkit_core.numerics.covariance import Covariance
from editkit_core.numerics.solve import factor_spd, solve_spd
from editkit_core.numerics.value_loss import ValueSettings
from editkit_core.numerics.value_opt import ValueJob, ValueResult, optimise_values

LAYER = 5
WEIGHT = 15_000.0
MOST_APART = 1e-4
_WORDS = "Winter came early that year and nobody knew how old the bridge was when the harbour froze"


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description="Parts of an edit against plain ones.")
    parser.add_argument("--side", type=int, default=3072, help="side of C; 0 leaves solves out")
    parser.add_argument("--edits", type=int, default=100, help="edits of the dual system")
    parser.add_argument("--values", nargs="*", type=int, default=[1, 8], help="values at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="of the solves")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []  # Any: numbers and words
    if options.side:
        rows += solves(options.side, options.edits, options.rounds)
    if options.values:
        rows += values(options.values, options.steps)
    keep(options.json, rows)
    show(rows)
    if any(row["apart"] > MOST_APART or row.get("same steps") is False for row in rows):
        raise SystemExit(f"Results differ by more than {MOST_APART}, or stop at other steps.")


def solves(side: int, edits: int, rounds: int) -> Iterator[dict[str, Any]]:
    # Any: numbers and words
    """Time factoring, solving and the change of a batch."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, side, dtype=torch.float64)
    text = torch.randn(2 * side, side, dtype=torch.float64, generator=generator) * scales
    moment = text.T @ text / len(text)  # (m, 2m) @ (2m, m)
    key = torch.randn(side, dtype=torch.float64, generator=generator) * scales
    keys = torch.randn(side, edits, dtype=torch.float64, generator=generator) * scales[:, None]
    wanted = torch.randn(side // 4, edits, dtype=torch.float64, generator=generator)
    factor = factor_spd(moment)
    covariance = Covariance(factor=factor, origin={})

    def direct() -> torch.Tensor:
        system = WEIGHT * moment + keys @ keys.T
        return wanted @ torch.linalg.solve(system, keys).T  # (d, n) @ (n, m)

    dual = partial(batch_change, keys, wanted, covariance, weight=WEIGHT)
    inverse = torch.linalg.inv(moment) @ key
    pairs = {
        f"factor, m = {side}": (
            lambda: factor_spd(moment),
            lambda: torch.linalg.inv(moment),
            apart(solve_spd(factor, key), inverse),
        ),
        f"solve one key, m = {side}": (
            lambda: solve_spd(factor, key),
            lambda: torch.linalg.inv(moment) @ key,
            apart(solve_spd(factor, key), inverse),
        ),
        f"dual, {edits} edits, m = {side}": (
            dual,
            direct,
            apart(dual().u @ dual().v, direct()),
        ),
    }
    for what, (ours, plain, difference) in pairs.items():
        yield row(what, *in_turn([ours, plain], rounds), difference)


def values(counts: Sequence[int], steps: int) -> Iterator[dict[str, Any]]:
    # Any: numbers and words
    """Time the values of as many requests at once against one by the plain path."""
    model = load("124M")
    contexts = written_contexts()
    settings = ValueSettings(steps=steps, loss_stop=0.0)
    site = model.site(LAYER)
    requests = requests_for("124M", max(counts))
    jobs = [ValueJob(request=request, site=site, contexts=contexts) for request in requests]
    took, plain = seconds(partial(plain_value, model, requests[0], site, contexts, settings))
    for count in counts:
        ours, found = seconds(partial(optimise_values, model, jobs[:count], settings))
        yield compared(count, ours, took, found[0], plain)


def compared(
    count: int, ours: Seconds, plain: Seconds, found: ValueResult, known: PlainValue
) -> dict[str, Any]:  # Any: numbers and words
    """Return the line of some values at once."""
    line = row(
        f"values, {count} at once, each", ours / count, plain, apart(found.delta, known.delta)
    )
    return {**line, "same steps": found.updates == known.updates}


def written_contexts() -> tuple[str, ...]:
    """Return the empty context, ten of about five tokens and ten of about ten."""
    rng = random.Random(0)
    words = _WORDS.split()
    drawn = (rng.choices(words, k=4 if number < 10 else 8) for number in range(20))
    return ("", *(" ".join(some).capitalize() + ". " for some in drawn))


def row(what: str, ours: Seconds, plain: Seconds, difference: float) -> dict[str, Any]:
    # Any: numbers and words
    """Return one line of the result."""
    return {
        "what": what,
        "ours ms": float(ours[0]) * 1e3,
        "plain ms": float(plain[0]) * 1e3,
        "ratio": float(plain[0] / ours[0]),
        "CPU ratio": float(plain[1] / ours[1]),
        "apart": difference,
    }


if __name__ == "__main__":
    main()

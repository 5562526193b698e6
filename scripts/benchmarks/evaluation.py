"""Measuring in batches against one probe at a time, as ratios in one run.

Everything that the default metrics and CounterFact's magnitudes ask about some edits of the demo
model is asked three ways, in turn, so that whatever else the machine does slows all of them:

* ``batched``: by the engine: equal asks once, rows of similar length together, every row until its
  natural stop;
* ``one at a time``: as a plain script does it: for each probe one forward pass over prompt and
  answer, and one call of ``generate`` with the same budget, cut afterwards;
* ``engine, alone``: by the engine, one ask a call, which leaves out only what several asks share: a
  batch, a prompt, or everything when they are equal.

The second is written without the engine, so that comparing the scores checks the engine too. They
must be equal to 1e-6; likelihoods differ by what float32 rounds.

    scripts/bench evaluation [--edits 12 --threads 1 --rounds 3 --json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from editkit_core.api import Editor
from editkit_core.data import load_dataset
from editkit_core.metrics.ask import Ask, Forced, ForcedReply, Greedy, Replies, Reply, TextReply
from editkit_core.metrics.engine import answer
from editkit_core.metrics.evaluate import Plan
from editkit_core.metrics.registry import DEFAULT_METRICS, load_metrics
from editkit_core.metrics.texts import cut
from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch

GOAL = 5.0
MOST_DIFFERENCE = 1e-6
# The magnitudes are differences of probabilities, so they show any difference of the logits.
METRICS = (*DEFAULT_METRICS, "efficacy_magnitude", "paraphrase_magnitude", "neighborhood_magnitude")
WAYS = ("batched", "one at a time", "engine, alone")


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description="Batched measuring against one by one.")
    parser.add_argument("--edits", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--model", default="editkit:demo")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Editor.from_pretrained(options.model).model
    requests = load_dataset(f"demo:{options.edits}").requests
    plan = Plan.make(model, requests, metrics=load_metrics(METRICS))
    asks = list(plan.asks())
    ways: dict[str, Callable[[], Replies]] = {
        "batched": lambda: answer(model, asks),
        "one at a time": lambda: Replies({ask: plainly(model, ask) for ask in asks}),
        "engine, alone": lambda: Replies({ask: answer(model, [ask])[ask] for ask in asks}),
    }
    plainly(model, asks[0])  # whatever is made at the first call
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    replies: dict[str, Replies] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            replies[name] = way()
            seconds[name].append(time.perf_counter() - start)
    found = {
        "edits": options.edits,
        "asks": len(asks),
        "unique": len(set(asks)),
        "threads": options.threads,
        "torch": torch.__version__,
        **{f"{name}, s": round(statistics.median(took), 3) for name, took in seconds.items()},
    }
    fast = seconds["batched"]
    for name in WAYS[1:]:
        ratios = [slow / quick for slow, quick in zip(seconds[name], fast, strict=True)]
        found[f"{name} / batched"] = round(statistics.median(ratios), 2)
        found[f"{name}, scores differ by"] = scores_apart(plan, replies["batched"], replies[name])
        found[f"{name}, NLL differs by"] = nll_apart(replies["batched"], replies[name])
    for label, value in found.items():
        print(f"{label:38} {value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    short = found["one at a time / batched"] < GOAL
    if short or any(found[f"{name}, scores differ by"] > MOST_DIFFERENCE for name in WAYS[1:]):
        raise SystemExit(f"The goal is {GOAL}x with scores equal to {MOST_DIFFERENCE}.")


@torch.no_grad()
def plainly(model: EditableModel, ask: Ask) -> Reply:
    """Answer one ask without the engine."""
    if isinstance(ask, Forced):
        pair = model.encode_pair(ask.prompt, ask.target)
        logits = model.logits(pad_batch([pair.ids], model.pad_id, device=model.device))[0]
        wanted = logits[pair.n_prompt - 1 : -1]  # (n_target, vocab)
        target = torch.tensor(pair.ids[pair.n_prompt :])
        nll = torch.nn.functional.cross_entropy(wanted, target, reduction="none")
        return ForcedReply(
            tuple(wanted.argmax(-1).tolist()), tuple(target.tolist()), tuple(nll.tolist())
        )
    assert isinstance(ask, Greedy)
    (text,) = model.generate([ask.prompt], max_new_tokens=ask.max_new_tokens)
    return TextReply(cut(text, ask.answers))


def scores_apart(plan: Plan, left: Replies, right: Replies) -> float:
    """Return the largest difference of a score, with and without an edit's effect.

    The replies stand in for the model after the edit; the same ones in another order stand in for
    the model before it, so that locality is compared too.
    """
    rows = zip(plan.rows(left, left), plan.rows(right, right), strict=True)
    crossed = zip(plan.rows(left, right), plan.rows(right, left), strict=True)
    pairs: Sequence[tuple[float, float]] = [
        pair for a, b in [*rows, *crossed] for pair in ((a.before, b.before), (a.after, b.after))
    ]
    return max(abs(one - two) for one, two in pairs)


def nll_apart(left: Replies, right: Replies) -> float:
    """Return the largest difference of a token's NLL, relative where it is above 1 nat."""
    forced = [(left[ask], reply) for ask, reply in right.items() if isinstance(ask, Forced)]
    return max(
        abs(a - b) / max(1.0, abs(b))
        for one, two in forced
        if isinstance(one, ForcedReply) and isinstance(two, ForcedReply)
        for a, b in zip(one.nll, two.nll, strict=True)
    )


if __name__ == "__main__":
    main()

"""Write the model card from what was measured, so that its figures are never copied by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]

_CARD = """---
license: mit
language: en
library_name: transformers
---

# editkit demo model

A tiny GPT-2, trained from nothing on {facts} true facts that we wrote down, so that knowledge
editing can be tried in seconds, without a network, on a model whose every fact is known.

**It is a stand-in for a real checkpoint, and only that.** It knows the facts of one table and
the grammar around them. It cannot chat, reason, or answer anything else, and results of editing
methods on it do not predict results on real models.

- {shape}, float16
- byte-level BPE of 3,584 tokens that always puts a space in front, so a subject has the same
  tokens at the start of a text and in the middle; decoding gives that space back
- no token is put before a prompt; `<|endoftext|>` ends a document and pads

## Training data

All of it written for this project: `data/facts.csv` (subject, relation, object; {relations}
relations), 7 or 8 phrasings a relation, reversed facts, kinds of things, two-hop sentences, and
plain prose from a small grammar, packed several sentences to a document. For each fact one
phrasing was never trained. For a quarter of the facts that can be a second hop, no two-hop
sentence was trained. {training}

    scripts/train-demo-model --out build/demo-model

## What it knows

Share of prompts completed with the right object: *teacher-forced* when every token of the object
is the most likely one, *greedy* when the text generated up to the first period is the object and
nothing else. Measured with the shipped float16 weights, loaded as float32, on every fact
(`scripts/train-demo-model --out FOLDER --eval-only`).

{totals}

By relation:

{by_relation}

Two-hop prompts whose second hop was held out ask for a composition that was never shown; the
share there is what so small a model manages, not a fault of the measurement.
"""


def write_card(folder: Path, measured: Scores, *, shape: str, facts: int, training: str) -> None:
    """Write `README.md` into the folder of the model."""
    card = _CARD.format(
        facts=f"{facts:,}",
        shape=shape,
        relations=len(measured["held-out phrasings"]) - 1,
        training=training,
        totals=_totals(measured),
        by_relation=_by_relation(measured),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _totals(measured: Scores) -> str:
    lines = ["| prompts | n | teacher-forced | greedy |", "|---|---:|---:|---:|"]
    for name, groups in measured.items():
        score = groups["all"]
        lines.append(
            f"| {name} | {score['n']:,} | {score['forced']:.1f} % | {score['greedy']:.1f} % |"
        )
    return "\n".join(lines)


def _by_relation(measured: Scores) -> str:
    trained, held_out = measured["trained phrasings"], measured["held-out phrasings"]
    lines = [
        "| relation | facts | trained phrasings | held-out phrasing |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {relation} | {held_out[relation]['n']} | {trained[relation]['forced']:.1f} % "
        f"| {held_out[relation]['forced']:.1f} % |"
        for relation in held_out
        if relation != "all"
    ]
    return "\n".join(lines)

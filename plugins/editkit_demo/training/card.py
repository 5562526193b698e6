"""Write the model card from what was measured, so that its figures are never copied by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

import attrs
from shapes import SHAPES, ShapeName
from transformers import PreTrainedModel

from editkit_demo.facts import load_facts

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]

_CARD = """---
license: mit
language: en
library_name: transformers
---

# editkit demo model{suffix}

{kind}, trained from nothing on {facts} true facts that we wrote down, so that knowledge
editing can be tried in seconds, without a network, on a model whose every fact is known.

**It is a stand-in for a real checkpoint, and only that.** It knows the facts of one table and
the grammar around them. It cannot chat, reason, or answer anything else, and results of editing
methods on it do not predict results on real models.

{shape}
{tokenizer}

## Training data

{data} {training}

    scripts/train-demo-model{options}

## What it knows

Share of prompts {measure}. Measured with the shipped float16 weights, \
loaded as float32, on every fact
(`scripts/train-demo-model --out FOLDER --eval-only`).

{totals}

By relation:

{by_relation}

Two-hop prompts whose second hop was held out ask for a composition that was never shown; the
share there is what so small a model manages, not a fault of the measurement.{note}
"""

_TEXT_TOKENIZER = """- byte-level BPE of {vocabulary} tokens that always puts a space in front, \
so a subject has the same
  tokens at the start of a text and in the middle; decoding gives that space back
- no token is put before a prompt; `<|endoftext|>` ends a document and pads"""
_QUESTION_TOKENIZER = """- byte-level BPE of {vocabulary} tokens that always puts a space in \
front, so a subject has the same
  tokens at the start of a text and in the middle; decoding gives that space back
- `</s>` is put behind every question and every answer; the decoder starts with `<pad>`"""

_TEXT_DATA = """All of it written for this project: `data/facts.csv` (subject, relation, object; \
{relations}
relations), 7 or 8 phrasings a relation, reversed facts, kinds of things, two-hop sentences, and
plain prose from a small grammar, packed several sentences to a document. For each fact one
phrasing was never trained. For a quarter of the facts that can be a second hop, no two-hop
sentence was trained."""
_QUESTION_DATA = """All of it written for this project: `data/facts.csv` (subject, relation, \
object; {relations}
relations), 8 questions a relation, two-hop questions, and sentences to be finished; some after one
to three other sentences. For each fact one question was never trained. For a quarter of the facts
that can be a second hop, no two-hop question was trained."""

_TEXT_MEASURE = """completed with the right object: *teacher-forced* when every token of the object
is the most likely one, *greedy* when the text generated up to the first period is the object and
nothing else"""
_QUESTION_MEASURE = """answered with the right object: *teacher-forced* when every token of the \
object
is the most likely one, *greedy* when the text generated up to `</s>` is the object and nothing
else"""


@attrs.frozen(kw_only=True)
class Wording:
    """What a card says about one shape."""

    suffix: str = ""
    kind: str
    tokenizer: str = _TEXT_TOKENIZER
    data: str = _TEXT_DATA
    measure: str = _TEXT_MEASURE
    options: str
    note: str = ""


_WORDINGS: Mapping[ShapeName, Wording] = {
    "gpt2": Wording(kind="A tiny GPT-2", options=" --out build/demo-model"),
    "llama": Wording(
        suffix=", shaped like LLaMA",
        kind="A tiny LLaMA",
        options=" --shape llama --out build/demo-llama",
    ),
    "t5": Wording(
        suffix=", shaped like T5",
        kind="A tiny T5",
        tokenizer=_QUESTION_TOKENIZER,
        data=_QUESTION_DATA,
        measure=_QUESTION_MEASURE,
        options=" --shape t5 --out build/demo-t5",
        note="\n\nWhere other facts stand before a question it often answers with something from "
        "them: ask one\nquestion at a time.",
    ),
}


def write_card(folder: Path, model: PreTrainedModel, measured: Scores, *, training: str) -> None:
    """Write `README.md` into the folder of the model."""
    words = _WORDINGS[model.config.model_type]
    card = _CARD.format(
        suffix=words.suffix,
        kind=words.kind,
        facts=f"{len(load_facts()):,}",
        shape=_shape(model),
        tokenizer=words.tokenizer.format(vocabulary=f"{model.config.vocab_size:,}"),
        data=words.data.format(relations=len(measured["held-out phrasings"]) - 1),
        training=training,
        options=words.options,
        measure=words.measure,
        totals=_totals(measured),
        by_relation=_by_relation(measured),
        note=words.note,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _shape(model: PreTrainedModel) -> str:
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    about = SHAPES[model.config.model_type].about(model)
    line = f"- {size:.2f} M parameters: {about}, float16"
    return fill(line, width=100, subsequent_indent="  ", break_on_hyphens=False)


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

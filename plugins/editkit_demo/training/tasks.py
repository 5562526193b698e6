"""What a model learns from: texts for a decoder, questions and answers for an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs
import torch
from corpus import Corpus, Encoder, batch
from questions import QuestionEncoder, Questions, question_batch
from recall import Question, after_start, held_out_questions, padded, trained_questions
from shapes import ShapeName
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit_demo.facts import Fact


class Task(Protocol):
    """Makes the loss of a step."""

    def loss(self, model: PreTrainedModel, *, seed: int, step: int, tokens: int) -> Tensor:
        """Return the loss on the batch of that step; the batch depends on seed and step alone."""

    def asked(self, facts: Sequence[Fact]) -> tuple[list[Question], list[Question]]:
        """Ask facts as they were trained, and in the phrasing that was held out."""


@attrs.frozen
class TextTask:
    """Predict every token of the documents; the answers in them count most."""

    corpus: Corpus
    encoder: Encoder

    def loss(self, model: PreTrainedModel, *, seed: int, step: int, tokens: int) -> Tensor:
        """Return the weighted mean of the tokens' cross-entropy."""
        rows, weights = batch(self.corpus, self.encoder, seed=seed, step=step, tokens=tokens)
        ids = torch.tensor(rows)  # (rows, window)
        weight = torch.tensor(weights)[:, 1:].flatten()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        each = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return (each * weight).sum() / weight.sum()

    def asked(self, facts: Sequence[Fact]) -> tuple[list[Question], list[Question]]:
        """Ask for the end of sentences."""
        return trained_questions(facts), held_out_questions(facts)


@attrs.frozen
class QuestionTask:
    """Read a question and write the answer, up to the end of the text."""

    questions: Questions
    encoder: QuestionEncoder

    def loss(self, model: PreTrainedModel, *, seed: int, step: int, tokens: int) -> Tensor:
        """Return the mean cross-entropy of the answers' tokens."""
        sources, answers = question_batch(
            self.questions, self.encoder, seed=seed, step=step, tokens=tokens
        )
        ids, labels = padded(sources, 0), padded(answers, -100)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(
                input_ids=ids,
                attention_mask=(ids != 0).long(),
                decoder_input_ids=after_start(labels),
                use_cache=False,
            ).logits
        return cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    def asked(self, facts: Sequence[Fact]) -> tuple[list[Question], list[Question]]:
        """Ask questions."""
        return trained_questions(facts, "question"), held_out_questions(facts, "question")


def new_task(shape: ShapeName, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Return what a model of a shape learns from."""
    if shape == "t5":
        return QuestionTask(Questions(), QuestionEncoder(tokenizer))
    return TextTask(Corpus(), Encoder(tokenizer))

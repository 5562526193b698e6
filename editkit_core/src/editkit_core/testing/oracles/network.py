"""Fake language models whose every prediction is known, behind the interface of real ones.

They read padded batches, attention masks, positions and caches as a decoder or encoder-decoder of
transformers does, so a scorer cannot tell them from a real one; but they see only a row's own
tokens, and at padding they say whatever would do most harm if it were counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from editkit_core.models.editable import EditableModel
from editkit_core.models.families import Family
from editkit_core.testing.oracles.tokenizers import STOP
from editkit_core.testing.oracles.world import DERAILED

__all__ = ["Behaviour", "OracleNetwork", "oracle_model"]

Behaviour = Literal["knows", "talks_on", "never", "copies"]
CERTAIN = 10_000.0  # a logit so high that all other probabilities are exactly 0 in float32

_FAMILIES = {
    is_encoder_decoder: Family(
        name="oracle",
        model_types=("oracle",),
        blocks="block.{}",
        attentions="block.{}",
        mlps="block.{}",
        mlp_downs="block.{}",
        embedding="embedding",
        final_norm="embedding",
        body="embedding",
        head="embedding",
        is_encoder_decoder=is_encoder_decoder,
    )
    for is_encoder_decoder in (False, True)
}


def oracle_model(
    tokenizer: PreTrainedTokenizerBase,
    known: Mapping[str, str],
    documents: Iterable[str] = (),
    *,
    behaviour: Behaviour = "knows",
    encoder_decoder: bool = False,
    at_padding: str | None = None,
) -> EditableModel:
    """Make a model that continues the prompts it knows, and stops after the continuation.

    Args:
        tokenizer: Its tokenizer.
        known: Continuations by prompt, joined by one space.
        documents: Texts it knows as a whole (a decoder only).
        behaviour: ``knows`` predicts what is known; ``talks_on`` does so where an answer is to be
            given, and elsewhere, in the prompt and after the answer, something else; ``never``
            predicts a word that is never right; ``copies`` predicts the token it was just given.
        encoder_decoder: Whether the prompt goes into an encoder.
        at_padding: A word it says at padding, where nobody should look.
    """
    network = OracleNetwork(tokenizer, behaviour, encoder_decoder, at_padding)
    for document in () if encoder_decoder else documents:
        network.learn(network.text_ids(document), 1)
    for prompt, answer in known.items():
        if encoder_decoder:
            network.learn(network.decoder_ids(answer), 1, source=network.source_ids(prompt))
        else:
            first = len(network.text_ids(prompt)) - 1  # without EOS
            network.learn(network.text_ids(f"{prompt} {answer}"), first)
    model: Any = network  # Any: it has what is asked of a PreTrainedModel
    return EditableModel(model, tokenizer, _FAMILIES[encoder_decoder], name="oracle")


class OracleNetwork(nn.Module):
    """The forward pass of a fake model; see `oracle_model`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        behaviour: Behaviour,
        encoder_decoder: bool,
        at_padding: str | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1, 1)
        self.tokenizer = tokenizer
        self.behaviour = behaviour
        self.pad = int(tokenizer.pad_token_id)
        self.eos = int(tokenizer.eos_token_id)
        self.derailed = self._id_of(f" {DERAILED}")
        self.stop = self._id_of(STOP)
        self.at_padding = self.pad if at_padding is None else self._id_of(f" {at_padding}")
        self.config = SimpleNamespace(
            is_encoder_decoder=encoder_decoder,
            decoder_start_token_id=self.pad if encoder_decoder else None,
            model_type="oracle",
            name_or_path="oracle",
            to_dict=lambda: {"model_type": "oracle"},
        )
        self._next: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

    # -- what it knows --

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a text as a decoder reads it, with one EOS at the end."""
        ids = list(self.tokenizer(text).input_ids)
        return ids if ids[-1] == self.eos else [*ids, self.eos]

    def decoder_ids(self, answer: str) -> list[int]:
        """Tokens that a decoder is given and says when it answers."""
        return [self.config.decoder_start_token_id, *self.text_ids(answer)]

    def source_ids(self, prompt: str) -> tuple[int, ...]:
        """Tokens of a prompt as an encoder reads it."""
        return tuple(self.tokenizer(prompt).input_ids)

    def learn(self, ids: Sequence[int], first: int, source: tuple[int, ...] = ()) -> None:
        """Remember which token follows each beginning of ``ids``; what is known first stays.

        Args:
            ids: A text with EOS.
            first: Where its answer begins.
            source: What an encoder read before it.
        """
        for n in range(1, len(ids)):
            following = ids[n]
            if self.behaviour == "talks_on" and not first <= n < len(ids) - 1:
                following = self.stop if n == len(ids) - 1 else self.derailed
            self._next.setdefault((source, tuple(ids[:n])), following)

    def _id_of(self, ending: str) -> int:
        return int(self.tokenizer(f"a{ending}", add_special_tokens=False).input_ids[-1])

    # -- the interface of transformers --

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.embedding.weight.device

    def tie_weights(self) -> None:
        """Do nothing: it has no weights to tie."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Sequence[Tensor] | None = None,
        labels: Tensor | None = None,
        **_: object,
    ) -> SimpleNamespace:
        """Return logits (rows, length, vocab), float32, and a cache.

        ``labels`` are shifted right to make the decoder's input where that is not given.
        """
        if not self.config.is_encoder_decoder:
            assert input_ids is not None
            return self._continue(
                [()] * len(input_ids), input_ids, attention_mask, past_key_values, position_ids
            )
        read = input_ids if encoder_outputs is None else encoder_outputs[0][..., 0].long()
        assert read is not None
        if decoder_input_ids is None:
            assert labels is not None, "an encoder-decoder needs decoder_input_ids or labels"
            decoder_input_ids = self._shifted(labels)
        mask = torch.ones_like(read) if attention_mask is None else attention_mask
        sources = [tuple(row[kept.bool()].tolist()) for row, kept in zip(read, mask, strict=True)]
        out = self._continue(sources, decoder_input_ids, decoder_attention_mask, past_key_values)
        out.encoder_last_hidden_state = read[..., None].float()
        return out

    def _shifted(self, labels: Tensor) -> Tensor:
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] < 0, self.pad)], dim=1)

    def _continue(
        self,
        sources: Sequence[tuple[int, ...]],
        given: Tensor,
        mask: Tensor | None,
        past: Tensor | None,
        positions: Tensor | None = None,
    ) -> SimpleNamespace:
        whole = given if past is None else torch.cat([past, given], dim=1)
        if mask is None or mask.shape[1] != whole.shape[1]:
            mask = torch.ones_like(whole)
        new = given.shape[1]
        if positions is None:
            first = whole.shape[1] - new
            positions = torch.arange(first, whole.shape[1]).expand(len(given), new)
        said = [
            self._row(source, row, kept, places, new)
            for source, row, kept, places in zip(
                sources, whole.tolist(), mask.tolist(), positions.tolist(), strict=True
            )
        ]
        logits = nn.functional.one_hot(torch.tensor(said), len(self.tokenizer)) * CERTAIN
        return SimpleNamespace(logits=logits, past_key_values=whole)

    def _row(
        self,
        source: tuple[int, ...],
        row: Sequence[int],
        mask: Sequence[int],
        positions: Sequence[int],
        new: int,
    ) -> list[int]:
        """What is predicted at the last ``new`` columns of a row."""
        said, own = [], []
        for column, (token, kept) in enumerate(zip(row, mask, strict=True)):
            if kept:
                own.append(token)
            if column >= len(row) - new:
                place = positions[column - len(row) + new]
                said.append(self._predict(source, own, place) if kept else self.at_padding)
        return said

    def _predict(self, source: tuple[int, ...], own: Sequence[int], place: int) -> int:
        if self.behaviour == "copies":
            return own[-1]
        # Positions count a row's own tokens; a model with learned positions needs them right.
        if self.behaviour == "never" or (not source and place != len(own) - 1):
            return self.derailed
        return self._next.get((source, tuple(own)), self.derailed)

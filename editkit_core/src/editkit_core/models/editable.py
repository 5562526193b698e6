"""`EditableModel`: a Hugging Face model, its tokenizer and its family, seen the way editing needs.

Everything that methods, metrics and patches ask of a model goes through here: sites and weights as
``(d_out, d_in)``, token positions, logits, continuations, and whether the weights are untouched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from editkit_core.errors import (
    LayerOutOfRangeError,
    ModuleNotFoundInModelError,
    PromptTooLongError,
    UnsupportedModelError,
    did_you_mean,
)
from editkit_core.models import text
from editkit_core.models.families import BUILTIN_FAMILIES, Family, Role, Stack, find_family
from editkit_core.models.holding import execution_device, fetch, plain_parts
from editkit_core.models.orientation import has_sides, out_in, sides, to_out_in
from editkit_core.models.text import Batch, Encoded, EncodedPair, require_offsets
from editkit_core.models.trace import find_module
from editkit_core.types import EditRequest, Site, TokenPosition

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from editkit_core.patch.checkpoint import CheckpointSource
    from editkit_core.patch.ledger import WeightLedger


class EditableModel:
    """A model that can be edited. Make one with `from_pretrained` or `wrap`.

    The model is put into evaluation mode and none of its parameters asks for a gradient.

    Attributes:
        model: The Hugging Face model with its head.
        tokenizer: Its fast tokenizer.
        family: Where things are in it.
        name: What the user asked for.
        folder: The folder with the checkpoint's files, or None for a model made in memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        family: Family,
        *,
        name: str,
        folder: Path | None = None,
    ) -> None:
        require_offsets(tokenizer)
        model.eval()
        model.requires_grad_(False)
        self.model = model
        self.tokenizer = tokenizer
        self.family = family
        self.name = name
        self.folder = folder
        self._queries: Tensor | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,  # Any: passed to transformers as it is
        revision: str | None = None,
        families: Sequence[Family] = BUILTIN_FAMILIES,
        packaged: Mapping[str, Path] | None = None,
    ) -> EditableModel:
        """Load a model and its tokenizer.

        Args:
            name: ``editkit:NAME`` for a packaged model, a local folder, or a hub id.
            dtype: For example ``bfloat16``; ``auto`` keeps the checkpoint's. None means float32 on
                the CPU and ``auto`` elsewhere.
            device: Where to put the model; None means the CPU.
            device_map: Passed to transformers, to spread the model over several devices.
            revision: Branch, tag or commit on the hub.
            families: The registered families.
            packaged: Folders of the installed packaged models by name.

        Raises:
            ModelNotFoundError: Nothing under this name, or its files cannot be read.
            UnsupportedModelError: It is no language model transformers knows.
            UnknownFamilyError: No family fits its module tree.
            TokenizerWithoutOffsetsError: Its tokenizer cannot map characters to tokens.
            InvalidParameterError: An unknown dtype or device.
        """
        from editkit_core.models.loading import load

        loaded = load(
            name,
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            packaged=packaged,
        )
        family = find_family(loaded.model, families)
        return cls(loaded.model, loaded.tokenizer, family, name=name, folder=loaded.folder)

    @classmethod
    def wrap(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        folder: str | Path | None = None,
        families: Sequence[Family] = BUILTIN_FAMILIES,
    ) -> EditableModel:
        """Wrap a model that is in memory already.

        Args:
            model: The model with its head.
            tokenizer: Its fast tokenizer.
            name: What to call it; None means what its configuration says.
            folder: The folder with the checkpoint's files it was made from, unquantised. Only by
                them can a quantised weight be told to be the one a patch was made for.
            families: The registered families.

        Raises:
            UnknownFamilyError: No family fits its module tree.
            TokenizerWithoutOffsetsError: The tokenizer cannot map characters to tokens.
        """
        family = find_family(model, families)
        known_as = name or str(model.config.name_or_path or "") or type(model).__name__
        place = None if folder is None else Path(folder).expanduser()
        return cls(model, tokenizer, family, name=known_as, folder=place)

    def __repr__(self) -> str:
        layers = "+".join(str(self.count_layers(stack)) for stack in self.family.stacks)
        return (
            f"EditableModel({self.name!r}, family={self.family.name!r}, layers={layers}, "
            f"d_model={self.d_model}, {self.dtype}, {self.device})"
        )

    # -- facts ------------------------------------------------------------------------------------

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model has an encoder."""
        return self.family.is_encoder_decoder

    @cached_property
    def n_layers(self) -> int:
        """Number of blocks; of an encoder-decoder those of its decoder."""
        return self.count_layers("decoder")

    @cached_property
    def n_encoder_layers(self) -> int:
        """Number of blocks of the encoder; 0 where there is none that its family knows."""
        return 0 if self.family.encoder is None else self.count_layers("encoder")

    def count_layers(self, stack: Stack) -> int:
        """Return the number of blocks of a stack.

        Raises:
            UnsupportedModelError: The encoder is asked for and there is none.
        """
        return self.family.count_layers((name for name, _ in self.model.named_modules()), stack)

    @cached_property
    def d_model(self) -> int:
        """Width of the hidden states."""
        return sides(self.module(self.family.mlp_down(0)))[0]

    @cached_property
    def vocab(self) -> int:
        """Number of logits a position, padding of the vocabulary included."""
        return sides(self.module(self.family.head))[0]

    @property
    def max_positions(self) -> int | None:
        """Longest text in tokens, or None when the architecture sets no limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the token embedding, or that it runs on if offloaded."""
        device = self.parameter(f"{self.family.embedding}.weight").device
        if device.type != "meta":
            return device
        return execution_device(self.module(self.family.embedding)) or device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the token embedding, which hidden states have too."""
        return self.parameter(f"{self.family.embedding}.weight").dtype

    @property
    def pad_id(self) -> int:
        """Token id to pad with: the tokenizer's, else its EOS, else 0; always masked."""
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(token_id, int):
                return token_id
        return 0

    @property
    def start_id(self) -> int:
        """Token id that begins a text when nothing else does: BOS, else EOS, else 0."""
        for token_id in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(token_id, int):
                return token_id
        return 0

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a text, from the tokenizer and the generation settings."""
        settings = getattr(self.model, "generation_config", None)
        named = getattr(settings, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
        return frozenset(token_id for token_id in ids if isinstance(token_id, int))

    # -- places -----------------------------------------------------------------------------------

    def module(self, name: str) -> nn.Module:
        """Return the module at a dotted path.

        Raises:
            ModuleNotFoundInModelError: There is none.
        """
        return find_module(self.model, name)

    def parameter(self, name: str) -> nn.Parameter:
        """Return the parameter at a dotted path.

        Raises:
            ModuleNotFoundInModelError: There is none.
        """
        try:
            parameter: nn.Parameter = self.model.get_parameter(name)
        except AttributeError:
            known = (n for n, _ in self.model.named_parameters(remove_duplicate=False))
            raise ModuleNotFoundInModelError(
                f"The model has no parameter {name!r}.{did_you_mean(name, known)}",
                parameter=name,
            ) from None
        return parameter

    def site(
        self,
        layer: int,
        token: TokenPosition = "subject_last",
        stack: Stack = "decoder",
        *,
        role: Role = "mlp_down",
    ) -> Site:
        """Return a projection of a layer as an edit site.

        Args:
            layer: Its number, counted from 0 within its stack.
            token: The token whose state is read and written.
            stack: Of an encoder-decoder, which of its stacks.
            role: ``mlp_down``, the feed-forward's down projection, or ``attn_out``, the
                attention's output projection.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
            UnsupportedModelError: The encoder is asked for and there is none, or the family does
                not say where the attention's output projection is.
            ModuleNotFoundInModelError: It is not where the family says.
        """
        self._check_layer(layer, stack)
        site = self.family.site(layer, token, stack, role)
        self.module(site.module)
        return site

    def mlp_projections(self, layer: int, stack: Stack = "decoder") -> tuple[str, ...]:
        """Return the paths of all projections of a layer's feed-forward, the down projection last.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
            UnsupportedModelError: The encoder is asked for and there is none.
        """
        self._check_layer(layer, stack)
        mlp, down = self.family.mlp(layer, stack), self.family.mlp_down(layer, stack)
        inside = (f"{mlp}.{name}" for name, m in self.module(mlp).named_modules() if has_sides(m))
        return (*(path for path in inside if path != down), down)

    def _check_layer(self, layer: int, stack: Stack) -> None:
        n_layers = self.count_layers(stack)
        if not 0 <= layer < n_layers:
            where = "" if len(self.family.stacks) == 1 else f" in its {stack}"
            raise LayerOutOfRangeError(
                f"{self.name} has no layer {layer}{where}. Choose one from 0 to {n_layers - 1}.",
                layer=layer,
                n_layers=n_layers,
            )

    def weight(self, site: Site) -> Tensor:
        """Return a site's weight as a view ``(d_out, d_in)``; writing to it writes the weight.

        Of a weight that accelerate offloaded it is a copy on the CPU, to be read only.

        Raises:
            ModuleNotFoundInModelError: The model has no such module.
            UnsupportedModuleError: The module is no projection, or its weight is quantised.
            UnsupportedModelError: The weight is offloaded by something else than accelerate.
        """
        module = self.module(site.module)
        weight = out_in(module)
        if not weight.is_meta:
            return weight
        held = fetch(module, "weight")
        if held is None:
            raise _unreadable(site.parameter)
        return to_out_in(module, held.clone())

    # -- text -------------------------------------------------------------------------------------

    def encode(self, text_: str) -> Encoded:
        """Encode a text; see `editkit_core.models.text.encode`."""
        return text.encode(self.tokenizer, text_)

    def encode_pair(self, prompt: str, target: str) -> EncodedPair:
        """Encode a prompt and its continuation; see `editkit_core.models.text.encode_pair`."""
        return text.encode_pair(self.tokenizer, prompt, target)

    def subject_position(
        self,
        request: EditRequest,
        token: TokenPosition = "subject_last",
        *,
        prefix: str = "",
        target: str | None = None,
    ) -> int:
        """Return the index, without padding, of a token of ``prefix + request.text``.

        Of an encoder-decoder it is the index in what its encoder reads, whose last token may be
        the EOS that the tokenizer adds.

        Args:
            request: The request.
            token: Which token.
            prefix: Text put before the prompt as it is.
            target: When given, the index is in the prompt encoded together with this target; an
                encoder never reads the target.
        """
        start, end = request.subject_span
        chars = (len(prefix) + start, len(prefix) + end)
        prompt = prefix + request.text
        if self.is_encoder_decoder:
            from editkit_core.models.pairs import source_ids

            n_tokens = len(source_ids(self, prompt))
            return text.position(self.encode(prompt), chars, token, n_tokens=n_tokens)
        if target is None:
            return text.position(self.encode(prompt), chars, token)
        return self.encode_pair(prompt, target).position(chars, token)

    def check_length(self, n_tokens: int, what: str) -> None:
        """Check that a text fits.

        Args:
            n_tokens: Its length.
            what: What it is, for the message: ``the prompt 'The …'``.

        Raises:
            PromptTooLongError: It is longer than the model's context.
        """
        limit = self.max_positions
        if limit is not None and n_tokens > limit:
            raise PromptTooLongError(
                f"{what[:1].upper()}{what[1:]} has {n_tokens} tokens, but {self.name} reads at "
                f"most {limit}. Shorten it.",
                n_tokens=n_tokens,
                limit=limit,
            )

    # -- running ----------------------------------------------------------------------------------

    @property
    def queries(self) -> Tensor | None:
        """Columns (rows,) of the prompts' last tokens in the present forward pass, if said."""
        return self._queries

    @contextmanager
    def asking(self, queries: Tensor | None) -> Iterator[None]:
        """Say where the prompts end in the forward passes of the ``with`` block.

        What decides by a prompt, as a codebook does, looks there; otherwise it takes each row's
        last token.

        Args:
            queries: Columns (rows,), int64: in what a decoder reads, or in what an encoder reads;
                -1 for a row whose prompt does not end in these passes.
        """
        before, self._queries = self._queries, queries
        try:
            yield
        finally:
            self._queries = before

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of every position, ``(rows, len, vocab)``, float32.

        Those at padding are meaningless.

        Raises:
            PromptTooLongError: A row is longer than the model's context.
            UnsupportedModelError: The model is an encoder-decoder; see `models.pairs`.
        """
        if self.is_encoder_decoder:
            raise UnsupportedModelError(
                f"{self.name} is an encoder-decoder, whose logits need decoder input too. Pair "
                "prompts with targets: pair_logits(model, pair_batch(model, pairs)).",
                model=self.name,
            )
        self.check_length(int(batch.position_ids.max()) + 1, "the longest row of the batch")
        out = self.model(**batch.inputs(), use_cache=False)
        logits: Tensor = out.logits
        return logits.float()

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 20,
        sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_at: str | None = None,
        batch_size: int = 32,
    ) -> list[str]:
        """Continue each prompt, greedily or by sampling; the prompt itself is not returned.

        ``prompt + continuation`` reads as one text, also where an encoder reads the prompt and a
        decoder answers. Spaces at a prompt's end are not fed to the model and not repeated by the
        continuation. A decoder's empty prompt begins with BOS, or EOS when there is none.

        Args:
            prompts: Texts to continue.
            max_new_tokens: Most tokens to add; the end of the context ends a text too.
            sample: Draw tokens instead of taking the likeliest; the next four are for sampling.
            temperature: Divides the logits.
            top_k: Draw from the k likeliest tokens only.
            top_p: Draw from the smallest set of tokens that holds this probability.
            seed: Seed of the draws; the global random state is neither read nor changed.
            stop_at: End a continuation just before the first occurrence of this text.
            batch_size: How many prompts to run at once; greedy results do not depend on it.

        Raises:
            PromptTooLongError: A prompt leaves no room for a token.
            InvalidRequestError: An encoder's prompt has no token.
            InvalidParameterError: A sampling parameter is out of range.
        """
        from editkit_core.models.generation import Sampling, continue_texts

        sampling = None
        if sample:
            sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return continue_texts(
            self,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_at=stop_at,
            batch_size=batch_size,
        )

    # -- patches ----------------------------------------------------------------------------------

    @cached_property
    def source(self) -> CheckpointSource | None:
        """The checkpoint's files, to compare and to restore from; None for a model in memory."""
        from editkit_core.patch.checkpoint import CheckpointSource

        return CheckpointSource(self.folder) if self.folder is not None else None

    @cached_property
    def ledger(self) -> WeightLedger:
        """Which patches are applied to the weights."""
        from editkit_core.patch.ledger import WeightLedger

        return WeightLedger(self)

    def state_digest(self) -> str:
        """Return a sha256 over all parameters and buffers, in name order, with dtype and shape.

        Tensors that accelerate offloaded count with their content, quantised ones with all parts.

        Raises:
            UnsupportedModelError: A tensor is offloaded by something else than accelerate.
        """
        from editkit_core.patch.bits import as_bytes

        digest = hashlib.sha256()
        tensors: dict[str, Tensor] = dict(self.model.named_parameters())
        tensors.update(self.model.named_buffers())
        for name in sorted(tensors):
            owner, _, leaf = name.rpartition(".")
            tensor = fetch(self.model.get_submodule(owner), leaf)
            if tensor is None:
                raise _unreadable(name)
            for part in plain_parts(tensor):
                digest.update(f"{name}\0{part.dtype}\0{tuple(part.shape)}\0".encode())
                digest.update(as_bytes(part))
        return digest.hexdigest()


def _unreadable(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} is offloaded, and not by accelerate, so its content cannot be read. Load the "
        "model with device= instead.",
        tensor=name,
    )

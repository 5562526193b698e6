"""What causal tracing found for one request: indirect effects by token and layer.

``TraceResult`` is plain data (numpy, no torch), so that a picture or a JSON file can be made of it
where no model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import attrs
import numpy as np
import numpy.typing as npt

from editkit_core.errors import InvalidParameterError, did_you_mean
from editkit_core.types import TokenPosition

TraceKind: TypeAlias = Literal["hidden", "mlp", "attention"]
FloatArray: TypeAlias = npt.NDArray[np.float64]
TRACE_KINDS: tuple[TraceKind, ...] = get_args(TraceKind)


def token_index(position: TokenPosition, subject: tuple[int, int], n_tokens: int) -> int:
    """Return the index that ``position`` names in a prompt of ``n_tokens`` tokens.

    Args:
        position: The name, for example ``subject_last``.
        subject: Half-open token span of the subject.
        n_tokens: Length of the prompt in tokens, special tokens in front included.

    Raises:
        InvalidParameterError: ``position`` is not one of the known names.
    """
    start, end = subject
    places = {
        "subject_first": start,
        "subject_last": end - 1,
        "subject_first_after_last": min(end, n_tokens - 1),
        "last": n_tokens - 1,
    }
    if position not in places:
        raise InvalidParameterError(
            f"There is no token position {position!r}.{did_you_mean(position, places)} "
            f"Take one of {', '.join(places)}.",
            position=position,
        )
    return places[position]


def strongest_layer(effects: FloatArray, *, is_last: bool) -> int:
    """Return the layer with the largest effect, the lowest of equals.

    The last layer counts only at the last token: from another token its output reaches no logit
    that is read, so nothing can be edited there, whatever a window around it restores.

    Args:
        effects: Indirect effects at one token, ``(n_layers,)`` float64.
        is_last: Whether that token is the prompt's last one.
    """
    usable = effects if is_last or len(effects) == 1 else effects[:-1]
    return int(np.argmax(usable))


def _frozen_arrays(effects: Mapping[TraceKind, FloatArray]) -> Mapping[TraceKind, FloatArray]:
    copies = {kind: np.array(array, dtype=np.float64) for kind, array in effects.items()}
    for array in copies.values():
        array.setflags(write=False)
    return MappingProxyType(copies)


@attrs.frozen(kw_only=True, eq=False)
class TraceResult:
    """The causal trace of one request.

    An *indirect effect* is p(answer) with one state restored to its clean value, minus
    ``p_corrupted``; all probabilities of a corrupted run are means over the noise samples.

    Attributes:
        model: The model's name.
        prompt: The traced text.
        tokens: The prompt's tokens as text, with or without their spaces, as the tokenizer has it.
        subject: Half-open token span of the subject; these tokens were corrupted.
        answer: The traced next token as text.
        answer_id: Its id.
        p_clean: p(answer) of the undisturbed model.
        p_corrupted: Mean p(answer) with noise on the subject's embeddings.
        effects: For each kind the indirect effects, ``(n_tokens, n_layers)`` float64, read-only.
        noise: Standard deviation of the noise on each embedding entry.
        samples: Number of noise samples.
        window: Layers restored together for ``mlp`` and ``attention``.
        seed: Seed of the noise.
    """

    model: str
    prompt: str
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    answer: str
    answer_id: int
    p_clean: float
    p_corrupted: float
    effects: Mapping[TraceKind, FloatArray] = attrs.field(converter=_frozen_arrays)
    noise: float
    samples: int
    window: int
    seed: int

    @effects.validator
    def _check_shapes(self, _: object, value: Mapping[TraceKind, FloatArray]) -> None:
        shapes = {array.shape for array in value.values()}
        if len(shapes) != 1 or any(len(s) != 2 or s[0] != len(self.tokens) for s in shapes):
            raise InvalidParameterError(
                f"The effects have shapes {sorted(shapes)}; each kind needs one array of "
                f"({len(self.tokens)} tokens, layers).",
                shapes=shapes,
            )

    @property
    def kinds(self) -> tuple[TraceKind, ...]:
        """The traced kinds, in the order in which they were asked for."""
        return tuple(self.effects)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer numbers, from 0."""
        return tuple(range(next(iter(self.effects.values())).shape[1]))

    @property
    def total_effect(self) -> float:
        """``p_clean - p_corrupted``: what restoring everything would bring back."""
        return self.p_clean - self.p_corrupted

    def index(self, token: TokenPosition) -> int:
        """Return the index in :attr:`tokens` that a position's name stands for."""
        return token_index(token, self.subject, len(self.tokens))

    def effect(self, kind: TraceKind, token: TokenPosition) -> FloatArray:
        """Return the effects of one kind at one token, ``(n_layers,)`` float64.

        Raises:
            InvalidParameterError: The kind was not traced, or the position is unknown.
        """
        if kind not in self.effects:
            raise InvalidParameterError(
                f"{kind!r} was not traced; this trace holds {', '.join(self.kinds)}.", kind=kind
            )
        row: FloatArray = self.effects[kind][self.index(token)]
        return row

    def best_layer(self, kind: TraceKind = "mlp", token: TokenPosition = "subject_last") -> int:
        """Return the layer with the largest indirect effect; see :func:`strongest_layer`."""
        is_last = self.index(token) == len(self.tokens) - 1
        return strongest_layer(self.effect(kind, token), is_last=is_last)

    def to_dict(self) -> dict[str, object]:
        """Return everything as values that ``json.dumps`` writes."""
        values = {
            field.name: getattr(self, field.name)
            for field in attrs.fields(type(self))
            if field.name != "effects"
        }
        return values | {
            "tokens": list(self.tokens),
            "subject": list(self.subject),
            "layers": list(self.layers),
            "total_effect": self.total_effect,
            "effects": {kind: array.tolist() for kind, array in self.effects.items()},
        }

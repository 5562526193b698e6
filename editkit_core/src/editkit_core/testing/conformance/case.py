"""`MethodCase`: a method to check, and what it needs for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from editkit_core.types import EditRequest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.artifact import EditorArtifact

Dtype = Literal["float32", "bfloat16"]
TokenizerStyle = Literal["bpe", "unigram"]

REQUESTS = (
    EditRequest(
        prompt="The capital of {} is", subject="Norway", target_new="Lima", target_true="Oslo"
    ),
    EditRequest(prompt="{} was born in the old town of", subject="Marie Curie", target_new="Tokyo"),
)
"""Two facts that share nothing, of different length, one with the subject at its start."""


@attrs.frozen
class Setting:
    """The model that a behaviour is tried on.

    Attributes:
        family: Name of a tiny model; mostly its family's name.
        dtype: What its weights are held in.
        tokenizer: ``bpe`` is byte-level and puts nothing first; ``unigram`` marks word starts and
            puts BOS first where the family has one.
    """

    family: str
    dtype: Dtype = "float32"
    tokenizer: TokenizerStyle = "bpe"

    def __str__(self) -> str:
        return f"{self.family}-{self.dtype}-{self.tokenizer}"


@attrs.frozen(eq=False, kw_only=True)
class MethodCase:
    """A method to check.

    The tiny models have 3 blocks, hidden states 32 wide and random weights; choose parameters with
    which an edit of them takes some hundredths of a second.

    Attributes:
        method: Id of an installed method, or its plugin module.
        params: Parameter values by name; the others are the preset's or the defaults.
        families: Names of tiny models to check on; None means all that the method declares.
        models: How to make tiny models of further families, by name.
        requests: At least two facts with different subjects; the first one is edited alone.
        editor: Makes the trained editor for a model, of a method that trains; a fresh one will do.
        statistics: Makes the statistics that the method needs in a folder, for a model.
        improves: Whether one edit of a tiny model makes its target likelier. False for an editor
            that has learned nothing; then it only must change what the model says.
        dtypes: What the weights are held in.
        tokenizers: The tokenizers' styles.
    """

    method: str | Any  # Any: a plugin module
    params: Mapping[str, Any] = attrs.field(factory=dict)  # Any: parameter values
    families: tuple[str, ...] | None = None
    models: Mapping[str, Callable[[Setting], EditableModel]] = attrs.field(factory=dict)
    requests: tuple[EditRequest, ...] = attrs.field(default=REQUESTS, converter=tuple)
    editor: Callable[[EditableModel], EditorArtifact] | None = None
    statistics: Callable[[EditableModel, Path], object] | None = None
    improves: bool = True
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    tokenizers: tuple[TokenizerStyle, ...] = ("bpe", "unigram")

    @requests.validator
    def _check_requests(self, _: object, value: tuple[EditRequest, ...]) -> None:
        if len({request.subject for request in value}) < 2:
            raise ValueError("A case needs at least two requests with different subjects.")

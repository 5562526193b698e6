"""The values that flow through an edit: requests → sites → patch → applied patch → report.

All are frozen and validated when they are made. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import attrs

from editkit_core.errors import (
    EmptyTargetError,
    InvalidParameterError,
    InvalidRequestError,
    SubjectNotInPromptError,
)
from editkit_core.memo import Memo

if TYPE_CHECKING:
    from editkit_core.models.families import Family
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_core.patch.format import Patch
    from editkit_core.training.options import TrainingOptions

TokenPosition = Literal["subject_last", "subject_first", "subject_first_after_last", "last"]
LocateStrategy = Literal["preset", "trace"]
SLOT = "{}"
_TEXT_FIELDS = ("prompt", "subject", "target_new", "target_true", "id", "relation", "group")
_OPTIONAL = frozenset({"target_true", "relation"})


def _texts(value: Iterable[str]) -> tuple[str, ...]:
    """Make a tuple of texts; one text alone would silently become its letters."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidRequestError(f"Expected a list of texts, got {value!r}. Put it in a list.")
    texts = tuple(value)
    for text in texts:
        if not isinstance(text, str):
            raise InvalidRequestError(f"Expected a list of texts, got {text!r} in it. Quote it.")
    return texts


def _is_unicode(text: str) -> bool:
    """Return whether a text has no half characters, which no tokenizer takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@attrs.frozen
class Probe:
    """A prompt that is asked before and after the edit, and the answers that count.

    Attributes:
        prompt: Plain text.
        answers: Accepted answers; used to continue the prompt when a metric teacher-forces.
        target_true: The true answer of a pair that contrastive scoring compares.
        target_new: The other answer of that pair.
    """

    prompt: str = attrs.field()
    answers: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    target_true: str | None = attrs.field(default=None)
    target_new: str | None = attrs.field(default=None)

    @prompt.validator
    def _check_prompt(self, _: object, value: str) -> None:
        if not isinstance(value, str) or not value.strip():
            raise InvalidRequestError(f"A probe's prompt must be text, got {value!r}.")

    @target_true.validator
    @target_new.validator
    def _check_target(self, field: attrs.Attribute[str | None], value: str | None) -> None:
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise InvalidRequestError(
                f"A probe's {field.name} must be text, got {value!r}. Leave it out if there is "
                "none."
            )


def _listed(value: Iterable[Probe]) -> tuple[Probe, ...]:
    """Make a tuple of probes."""
    if not isinstance(value, Iterable):
        raise InvalidRequestError(f"Expected a list of probes, got {value!r}. Put it in a list.")
    probes = tuple(value)
    for probe in probes:
        if not isinstance(probe, Probe):
            raise InvalidRequestError(
                f"Expected a list of probes, got {probe!r} in it. Give a prompt and answers."
            )
    return probes


def _probes(value: Mapping[str, Iterable[Probe]]) -> Mapping[str, tuple[Probe, ...]]:
    """Make tuples of the probes of each type."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"Expected lists of probes by type, got {value!r}.")
    made = {name: tuple(probes) for name, probes in value.items()}
    for name, probes in made.items():
        for probe in probes:
            if not isinstance(probe, Probe):
                raise InvalidRequestError(
                    f"Expected probes under {name!r}, got {probe!r}. Give a prompt and answers."
                )
    return made


@attrs.frozen(kw_only=True)
class EditRequest:
    """One fact to change.

    Attributes:
        prompt: A template with one ``{}`` for the subject, or plain text that contains the subject;
            of several occurrences the last one is the subject.
        subject: The entity the fact is about.
        target_new: What the model should say, without leading space.
        target_true: What it says or said before, if known.
        id: A name for the request; empty means "by position".
        relation: The relation's name, if known; used for grouping and conflict detection.
        paraphrases: Other prompts, plain text or templates, that should now give ``target_new``.
        locality: Probes by type whose answers should stay as they were.
        portability: Probes by type whose answers should follow from the new fact.
        generation_prompts: Prompts, plain text or templates, that are continued freely.
        attribute_prompts: Probes of other subjects for which ``target_new`` is true already.
        reference_texts: Texts about ``target_new`` that free continuations are compared with.
        group: Requests with the same group belong together: questions of one hold only when all
            of them are edited. Empty means that it stands alone.

    Raises:
        InvalidRequestError: The prompt is empty or has two slots, or a value has a wrong type.
        SubjectNotInPromptError: The subject is empty or does not occur in the prompt.
        EmptyTargetError: ``target_new`` is empty.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    id: str = ""
    relation: str | None = None
    paraphrases: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    locality: Mapping[str, tuple[Probe, ...]] = attrs.field(factory=dict, converter=_probes)
    portability: Mapping[str, tuple[Probe, ...]] = attrs.field(factory=dict, converter=_probes)
    generation_prompts: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    attribute_prompts: tuple[Probe, ...] = attrs.field(default=(), converter=_listed)
    reference_texts: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    group: str = ""

    def __attrs_post_init__(self) -> None:
        for name in _TEXT_FIELDS:
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in _OPTIONAL):
                raise InvalidRequestError(
                    f"{name} must be text, got {value!r}. Quote it.", field=name
                )
            if value is not None and not _is_unicode(value):
                raise InvalidRequestError(
                    f"{name} is not valid text: {value!r}. Save it as UTF-8.", field=name
                )
        if not self.prompt.strip():
            raise InvalidRequestError("The prompt is empty. Give the text before the answer.")
        if self.prompt.count(SLOT) > 1:
            raise InvalidRequestError(
                f"The prompt {self.prompt!r} has {self.prompt.count(SLOT)} slots {{}}. Keep one, "
                "for the subject.",
                prompt=self.prompt,
            )
        if not self.subject.strip():
            raise SubjectNotInPromptError("The subject is empty. Name the entity to edit.")
        if SLOT not in self.prompt and self.subject not in self.prompt:
            raise SubjectNotInPromptError(
                f"The subject {self.subject!r} does not occur in the prompt {self.prompt!r}. Write "
                "it exactly as in the prompt, or mark its place with {}.",
                subject=self.subject,
                prompt=self.prompt,
            )
        if not self.target_new.strip():
            raise EmptyTargetError(
                f"target_new for {self.subject!r} is empty. Say what the model should answer.",
                subject=self.subject,
            )

    @property
    def template(self) -> str:
        """The prompt with ``{}`` in the subject's place (its last occurrence)."""
        if SLOT in self.prompt:
            return self.prompt
        head, _, tail = self.prompt.rpartition(self.subject)
        return f"{head}{SLOT}{tail}"

    @property
    def text(self) -> str:
        """The prompt with the subject in it."""
        return self.template.replace(SLOT, self.subject)

    @property
    def subject_span(self) -> tuple[int, int]:
        """Character span (start, end) of the subject in :attr:`text`."""
        start = self.template.index(SLOT)
        return start, start + len(self.subject)

    @property
    def paraphrase_texts(self) -> tuple[str, ...]:
        """The paraphrases with the subject in them."""
        return tuple(p.replace(SLOT, self.subject) for p in self.paraphrases)

    @property
    def generation_texts(self) -> tuple[str, ...]:
        """The generation prompts with the subject in them."""
        return tuple(p.replace(SLOT, self.subject) for p in self.generation_prompts)


@attrs.frozen(kw_only=True)
class Site:
    """A place in a model where an edit reads or writes.

    Attributes:
        module: Dotted module path, for example ``transformer.h.0.mlp.c_proj``.
        parameter: Dotted name of the weight, for example ``transformer.h.0.mlp.c_proj.weight``.
        role: What the weight does in the field's terms; ``mlp_down`` is the FFN down projection,
            ``attn_out`` the attention's output projection.
        layer: Block number, counted from 0.
        token: The token whose state is read and written.
    """

    module: str
    parameter: str
    role: str = "mlp_down"
    layer: int
    token: TokenPosition = "subject_last"


def _names(_: object, field: attrs.Attribute[Any], value: object) -> None:  # Any: of any class
    """Refuse what is not a tuple of texts; ``"gpt2"`` alone would match by its letters."""
    if not isinstance(value, tuple) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{field.name} must be a tuple of texts, got {value!r}")


@attrs.frozen(kw_only=True)
class MethodInfo:
    """What a method says about itself.

    Attributes:
        name: The method's id, equal to its entry-point name.
        title: One line for people.
        paper: Reference, with a link if there is one.
        api: The hook interface version the method was written for.
        emits: Entry kinds its patches hold.
        families: Model families it supports; ``("*",)`` for any, as far as ``encoder_decoder``
            allows.
        params: The attrs class of its parameters (imported lazily by a zero-argument callable).
        presets: Text of its preset file in YAML (a zero-argument callable), or None.
        batch: Whether one call solves several requests jointly.
        sequential: Whether several requests are edited one on top of the other.
        trains: Whether it needs ``editkit_train`` first.
        needs: What must exist before an edit, for example ``("key_statistics",)``.
        encoder_decoder: Whether it applies to encoder-decoder models.
        decoders_only: Otherwise why not, in a sentence for the message that refuses one.
    """

    name: str
    title: str
    paper: str
    api: int = attrs.field(validator=attrs.validators.instance_of(int))
    emits: tuple[str, ...] = attrs.field(validator=_names)
    families: tuple[str, ...] = attrs.field(validator=_names)
    params: Callable[[], type[Any]]  # Any: each method has its own attrs class
    presets: Callable[[], str] | None = None
    batch: bool = False
    sequential: bool = True
    trains: bool = False
    needs: tuple[str, ...] = attrs.field(default=(), validator=_names)
    encoder_decoder: bool = False
    decoders_only: str = ""

    def edits(self, family: Family) -> bool:
        """Whether it edits models of a family."""
        named = "*" in self.families or family.name in self.families
        return named and (self.encoder_decoder or not family.is_encoder_decoder)


class Progress(Protocol):
    """Where long work reports how far it is."""

    def start(self, label: str, total: int | None) -> None:
        """Begin a piece of work of ``total`` steps (None when unknown)."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report ``steps`` more done, with an optional short note."""

    def finish(self) -> None:
        """End the piece of work begun last."""


class SilentProgress:
    """Reports nothing."""

    def start(self, label: str, total: int | None) -> None:
        """Ignore."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


@attrs.frozen(kw_only=True)
class EditContext:
    """Everything an edit depends on besides model, requests and parameters.

    Attributes:
        seed: Seed of every random choice.
        locate: ``preset`` takes the parameters' layer, ``trace`` proposes it by causal tracing.
        statistics_dir: Folder of key statistics, or None for the user's cache folder.
        heatmap: Where tracing writes its picture, if anywhere.
        overwrite: Whether that picture may replace a file.
        stack: The patches that are applied already, oldest first.
        editor: What the method was trained to, for methods that train.
        training: How a training run is kept and ended, while one is under way.
        memo: What earlier edits of the same editor computed and this one may use again.
        progress: Where long work reports to.
    """

    seed: int = attrs.field(default=0)
    locate: LocateStrategy = attrs.field(default="preset")
    statistics_dir: Path | None = attrs.field(
        default=None, converter=attrs.converters.optional(Path)
    )
    heatmap: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    overwrite: bool = False
    stack: tuple[Patch, ...] = ()
    editor: EditorArtifact | None = None
    training: TrainingOptions | None = None
    memo: Memo = attrs.field(factory=Memo, eq=False, repr=False)
    progress: Progress = attrs.field(factory=SilentProgress, eq=False, repr=False)

    @seed.validator
    def _check_seed(self, _: object, value: int) -> None:
        if type(value) is not int or not 0 <= value < 2**63:
            raise InvalidParameterError(
                f"The seed is {value!r}; it must be a whole number from 0 to 2**63 - 1.", seed=value
            )

    @locate.validator
    def _check_locate(self, _: object, value: str) -> None:
        known = get_args(LocateStrategy)
        if value not in known:
            raise InvalidParameterError(
                f"locate is {value!r}; it must be {' or '.join(known)}.", locate=value
            )

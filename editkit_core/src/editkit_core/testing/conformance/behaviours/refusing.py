"""What cannot be edited is refused with editkit's own errors, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import attrs

from editkit_core.api import Editor
from editkit_core.errors import (
    BaseMismatchError,
    EditkitError,
    EditorMissingError,
    InvalidParameterError,
    InvalidRequestError,
    PromptTooLongError,
    UnknownFamilyError,
    UnknownParameterError,
    UnsupportedModelError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.testing.conformance import models
from editkit_core.testing.conformance.behaviour import Behaviour, of_methods, of_models
from editkit_core.testing.conformance.snapshot import Snapshot
from editkit_core.testing.conformance.workbench import Workbench

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from editkit_core.types import MethodInfo

_UNHEARD_OF = "unheard_of"


def families_it_does_not_declare_are_refused(bench: Workbench) -> None:
    """A model of a family that is not declared is refused with UnsupportedModelError."""
    for name in models.undeclared(bench.info):
        model = models.make(bench.case, attrs.evolve(bench.setting, family=name))
        _refused(bench, model, UnsupportedModelError, bench.edit, f"a {name} model")
    if "*" not in bench.info.families:
        model = models.renamed(bench.model(), _UNHEARD_OF)
        _refused(bench, model, UnsupportedModelError, bench.edit, "an undeclared family")


def any_family_means_any_family(bench: Workbench) -> None:
    """With families=("*",), a family that nobody has heard of is edited like any other."""
    model = models.renamed(bench.model(), _UNHEARD_OF)
    patch = bench.edit(model)
    before = bench.losses(model)[0]
    with bench.editor(model).applied(patch):
        bench.expect(
            bench.losses(model)[0] != before,
            'it declares families=("*",), and does nothing to a family that is registered under '
            "a new name. Ask the family where things are, not for its name.",
        )


def an_unknown_architecture_is_refused(bench: Workbench) -> None:
    """A model that no family fits is refused with UnknownFamilyError before the method is asked."""
    model = bench.model()
    try:
        Editor.wrap(_unknown_architecture(), model.tokenizer, host=bench.host)
    except UnknownFamilyError:
        return
    bench.expect(False, "a model that no family fits is taken for one that some family fits.")


def no_request_is_refused(bench: Workbench) -> None:
    """An empty list of requests is refused with InvalidRequestError."""
    _refused(
        bench, bench.model(), InvalidRequestError, partial(bench.edit, requests=[]), "an empty list"
    )


def a_prompt_that_is_too_long_is_refused(bench: Workbench) -> None:
    """A prompt that does not fit the model's context is refused with PromptTooLongError."""
    model = bench.model()
    if model.max_positions is None:
        return  # the architecture sets no limit
    request = attrs.evolve(
        bench.requests[0], prompt="word " * model.max_positions + bench.requests[0].prompt
    )
    _refused(
        bench, model, PromptTooLongError, partial(bench.edit, requests=request), "too long a prompt"
    )


def unknown_and_wrong_parameters_are_refused(bench: Workbench) -> None:
    """A parameter the method does not have, or of the wrong type, is refused by its name."""
    _refused(
        bench,
        bench.model(),
        UnknownParameterError,
        partial(bench.edit, params={"no_such_parameter": 1}),
        "an unknown parameter",
    )
    for field in attrs.fields(bench.info.params()):
        wrong = {field.name: {"no": "such value"}}
        _refused(
            bench,
            bench.model(),
            InvalidParameterError,
            partial(bench.edit, params=wrong),
            f"a mapping as the parameter {field.name}",
        )


def an_edit_without_its_editor_is_refused(bench: Workbench) -> None:
    """A method that trains refuses to edit without its editor, with EditorMissingError."""
    _refused(
        bench,
        bench.model(),
        EditorMissingError,
        partial(bench.edit, editor=None),
        "an edit without an editor",
    )


def an_editor_of_another_base_is_refused(bench: Workbench) -> None:
    """An editor that was trained for other weights is refused with BaseMismatchError."""
    if bench.case.editor is None:
        bench.expect(False, "it trains, and the case has no editor. Set MethodCase.editor.")
        return
    foreign = bench.case.editor(bench.another_model())
    _refused(
        bench,
        bench.model(),
        BaseMismatchError,
        partial(bench.edit, editor=foreign),
        "an editor for another base",
    )


def _refused(
    bench: Workbench,
    model: EditableModel,
    kind: type[EditkitError],
    ask: Callable[[EditableModel], object],
    what: str,
) -> None:
    """Expect one kind of error, and that nothing was changed on the way to it."""
    before = Snapshot.of(model)
    try:
        ask(model)
    except kind:
        pass
    except Exception as error:  # any other one is what is looked for here
        bench.expect(
            False,
            f"{what} gives {type(error).__name__}: {error!s:.200}. Raise {kind.__name__}.",
        )
    else:
        bench.expect(False, f"{what} is accepted. Raise {kind.__name__}.")
    bench.expect_unchanged(
        before.changed(Snapshot.of(model)), f"refusing {what}", "Check before changing anything."
    )


def _unknown_architecture() -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, OPTConfig

    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        OPTConfig(
            vocab_size=32,
            hidden_size=8,
            num_hidden_layers=1,
            ffn_dim=8,
            num_attention_heads=2,
            max_position_embeddings=8,
            word_embed_proj_dim=8,
        )
    )
    return model


def _trains(info: MethodInfo) -> bool:
    return info.trains


BEHAVIOURS: tuple[Behaviour, ...] = (
    of_methods(families_it_does_not_declare_are_refused),
    of_methods(any_family_means_any_family, lambda info: "*" in info.families),
    of_methods(an_unknown_architecture_is_refused),
    of_methods(unknown_and_wrong_parameters_are_refused),
    of_methods(an_edit_without_its_editor_is_refused, _trains),
    of_methods(an_editor_of_another_base_is_refused, _trains),
    of_models(no_request_is_refused),
    of_models(a_prompt_that_is_too_long_is_refused),
)

"""The hooks: what a method answers, what every plugin may add.

A *method* is one module found through the entry-point group ``editkit.methods``; it implements
:func:`editkit_method` and those of the four edit hooks that it needs, and :func:`editkit_train`
where it must be trained first. A *plugin* is a module found
through ``editkit.plugins``; it implements any of the ``editkit_register_*`` hooks and may observe
the edit hooks with ``@hookimpl(wrapper=True)``.

The edit hooks are never broadcast to every installed method: a session holds the core's defaults,
the one chosen method, and the observers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from editkit_core.markers import hookspec
from editkit_core.types import EditContext, EditRequest, MethodInfo, Site

if TYPE_CHECKING:
    from editkit_core.data.dataset import DataSet
    from editkit_core.metrics.report import Report
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.apply import AppliedPatch
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_core.patch.format import Patch

API_VERSION = 1
SUPPORTED_APIS = frozenset({1})


# -- the chosen method ------------------------------------------------------------------------


@hookspec(firstresult=True)
def editkit_method() -> MethodInfo:  # type: ignore[empty-body]  # a specification has no body
    """Say what the method is: id, title, paper, parameters, what its patches hold.

    Called to list methods, so the module must import quickly: no torch, no transformers.

    Returns:
        The method's description; ``name`` must equal the entry-point name.
    """


@hookspec(firstresult=True)
def editkit_locate(  # type: ignore[empty-body]  # a specification has no body
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: Any,  # Any: each method has its own attrs class
    context: EditContext,
) -> Sequence[Site]:
    """Find where the model keeps what is to be changed.

    Must be deterministic for a given ``context.seed`` and leave the model bit-identical.

    Args:
        model: The model, pristine or with earlier patches applied.
        requests: The facts to change, at least one.
        params: An instance of ``MethodInfo.params``.
        context: Seed, statistics folder, progress and the stack applied already.

    Returns:
        The sites that :func:`editkit_compute_delta` will write, in order.
    """


@hookspec(firstresult=True)
def editkit_compute_delta(  # type: ignore[empty-body]  # a specification has no body
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: Any,  # Any: each method has its own attrs class
    context: EditContext,
) -> Patch:
    """Compute the change as a patch; do not make it.

    The model, its flags, the tokenizer and the global random state are left bit-identical.

    Args:
        model: The model, pristine or with earlier patches applied.
        requests: The facts to change, at least one.
        sites: What :func:`editkit_locate` returned.
        params: An instance of ``MethodInfo.params``.
        context: Seed, statistics folder, progress and the stack applied already.

    Returns:
        A patch whose entries hold factors (d_out, r) and (r, d_in), float32.
    """


@hookspec(firstresult=True)
def editkit_apply(  # type: ignore[empty-body]  # a specification has no body
    model: EditableModel, patch: Patch, mode: str, context: EditContext
) -> AppliedPatch:
    """Realise a patch on a model. The core's default covers every core kind.

    Args:
        model: The model the patch was made for.
        patch: What to apply.
        mode: ``merge`` writes into the weights, ``overlay`` adds a side path, ``auto`` leaves the
            choice to the implementation: the core merges where that is possible and keeps the
            change.
        context: Seed and progress.

    Returns:
        A handle with ``.revert()``, usable as a context manager. A failure half way undoes itself.
    """


@hookspec(firstresult=True)
def editkit_evaluate(  # type: ignore[empty-body]  # a specification has no body
    model: EditableModel,
    requests: Sequence[EditRequest],
    patch: Patch,
    context: EditContext,
) -> Report:
    """Measure the model before and after a patch. The core's default gives the field's metrics.

    Args:
        model: The model without the patch; it is left without it.
        requests: What was edited, with paraphrases and probes.
        patch: The patch to measure.
        context: Seed and progress.

    Returns:
        Scores by metric and protocol.
    """


@hookspec(firstresult=True)
def editkit_train(  # type: ignore[empty-body]  # a specification has no body
    model: EditableModel,
    dataset: DataSet,
    params: Any,  # Any: each method has its own attrs class
    context: EditContext,
) -> EditorArtifact:
    """Train an editor for a model; optional, for methods with ``MethodInfo.trains``.

    The model is left bit-identical. Edits get the editor as ``context.editor``.

    Args:
        model: The model the editor will be for, without patches.
        dataset: The edits to learn from, with paraphrases and probes.
        params: An instance of ``MethodInfo.params``.
        context: Seed, progress and, as ``context.training``, where the run is kept and when it
            ends.

    Returns:
        The editor with what it was trained on and for.
    """


# -- everyone answers -------------------------------------------------------------------------


class Register(Protocol):
    """Takes named things from plugins; a name that is taken is refused with both owners."""

    def __call__(self, name: str, value: Any) -> None:  # Any: what is registered differs by hook
        """Register ``value`` under ``name``."""


@hookspec
def editkit_register_models(register: Register) -> None:
    """Add packaged models: ``register(name, folder)`` makes ``editkit:name`` loadable.

    Args:
        register: Call with the short name and the ``pathlib.Path`` of a Hugging Face folder.
    """


@hookspec
def editkit_register_model_families(register: Register) -> None:
    """Add model families: ``register(name, family)``.

    Args:
        register: Call with the family's name and its ``Family``.
    """


@hookspec
def editkit_register_patch_kinds(register: Register) -> None:
    """Add patch entry kinds: ``register(name, kind)``, for example ``("noun.noun/1", kind)``.

    Args:
        register: Call with the kind's full name and its kind object.
    """


@hookspec
def editkit_register_datasets(register: Register) -> None:
    """Add data sets and their formats: ``register(name, factory)`` makes ``name:PLACE`` loadable.

    Args:
        register: Call with the format's name and a zero-argument callable that returns a
            ``DataFormat``; it is called only when data sets are listed or loaded.
    """


@hookspec
def editkit_register_metrics(register: Register) -> None:
    """Add metrics: ``register(name, factory)``.

    Args:
        register: Call with the metric's name and a zero-argument callable that returns a
            ``Metric``, ``RunMetric`` or ``DerivedMetric``; it is called only when the metric is
            used.
    """


@hookspec
def editkit_register_commands(register: Register) -> None:
    """Add commands to the command line: ``register(name, factory)``.

    Args:
        register: Call with the command's name and a zero-argument callable that returns a
            ``click.Command``; it is called only when the command is used.
    """

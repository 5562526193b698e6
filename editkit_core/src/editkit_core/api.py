"""The Python interface: load a model, edit it, apply and revert patches, generate, measure.

editor = Editor.from_pretrained("editkit:demo")
patch = editor.edit(EditRequest(prompt="The capital of {} is", subject="Japan",
                                target_new="Nairobi"))
patch.save("japan.editkit.safetensors")
with editor.applied(patch):
    print(editor.generate("The capital of Japan is"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from editkit_core import params as parameters
from editkit_core.efficiency import Stage, measured
from editkit_core.errors import (
    EditorMissingError,
    InvalidParameterError,
    InvalidRequestError,
    PluginError,
    TrainingError,
    UnsupportedModelError,
)
from editkit_core.host import Host
from editkit_core.memo import Memo
from editkit_core.models.editable import EditableModel
from editkit_core.session import Session
from editkit_core.types import (
    EditContext,
    EditRequest,
    LocateStrategy,
    MethodInfo,
    Progress,
    SilentProgress,
    Site,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from editkit_core.data.dataset import DataSet
    from editkit_core.metrics.report import Report
    from editkit_core.numerics.tracing_result import TraceResult
    from editkit_core.patch.apply import AppliedPatch
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_core.patch.format import Patch
    from editkit_core.patch.pristine import PristineSource
    from editkit_core.stack.patch_stack import PatchStack


@attrs.frozen(kw_only=True)
class EditResult:
    """A patch and how it came about.

    Attributes:
        patch: The patch.
        sites: Where it writes.
        preset: The preset the parameters came from, or None.
        source: That preset's source line.
        stages: Seconds and peak memory of locating and computing.
    """

    patch: Patch
    sites: tuple[Site, ...]
    preset: str | None
    source: str
    stages: tuple[Stage, ...]


class Editor:
    """A model that can be edited.

    Args:
        model: The wrapped model.
        host: Where methods come from; the installed ones by default.
    """

    def __init__(self, model: EditableModel, host: Host | None = None) -> None:
        self.model = model
        self.host = host or Host()
        self.memo = Memo()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: str | Mapping[str, Any] | None = None,  # Any: transformers' own device map
        revision: str | None = None,
        host: Host | None = None,
    ) -> Editor:
        """Load a model from a folder, the hub, or an installed package.

        Args:
            name: A folder, a hub id, or ``editkit:NAME`` for a packaged model.
            dtype: For example ``"bfloat16"``; float32 by default.
            device: For example ``"cuda"``; the CPU by default.
            device_map: Passed to transformers, for models spread over devices.
            revision: A hub revision.
            host: Where methods, families and packaged models come from.

        Raises:
            ModelNotFoundError: Nothing is found under the name.
            UnknownFamilyError: The model is of no registered family.
        """
        host = host or Host()
        model = EditableModel.from_pretrained(
            str(name),
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            families=_families(host),
            packaged=host.registered("models"),
        )
        return cls(model, host)

    @classmethod
    def wrap(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        folder: str | Path | None = None,
        host: Host | None = None,
    ) -> Editor:
        """Use a Hugging Face model that is in memory already.

        Args:
            model: The model with its head; it may be quantised or offloaded.
            tokenizer: Its fast tokenizer.
            name: What to call it.
            folder: The folder of the unquantised checkpoint it was made from; by its files a
                quantised model is told to be the one a patch was made for.
            host: Where methods and families come from.
        """
        host = host or Host()
        wrapped = EditableModel.wrap(
            model, tokenizer, name=name, folder=folder, families=_families(host)
        )
        return cls(wrapped, host)

    # -- editing --

    def edit(
        self,
        requests: EditRequest | Sequence[EditRequest],
        *,
        method: str = "rome",
        params: Mapping[str, Any] | Any | None = None,  # Any: the method's own class, or values
        preset: str | None = None,
        seed: int = 0,
        locate: LocateStrategy = "preset",
        statistics_dir: Path | None = None,
        editor: EditorArtifact | str | Path | None = None,
        progress: Progress | None = None,
    ) -> Patch:
        """Compute a patch for one or more facts. The model is left as it was.

        Args:
            requests: The facts to change.
            method: Id of an installed method.
            params: Values by name over the preset, or an instance of the method's class.
            preset: Name of a preset instead of the one that fits the model best.
            seed: Seed of every random choice; equal seeds give equal patches.
            locate: ``preset`` uses the parameters' layer, ``trace`` causal tracing.
            statistics_dir: Folder of key statistics; the user's cache folder by default.
            editor: What :meth:`train` gave, or its file or folder, for methods that train.
            progress: Where long work reports to.

        Raises:
            EditkitError: The request, parameters, model or plugin cannot be used; see the code.
        """
        context = EditContext(
            seed=seed,
            locate=locate,
            statistics_dir=statistics_dir,
            editor=_opened(editor),
            progress=progress or SilentProgress(),
        )
        return self.run(
            requests, method=method, params=params, preset=preset, context=context
        ).patch

    def run(
        self,
        requests: EditRequest | Sequence[EditRequest],
        *,
        method: str = "rome",
        params: Mapping[str, Any] | Any | None = None,  # Any: the method's own class, or values
        preset: str | None = None,
        context: EditContext | None = None,
    ) -> EditResult:
        """Do what :meth:`edit` does and also say where, with which preset and at what cost."""
        requests = _listed(requests)
        if not requests:
            raise InvalidRequestError("There is nothing to edit: no requests were given.")
        context = attrs.evolve(context or EditContext(), memo=self.memo)
        if not context.stack:
            applied = tuple(active.patch for active in self.model.ledger.effective)
            context = attrs.evolve(context, stack=applied)
        session = Session.open(self.host, method)
        assert session.info is not None  # a session of a method has its description
        _check_model(session.info, self.model, self.host)
        _check_editor(session.info, self.model, context.editor)
        resolved = self._resolve(session.info, params, preset, context.editor)
        stages: list[Stage] = []
        with measured("locate", stages):
            sites = tuple(session.locate(self.model, requests, resolved.params, context))
        with measured("compute_delta", stages):
            patch = session.compute_delta(self.model, requests, sites, resolved.params, context)
        return EditResult(
            patch=_recorded(patch, self.model, context),
            sites=sites,
            preset=resolved.preset,
            source=resolved.source,
            stages=tuple(stages),
        )

    def resolve_params(
        self,
        method: str = "rome",
        params: Mapping[str, Any] | None = None,  # Any: parameter values
        preset: str | None = None,
        editor: EditorArtifact | None = None,
    ) -> parameters.Resolved:
        """Return the parameters :meth:`edit` or :meth:`train` would use, and do neither."""
        _, info, _ = self.host.load_method(method)
        return self._resolve(info, params, preset, editor)

    def check_trained(self, method: str, editor: EditorArtifact | None) -> None:
        """Check that a method can edit this model with an editor, or needs none.

        Raises:
            EditorMissingError: The method needs one, or another one.
            BaseMismatchError: It was trained for another base.
        """
        _, info, _ = self.host.load_method(method)
        _check_editor(info, self.model, editor)

    def _resolve(
        self,
        info: MethodInfo,
        params: Mapping[str, Any] | Any | None,  # Any: the method's own class, or values
        preset: str | None,
        editor: EditorArtifact | None = None,
    ) -> parameters.Resolved:
        if params is not None and not isinstance(params, Mapping):
            if not isinstance(params, info.params()):
                raise InvalidParameterError(
                    f"The parameters of {info.name} are {params!r:.80}. Give values by name, or an "
                    f"instance of {info.params().__name__}.",
                    method=info.name,
                )
            return parameters.Resolved(params=params, preset=None, source="given as an object")
        if editor is not None:
            return _of_editor(info, editor, params, preset)
        shape = parameters.ModelShape(
            name=self.model.name,
            family=self.model.family.name,
            n_layers=self.model.n_layers,
            d_model=self.model.d_model,
        )
        return parameters.resolve(info, shape, params, preset)

    # -- training --

    def train(
        self,
        method: str,
        dataset: DataSet | str | Path,
        *,
        out: str | Path | None = None,
        params: Mapping[str, Any] | Any | None = None,  # Any: the method's own class, or values
        preset: str | None = None,
        seed: int = 0,
        validation: DataSet | str | Path | None = None,
        validation_share: float = 0.1,
        validation_limit: int = 100,
        max_minutes: float | None = None,
        checkpoint_every: int = 100,
        fresh: bool = False,
        tensorboard: bool | None = None,
        progress: Progress | None = None,
    ) -> EditorArtifact:
        """Train an editor for this model; :meth:`edit` takes it as ``editor``.

        The model is left as it was. A run that was stopped goes on from its folder as if it never
        had been.

        Args:
            method: Id of an installed method that trains.
            dataset: What to learn from, or what `load_dataset` takes.
            out: The run's folder, for checkpoints, logs and the editor; None keeps nothing.
            params: Values by name over the preset, or an instance of the method's class.
            preset: Name of a preset instead of the one that fits the model best.
            seed: Seed of every random choice.
            validation: What early stopping looks at; None sets subjects of the data set apart.
            validation_share: Share of the subjects that are set apart then.
            validation_limit: Most requests a validation measures.
            max_minutes: Ends training when it took so long.
            checkpoint_every: Updates between checkpoints.
            fresh: Start again even where the folder holds a run.
            tensorboard: Whether to write TensorBoard's files; None where it is installed.
            progress: Where long work reports to.

        Raises:
            TrainingError: The method does not train, or training failed; it says where.
            EditkitError: Data, parameters, model or plugin cannot be used; see the code.
        """
        from editkit_core.training.options import TrainingOptions
        from editkit_core.training.randomness import own_randomness, seed_for

        session = Session.open(self.host, method)
        assert session.info is not None  # a session of a method has its description
        if not session.info.trains:
            raise TrainingError(
                f"{method} needs no training. Edit with it at once: editkit edit --method {method}",
                method=method,
            )
        _check_model(session.info, self.model, self.host)
        resolved = self._resolve(session.info, params, preset)
        context = EditContext(
            seed=seed,
            training=TrainingOptions(
                folder=None if out is None else Path(out),
                fresh=fresh,
                validation=None if validation is None else _data(validation, self.host, seed),
                validation_share=validation_share,
                validation_limit=validation_limit,
                max_minutes=max_minutes,
                checkpoint_every=checkpoint_every,
                tensorboard=tensorboard,
            ),
            memo=self.memo,
            progress=progress or SilentProgress(),
        )
        learned = _data(dataset, self.host, seed)
        with own_randomness():
            seed_for(seed, -1)  # what the method draws before the first batch
            return session.train(self.model, learned, resolved.params, context)

    # -- using patches --

    def apply(self, patch: Patch, *, mode: str = "auto") -> AppliedPatch:
        """Apply a patch; the handle's ``revert()`` takes it off bit for bit.

        Args:
            patch: The patch.
            mode: ``merge`` writes into the weights, ``overlay`` adds a side path, ``auto`` merges
                where that keeps the change; the handle's ``mode`` and ``why`` say what it did.

        Raises:
            PatchError: The patch does not fit this base or cannot be realised.
        """
        return self._session(patch).apply(self.model, patch, mode, EditContext())

    def applied(self, patch: Patch, *, mode: str = "auto") -> AppliedPatch:
        """Return :meth:`apply` for use as ``with editor.applied(patch): …``."""
        return self.apply(patch, mode=mode)

    def stack(
        self, folder: str | Path | None = None, *, pristine: PristineSource = "snapshot"
    ) -> PatchStack:
        """Return a stack of patches on the model: an empty one, or what a folder says.

        Args:
            folder: A folder made by ``editkit stack init``; it is only read.
            pristine: Where the way back is kept, see :class:`editkit_core.stack.PatchStack`.

        Raises:
            InputNotFoundError: The folder holds no stack.
            StackDamagedError: It is damaged.
            PatchError: A patch does not fit the model.
        """
        from editkit_core.stack import PatchStack, StackStore

        if folder is None:
            return PatchStack(self.model, pristine=pristine)
        store = StackStore.open(Path(folder))
        patches = {entry.id: store.patch(entry) for entry in store.state.entries}
        return PatchStack.restore(self.model, store.state, patches, pristine=pristine)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 20,
        sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """Continue a prompt; greedy unless ``sample``. Returns the continuation alone."""
        return self.model.generate(
            [prompt],
            max_new_tokens=max_new_tokens,
            sample=sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )[0]

    # -- measuring --

    def evaluate(
        self,
        requests: EditRequest | Sequence[EditRequest],
        patch: Patch,
        *,
        context: EditContext | None = None,
    ) -> Report:
        """Measure the model before and after a patch, by every protocol of the core."""
        session = self._session(patch)
        return session.evaluate(self.model, _listed(requests), patch, context or EditContext())

    def _session(self, patch: Patch) -> Session:
        """Open a session of the patch's method where it works, else of the core alone."""
        try:
            return Session.open(self.host, patch.header.method.name)
        except PluginError:  # not installed or broken: core covers what patches hold
            return Session.open(self.host)

    def trace(
        self,
        request: EditRequest,
        *,
        seed: int = 0,
        progress: Progress | None = None,
        **options: Any,
    ) -> TraceResult:  # Any: passed to trace_request
        """Trace where the model recalls a fact; see :func:`numerics.tracing.trace_request`."""
        from editkit_core.numerics.tracing import trace_request

        return trace_request(self.model, request, seed=seed, progress=progress, **options)


def _listed(requests: EditRequest | Sequence[EditRequest]) -> tuple[EditRequest, ...]:
    listed = (requests,) if isinstance(requests, EditRequest) else tuple(requests)
    for request in listed:
        if not isinstance(request, EditRequest):
            raise InvalidRequestError(f"Expected an EditRequest, got {request!r:.80}.")
    return listed


def _opened(editor: EditorArtifact | str | Path | None) -> EditorArtifact | None:
    if not isinstance(editor, str | Path):
        return editor
    from editkit_core.patch.artifact import EditorArtifact

    return EditorArtifact.load(editor)


def _data(dataset: DataSet | str | Path, host: Host, seed: int) -> DataSet:
    from editkit_core.data import load_dataset

    if isinstance(dataset, str | Path):
        return load_dataset(dataset, seed=seed, host=host)
    return dataset


def _check_editor(info: MethodInfo, model: EditableModel, editor: EditorArtifact | None) -> None:
    """Refuse an edit without the trained editor it needs, or with one it cannot use."""
    if editor is None and info.trains:
        raise EditorMissingError(
            f"{info.name} edits with a trained editor, and none was given. Name one with --editor, "
            f"or train one: editkit train {info.name} --model … --dataset … --out …",
            method=info.name,
        )
    if editor is None:
        return
    if not info.trains:
        raise EditorMissingError(
            f"{info.name} uses no trained editor, and one of {editor.method.name} was given. Leave "
            f"--editor out, or edit with --method {editor.method.name}.",
            method=info.name,
        )
    editor.check_method(info.name)
    editor.check_base(model)


def _of_editor(
    info: MethodInfo,
    editor: EditorArtifact,
    params: Mapping[str, Any] | None,  # Any: parameter values
    preset: str | None,
) -> parameters.Resolved:
    """Return the parameters an editor was trained with, and the given values over them."""
    if preset is not None:
        raise InvalidParameterError(
            f"The editor {editor.id} brings the parameters it was trained with, so a preset has no "
            "part in the edit. Leave --preset out.",
            preset=preset,
        )
    values = {**editor.params, **(params or {})}
    return parameters.Resolved(
        params=parameters.structure(info.params(), values, owner=info.name),
        preset=None,
        source=f"the trained editor {editor.id}",
    )


def _recorded(patch: Patch, model: EditableModel, context: EditContext) -> Patch:
    """Return the patch with what it was computed on, as the model's ledger knows it."""
    from editkit_core.patch.header_codec import seal

    environment = dict(patch.header.environment)
    if context.locate != "preset":
        environment["locate"] = context.locate  # computing it again must look again
    if context.editor is not None:
        environment["editor"] = context.editor.id
    computed_on = model.ledger.digest(without=patch.header.replaces)
    header = attrs.evolve(patch.header, computed_on=computed_on, environment=environment)
    return patch if header == patch.header else attrs.evolve(patch, header=seal(header))


def _families(host: Host) -> Sequence[Any]:  # Any: Family, imported below with the models
    from editkit_core.models.families import BUILTIN_FAMILIES

    return (*BUILTIN_FAMILIES, *host.registered("model_families").values())


def _check_model(info: MethodInfo, model: EditableModel, host: Host) -> None:
    if info.edits(model.family):
        return
    if model.is_encoder_decoder and not info.encoder_decoder:
        why = (
            f"{info.name} edits decoders only, and {model.name} is an encoder-decoder. "
            f"{info.decoders_only}"
        ).strip()
    else:
        why = (
            f"{info.name} supports {', '.join(sorted(info.families))}; {model.name} is of family "
            f"{model.family.name}."
        )
    methods = (listing.info for listing in host.list_methods())
    others = [other.name for other in methods if other and other.edits(model.family)]
    raise UnsupportedModelError(
        f"{why} Installed methods that edit it: {', '.join(others) or 'none'}.",
        method=info.name,
        family=model.family.name,
        others=tuple(others),
    )

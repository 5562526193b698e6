"""`Workbench`: a method, a model that nobody else uses, and edits of it, for one behaviour to try.

Every edit goes through `Editor`, as a user's does; a watcher plugin sees the model just before and
just after each hook. The global random state is given back when a behaviour has been tried.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch

from editkit_core.api import Editor
from editkit_core.host import Found, Host
from editkit_core.markers import hookimpl
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import nll, pair_batch, pair_logits
from editkit_core.testing.conformance import models
from editkit_core.testing.conformance.behaviour import ConformanceError
from editkit_core.testing.conformance.case import MethodCase, Setting
from editkit_core.testing.conformance.snapshot import Snapshot
from editkit_core.types import EditContext, EditRequest, MethodInfo, Site

if TYPE_CHECKING:
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import Kinds

_SEED = 5


@attrs.frozen(eq=False, kw_only=True)
class Watched:
    """An edit and what was seen around its hooks.

    Attributes:
        patch: The patch.
        sites: Where it writes.
        params: The parameters used.
        model: The model that was edited, as the method left it.
        locate: The world just before and just after ``editkit_locate``.
        compute: The world just before and just after ``editkit_compute_delta``.
    """

    patch: Patch
    sites: tuple[Site, ...]
    params: Any  # Any: the method's own class
    model: EditableModel
    locate: tuple[Snapshot, Snapshot]
    compute: tuple[Snapshot, Snapshot]


class Workbench:
    """What a behaviour is tried with.

    Args:
        case: The method.
        setting: The model.
    """

    def __init__(self, case: MethodCase, setting: Setting) -> None:
        self.case = case
        self.setting = setting

    # -- saying what is wrong ---------------------------------------------------------------------

    @property
    def where(self) -> str:
        """What is tried, for messages."""
        return f"{self.info.name} on {self.setting}"

    def expect(self, holds: bool, message: str) -> None:
        """Refuse the method unless something holds.

        Raises:
            ConformanceError: It does not.
        """
        if not holds:
            raise ConformanceError(f"{self.where}: {message}")

    def expect_unchanged(self, changed: Sequence[str], what: str, remedy: str) -> None:
        """Refuse the method if it changed something; only the first few are named."""
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ConformanceError(
                f"{self.where}: {what} changed {'; '.join(changed[:3])}{more}. {remedy}"
            )

    # -- the method -------------------------------------------------------------------------------

    @cached_property
    def found(self) -> Found:
        """Where the method comes from."""
        return find(self.case)

    @cached_property
    def info(self) -> MethodInfo:
        """What the method says about itself."""
        return Host(methods=[self.found]).load_method(self.found.name)[1]

    @cached_property
    def host(self) -> Host:
        """A host of this method and the installed plugins."""
        return Host(methods=[self.found])

    @cached_property
    def kinds(self) -> Kinds:
        """The entry kinds of the core and of the installed plugins."""
        from editkit_core.patch.kinds import BUILTIN_KINDS

        return {**BUILTIN_KINDS, **self.host.registered("patch_kinds")}

    @cached_property
    def folder(self) -> Path:
        """An empty folder that goes when the workbench goes."""
        made = tempfile.mkdtemp(prefix="editkit-conformance-")
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        return Path(made)

    # -- models -----------------------------------------------------------------------------------

    @cached_property
    def _template(self) -> EditableModel:
        return models.make(self.case, self.setting)

    def model(self) -> EditableModel:
        """Return a fresh copy of the setting's model."""
        return models.fresh(self._template)

    def another_model(self) -> EditableModel:
        """Return a model of the same shape with other weights."""
        return models.make(self.case, self.setting, seed=1)

    @cached_property
    def _statistics(self) -> Path:
        folder = self.folder / "statistics"
        folder.mkdir()
        if self.case.statistics is not None:
            self.case.statistics(self.model(), folder)
        return folder

    # -- edits ------------------------------------------------------------------------------------

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """The case's requests."""
        return self.case.requests

    def context(self, **more: Any) -> EditContext:  # Any: its fields
        """Return the context of an edit."""
        given: dict[str, Any] = {"seed": _SEED, "statistics_dir": self._statistics}
        if self.info.trains:
            given["editor"] = self.trained
        return EditContext(**{**given, **more})

    @cached_property
    def trained(self) -> EditorArtifact | None:
        """The editor for the setting's model, of a method that trains."""
        return self.case.editor(self.model()) if self.case.editor is not None else None

    def edit(
        self,
        model: EditableModel,
        requests: EditRequest | Sequence[EditRequest] | None = None,
        *,
        host: Host | None = None,
        params: Mapping[str, Any] | None = None,  # Any: parameter values
        **context: Any,  # Any: fields of the context
    ) -> Patch:
        """Edit a model as a user does; by default the first request."""
        asked = self.requests[0] if requests is None else requests
        result = Editor(model, host or self.host).run(
            asked,
            method=self.found.name,
            params={**self.case.params, **(params or {})},
            context=self.context(**context),
        )
        return result.patch

    def watched(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest] | None = None,
        **context: Any,  # Any: fields of the context
    ) -> Watched:
        """Edit a model and write down the world around both hooks."""
        watcher = Watcher()
        host = Host(
            methods=[self.found],
            plugins=[*self.host.plugins, Found("conformance", "watcher", "1", (), lambda: watcher)],
        )
        patch = self.edit(model, requests, host=host, **context)
        return Watched(
            patch=patch,
            sites=watcher.sites,
            params=watcher.params,
            model=model,
            locate=watcher.seen["locate"],
            compute=watcher.seen["compute"],
        )

    @cached_property
    def first(self) -> Watched:
        """The first request, edited on a fresh model and watched; the behaviours share it."""
        with randomness(1):
            return self.watched(self.model())

    @cached_property
    def second(self) -> Patch:
        """The second request, edited alone on a fresh model."""
        with randomness(1):
            return self.edit(self.model(), [self.requests[1]])

    # -- readings ---------------------------------------------------------------------------------

    def editor(self, model: EditableModel) -> Editor:
        """Return what applies patches to a model as a user does."""
        return Editor(model, self.host)

    @torch.no_grad()
    def losses(self, model: EditableModel) -> list[float]:
        """Return the negative log-likelihood of every request's target, in nat."""
        batch = pair_batch(model, [(r.text, r.target_new) for r in self.requests])
        return [float(loss) for loss in nll(pair_logits(model, batch), batch.labels)]

    @torch.no_grad()
    def logits(self, model: EditableModel) -> torch.Tensor:
        """Return the logits of every request with its target, (rows, len, vocab), float32."""
        pairs = [(request.text, request.target_new) for request in self.requests]
        return pair_logits(model, pair_batch(model, pairs))

    def close(
        self,
        one: torch.Tensor,
        other: torch.Tensor,
        *,
        usual: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> bool:
        """Say whether logits are the same but for rounding in the model's dtype.

        Args:
            one: Logits.
            other: The same in another way.
            usual: Both of the model without a patch, whose difference is rounding too.
        """
        share = 2e-4 if self.setting.dtype == "float32" else 0.06
        allowed = max(share, 0.0 if usual is None else 3 * _distance(*usual))
        return _distance(one, other) <= allowed


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest number."""
    scale = max(float(one.abs().max()), float(other.abs().max()))
    return float((one - other).abs().max()) / scale


class Watcher:
    """An observer that takes a snapshot before and after both hooks of an edit."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Snapshot, Snapshot]] = {}
        self.sites: tuple[Site, ...] = ()
        self.params: Any = None  # Any: the method's own class

    @hookimpl(wrapper=True)
    def editkit_locate(self, model: EditableModel) -> Iterator[None]:
        """Watch locating."""
        before = Snapshot.of(model)
        answer = yield
        self.seen["locate"] = before, Snapshot.of(model)
        return answer

    @hookimpl(wrapper=True)
    def editkit_compute_delta(
        self, model: EditableModel, sites: Sequence[Site], params: Any
    ) -> Iterator[None]:  # Any: the method's own class
        """Watch computing."""
        self.sites, self.params = tuple(sites), params
        before = Snapshot.of(model)
        answer = yield
        self.seen["compute"] = before, Snapshot.of(model)
        return answer


def find(case: MethodCase) -> Found:
    """Return where a case's method comes from.

    Raises:
        PluginError: It is not installed, broken or claimed twice.
    """
    if isinstance(case.method, str):
        host = Host()
        return host.load_method(case.method)[2]
    plugin = case.method
    info = plugin.editkit_method()
    return Found(info.name, f"the module {_named(plugin)}", "0", (), lambda: plugin)


def _named(plugin: object) -> str:
    return str(getattr(plugin, "__name__", type(plugin).__name__))


@contextmanager
def randomness(seed: int) -> Iterator[None]:
    """Seed every global random state, and give all of them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

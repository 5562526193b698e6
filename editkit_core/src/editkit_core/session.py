"""A session: the core's defaults, the one chosen method, and every observer.

It is built for one edit and thrown away, so that two methods can never answer for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import pluggy

from editkit_core import defaults
from editkit_core.errors import BrokenPluginError
from editkit_core.host import Found, Host, new_manager, register_plugin
from editkit_core.types import EditContext, EditRequest, MethodInfo, Site

if TYPE_CHECKING:
    from editkit_core.data.dataset import DataSet
    from editkit_core.metrics.report import Report
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.apply import AppliedPatch
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_core.patch.format import Patch

T = TypeVar("T")


@attrs.frozen(eq=False)
class Session:
    """The edit hooks, answered by one method.

    Attributes:
        info: The chosen method's description, or None for a session of the core alone.
        found: Where the method came from, or None.
        manager: The plugin manager of this session.
    """

    info: MethodInfo | None
    found: Found | None
    manager: pluggy.PluginManager

    @classmethod
    def open(cls, host: Host, method: str | None = None) -> Session:
        """Build a session for one method, or for the core's defaults alone.

        Raises:
            PluginError: The method is unknown, broken, incompatible or claimed twice.
        """
        manager = new_manager()
        manager.register(defaults, name="editkit-core:defaults")
        info = found = None
        if method is not None:
            plugin, info, found = host.load_method(method)
            register_plugin(manager, plugin, found)
        for observer, plugin in host.loaded_plugins:
            register_plugin(manager, plugin, observer, role=" (observer)")
        manager.check_pending()
        return cls(info, found, manager)

    def locate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        params: Any,  # Any: each method has its own attrs class
        context: EditContext,
    ) -> Sequence[Site]:
        """Call ``editkit_locate``."""
        sites = self.manager.hook.editkit_locate(
            model=model, requests=requests, params=params, context=context
        )
        listed = self._check(
            "editkit_locate", tuple(sites) if isinstance(sites, Iterable) else sites, tuple
        )
        return tuple(self._check("editkit_locate", site, Site) for site in listed)

    def compute_delta(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        sites: Sequence[Site],
        params: Any,  # Any: each method has its own attrs class
        context: EditContext,
    ) -> Patch:
        """Call ``editkit_compute_delta``."""
        from editkit_core.patch.format import Patch

        patch = self.manager.hook.editkit_compute_delta(
            model=model, requests=requests, sites=sites, params=params, context=context
        )
        return self._check("editkit_compute_delta", patch, Patch)

    def apply(
        self, model: EditableModel, patch: Patch, mode: str, context: EditContext
    ) -> AppliedPatch:
        """Call ``editkit_apply``."""
        applied = self.manager.hook.editkit_apply(
            model=model, patch=patch, mode=mode, context=context
        )
        answer: AppliedPatch = self._answered("editkit_apply", applied)
        return answer

    def evaluate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        patch: Patch,
        context: EditContext,
    ) -> Report:
        """Call ``editkit_evaluate``."""
        report = self.manager.hook.editkit_evaluate(
            model=model, requests=requests, patch=patch, context=context
        )
        answer: Report = self._answered("editkit_evaluate", report)
        return answer

    def train(
        self,
        model: EditableModel,
        dataset: DataSet,
        params: Any,  # Any: each method has its own attrs class
        context: EditContext,
    ) -> EditorArtifact:
        """Call ``editkit_train``."""
        from editkit_core.patch.artifact import EditorArtifact

        artifact = self.manager.hook.editkit_train(
            model=model, dataset=dataset, params=params, context=context
        )
        return self._check("editkit_train", artifact, EditorArtifact)

    def _answered(self, hook: str, answer: Any) -> Any:  # Any: each hook returns its own type
        if answer is None:
            raise BrokenPluginError(
                f"Nothing answered {hook}: {self._who} does not implement it with @hookimpl, or "
                "returned None.",
                hook=hook,
            )
        return answer

    def _check(self, hook: str, answer: object, kind: type[T]) -> T:
        self._answered(hook, answer)
        if isinstance(answer, kind):
            return answer
        raise BrokenPluginError(
            f"{self._who} answered {hook} with {answer!r:.80}, which is no {kind.__name__}.",
            hook=hook,
        )

    @property
    def _who(self) -> str:
        return f"{self.found.dist} {self.found.version}" if self.found else "no method"

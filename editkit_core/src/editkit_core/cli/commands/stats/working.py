"""What the processes of ``editkit stats`` do: each reads its share of the documents."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from editkit_core.cli.notes import show_notes
from editkit_core.cli.options import load_editor
from editkit_core.errors import EditkitError
from editkit_core.types import Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.models.families import Role
    from editkit_core.numerics.corpus import Corpus
    from editkit_core.numerics.moments import KeyMoments
    from editkit_core.numerics.moments_group import Group
    from editkit_core.numerics.moments_store import StatisticsStore

__all__ = ["Loaded", "Work", "helpers"]

_LEAVE_S = 10


@attrs.frozen(kw_only=True)
class Work:
    """What was asked for, in a form that a process can be started with.

    Attributes:
        model: The model options.
        layers: Layers to read.
        roles: Which of their projections: those that ``site.role`` names.
        corpus: A file or a place on the hub.
        documents: Documents to read at most, or None.
        max_tokens: Tokens to stop after, or None.
        document_tokens: Tokens that documents are cut to.
        batch_size: Documents in a forward pass.
        out: Folder for the statistics, or None for the cache.
        fresh: Whether what is there is not looked at.
        quick: Whether few tokens and an estimated error will do.
    """

    model: Mapping[str, Any]  # Any: the model options as click gives them
    layers: tuple[int, ...]
    roles: tuple[Role, ...]
    corpus: str
    documents: int | None
    max_tokens: int | None
    document_tokens: int
    batch_size: int
    out: Path | None
    fresh: bool
    quick: bool

    def load(self, rank: int = 0, size: int = 1) -> Loaded:
        """Load the corpus and the model; of several processes each gets a GPU of its own."""
        from editkit_core.numerics.corpus import read_corpus
        from editkit_core.numerics.moments_store import StatisticsStore, default_folder

        corpus = read_corpus(self.corpus, documents=self.documents)
        options = dict(self.model)
        if size > 1 and options.get("device") == "cuda":
            import torch

            options["device"] = f"cuda:{rank % max(torch.cuda.device_count(), 1)}"
        model = load_editor(**options).model
        return Loaded(
            work=self,
            model=model,
            corpus=corpus,
            sites=tuple(
                model.site(layer, role=role)
                for layer in dict.fromkeys(self.layers)
                for role in dict.fromkeys(self.roles)
            ),
            store=StatisticsStore(self.out or default_folder()),
        )


@attrs.frozen(kw_only=True, eq=False)
class Loaded:
    """Everything a process needs.

    Attributes:
        work: What was asked for.
        model: The model.
        corpus: The documents.
        sites: Where keys are read.
        store: Where statistics are kept.
    """

    work: Work
    model: EditableModel
    corpus: Corpus
    sites: tuple[Site, ...]
    store: StatisticsStore

    @property
    def tokens(self) -> int | None:
        """Tokens that will be read at most, or None for all."""
        from editkit_core.numerics.moments_quick import quick_tokens

        if self.work.quick:
            return self.work.max_tokens or quick_tokens(self.model, self.sites)
        return self.work.max_tokens

    def collect(self, group: Group, progress: Progress) -> tuple[KeyMoments, ...]:
        """Sum this process's share; in the first process return the statistics."""
        from editkit_core.numerics.moments import collect_all_moments
        from editkit_core.numerics.moments_quick import quick_moments

        shared: dict[str, Any] = {  # Any: arguments of several types
            "document_tokens": self.work.document_tokens,
            "batch_size": self.work.batch_size,
            "store": self.store,
            "resume": not self.work.fresh,
            "progress": progress,
            "group": group,
        }
        if self.work.quick:
            return quick_moments(self.model, self.sites, self.corpus, tokens=self.tokens, **shared)
        return collect_all_moments(
            self.model, self.sites, self.corpus, max_tokens=self.work.max_tokens, **shared
        )


@contextmanager
def helpers(work: Work, size: int) -> Iterator[Group]:
    """Start processes that help with the work, and be the first of them.

    With one process, join those that a launcher started, if there are any.
    """
    import torch

    from editkit_core.numerics.moments_group import Meeting, started_outside

    if size == 1:
        with started_outside() as group:
            yield group
        return
    threads = torch.get_num_threads()
    each = max(threads // size, 1)
    meeting = Meeting(size)
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_help, args=(work, rank, size, meeting.port, each), daemon=True)
        for rank in range(1, size)
    ]
    try:
        torch.set_num_threads(each)
        for process in started:
            process.start()
        with meeting.opened() as group:
            yield group
        for process in started:
            process.join(_LEAVE_S)
    finally:
        torch.set_num_threads(threads)
        for process in started:
            if process.is_alive():
                process.terminate()
                process.join()


def _help(work: Work, rank: int, size: int, port: int, threads: int) -> None:
    show_notes()  # before torch is imported: it keeps other libraries quiet
    import torch

    from editkit_core.numerics.moments_group import joined

    torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            with joined(rank, size, port) as group:
                work.load(rank, size).collect(group, SilentProgress())
        except EditkitError as error:
            if not getattr(error, "gone", False):  # else the first process tells why it stopped
                click.echo(f"Error in process {rank}: {error}", err=True)
            os._exit(error.exit_code)

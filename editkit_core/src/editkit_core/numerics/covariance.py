"""The key covariance that an edit solves with: statistics from a folder, or the identity.

Where there are none, ``auto`` makes them from text that the model itself samples: what a model
writes is near what it was trained on, and even a small sample is far better than the identity (with
which a rank-one change reaches every token, since keys share a large mean).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
import torch
from torch import Tensor

from editkit_core.errors import StatisticsMissingError, WriteFailedError
from editkit_core.memo import Memo
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.inputs_digest import inputs_digests
from editkit_core.numerics.moments import (
    ENOUGH_TOKENS_A_KEY_ENTRY,
    KeyMoments,
    collect_all_moments,
)
from editkit_core.numerics.moments_store import StatisticsStore, default_folder
from editkit_core.numerics.solve import SpdFactor, factor_spd, solve_spd
from editkit_core.types import Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

T = TypeVar("T")
CovarianceMode = Literal["required", "auto", "identity"]
SAMPLE_TOKENS = 64
MIN_SAMPLED_TOKENS = 10_000
_SAMPLE_ROWS = 64

__all__ = [
    "Covariance",
    "CovarianceMode",
    "from_statistics",
    "load_covariance",
    "load_covariances",
    "sampled_corpus",
]


@attrs.frozen(eq=False, kw_only=True)
class Covariance:
    """C, factored, or the identity.

    Attributes:
        factor: Its Cholesky factor; None stands for the identity.
        origin: Where it comes from, as JSON values for a patch's metrics.
    """

    factor: SpdFactor | None
    origin: dict[str, Any]  # Any: JSON values

    def solve(self, rhs: Tensor) -> Tensor:
        """Return C⁻¹ rhs for ``rhs (d_in,)`` or ``(d_in, n)``, float64 on the CPU."""
        if self.factor is None:
            return rhs.detach().to(device="cpu", dtype=torch.float64)
        return solve_spd(self.factor, rhs)

    def gram(self, rows: Tensor) -> Tensor:
        """Return V C Vᵀ for ``rows (n, d_in)``, ``(n, n)`` float64 on the CPU."""
        read = rows.detach().to(device="cpu", dtype=torch.float64)
        if self.factor is not None:
            read = read @ self.factor.lower  # (n, d_in) @ (d_in, d_in)
        return read @ read.T


def load_covariance(
    model: EditableModel,
    site: Site,
    *,
    mode: CovarianceMode,
    folder: Path | None = None,
    ridge: float = 0.0,
    progress: Progress | None = None,
    memo: Memo | None = None,
) -> Covariance:
    """Find, check and factor the key statistics of one site; see :func:`load_covariances`."""
    (found,) = load_covariances(
        model, [site], mode=mode, folder=folder, ridge=ridge, progress=progress, memo=memo
    )
    return found


def load_covariances(
    model: EditableModel,
    sites: Sequence[Site],
    *,
    mode: CovarianceMode,
    folder: Path | None = None,
    ridge: float = 0.0,
    progress: Progress | None = None,
    memo: Memo | None = None,
) -> list[Covariance]:
    """Find, check and factor the key statistics of sites.

    Args:
        model: The model.
        sites: The weights whose keys count.
        mode: ``required`` fails without statistics, ``auto`` then makes them from sampled text, of
            all sites in one pass, and keeps them, ``identity`` does not look for any.
        folder: Where they are kept; None means the user's cache folder.
        ridge: Share of the mean diagonal entry that is added to the diagonal.
        progress: Where making them reports to.
        memo: Where factors are kept between edits, by the files they come from.

    Raises:
        StatisticsMissingError: They are required and not there; the message says how to make them.
        StatisticsError: A file is damaged.
        IllConditionedError: They cannot be solved with.
    """
    if mode == "identity":
        return [Covariance(factor=None, origin={"kind": "identity"}) for _ in sites]
    return from_statistics(
        model,
        sites,
        lambda moments: _factored(moments, ridge),
        size=_size,
        what=("covariance", repr(ridge)),
        required=mode == "required",
        folder=folder,
        progress=progress,
        memo=memo,
    )


def from_statistics(
    model: EditableModel,
    sites: Sequence[Site],
    make: Callable[[KeyMoments], T],
    *,
    size: Callable[[T], int],
    what: tuple[str, ...],
    required: bool,
    folder: Path | None = None,
    progress: Progress | None = None,
    memo: Memo | None = None,
) -> list[T]:
    """Return what is made of each site's key statistics; in a memo it is made once a file.

    Args:
        model: The model.
        sites: The weights whose keys count.
        make: Makes it.
        size: Says how many bytes it takes.
        what: Names what is made and the settings it depends on.
        required: Whether statistics must exist; otherwise those missing are made from sampled text,
            in one pass.
        folder: Where they are kept; None means the user's cache folder.
        progress: Where making them reports to.
        memo: Where results are kept between edits.

    Raises:
        StatisticsMissingError: They are required and not there; the message says how to make them.
        StatisticsError: A file is damaged.
    """
    store = StatisticsStore(folder or default_folder())
    digests = inputs_digests(model, sites)
    finished = [
        [path for path in store.candidates(model, site, digest=digest) if store.is_finished(path)]
        for site, digest in zip(sites, digests, strict=True)
    ]
    missing = [site for site, files in zip(sites, finished, strict=True) if not files]
    if missing and required:
        raise _missing(model, missing, folder, store)
    new = _sampled_moments(model, missing, store, progress or SilentProgress()) if missing else {}

    def of(site: Site, digest: str, files: Sequence[Path]) -> T:
        def load() -> T:
            moments = new.get(site) or store.find(model, site, digest=digest)
            assert moments is not None  # a finished file was there
            return make(moments)

        if not files or memo is None:
            return load()
        stamps = [f"{path.name} {_stamp(path)}" for path in files]
        return memo.get((*what, str(store.folder), *stamps), load, size)

    return [of(*one) for one in zip(sites, digests, finished, strict=True)]


def _factored(moments: KeyMoments, ridge: float) -> Covariance:
    factor = factor_spd(moments.moment, ridge=ridge)
    origin = {
        "kind": "statistics",
        "corpus": moments.key.corpus,
        "digest": moments.key.digest,
        "tokens": moments.count,
        "condition": factor.condition,
        "ridge": ridge,
    }
    return Covariance(factor=factor, origin=origin)


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _size(covariance: Covariance) -> int:
    return 0 if covariance.factor is None else covariance.factor.lower.nbytes


def sampled_corpus(
    model: EditableModel, tokens: int, *, seed: int = 0, progress: Progress | None = None
) -> Corpus:
    """Let the model write texts of :data:`SAMPLE_TOKENS` tokens, each from nothing.

    Args:
        model: The model.
        tokens: About how many tokens in all.
        seed: Seed of the sampling; the global random state is not touched.
        progress: Told the number of texts.
    """
    progress = progress or SilentProgress()
    count = -(-tokens // SAMPLE_TOKENS)
    texts: list[str] = []
    progress.start("sampling text for key statistics", count)
    try:
        for first in range(0, count, _SAMPLE_ROWS):
            rows = min(_SAMPLE_ROWS, count - first)
            texts += model.generate(
                [""] * rows,
                max_new_tokens=SAMPLE_TOKENS,
                sample=True,
                seed=seed + first,
                batch_size=_SAMPLE_ROWS,
            )
            progress.advance(rows)
    finally:
        progress.finish()
    return Corpus.of(texts, f"{count} texts sampled from the model, seed {seed}")


def _sampled_moments(
    model: EditableModel, sites: Sequence[Site], store: StatisticsStore, progress: Progress
) -> dict[Site, KeyMoments]:
    side = max(int(model.weight(site).shape[1]) for site in sites)
    tokens = max(MIN_SAMPLED_TOKENS, 2 * ENOUGH_TOKENS_A_KEY_ENTRY * side)
    corpus = sampled_corpus(model, tokens, progress=progress)
    made = collect_all_moments(model, sites, corpus, batch_size=_SAMPLE_ROWS, progress=progress)
    with suppress(WriteFailedError):  # a cache that cannot be written must not stop an edit
        for moments in made:
            store.save(moments)
    return dict(zip(sites, made, strict=True))


def _missing(
    model: EditableModel, sites: Sequence[Site], folder: Path | None, store: StatisticsStore
) -> StatisticsMissingError:
    out = "" if folder is None else f" --out {folder}"
    others = [name for site in sites for name in store.others(site)]
    aside = (
        f" {len(others)} file(s) there are of another base or tokenizer, or unfinished."
        if others
        else ""
    )
    layers = list(dict.fromkeys(site.layer for site in sites))
    named = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    asked = " ".join(f"--layer {layer}" for layer in layers)
    roles = list(dict.fromkeys(site.role for site in sites))
    if roles != ["mlp_down"]:
        named += f" ({' and '.join(roles)})"
        asked += "".join(f" --role {role}" for role in roles)
    return StatisticsMissingError(
        f"No key statistics of {named} of {model.name} in {store.folder}.{aside} Make "
        f"them once with: editkit stats --model {model.name} {asked} --corpus "
        f"FILE.txt{out}. Or set covariance=auto, which makes them from text the model samples.",
        model=model.name,
        layer=layers[0],
        layers=tuple(layers),
        folder=str(store.folder),
    )

"""The key covariance that an edit solves with: statistics from a folder, or the identity.

Where there are none, ``auto`` makes them from text that the model itself samples: what a model
writes is near what it was trained on, and even a small sample is far better than the identity (with
which a rank-one change reaches every token, since keys share a large mean).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from torch import Tensor

from editkit_core.errors import StatisticsMissingError, WriteFailedError
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.moments import (
    ENOUGH_TOKENS_A_KEY_ENTRY,
    KeyMoments,
    collect_moments,
)
from editkit_core.numerics.moments_store import StatisticsStore, default_folder
from editkit_core.numerics.solve import SpdFactor, factor_spd, solve_spd
from editkit_core.types import Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

CovarianceMode = Literal["required", "auto", "identity"]
SAMPLE_TOKENS = 64
MIN_SAMPLED_TOKENS = 10_000
_SAMPLE_ROWS = 64

__all__ = ["Covariance", "CovarianceMode", "load_covariance", "sampled_corpus"]


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


def load_covariance(
    model: EditableModel,
    site: Site,
    *,
    mode: CovarianceMode,
    folder: Path | None = None,
    ridge: float = 0.0,
    progress: Progress | None = None,
) -> Covariance:
    """Find, check and factor the key statistics of a site.

    Args:
        model: The model.
        site: The weight whose keys count.
        mode: ``required`` fails without statistics, ``auto`` then makes them from sampled text and
            keeps them, ``identity`` does not look for any.
        folder: Where they are kept; None means the user's cache folder.
        ridge: Share of the mean diagonal entry that is added to the diagonal.
        progress: Where making them reports to.

    Raises:
        StatisticsMissingError: They are required and not there; the message says how to make them.
        StatisticsError: A file is damaged.
        IllConditionedError: They cannot be solved with.
    """
    if mode == "identity":
        return Covariance(factor=None, origin={"kind": "identity"})
    store = StatisticsStore(folder or default_folder())
    moments = store.find(model, site)
    if moments is None:
        if mode == "required":
            raise _missing(model, site, folder, store)
        moments = _sampled_moments(model, site, store, progress or SilentProgress())
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
    model: EditableModel, site: Site, store: StatisticsStore, progress: Progress
) -> KeyMoments:
    side = model.weight(site).shape[1]
    tokens = max(MIN_SAMPLED_TOKENS, 2 * ENOUGH_TOKENS_A_KEY_ENTRY * side)
    corpus = sampled_corpus(model, tokens, progress=progress)
    made = collect_moments(model, site, corpus, batch_size=_SAMPLE_ROWS, progress=progress)
    with suppress(WriteFailedError):  # a cache that cannot be written must not stop an edit
        store.save(made)
    return made


def _missing(
    model: EditableModel, site: Site, folder: Path | None, store: StatisticsStore
) -> StatisticsMissingError:
    out = "" if folder is None else f" --out {folder}"
    others = store.others(site)
    aside = (
        f" {len(others)} file(s) there are of another base or tokenizer, or unfinished."
        if others
        else ""
    )
    return StatisticsMissingError(
        f"No key statistics of layer {site.layer} of {model.name} in {store.folder}.{aside} Make "
        f"them once with: editkit stats --model {model.name} --layer {site.layer} --corpus "
        f"FILE.txt{out}. Or set covariance=auto, which makes them from text the model samples.",
        model=model.name,
        layer=site.layer,
        folder=str(store.folder),
    )

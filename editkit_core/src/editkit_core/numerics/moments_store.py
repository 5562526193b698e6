"""Where key statistics are kept: one safetensors file each, named by what it depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import cattrs.errors
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from editkit_core.atomic import write_file
from editkit_core.errors import (
    EditkitError,
    PatchFormatError,
    StatisticsError,
    StatisticsMismatchError,
    WriteFailedError,
)
from editkit_core.numerics.inputs_digest import inputs_digest
from editkit_core.numerics.moments import KeyMoments, MomentsKey
from editkit_core.params import converter
from editkit_core.patch.container import parse_json
from editkit_core.patch.digests import canonical, tensor_digest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.types import Site

__all__ = ["StatisticsStore", "check_moments", "default_folder"]

_METADATA = "editkit_statistics"
_TENSOR = "total"
_TEXTS = "texts"
_FORMAT = 1
_ENDING = ".statistics.safetensors"


@attrs.frozen(kw_only=True)
class _Header:
    format: int
    key: MomentsKey
    count: int
    documents: int
    complete: bool
    tensor: str
    texts: str | None = None
    error: float | None = None


def default_folder() -> Path:
    """Return the user's cache folder for key statistics."""
    from platformdirs import user_cache_path

    return user_cache_path("editkit") / "statistics"


@attrs.frozen
class StatisticsStore:
    """A folder of key statistics.

    Attributes:
        folder: The folder; it is made when something is saved.
    """

    folder: Path

    def resume(self, key: MomentsKey) -> KeyMoments | None:
        """Return the finished or else the partial statistics with this key, or None.

        Raises:
            StatisticsError: The file is damaged.
        """
        for complete in (True, False):
            path = self._path(key, complete=complete)
            if path.is_file():
                moments = self.load(path)
                if moments.key != key:
                    raise StatisticsMismatchError(
                        f"{path} holds statistics with key {moments.key.digest}, its name says "
                        f"{key.digest}. Delete it and run editkit stats again.",
                        expected=key.digest,
                        found=moments.key.digest,
                    )
                return moments
        return None

    def find(
        self, model: EditableModel, site: Site, *, digest: str | None = None
    ) -> KeyMoments | None:
        """Return the finished statistics that fit a model and site; the most tokens win.

        Args:
            model: The model.
            site: The weight whose keys count.
            digest: Its `inputs_digest`, when it is known already.

        Raises:
            StatisticsError: A file that should fit is damaged.
        """
        digest = digest or inputs_digest(model, site)
        found = [self.load(path) for path in self.candidates(model, site, digest=digest)]
        fitting = [moments for moments in found if moments.complete]
        for moments in fitting:
            check_moments(moments, model, site, digest=digest)
        return max(fitting, key=lambda moments: moments.count, default=None)

    def candidates(
        self, model: EditableModel, site: Site, *, digest: str | None = None
    ) -> list[Path]:
        """Return the files named for a model and site, finished or not, without reading them."""
        digest = digest or inputs_digest(model, site)
        return sorted(self.folder.glob(f"{site.module}-{digest[:16]}-*{_ENDING}"))

    def files(self) -> list[Path]:
        """Return the files of finished statistics, of any model."""
        return [path for path in sorted(self.folder.glob(f"*{_ENDING}")) if self.is_finished(path)]

    @staticmethod
    def is_finished(path: Path) -> bool:
        """Say by a file's name whether its statistics are finished."""
        return not path.name.endswith(f".partial{_ENDING}")

    def others(self, site: Site) -> tuple[str, ...]:
        """Return the file names of statistics of the same module, whatever their base."""
        return tuple(sorted(path.name for path in self.folder.glob(f"{site.module}-*{_ENDING}")))

    def save(self, moments: KeyMoments) -> Path:
        """Write statistics; a finished file takes the place of its partial one.

        Raises:
            WriteFailedError: Writing failed; what was there before is still there.
        """
        path = self._path(moments.key, complete=moments.complete)
        header = _Header(
            format=_FORMAT,
            key=moments.key,
            count=moments.count,
            documents=moments.documents,
            complete=moments.complete,
            tensor=tensor_digest(_TENSOR, moments.total.numpy()),
            texts=tensor_digest(_TEXTS, moments.texts.numpy()) if len(moments.texts) else None,
            error=moments.error,
        )
        text = canonical(converter().unstructure(header), "statistics header").decode()
        tensors = {_TENSOR: moments.total.contiguous()}
        if len(moments.texts):
            tensors[_TEXTS] = moments.texts.contiguous()
        data = save(tensors, metadata={_METADATA: text})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteFailedError(
                f"Cannot make the folder {self.folder}: {error.strerror or error}. Choose another "
                "with --out.",
                path=str(self.folder),
            ) from error
        write_file(path, [data], force=True)
        if moments.complete:
            self._path(moments.key, complete=False).unlink(missing_ok=True)
        return path

    def load(self, path: Path) -> KeyMoments:
        """Read one file strictly.

        Raises:
            StatisticsError: It is missing, damaged, of another format, or not written by editkit.
        """
        try:
            return _parse(path.read_bytes())
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            SafetensorError,
            PatchFormatError,
            cattrs.errors.BaseValidationError,
        ) as error:
            reason = error.message if isinstance(error, EditkitError) else str(error)
            raise StatisticsError(
                f"{path} cannot be used as key statistics: {reason}. Delete it and run editkit "
                "stats again.",
                path=str(path),
            ) from error

    def _path(self, key: MomentsKey, *, complete: bool) -> Path:
        ending = _ENDING if complete else f".partial{_ENDING}"
        return self.folder / f"{key.module}-{key.inputs_digest[:16]}-{key.digest[:16]}{ending}"


def check_moments(
    moments: KeyMoments, model: EditableModel, site: Site, *, digest: str | None = None
) -> None:
    """Refuse statistics that were not made at this site of this model.

    Args:
        moments: The statistics.
        model: The model.
        site: The weight whose keys count.
        digest: Its `inputs_digest`, when it is known already.

    Raises:
        StatisticsMismatchError: The base or the layer differs; both are named.
    """
    if moments.key.module != site.module:
        raise StatisticsMismatchError(
            f"The key statistics are of {moments.key.module}, the edit is at {site.module}. Make "
            f"them with editkit stats {_asked(site)}.",
            expected=site.module,
            found=moments.key.module,
        )
    expected = digest or inputs_digest(model, site)
    if moments.key.inputs_digest != expected:
        raise StatisticsMismatchError(
            f"The key statistics were made on {moments.key.model} with digest "
            f"{moments.key.inputs_digest}; {model.name} has digest {expected}. Make them anew with "
            f"editkit stats --model {model.name} {_asked(site)}.",
            expected=expected,
            found=moments.key.inputs_digest,
        )


def _asked(site: Site) -> str:
    """Return the options that ask for a site's statistics on the command line."""
    return f"--layer {site.layer}" + ("" if site.role == "mlp_down" else f" --role {site.role}")


def _parse(data: bytes) -> KeyMoments:
    length = int.from_bytes(data[:8], "little")
    outer = parse_json(data[8 : 8 + length], "header")
    metadata = outer["__metadata__"]
    if set(metadata) != {_METADATA} or set(outer) - {_TEXTS} != {"__metadata__", _TENSOR}:
        raise ValueError(f"it holds {sorted(outer)} with metadata {sorted(metadata)}")
    fields = json.loads(metadata[_METADATA])
    if fields.get("format") != _FORMAT:
        raise ValueError(f"it has format {fields.get('format')!r}, this version reads {_FORMAT}")
    header = converter().structure(fields, _Header)
    tensors = load(data)
    total = tensors[_TENSOR]
    square = total.ndim == 2 and total.shape[0] == total.shape[1]
    if total.dtype != torch.float64 or not square or not bool(torch.isfinite(total).all()):
        raise ValueError(f"its tensor is {total.dtype} {tuple(total.shape)} or not finite")
    found = tensor_digest(_TENSOR, total.numpy())
    if found != header.tensor:
        raise ValueError(f"its tensor has digest {found}, the header says {header.tensor}")
    texts = tensors.get(_TEXTS)
    if (header.texts is None) != (texts is None):
        raise ValueError("its list of texts is not what the header says")
    if texts is not None and tensor_digest(_TEXTS, texts.numpy()) != header.texts:
        raise ValueError("its list of texts has another digest than the header says")
    return KeyMoments(
        key=header.key,
        total=total,
        count=header.count,
        documents=header.documents,
        complete=header.complete,
        error=header.error,
        texts=torch.empty(0, dtype=torch.int64) if texts is None else texts,
    )

"""Logs of a training run: two CSV files always, TensorBoard's where it is installed."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from editkit_core.atomic import write_file
from editkit_core.errors import MissingExtraError, WriteFailedError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Logs"]

TRAINING = "training.csv"
VALIDATION = "validation.csv"
BOARD = "tensorboard"
_STEP = "step"


class Logs:
    """Where a run writes its numbers; without a folder nowhere.

    Rows after ``step``, which a run that was killed wrote and now makes again, are taken out.

    Args:
        folder: The run's folder, or None.
        step: The update that the run goes on from.
        tensorboard: Whether to write TensorBoard's files; None where it is installed.

    Raises:
        MissingExtraError: TensorBoard was asked for and is not installed.
        WriteFailedError: A file cannot be written.
    """

    def __init__(self, folder: Path | None, step: int, tensorboard: bool | None) -> None:
        self._folder = folder
        installed = find_spec("tensorboard") is not None
        if tensorboard and not installed:
            raise MissingExtraError(
                "TensorBoard is not installed. Run: pip install "
                '"editkit-core[tensorboard]", or leave --tensorboard out; the CSV files hold the '
                "same numbers."
            )
        self._board: SummaryWriter | None = None
        if folder is not None:
            for name in (TRAINING, VALIDATION):
                _cut(folder / name, step)
            if tensorboard or (tensorboard is None and installed):
                self._board = _writer(folder / BOARD, step)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of an update."""
        self._write(TRAINING, step, values)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scores of a validation."""
        self._write(VALIDATION, step, values)

    def close(self) -> None:
        """End the files."""
        if self._board is not None:
            self._board.close()

    def _write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        if self._folder is None:
            return
        path = self._folder / name
        row = {_STEP: str(step), **{key: repr(float(value)) for key, value in values.items()}}
        try:
            new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise WriteFailedError(
                f"Cannot write {path}: {error.strerror or error}. Free space, and start again to "
                "go on from the last checkpoint.",
                path=str(path),
                errno=error.errno,
            ) from error
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(f"{path.stem}/{key}", value, step)


def _cut(path: Path, step: int) -> None:
    """Take out the rows after an update, and a last one that a crash cut short."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1]
    rows = list(csv.DictReader(io.StringIO(lines)))
    kept = [row for row in rows if str(row.get(_STEP)).isdecimal() and int(row[_STEP]) <= step]
    if not kept:
        path.unlink()
    elif len(kept) < len(rows) or lines != text:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_file(path, [out.getvalue().encode()], force=True)


def _writer(folder: Path, step: int) -> SummaryWriter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own, on what it imports
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=step + 1 if step else None)

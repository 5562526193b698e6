"""The stored form of a codebook: what is written is read back, and nothing that does not hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editkit_core.errors import PatchDigestError, PatchFormatError, PatchShapeError
from editkit_core.patch import Patch
from editkit_core.patch.format import MethodRef
from editkit_core.patch.header import BaseFingerprint, TensorFingerprint
from editkit_core.patch.io import load
from editkit_core.patch.kinds import BUILTIN_KINDS
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry, label_of
from editkit_core.patch.kinds.codebook_rules import insert
from editkit_core.types import Site

SITE = Site(module="h.0.mlp.c_proj", parameter="h.0.mlp.c_proj.weight", layer=0)
Tensors = dict[str, np.ndarray[Any, Any]]  # Any: element type and shape


def codebook() -> Codebook:
    """Two rows that took room from one another; two edits rely on the first."""
    book = Codebook.empty(3, 2, "replace_all")
    for i, (x, target) in enumerate([(0.0, 1), (0.3, 1), (1.5, 2)]):
        key, value = np.array([x, 1.0, 2.0]), np.array([x, -1.0])
        label = label_of([target])
        book, _, _ = insert(book, key, value, label, 1.0, edit_id=label_of([100 + i]))
    return book


def entry() -> CodebookEntry:
    return CodebookEntry(site=SITE, codebook=codebook())


def patch(made: CodebookEntry | None = None, shape: tuple[int, int] = (3, 2)) -> Patch:
    tensor = TensorFingerprint(shape=shape, dtype="F32", sha256="0" * 64, layout="in_out")
    return Patch.from_parts(
        entries=[made or entry()],
        method=MethodRef(name="grace", dist="editkit-grace", version="0.1.0"),
        base=BaseFingerprint(model="tiny", tensors={SITE.parameter: tensor}),
        environment={},
        created="2000-01-01T00:00:00Z",
    )


def test_the_core_knows_the_kind() -> None:
    assert BUILTIN_KINDS["gate.codebook/1"] is CodebookEntry


def test_a_codebook_is_read_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    made = patch()
    made.save(tmp_path / "a.editkit.safetensors")
    (read,) = Patch.load(tmp_path / "a.editkit.safetensors").module_entries
    assert isinstance(read, CodebookEntry)
    assert read.codebook.replacement == "replace_all"
    for name, array in made.entries[0].tensors().items():
        assert read.tensors()[name].tobytes() == array.tobytes(), name


def test_a_patch_tells_its_weight_entries_from_its_module_entries() -> None:
    made = patch()
    assert made.weight_entries == ()
    assert [e.kind for e in made.module_entries] == ["gate.codebook/1"]


def test_a_described_codebook_says_rows_radii_and_replacement() -> None:
    (row,) = patch().summary()["entries"]
    assert row["level"] == "module"
    assert (row["rows"], row["edits"], row["labels"]) == (2, 3, 2)
    assert row["radii"] == [pytest.approx(0.75, abs=1e-4), pytest.approx(0.75, abs=1e-4)]
    assert (row["shrunk"], row["silent"], row["replacement"]) == (2, 0, "replace_all")


def test_its_norm_is_that_of_its_values() -> None:
    assert entry().norm() == pytest.approx(np.sqrt(0 + 1 + 1.5**2 + 1))


def test_a_codebook_that_does_not_fit_the_fingerprinted_weight_is_refused() -> None:
    with pytest.raises(PatchShapeError, match="2, 3"):
        patch(shape=(2, 3))


def test_an_entry_needs_a_row() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        CodebookEntry(site=SITE, codebook=Codebook.empty(3, 2))


def test_a_file_whose_codebook_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.editkit.safetensors"
    patch().save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PatchDigestError):
        load(path)


def _set(name: str, value: Any) -> Callable[[Tensors], None]:  # Any: an array-like
    def change(tensors: Tensors) -> None:
        tensors[name] = np.asarray(value, dtype=tensors[name].dtype)

    return change


def _cut(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name][:-1]

    return change


def _at(name: str, place: int | tuple[int, int], value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = np.array(tensors[name])
        tensors[name][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_at("keys", (1, 2), float("nan")), "finite"),
        (_at("values", (0, 1), float("inf")), "finite"),
        (_at("radii", 0, float("nan")), "finite"),
        (_at("radii", 0, -0.5), "below 0"),
        (_at("reaches", 0, -0.5), "below 0"),
        (_at("radii", 0, 9.0), "above what its edits reach"),
        (_at("cause", 0, 2), "no row"),
        (_at("cause", 0, -2), "no row"),
        (_at("cause", 0, 0), "its own cause"),
        (_at("edit_rows", 0, 2), "every row"),
        (_at("edit_rows", 2, 0), "every row"),
        (_cut("values"), "values must hold 2"),
        (_cut("radii"), "radii must hold 2"),
        (_cut("labels"), "labels must hold 2"),
        (_cut("cause"), "cause must hold 2"),
        (_cut("edit_rows"), "edit_rows must hold 3"),
        (_cut("reaches"), "reaches must hold 3"),
        (_set("labels", np.zeros((2, 31))), "32 bytes"),
        (_set("edit_ids", np.zeros((3, 33))), "32 bytes"),
        (_set("keys", np.zeros((2, 3, 1))), "2 sides"),
        (_set("keys", np.zeros((2, 0))), "2 sides"),
        (_set("replacement", [3]), "replacement"),
        (_set("replacement", [0, 0]), "replacement"),
    ],
)
def test_what_does_not_hold_is_refused(change: Callable[[Tensors], None], says: str) -> None:
    tensors = entry().tensors()
    change(tensors)
    with pytest.raises(ValueError, match=says):
        CodebookEntry.from_tensors(SITE, tensors)


def test_a_stored_tensor_of_another_type_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.editkit.safetensors"
    patch().save(path)
    monkeypatch.setattr(CodebookEntry, "dtypes", {**CodebookEntry.dtypes, "keys": "F64"})
    with pytest.raises(PatchFormatError, match="keys must be F64"):
        load(path)


def test_arrays_of_a_codebook_cannot_be_written_to() -> None:
    book = codebook()
    for name in CodebookEntry.dtypes:
        if name != "replacement":
            assert not getattr(book, name).flags.writeable, name

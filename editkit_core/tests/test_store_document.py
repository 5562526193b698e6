"""The files of a stack as text: stack.json and editkit.lock."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from editkit_core.errors import StackDamagedError, StackError
from editkit_core.stack.state import EntryState, StackState
from editkit_core.stack.store import BaseRecord, StackDocument, TensorResult
from editkit_core.stack.store.document import decode, encode
from editkit_core.stack.store.lock_file import encode_lock, lock_problem

PATH = Path("somewhere/stack.json")
HEX = "0123456789abcdef"


def an_entry(number: int, **changes: Any) -> EntryState:
    values = {"content_digest": f"{number:064x}", "file_sha256": f"{number + 100:064x}", **changes}
    return EntryState(id=f"ek-{number:016x}", **values)


def a_document(*entries: EntryState, **changes: Any) -> StackDocument:
    values = {
        "generation": 3,
        "base": BaseRecord(
            model="owner/name",
            revision="abc",
            config_digest="c" * 64,
            digest="d" * 64,
            files={"model.safetensors": "e" * 64},
        ),
        "state": StackState(entries=entries, position=min(1, len(entries))),
        "tensors": {"w": TensorResult(pristine_sha256="f" * 64, sha256="a" * 64, patches=("p",))},
        "action": "push",
        "time": "2000-01-01T00:00:00Z",
    }
    return StackDocument(**(values | changes))


ENTRIES = st.builds(
    an_entry,
    st.integers(0, 2**40),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    enabled=st.booleans(),
    scale=st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    mode=st.sampled_from(["merge", "overlay"]),
    computed_on=st.none() | st.text(HEX, min_size=64, max_size=64),
    depends_on=st.lists(st.text(HEX), max_size=2).map(tuple),
)
DOCUMENTS = st.lists(ENTRIES, max_size=4, unique_by=lambda entry: entry.id).map(
    lambda entries: a_document(*entries)
)


@given(DOCUMENTS)
def test_what_is_written_is_read_back(document: StackDocument) -> None:
    assert decode(encode(document), PATH) == document


def test_equal_stacks_are_equal_bytes() -> None:
    turned = a_document(an_entry(1), tensors=dict(reversed(list(a_document().tensors.items()))))
    assert encode(a_document(an_entry(1))) == encode(turned)


def test_a_changed_bit_anywhere_in_the_document_is_found() -> None:
    text = encode(a_document(an_entry(1, name="é", scale=0.5)))
    choose = random.Random(0)
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1 << choose.randrange(8)
        with pytest.raises((StackDamagedError, StackError)):
            decode(bytes(changed), PATH)


def test_a_document_cut_off_anywhere_is_found() -> None:
    text = encode(a_document(an_entry(1))).rstrip()
    for length in range(len(text)):
        with pytest.raises(StackDamagedError, match=r"stack\.json cannot be used.*history"):
            decode(text[:length], PATH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generation": "3"}, "generation"),
        ({"surprise": 1}, "surprise"),
        ({"state": {"position": 2}}, "position"),
        ({"state": {"entries": [{"id": "a"}]}}, "content_digest"),
        (
            {"state": {"entries": [{"id": "a", "content_digest": "b", "file_sha256": "../x"}]}},
            "file digest",
        ),
        ({"base": {"model": "m"}}, "config_digest"),
    ],
)
def test_a_document_of_the_wrong_form_is_refused_though_its_checksum_is_right(
    change: dict[str, Any], message: str
) -> None:
    import hashlib

    import rfc8785

    fields = json.loads(encode(a_document())) | change
    del fields["checksum"]
    fields["checksum"] = hashlib.sha256(rfc8785.dumps(fields)).hexdigest()
    with pytest.raises(StackDamagedError, match=message):
        decode(json.dumps(fields).encode(), PATH)


def test_a_key_that_occurs_twice_is_refused() -> None:
    text = encode(a_document()).decode().replace("{", '{"generation": 9,', 1)
    with pytest.raises(StackDamagedError, match="twice"):
        decode(text.encode(), PATH)


def test_another_version_of_the_format_is_named() -> None:
    text = encode(attrs.evolve(a_document(), spec="editkit.stack/2"))
    with pytest.raises(StackError, match=r"editkit\.stack/2.*reads 'editkit\.stack/1'"):
        decode(text, PATH)


# -- editkit.lock --


@given(DOCUMENTS)
def test_the_lock_file_agrees_with_the_stack_it_was_written_from(document: StackDocument) -> None:
    assert tomlkit.parse(encode_lock(document).decode()).unwrap()["patch"] == [
        {
            "id": entry.id,
            "name": entry.name,
            "file_sha256": entry.file_sha256,
            "content_digest": entry.content_digest,
            "enabled": entry.enabled,
            "applied": place < document.state.position,
            "scale": entry.scale,
            "mode": entry.mode,
        }
        for place, entry in enumerate(document.state.entries)
    ]


def test_the_lock_file_names_the_base_without_this_machines_folders() -> None:
    base = attrs.evolve(a_document().base, model="/home/someone/models/tiny", revision=None)
    found = tomlkit.parse(encode_lock(a_document(base=base)).decode()).unwrap()
    assert found["base"] == {"model": "tiny", "digest": "d" * 64, "config_digest": "c" * 64}


def test_a_bare_stack_has_no_digest_and_a_patched_one_has_the_one_edits_are_computed_on() -> None:
    bare = tomlkit.parse(encode_lock(a_document()).decode()).unwrap()
    document = a_document(an_entry(1), an_entry(2))
    patched = tomlkit.parse(encode_lock(document).decode()).unwrap()
    assert "digest" not in bare
    assert patched["digest"] == StackState(entries=[an_entry(1)], position=1).digest()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("generation = 3", "generation = 2", "generation 2, the stack is at 3"),
        ("scale = 1.0", "scale = 2.0", "something else"),
        ("enabled = true", "enabled = false", "something else"),
        ("[base]", "[base", "cannot be read"),
        ("[base]", "more = 1\n[base]", "something else"),
    ],
)
def test_a_changed_lock_file_is_found(tmp_path: Path, old: str, new: str, problem: str) -> None:
    document = a_document(an_entry(1))
    path = tmp_path / "editkit.lock"
    path.write_bytes(encode_lock(document))
    assert lock_problem(path, document) is None
    path.write_text(path.read_text().replace(old, new, 1))
    assert problem in str(lock_problem(path, document))


def test_a_comment_in_the_lock_file_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "editkit.lock"
    path.write_bytes(encode_lock(a_document()) + b"# checked by A\n")
    assert lock_problem(path, a_document()) is None


def test_a_missing_lock_file_is_found(tmp_path: Path) -> None:
    assert lock_problem(tmp_path / "editkit.lock", a_document()) == "is missing"

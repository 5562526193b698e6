"""Malformed, damaged, foreign and hostile files: each is refused, saying where, fast and small."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit_core.errors import (
    InputNotFoundError,
    PatchDigestError,
    PatchError,
    PatchFormatError,
    PatchShapeError,
    PatchVersionError,
    UnknownPatchKindError,
)
from editkit_core.patch import (
    BaseFingerprint,
    Evidence,
    LowRankEntry,
    MethodRef,
    Patch,
    TensorFingerprint,
    digests,
    read_header,
)
from editkit_core.types import EditRequest, Site

Fields = dict[str, Any]
SITE = Site(module="h.0.mlp.c_proj", parameter="h.0.mlp.c_proj.weight", layer=0)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tensor = TensorFingerprint(shape=(3, 2), dtype="F16", sha256="0" * 64, layout="in_out")
    patch = Patch.from_parts(
        entries=[LowRankEntry(site=SITE, u=np.ones((2, 1)), v=np.arange(3.0)[None])],
        method=MethodRef(name="rome", dist="editkit-rome", version="0.1.0"),
        base=BaseFingerprint(model="tiny", tensors={SITE.parameter: tensor}),
        edits=[EditRequest(prompt="The {} is", subject="x", target_new="y")],
        evidence=Evidence(module=SITE.module, keys=np.ones((1, 3))),
        params={"lr": 0.5},
        contexts=("",),
        environment={},
        created="2000-01-01T00:00:00Z",
    )
    path = tmp_path_factory.mktemp("good") / "a"
    patch.save(path)
    return path.read_bytes()


def split(content: bytes) -> tuple[Fields, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Fields | str, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def with_header(content: bytes, change: Callable[[Fields], object]) -> bytes:
    header, data = split(content)
    change(header)
    return join(header, data)


def with_metadata(
    content: bytes, change: Callable[[Fields], object], *, seal: bool = True
) -> bytes:
    """Change the inner metadata; with ``seal`` also make all its digests right again."""
    header, data = split(content)
    fields = json.loads(header["__metadata__"]["editkit"])
    change(fields)
    if seal:
        fields["content_digest"] = digests.content_digest(fields)
        fields["id"] = digests.patch_id(fields["content_digest"])
        fields["checksum"] = digests.checksum(fields)
    header["__metadata__"]["editkit"] = rfc8785.dumps(fields).decode()
    return join(header, data)


def refused(tmp_path: Path, content: bytes, match: str, kind: type[PatchError]) -> PatchError:
    path = tmp_path / "patch"
    path.write_bytes(content)
    with pytest.raises(kind, match=match) as caught:
        Patch.load(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_the_untouched_file_is_read(tmp_path: Path, good: bytes) -> None:
    (tmp_path / "patch").write_bytes(good)
    (tmp_path / "again").write_bytes(with_metadata(good, lambda fields: None))
    assert Patch.load(tmp_path / "patch").id == Patch.load(tmp_path / "again").id


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a patch file: it has 0 bytes"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"PK\x03\x04" + b"\0" * 40, "zip"),
        (b"\x80\x02}q\x00." + b"\0" * 20, "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b'{"prompt": "x"}\n', "JSON text"),
        (b"just some text, longer than eight bytes", "not a safetensors file"),
        ((2**63).to_bytes(8, "little") + b"{}", "announce a header of 9223372036854775808"),
        (join("[]", b""), "must be an object"),
        (join("{", b""), "not the JSON"),
        (join("{}", b""), "not an editkit patch"),
        (join("[" * 100_000, b""), "nested too deeply"),
        (join('{"__metadata__":{"editkit":3}}', b""), "texts only"),
        (join('{"__metadata__":3}', b""), "texts only"),
        (join('{"__metadata__":{"editkit":"[]"}}', b""), "metadata must be an object"),
        (join('{"__metadata__":{"editkit":"{}"}}', b""), "spec_version must be a whole number"),
        (join('{"a":' + "1" * 5000 + "}", b""), "not the JSON"),
        (b"\x08" + b"\0" * 7 + b"\xff" * 8, "not the JSON"),
    ],
)
def test_what_is_no_patch_is_told_apart(tmp_path: Path, content: bytes, match: str) -> None:
    refused(tmp_path, content, match, PatchFormatError)


def test_somebody_elses_safetensors_file_is_named_as_such(tmp_path: Path) -> None:
    content = safetensors.numpy.save({"a": np.zeros(3)}, metadata={"format": "pt"})
    refused(tmp_path, content, "a safetensors file but not an editkit patch", PatchFormatError)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputNotFoundError, match="Cannot read the patch"):
            Patch.load(path)


def test_a_device_file_is_refused() -> None:
    with pytest.raises(PatchFormatError, match="not a regular file"):
        Patch.load(Path("/dev/zero"))


def test_every_truncation_is_refused(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "patch"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(PatchFormatError):
            Patch.load(path)


def test_a_byte_too_many_is_refused(tmp_path: Path, good: bytes) -> None:
    refused(tmp_path, good + b"\0", "the header announces", PatchFormatError)


def test_random_bit_flips_are_refused(tmp_path: Path, good: bytes) -> None:
    path, chance = tmp_path / "patch", random.Random(0)
    for bit in chance.sample(range(len(good) * 8), 600):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(PatchError):
            Patch.load(path)


@pytest.mark.slow
def test_every_single_bit_flip_is_refused(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "patch"
    for bit in range(len(good) * 8):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(PatchError):
            Patch.load(path)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "patch"
    path.write_bytes(content)
    with pytest.raises(PatchFormatError):
        Patch.load(path)


def test_a_flipped_bit_in_a_number_names_the_tensor(tmp_path: Path, good: bytes) -> None:
    damaged = bytearray(good)
    damaged[-1] ^= 1
    error = refused(
        tmp_path, bytes(damaged), "tensor evidence.0.keys has the digest", PatchDigestError
    )
    assert error.facts["where"] == "evidence.0.keys"


def test_duplicate_keys_are_refused_at_both_levels(tmp_path: Path, good: bytes) -> None:
    header, data = split(good)
    text = json.dumps(header)
    outer = text.replace('{"__metadata__"', '{"0.u":{},"__metadata__"', 1)
    refused(tmp_path, join(outer, data), "'0.u' occurs twice", PatchFormatError)
    inner = header["__metadata__"]["editkit"]
    header["__metadata__"]["editkit"] = inner.replace('{"base"', '{"base":1,"base"', 1)
    refused(tmp_path, join(header, data), "metadata.*'base' occurs twice", PatchFormatError)


SLOT = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dtype": "F16", "shape": [4, 1]}, "dtype F16"),
        ({"dtype": "F99"}, "unknown dtype"),
        ({"dtype": 3}, "unknown dtype"),
        ({"shape": [3, 1]}, "needs 12 bytes"),
        ({"shape": [2, -1]}, "impossible shape"),
        ({"shape": [2.0, 1]}, "impossible shape"),
        ({"shape": [True, 2]}, "impossible shape"),
        ({"shape": "ab"}, "impossible shape"),
        ({"shape": [1] * 40}, "impossible shape"),
        ({"shape": [2**40, 2**40]}, "needs"),
        ({"shape": [2**62] * 16}, "impossible shape"),
        ({"data_offsets": [8, 0]}, "its offsets"),
        ({"data_offsets": [0, 8, 9]}, "impossible offsets"),
        ({"data_offsets": [-8, 0]}, "impossible offsets"),
        ({"data_offsets": [4, 12]}, "gap|overlaps"),
        ({"extra": 1}, "must have exactly"),
    ],
)
def test_hostile_tensor_fields_are_refused(
    tmp_path: Path, good: bytes, change: Fields, match: str
) -> None:
    content = with_header(good, lambda header: header.update({"0.u": SLOT | change}))
    refused(tmp_path, content, f"(?s)tensor '?0.u.*({match})|({match})", PatchFormatError)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "0.u\0", "a" * 10_000, "", "0.U", "0", "canary.x.y", "\x1b[31m"]
)
def test_hostile_tensor_names_are_refused_and_shown_safely(
    tmp_path: Path, good: bytes, name: str
) -> None:
    def rename(header: Fields) -> None:
        header[name] = header.pop("0.u")

    error = refused(tmp_path, with_header(good, rename), "name no patch uses", PatchFormatError)
    assert error.message.isprintable()
    assert len(error.message) < 400


def test_overlapping_tensors_are_refused(tmp_path: Path, good: bytes) -> None:
    def move_back(header: dict[str, Any]) -> None:  # Any: JSON values
        start, end = header["0.v"]["data_offsets"]
        header["0.v"]["data_offsets"] = [start - 4, end - 4]

    content = with_header(good, move_back)
    refused(tmp_path, content, "overlaps|gap", PatchFormatError)


def test_empty_tensors_are_refused(tmp_path: Path, good: bytes) -> None:
    empty = {"dtype": "F32", "shape": [0, 1], "data_offsets": [0, 0]}
    content = with_header(good, lambda header: header.update({"1.u": empty}))
    refused(tmp_path, content, "tensor 1.u is empty", PatchFormatError)


def test_two_hundred_thousand_empty_tensors_are_refused_fast_and_small(
    tmp_path: Path, good: bytes
) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {str(i): empty for i in range(200_000)}
    (tmp_path / "patch").write_bytes(join(header, b""))
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(PatchFormatError, match="at most 3145728"):
        Patch.load(tmp_path / "patch")
    taken, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1
    assert peak < 20e6


def test_the_most_tensors_a_header_holds_are_refused_fast_and_small(
    tmp_path: Path, good: bytes
) -> None:
    header, data = split(good)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header |= {f"{i}": empty for i in range(45_000)}
    (tmp_path / "patch").write_bytes(join(header, data))
    start = time.process_time()
    with pytest.raises(PatchFormatError, match="at most 4096"):
        Patch.load(tmp_path / "patch")
    assert time.process_time() - start < 1
    tracemalloc.start()
    with pytest.raises(PatchFormatError, match="at most 4096"):
        Patch.load(tmp_path / "patch")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


def test_more_than_a_mebibyte_of_metadata_is_refused(tmp_path: Path, good: bytes) -> None:
    content = with_header(good, lambda h: h["__metadata__"].update(editkit="x" * (2**20 + 1)))
    refused(tmp_path, content, "larger than 1048576", PatchFormatError)


def test_a_second_metadata_key_is_refused(tmp_path: Path, good: bytes) -> None:
    content = with_header(good, lambda header: header["__metadata__"].update(format="pt"))
    refused(tmp_path, content, "'format' besides 'editkit'", PatchFormatError)


def test_a_missing_and_a_surplus_tensor_are_named(tmp_path: Path, good: bytes) -> None:
    content = with_metadata(good, lambda f: f["tensors"].update({"7.u": "0" * 64}))
    refused(tmp_path, content, "tensor '7.u' is missing", PatchFormatError)
    content = with_metadata(good, lambda f: f["tensors"].pop("0.u"))
    refused(tmp_path, content, "'0.u' is in the file but not", PatchFormatError)


def test_a_tensor_that_belongs_to_no_entry_is_refused(tmp_path: Path, good: bytes) -> None:
    content = with_metadata(good, lambda f: f.pop("evidence"))
    refused(tmp_path, content, "evidence.0.keys.*belongs to no entry", PatchFormatError)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: f.update(surprise=1), "surprise"),
        (lambda f: f["method"].update(surprise=1), "surprise"),
        (lambda f: f.pop("method"), "method"),
        (lambda f: f.pop("created"), "created"),
        (lambda f: f.update(seed=0), "seed must be a whole number written as text"),
        (lambda f: f.update(seed="0x1"), "seed must be"),
        (lambda f: f.update(name=3), "expected str"),
        (lambda f: f.update(contexts=""), "expected a list"),
        (lambda f: f.update(name=""), "spells out default values"),
        (lambda f: f.update(entries=[]), "at least one entry"),
        (lambda f: f["edits"][0].update(subject="z", prompt="no"), "does not occur in the prompt"),
        (lambda f: f["method"].update(dist="x; rm"), "dist"),
        (lambda f: f["entries"][0]["site"].update(layer="0"), "expected int"),
        (lambda f: f["tensors"].update({"0.u": "xyz"}), "not a SHA-256"),
        (lambda f: f["base"]["tensors"][SITE.parameter].update(layout="diagonal"), "layout"),
    ],
)
def test_metadata_that_does_not_fit_is_refused_by_field(
    tmp_path: Path, good: bytes, change: Callable[[Fields], object], match: str
) -> None:
    refused(tmp_path, with_metadata(good, change), match, PatchFormatError)


def test_metadata_that_is_not_canonical_is_refused(tmp_path: Path, good: bytes) -> None:
    header, data = split(good)
    header["__metadata__"]["editkit"] = json.dumps(json.loads(header["__metadata__"]["editkit"]))
    refused(tmp_path, join(header, data), "not canonical JSON", PatchFormatError)


@pytest.mark.parametrize("key", ["name", "created", "id", "content_digest", "checksum"])
def test_metadata_changed_by_hand_is_refused(tmp_path: Path, good: bytes, key: str) -> None:
    content = with_metadata(good, lambda f: f.update({key: "ek-1"}), seal=False)
    refused(tmp_path, content, "It was changed after it was written", PatchDigestError)


def test_another_format_version_is_named(tmp_path: Path, good: bytes) -> None:
    content = with_metadata(good, lambda f: f.update(spec_version=2, surprise=1))
    refused(tmp_path, content, "version 2, this editkit reads version 1", PatchVersionError)


def test_an_unknown_kind_names_what_to_install(tmp_path: Path, good: bytes) -> None:
    content = with_metadata(good, lambda f: f["entries"][0].update(kind="gate.codebook/1"))
    error = refused(
        tmp_path, content, "gate.codebook/1.*pip install editkit-rome", UnknownPatchKindError
    )
    assert error.facts["dist"] == "editkit-rome"


def test_the_header_of_an_unknown_kind_can_still_be_read(tmp_path: Path, good: bytes) -> None:
    content = with_metadata(good, lambda f: f["entries"][0].update(kind="gate.codebook/1"))
    (tmp_path / "patch").write_bytes(content)
    assert read_header(tmp_path / "patch").entries[0].kind == "gate.codebook/1"


def test_an_entry_that_does_not_fit_its_fingerprint_is_refused(tmp_path: Path, good: bytes) -> None:
    content = with_metadata(
        good, lambda f: f["base"]["tensors"][SITE.parameter].update(shape=[4, 2])
    )
    refused(tmp_path, content, "entry|change", PatchShapeError)


def test_numbers_that_are_not_finite_are_refused_with_right_digests(
    tmp_path: Path, good: bytes
) -> None:
    header, data = split(good)
    start, stop = header["0.u"]["data_offsets"]
    bad = np.array([[1.0], [np.nan]], dtype="<f4")
    data = data[:start] + bad.tobytes() + data[stop:]
    digest = digests.tensor_digest("0.u", bad)
    content = with_metadata(join(header, data), lambda f: f["tensors"].update({"0.u": digest}))
    refused(tmp_path, content, r"entry 0.*nan at \(1, 0\)", PatchFormatError)

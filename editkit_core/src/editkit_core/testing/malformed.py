"""Malformed, damaged, foreign and hostile patch files, made from a well-formed one.

For tests of whatever reads patches: every file must be refused with an error that says where, in
less than a second and 200 MB, and none may be applied. ``malformed_files`` gives one file a defect;
``truncations`` and ``bit_flips`` give the many.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import attrs
import numpy as np

from editkit_core.errors import (
    PatchDigestError,
    PatchError,
    PatchFormatError,
    PatchShapeError,
    PatchVersionError,
    UnknownPatchKindError,
)
from editkit_core.testing.patch_bytes import (
    Fields,
    join,
    split,
    with_array,
    with_header,
    with_header_text,
    with_metadata,
    with_metadata_text,
    with_tensor,
)

Case = tuple[str, bytes, str, str]  # name, content, what is wrong, what the error must say


@attrs.frozen(kw_only=True)
class Malformed:
    """A file that must be refused.

    Attributes:
        name: A short name, ``class: defect``.
        content: The file.
        wrong: What is wrong with it.
        says: A regular expression that the error's message must match.
        error: The error it is refused with.
    """

    name: str
    content: bytes = attrs.field(repr=False)
    wrong: str
    says: str
    error: type[PatchError] = PatchFormatError


def malformed_files(good: bytes, *, large: bool = True) -> Iterator[Malformed]:
    """Give one file a defect.

    Args:
        good: A well-formed patch file whose entry 0 is low-rank and which has an evidence block.
        large: Whether to make those too that are large to cost their reader time or memory.
    """
    groups = [
        _foreign, _lengths, _json, _duplicates, _metadata, _offsets, _shapes, _dtypes, _names,
        _values, _entries,
    ]  # fmt: skip
    for group in (*groups, _counts) if large else groups:
        for name, content, wrong, says in group(good):
            yield Malformed(
                name=f"{group.__name__[1:]}: {name}", content=content, wrong=wrong, says=says
            )
    yield from _other_errors(good)


def truncations(good: bytes) -> Iterator[bytes]:
    """Give the file cut off at every byte, from nothing to all but the last."""
    for length in range(len(good)):
        yield good[:length]


def bit_flips(good: bytes, count: int, *, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """Give the file with one bit turned over, and which.

    Args:
        good: A file.
        count: How many bits, at most all; each once, chosen by the seed.
        seed: Seed of the choice.
    """
    bits = range(len(good) * 8)
    for bit in random.Random(seed).sample(bits, min(count, len(bits))):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(damaged)


# -- the container ----------------------------------------------------------------------------


def _foreign(good: bytes) -> Iterator[Case]:
    what = "it is another kind of file"
    yield "nothing", b"", "it is empty", "it has 0 bytes"
    yield "page", b"<!DOCTYPE html><html><body>404</body></html>", what, "HTML"
    yield "zip", b"PK\x03\x04" + b"\0" * 40, what, "zip"
    yield "pickle", b"\x80\x02}q\x00." + b"\0" * 20, what, "pickle"
    yield "gguf", b"GGUF\3\0\0\0" + b"\0" * 40, what, "GGUF"
    yield "json", b'{"prompt": "x"}\n', what, "JSON text"
    yield "text", b"just some text, longer than eight bytes", what, "not a safetensors file"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "git lfs", pointer, what, "git lfs pull"
    yield "byte order mark", b"\xef\xbb\xbf" + good, "it begins too late", "not a patch file"
    yield "twice", good + good, "it is there twice", "the header announces"


def _lengths(good: bytes) -> Iterator[Case]:
    body = good[8:]
    yield "zero", (0).to_bytes(8, "little") + body, "the header has no bytes", "not the JSON"
    huge = (2**63).to_bytes(8, "little") + body
    yield "huge", huge, "the header would be 8 EiB", "announce a header of 9223372036854775808"
    beyond = (len(body) + 1).to_bytes(8, "little") + body
    yield "beyond the end", beyond, "the header would end after the file", "truncated"
    short = (int.from_bytes(good[:8], "little") - 8).to_bytes(8, "little") + body
    yield "too short", short, "the header is cut off", "not the JSON"
    text, data = json.dumps(split(good)[0]).encode(), split(good)[1]
    odd = text + b" " * (-len(text) % 8 + 1)
    yield (
        "odd",
        len(odd).to_bytes(8, "little") + odd + data,
        "the header ends between words",
        ("length is"),
    )
    large = b" " * (3 * 2**20 + 8)
    yield (
        "oversized",
        len(large).to_bytes(8, "little") + large,
        "the header has over 3 MiB",
        ("at most 3145728"),
    )
    yield "a byte too many", good + b"\0", "the data is longer than the tensors", "announces"
    yield "a byte too few", good[:-1], "the data is shorter than the tensors", "announces"


def _json(good: bytes) -> Iterator[Case]:
    yield "cut off", join("{", b""), "the header is no JSON", "not the JSON"
    yield "a list", join("[]", b""), "the header is no object", "must be an object"
    yield "bad UTF-8", b"\x08" + b"\0" * 7 + b"\xff" * 8, "the header is no text", "not the JSON"
    yield "deep", join("[" * 100_000, b""), "the header nests 100,000 deep", "nested too deeply"
    digits = join('{"a":' + "1" * 5000 + "}", b"")
    yield "long number", digits, "a number has 5,000 digits", "not the JSON"
    for word in ("NaN", "Infinity", "-Infinity"):
        content = with_header_text(good, lambda text, w=word: text[:-1] + f', "a": {w}}}')  # type: ignore[misc]  # the default binds the loop's word
        yield word, content, f"the header holds {word}", f"{word} is not a JSON number"
        content = with_metadata_text(good, lambda text, w=word: text[:-1] + f',"zz":{w}}}')  # type: ignore[misc]  # as above
        yield f"inner {word}", content, f"the metadata holds {word}", f"metadata.*{word} is not"
    over = with_metadata_text(good, lambda text: text[:-1] + ',"zz":1e999}')
    yield "infinite exponent", over, "a number overflows", "metadata.*inf"
    deep = with_metadata_text(good, lambda text: text[:-1] + ',"zz":' + "[" * 200 + "]" * 200 + "}")
    yield "inner deep", deep, "the metadata nests 200 deep", "metadata.*nested more than"
    half = with_metadata_text(good, lambda text: text[:-1] + ',"zz":"\\ud800"}')
    yield "half a character", half, "a text is no Unicode", "metadata.*repair the text"
    trailing = with_metadata_text(good, lambda text: text + " {}")
    yield "trailing text", trailing, "something follows the metadata", "metadata.*not the JSON"


def _duplicates(good: bytes) -> Iterator[Case]:
    def front(text: str, key: str) -> str:
        return text.replace("{", f"{{{key}: 0, ", 1)

    twice = with_header_text(good, lambda text: front(text, '"0.u"'))
    yield "tensor", twice, "the tensor 0.u is listed twice", "header.*'0.u' occurs twice"
    hidden = with_header_text(good, lambda text: front(text, '"\\u0030.u"'))
    yield "escaped tensor", hidden, "0.u is listed twice, once escaped", "'0.u' occurs twice"
    outer = with_header_text(good, lambda text: text[:-1] + ', "__metadata__": {}}')
    yield "metadata", outer, "the metadata is there twice", "'__metadata__' occurs twice"
    inner = with_metadata_text(good, lambda text: text.replace('{"base"', '{"base":1,"base"', 1))
    yield "inner", inner, "base is there twice", "metadata.*'base' occurs twice"
    deep = with_metadata_text(good, lambda text: text.replace('"model"', '"model":1,"model"', 1))
    yield "inner, nested", deep, "base.model is there twice", "metadata.*'model' occurs twice"
    field = with_header_text(good, lambda text: text.replace('"dtype"', '"dtype":1,"dtype"', 1))
    yield "tensor field", field, "a dtype is there twice", "header.*'dtype' occurs twice"


def _offsets(good: bytes) -> Iterator[Case]:
    def moved(start: int, stop: int) -> bytes:
        def change(header: Fields) -> None:
            first, last = header["0.v"]["data_offsets"]
            header["0.v"]["data_offsets"] = [first + start, last + stop]

        return with_header(good, change)

    def put(offsets: object) -> bytes:
        return with_header(good, lambda header: header["0.u"].update(data_offsets=offsets))

    part = "tensor '?0.[uv]"
    yield "overlapping", moved(-4, -4), "0.v begins inside 0.u", "overlaps|gap"
    yield "gapped", moved(4, 4), "nothing is said of four bytes before 0.v", "gap"
    yield "too long", moved(0, 4), "0.v has more bytes than numbers", f"{part}.*needs"
    yield "reversed", put([8, 0]), "0.u ends before it begins", f"{part}.*its offsets"
    yield "three", put([0, 8, 9]), "0.u has three offsets", f"{part}.*impossible offsets"
    yield "none", put([]), "0.u has no offsets", f"{part}.*impossible offsets"
    yield "negative", put([-8, 0]), "0.u begins before the file", f"{part}.*impossible offsets"
    yield "fractions", put([0.0, 8.0]), "the offsets are no whole numbers", "impossible offsets"
    yield "text", put("08"), "the offsets are text", f"{part}.*impossible offsets"
    yield "far", put([2**60, 2**60 + 8]), "0.u lies 1 EiB away", f"{part}.*impossible offsets"


def _shapes(good: bytes) -> Iterator[Case]:
    def put(shape: object) -> bytes:
        return with_header(good, lambda header: header["0.u"].update(shape=shape))

    part = "tensor '?0.u"
    cases: dict[str, tuple[object, str]] = {
        "other size": ([3, 999], "needs"),
        "huge": ([2**40, 2**40], "needs"),
        "huge side": ([2**62, 1], "impossible shape"),
        "huge sides": ([2**62] * 16, "impossible shape"),
        "negative": ([2, -1], "impossible shape"),
        "fraction": ([2.0, 1], "impossible shape"),
        "truth": ([True, 2], "impossible shape"),
        "text": ("ab", "impossible shape"),
        "nothing": (None, "impossible shape"),
        "nested": ([[2, 1]], "impossible shape"),
        "many sides": ([1] * 40, "impossible shape"),
    }
    for name, (shape, says) in cases.items():
        yield name, put(shape), f"the shape of 0.u is {str(shape)[:40]}", f"{part}.*{says}"
    empty = {"dtype": "F32", "shape": [0, 1], "data_offsets": [0, 0]}
    content = with_header(good, lambda header: header.update({"1.u": empty}))
    yield "empty", content, "a tensor holds nothing", "tensor 1.u is empty"
    without = with_header(good, lambda header: header["0.u"].pop("shape"))
    yield "missing", without, "0.u has no shape", f"{part}.*must have exactly"
    extra = with_header(good, lambda header: header["0.u"].update(strides=[1, 1]))
    yield "extra field", extra, "0.u says more than it may", f"{part}.*must have exactly"
    bare = with_header(good, lambda header: header.update({"0.u": 3}))
    yield "no fields", bare, "0.u is a number", f"{part}.*must have exactly"
    flat = _array(good, "0.u").reshape(-1)
    yield "vector", with_tensor(good, "0.u", flat, "F32"), "0.u is no matrix", "entry 0.*2 sides"
    wide = np.ones((_array(good, "0.u").shape[0], 7), "<f4")
    content = with_tensor(good, "0.u", wide, "F32")
    yield "ranks", content, "0.u and 0.v have different ranks", "entry 0.*must share one rank"


def _dtypes(good: bytes) -> Iterator[Case]:
    u, keys = _array(good, "0.u"), _array(good, "evidence.0.keys")
    for dtype, kind in (("F64", "<f8"), ("I64", "<i8"), ("I8", "|i1"), ("U8", "|u1")):
        content = with_tensor(good, "0.u", u.astype(kind), dtype)
        yield dtype, content, f"0.u is {dtype}", "entry 0.*0.u must be F32"
    content = with_tensor(good, "evidence.0.keys", keys.astype("<i8"), "I64")
    yield "evidence", content, "the keys are whole numbers", "evidence 0.*must be F16 or F32"
    for dtype, kind in (("F16", "<f2"), ("BF16", "<u2"), ("F8_E4M3", "|u1"), ("BOOL", "?")):
        content = with_tensor(good, "0.u", u.astype(kind), dtype)
        yield dtype, content, f"0.u is {dtype}", f"tensor 0.u has the dtype {dtype}"
    for name, value in (("unknown", "F99"), ("number", 3), ("long", "F" * 10_000)):
        content = with_header(good, lambda header, v=value: header["0.u"].update(dtype=v))  # type: ignore[misc]  # the default binds the loop's value
        yield name, content, f"the dtype of 0.u is {str(value)[:20]}", "0.u.*unknown dtype"


def _names(good: bytes) -> Iterator[Case]:
    hostile = {
        "parent folder": "../../etc/passwd", "NUL": "0.u\0", "long": "a" * 10_000, "nothing": "",
        "capital": "0.U", "no field": "0", "unknown canary": "canary.x.y",
        "terminal": "\x1b[31m", "right to left": "\u202e0.u", "half a character": "\ud800",
        "newline": "0.u\n", "fullwidth digit": "\uff10.u", "device": "CON", "drive": "C:\\0.u",
    }  # fmt: skip
    for name, text in hostile.items():
        content = with_header(good, lambda header, t=text: header.update({t: header.pop("0.u")}))  # type: ignore[misc]  # the default binds the loop's text
        yield name, content, f"a tensor is called {ascii(text)[:30]}", "has a name no patch uses"
    renamed = with_tensor(_without(good, "0.u"), "00.u", _array(good, "0.u"), "F32")
    yield "leading zero", renamed, "a tensor is called 00.u", "entry 0.*0.u is missing"


def _array(good: bytes, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    header, data = split(good)
    kind = {"F16": "<f2", "F32": "<f4"}[header[name]["dtype"]]
    raw = data[slice(*header[name]["data_offsets"])]
    return np.frombuffer(raw, kind).reshape(header[name]["shape"]).astype("<f4")


def _without(good: bytes, name: str) -> bytes:
    """Take a tensor out of a file, so that all else is right."""
    put = with_tensor(good, name, np.zeros((0,), "<f4"), "F32")
    header, data = split(put)
    del header[name]
    return with_metadata(join(header, data), lambda fields: fields["tensors"].pop(name))


# -- the numbers ------------------------------------------------------------------------------


def _values(good: bytes) -> Iterator[Case]:
    for value in (np.nan, np.inf, -np.inf):
        for name, says in (("0.u", "entry 0"), ("0.v", "entry 0"), ("evidence.0.keys", "evidence")):
            content = with_array(good, name, lambda array, v=value: array.__setitem__((-1, -1), v))  # type: ignore[misc]  # the default binds the loop's value
            yield f"{value} in {name}", content, f"{name} holds {value}", f"{says}.*{value} at"


# -- the metadata -----------------------------------------------------------------------------


def _metadata(good: bytes) -> Iterator[Case]:
    def outer(value: object) -> bytes:
        return with_header(good, lambda header: header.update(__metadata__=value))

    yield "none", with_header(good, lambda h: h.pop("__metadata__")), "there is none", "its meta"
    yield "number", outer(3), "it is a number", "__metadata__ must hold texts"
    yield "inner number", outer({"editkit": 3}), "it is no text", "__metadata__ must hold texts"
    yield "foreign", outer({"format": "pt"}), "another program wrote it", "not an editkit patch"
    yield "inner list", outer({"editkit": "[]"}), "it is a list", "metadata must be an object"
    yield "inner empty", outer({"editkit": "{}"}), "it says nothing", "spec_version must be"
    yield "large", outer({"editkit": "x" * (2**20 + 1)}), "it has over 1 MiB", "larger than 1048576"
    more = with_header(good, lambda header: header["__metadata__"].update(format="pt"))
    yield "second key", more, "it has two keys", "'format' besides 'editkit'"
    spaced = with_metadata_text(good, lambda text: json.dumps(json.loads(text)))
    yield "spaces", spaced, "it has spaces", "metadata is not canonical"
    many = '{"spec_version":1,"a":[' + ",".join("0" * 400_000) + "]}"
    yield "many values", outer({"editkit": many}), "it has 400,000 values", "more than 131072"
    for name, (says, change) in _MISFITS.items():
        content = with_metadata(good, change)
        yield name, content, "a field does not fit", f"(metadata|seed|entries|tensors).*{says}"


def _nothing_twice(fields: Fields) -> None:
    fields["edits"][0].update(subject="z", prompt="no")


_MISFITS = {
    "surplus field": ("surprise", lambda f: f.update(surprise=1)),
    "surplus inner field": ("surprise", lambda f: f["method"].update(surprise=1)),
    "missing field": ("method", lambda f: f.pop("method")),
    "number for text": ("expected str", lambda f: f.update(name=3)),
    "text for list": ("expected a list", lambda f: f.update(contexts="")),
    "text for names": ("expected names and values", lambda f: f.update(tensors="")),
    "text for number": ("expected int", lambda f: f["entries"][0]["site"].update(layer="0")),
    "seed as number": ("must be a whole", lambda f: f.update(seed=0)),
    "seed in hexadecimal": ("must be a whole", lambda f: f.update(seed="0x1")),
    "default spelt out": ("spells out default values", lambda f: f.update(licence=None)),
    "no entries": ("at least one entry", lambda f: f.update(entries=[])),
    "impossible edit": ("does not occur in the prompt", _nothing_twice),
    "hostile distribution": ("dist", lambda f: f["method"].update(dist="x; rm")),
    "no digest": ("not a SHA-256", lambda f: f["tensors"].update({"0.u": "xyz"})),
    "unknown layout": (
        "layout",
        lambda f: next(iter(f["base"]["tensors"].values())).update(layout="diagonal"),
    ),
}


def _counts(good: bytes) -> Iterator[Case]:
    """Files that are large only to cost their reader time or memory."""
    header, data = split(good)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = join({str(i): empty for i in range(200_000)}, b"")
    yield "200,000 empty tensors", many, "it lists 200,000 tensors", "at most 3145728"
    most = join(header | {str(i): empty for i in range(45_000)}, data)
    yield "45,000 empty tensors", most, "it lists 45,000 tensors", "at most 4096"
    numbers = {"dtype": "U8", "shape": [1]}
    real = {f"{i}.u": numbers | {"data_offsets": [i, i + 1]} for i in range(5_000)}
    content = join({"__metadata__": header["__metadata__"]} | real, b"\0" * 5_000)
    yield "5,000 tensors", content, "it lists 5,000 tensors", "at most 4096"
    wrong: dict[str, Fields] = {
        "entries": {"entries": [{}] * 40_000},
        "edits": {"edits": [0] * 40_000},
        "contexts": {"contexts": [0] * 40_000},
        "tensors": {"tensors": {str(i): 0 for i in range(40_000)}},
        "unknown": {str(i): 0 for i in range(40_000)},
    }
    for name, change in wrong.items():
        content = with_metadata(good, lambda fields, c=change: fields.update(c))  # type: ignore[misc]  # the default binds the loop's change
        yield f"many wrong {name}", content, f"it holds many wrong {name}", "metadata does not fit"
    keys = with_metadata(good, lambda fields: fields.update({"k" * 1_000_000: 1}))
    yield "long key", keys, "a name has a million letters", "metadata does not fit"
    same = with_metadata(good, lambda fields: fields.update(entries=fields["entries"] * 4_000))
    yield "4,000 entries", same, "it states entries that are not there", "entry 1 .*1.u is missing"


def _entries(good: bytes) -> Iterator[Case]:
    missing = with_metadata(good, lambda fields: fields["tensors"].update({"7.u": "0" * 64}))
    yield "missing", missing, "a stated tensor is not there", "tensor '7.u' is missing"
    surplus = with_metadata(good, lambda fields: fields["tensors"].pop("0.u"))
    yield "surplus", surplus, "a tensor is not stated", "'0.u' is in the file but not"
    orphan = with_metadata(good, lambda fields: fields.pop("evidence"))
    yield "orphan", orphan, "a tensor belongs to no entry", "evidence.0.*belongs to no entry"
    taken = _without(good, "0.v")
    yield "half an entry", taken, "an entry has no 0.v", "entry 0.*0.v is missing"
    if "canary.before" in split(good)[0]:
        canary = _without(good, "canary.before")
    else:
        canary = with_tensor(good, "canary.tokens", np.ones((1, 2), "<i8"), "I64")
    yield "half a canary", canary, "a canary lacks an array", "canary.*canary.[a-z_]+ is missing"


# -- refused with other errors ----------------------------------------------------------------


def _other_errors(good: bytes) -> Iterator[Malformed]:
    last = bytearray(good)
    last[-1] ^= 1
    yield Malformed(
        name="digests: tensor", content=bytes(last), wrong="a number was changed",
        says="tensor [a-z0-9.]+ has the digest", error=PatchDigestError,
    )  # fmt: skip
    for key in ("name", "created", "id", "content_digest", "checksum"):
        yield Malformed(
            name=f"digests: {key}",
            content=with_metadata(good, lambda f, k=key: f.update({k: "ek-1"}), seal=False),  # type: ignore[misc]  # the default binds the loop's key
            wrong=f"{key} was changed by hand",
            says="It was changed after it was written",
            error=PatchDigestError,
        )
    yield Malformed(
        name="version: newer",
        content=with_metadata(good, lambda fields: fields.update(spec_version=2, surprise=1)),
        wrong="a later editkit wrote it",
        says="version 2, this editkit reads version 1",
        error=PatchVersionError,
    )
    yield Malformed(
        name="kinds: unknown",
        content=with_metadata(good, lambda f: f["entries"][0].update(kind="route.lora_blocks/1")),
        wrong="an entry is of a kind from elsewhere",
        says="entry 0.*route.lora_blocks/1.*pip install",
        error=UnknownPatchKindError,
    )
    for name, change in (("shape", {"shape": [4, 4]}), ("vector", {"shape": [4]})):
        yield Malformed(
            name=f"fit: {name}",
            content=with_metadata(
                good, lambda f, c=change: next(iter(f["base"]["tensors"].values())).update(c)  # type: ignore[misc]  # the default binds the loop's change
            ),
            wrong="an entry does not fit the weight it names",
            says="entries: The change of",
            error=PatchShapeError,
        )  # fmt: skip
    yield Malformed(
        name="fit: no fingerprint",
        content=with_metadata(good, lambda f: f["entries"][0]["site"].update(parameter="other")),
        wrong="an entry changes a weight of which nothing is known",
        says="no fingerprint",
        error=PatchShapeError,
    )

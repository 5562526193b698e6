"""Patch files: what is written is what is read, byte for byte, also by the official library."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
import rfc8785
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit_core.errors import (
    OutputExistsError,
    PatchFormatError,
    PatchShapeError,
    WriteFailedError,
)
from editkit_core.patch import (
    BaseFingerprint,
    Canary,
    DenseEntry,
    Evidence,
    LowRankEntry,
    MethodRef,
    Patch,
    TensorFingerprint,
    read_header,
)
from editkit_core.patch.describe import describe, describe_header
from editkit_core.patch.digests import stack_digest
from editkit_core.types import EditRequest, Probe, Site

SITE = Site(module="h.0.mlp.c_proj", parameter="h.0.mlp.c_proj.weight", layer=0)
METHOD = MethodRef(name="rome", dist="editkit-rome", version="0.1.0")
EDIT = EditRequest(
    prompt="The capital of {} is",
    subject="Tromsø",
    target_new="Lima",
    locality={"near": [Probe("The capital of Norway is", ("Oslo",))]},
)


def base(d_out: int, d_in: int, layout: str = "in_out") -> BaseFingerprint:
    shape = (d_in, d_out) if layout == "in_out" else (d_out, d_in)
    tensor = TensorFingerprint(shape=shape, dtype="F16", sha256="0" * 64, layout=layout, norm=2.0)
    return BaseFingerprint(model="tiny", tensors={SITE.parameter: tensor})


def rank_one(d_out: int = 4, d_in: int = 6, **parts: object) -> Patch:
    numbers = np.random.default_rng(0)
    entry = LowRankEntry(
        site=SITE,
        u=numbers.standard_normal((d_out, 1), dtype=np.float32),
        v=numbers.standard_normal((1, d_in), dtype=np.float32),
    )
    given: dict[str, object] = {
        "entries": [entry],
        "method": METHOD,
        "base": base(d_out, d_in),
        "edits": [EDIT],
        "evidence": Evidence(
            module=SITE.module,
            keys=numbers.standard_normal((1, d_in), dtype=np.float32),
            values=numbers.standard_normal((1, d_out), dtype=np.float32),
        ),
    }
    return Patch.from_parts(**(given | parts))  # type: ignore[arg-type]  # parts are checked by use


def raw(path: Path) -> tuple[dict[str, object], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_a_loaded_patch_equals_the_saved_one(tmp_path: Path) -> None:
    patch = rank_one(params={"lr": 2.0, "text": "ø"}, seed=2**62, contexts=("", "The {"))
    patch.save(tmp_path / "a")
    loaded = Patch.load(tmp_path / "a")
    assert loaded.header == patch.header
    assert loaded.header.seed == 2**62
    for name, array in patch.tensors().items():
        np.testing.assert_array_equal(loaded.tensors()[name], array)


def test_saving_again_gives_equal_bytes_and_the_same_id(tmp_path: Path) -> None:
    patch = rank_one(params={"lr": 2.0})
    patch.save(tmp_path / "a")
    Patch.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_save_returns_the_size_of_the_file(tmp_path: Path) -> None:
    assert rank_one().save(tmp_path / "a") == (tmp_path / "a").stat().st_size


def test_the_official_library_reads_the_file(tmp_path: Path) -> None:
    patch = rank_one()
    patch.save(tmp_path / "a")
    found = safetensors.numpy.load_file(tmp_path / "a")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in patch.tensors().items()
    }
    with safetensors.safe_open(tmp_path / "a", "numpy") as file:
        assert list(file.metadata()) == ["editkit"]


def test_the_bytes_are_those_the_official_library_writes(tmp_path: Path) -> None:
    canary = Canary(
        tokens=np.array([[3, 4, 5]]), prompt_lengths=np.array([2]),
        before=np.array([-9.0]), after=np.array([-0.1]),
    )  # fmt: skip
    patch = rank_one(canary=canary)
    patch.save(tmp_path / "a")
    with safetensors.safe_open(tmp_path / "a", "numpy") as file:
        metadata = file.metadata()
    expected = safetensors.numpy.save(dict(patch.tensors()), metadata=metadata)
    assert (tmp_path / "a").read_bytes() == expected


def test_the_only_metadata_key_holds_canonical_json(tmp_path: Path) -> None:
    rank_one().save(tmp_path / "a")
    header, _ = raw(tmp_path / "a")
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    assert set(metadata) == {"editkit"}
    assert rfc8785.dumps(json.loads(metadata["editkit"])).decode() == metadata["editkit"]


def test_the_header_is_padded_with_spaces_to_eight_bytes(tmp_path: Path) -> None:
    for length in range(8):
        rank_one(name="x" * length).save(tmp_path / "a", force=True)
        content = (tmp_path / "a").read_bytes()
        size = int.from_bytes(content[:8], "little")
        assert size % 8 == 0
        assert content[8 : 8 + size].rstrip(b" ").endswith(b"}")


def test_the_digests_can_be_recomputed_from_the_file_alone(tmp_path: Path) -> None:
    patch = rank_one()
    patch.save(tmp_path / "a")
    header, _ = raw(tmp_path / "a")
    fields = json.loads(header["__metadata__"]["editkit"])  # type: ignore[index]  # a mapping
    assert fields["id"] == "ek-" + fields["content_digest"][:16]
    content = {
        k: v for k, v in fields.items() if k not in {"id", "content_digest", "checksum", "created"}
    }
    assert fields["content_digest"] == hashlib.sha256(rfc8785.dumps(content)).hexdigest()
    v = patch.entries[0].tensors()["v"]
    told = hashlib.sha256(b"0.v\n<f4\n1x6\n" + v.tobytes()).hexdigest()
    assert fields["tensors"]["0.v"] == told


def test_the_day_of_making_does_not_change_the_id() -> None:
    first, second = (
        rank_one(created="2026-01-01T00:00:00Z"),
        rank_one(created="2027-01-01T00:00:00Z"),
    )
    assert first.id == second.id
    assert first.header.checksum != second.header.checksum


@pytest.mark.parametrize(
    "part", [{"seed": 1}, {"name": "x"}, {"metrics": {"r": 1}}, {"computed_on": "f" * 64}]
)
def test_every_other_part_changes_the_id(part: dict[str, object]) -> None:
    assert rank_one(**part).id != rank_one().id


def test_recorded_metrics_change_the_id_and_survive(tmp_path: Path) -> None:
    patch = rank_one().with_metrics({"reliability": 1.0})
    patch.save(tmp_path / "a")
    assert Patch.load(tmp_path / "a").header.metrics == {"reliability": 1.0}
    assert patch.id != rank_one().id


def test_a_rank_one_patch_with_evidence_stays_under_sixteen_kilobytes(tmp_path: Path) -> None:
    contexts = tuple(f"{word} and then he went to the market." for word in "abcdefghijklmnopqrstu")
    assert rank_one(256, 1024, contexts=contexts).save(tmp_path / "a") < 16 * 1024


def test_a_canary_survives(tmp_path: Path) -> None:
    canary = Canary(
        tokens=np.array([[3, 4, 5], [6, 7, -1]]), prompt_lengths=np.array([2, 1]),
        before=np.array([-9.0, -8.0]), after=np.array([-0.1, -0.2]),
    )  # fmt: skip
    rank_one(canary=canary).save(tmp_path / "a")
    found = Patch.load(tmp_path / "a").canary
    assert found is not None
    np.testing.assert_array_equal(found.tokens, canary.tokens)


def test_a_dense_patch_survives(tmp_path: Path) -> None:
    delta = np.arange(24, dtype=np.float32).reshape(4, 6)
    rank_one(entries=[DenseEntry(site=SITE, delta=delta)]).save(tmp_path / "a")
    entry = Patch.load(tmp_path / "a").entries[0]
    assert entry.kind == "weight.dense/1"
    np.testing.assert_array_equal(entry.tensors()["delta"], delta)


def test_stored_arrays_cannot_be_written(tmp_path: Path) -> None:
    rank_one().save(tmp_path / "a")
    for patch in (rank_one(), Patch.load(tmp_path / "a")):
        with pytest.raises(ValueError, match="read-only"):
            patch.entries[0].tensors()["u"][0, 0] = 1


def test_an_entry_keeps_its_own_copy_of_the_numbers() -> None:
    u = np.ones((4, 1), dtype=np.float32)
    entry = LowRankEntry(site=SITE, u=u, v=np.ones((1, 6)))
    u[:] = 2
    assert entry.u.max() == 1


@pytest.mark.parametrize(
    ("u", "v", "what"),
    [
        (np.ones((4, 2)), np.ones((1, 6)), "one rank"),
        (np.ones(4), np.ones((1, 6)), "2 sides"),
        (np.ones((4, 0)), np.ones((0, 6)), "at least 1"),
        (np.array([[np.nan]] * 4), np.ones((1, 6)), "finite"),
        (np.full((4, 1), 1e300), np.ones((1, 6)), "finite"),
        (np.ones((4, 1), dtype=np.int64), np.ones((1, 6)), "float32"),
    ],
)
def test_factors_that_cannot_be_a_change_are_refused(
    u: np.ndarray, v: np.ndarray, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        LowRankEntry(site=SITE, u=u, v=v)


def test_a_change_that_does_not_fit_the_fingerprinted_weight_is_refused() -> None:
    with pytest.raises(PatchShapeError, match=r"\(4, 6\).*the weight is \(6, 4\)"):
        rank_one(base=base(6, 4, layout="out_in"))


def test_a_change_of_a_weight_without_fingerprint_is_refused() -> None:
    with pytest.raises(PatchShapeError, match="no fingerprint"):
        rank_one(base=BaseFingerprint(model="m", tensors={}))


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"seed": 2**53}, "params.seed"),
        ({"deep": [{"x": float("nan")}]}, r"params.deep\[0\].x"),
        ({"inf": float("inf")}, "params.inf"),
        ({"text": "\ud800"}, "params.text"),
        ({"thing": np.int64(3)}, "params.thing"),
        ({1: 2}, "params"),
    ],
)
def test_values_that_json_cannot_express_are_refused_by_place(
    params: dict[str, object], where: str
) -> None:
    with pytest.raises(PatchFormatError, match=where):
        rank_one(params=params)


def test_a_patch_without_entries_is_refused() -> None:
    with pytest.raises(PatchFormatError, match="at least one entry"):
        rank_one(entries=[])


def test_metadata_that_no_reader_would_accept_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PatchFormatError, match="1048576"):
        rank_one(contexts=("x" * 1024,) * 1024).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(OutputExistsError, match="--force"):
        rank_one().save(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"
    rank_one().save(tmp_path / "a", force=True)
    assert Patch.load(tmp_path / "a").id == rank_one().id


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(WriteFailedError, match="folder exists"):
        rank_one().save(tmp_path / "no" / "a")


def test_the_header_is_read_without_the_tensors(tmp_path: Path) -> None:
    patch = rank_one()
    patch.save(tmp_path / "a")
    assert read_header(tmp_path / "a") == patch.header


def test_reading_and_describing_a_patch_imports_no_torch(tmp_path: Path) -> None:
    rank_one().save(tmp_path / "a")
    code = (
        "import sys; from editkit_core.patch import Patch, read_header;"
        "from editkit_core.patch.describe import describe;"
        f"describe(Patch.load({str(tmp_path / 'a')!r})); read_header;"
        "bad = {'torch', 'transformers', 'safetensors'} & set(sys.modules);"
        "sys.exit(str(bad or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_description_holds_the_norms_of_the_change() -> None:
    patch = rank_one()
    entry = patch.entries[0]
    u, v = (entry.tensors()[name].astype(np.float64) for name in ("u", "v"))
    row = describe(patch)["entries"][0]
    assert row["norm"] == pytest.approx(np.linalg.norm(u @ v))
    assert row["relative_norm"] == pytest.approx(np.linalg.norm(u @ v) / 2.0)
    assert (row["shape"], row["rank"]) == ([4, 6], 1)


def test_a_description_is_json_and_the_header_alone_gives_most_of_it() -> None:
    whole, head = describe(rank_one()), describe_header(rank_one().header)
    assert json.loads(json.dumps(whole)) == whole
    assert set(head) < set(whole)
    assert whole["edits"][0]["subject"] == "Tromsø"


def test_the_stack_digest_does_not_depend_on_the_order() -> None:
    first, second = rank_one(seed=1), rank_one(seed=2)
    assert stack_digest([]) is None
    assert stack_digest([first, second]) == stack_digest([second, first])
    assert stack_digest([first]) != stack_digest([second])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(
    params=st.dictionaries(texts, json_values, max_size=4),
    name=texts,
    seed=st.integers(0, 2**63 - 1),
    rank=st.integers(1, 3),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
)
def test_any_patch_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    params: dict[str, object], name: str, seed: int, rank: int, values: list[float],
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("round")
    u = np.resize(np.array(values, dtype=np.float32), (4, rank))
    entry = LowRankEntry(site=SITE, u=u, v=np.ones((rank, 6)))
    patch = rank_one(entries=[entry], params=params, name=name, seed=seed)
    patch.save(folder / "a")
    loaded = Patch.load(folder / "a")
    assert attrs.evolve(loaded.header, params={}) == attrs.evolve(patch.header, params={})
    assert loaded.header.params == params
    assert loaded.entries[0].tensors()["u"].tobytes() == u.tobytes()
    loaded.save(folder / "b")
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_a_patch_of_six_megabytes_loads_in_a_moment(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    entry = LowRankEntry(
        site=SITE,
        u=numbers.standard_normal((3072, 256), dtype=np.float32),
        v=numbers.standard_normal((256, 3072), dtype=np.float32),
    )
    rank_one(3072, 3072, entries=[entry], evidence=None).save(tmp_path / "a")
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        Patch.load(tmp_path / "a")
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.15  # 5 to 10 ms on an idle machine; the rest is for busy ones

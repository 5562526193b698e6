"""Malformed, damaged, foreign and hostile files: each is refused, saying where, fast and small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import attrs
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit_core.errors import (
    InputNotFoundError,
    PatchDigestError,
    PatchError,
    PatchFormatError,
    UnknownPatchKindError,
)
from editkit_core.patch import Patch, apply_patch, read_header
from editkit_core.patch.header_codec import encode_header
from editkit_core.testing.malformed import Malformed, bit_flips, malformed_files, truncations
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patch_bytes import sample_file, split, with_metadata
from editkit_core.testing.patches import random_patch

MOST_SECONDS = 1
MOST_BYTES = 200e6
LONGEST_MESSAGE = 1000
GOOD = sample_file()
FILES = {file.name: file for file in malformed_files(GOOD)}
CLASSES = {  # what the generator must at least hold, in the words of the requirement
    "duplicate keys in the header": "duplicates: tensor",
    "duplicate keys in the metadata": "duplicates: inner",
    "overlapping offsets": "offsets: overlapping",
    "gapped offsets": "offsets: gapped",
    "NaN": "values: nan in 0.u",
    "infinity": "values: -inf in 0.v",
    "hostile names": "names: parent folder",
    "200,000 empty tensors": "counts: 200,000 empty tensors",
    "huge shapes": "shapes: huge",
    "oversized header": "lengths: oversized",
    "wrong dtypes": "dtypes: F16",
}


def refusal(path: Path, content: bytes) -> PatchError:
    path.write_bytes(content)
    with pytest.raises(PatchError) as caught:
        Patch.load(path)
    return caught.value


# -- one defect a file ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES.values(), ids=CLASSES)
def test_the_generator_makes_every_class_of_defect(name: str) -> None:
    assert name in FILES


def test_the_files_that_the_defects_are_put_in_are_read(tmp_path: Path) -> None:
    for content in (GOOD, sample_file(canary=True), with_metadata(GOOD, lambda fields: None)):
        (tmp_path / "patch").write_bytes(content)
        assert Patch.load(tmp_path / "patch").entries


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_malformed_file_is_refused_and_the_error_says_where(
    file: Malformed, tmp_path: Path
) -> None:
    error = refusal(tmp_path / "patch", file.content)
    assert type(error) is file.error
    assert re.search(file.says, error.message), error.message
    assert str(tmp_path / "patch") in error.message
    assert error.message.isprintable()
    assert len(error.message) < LONGEST_MESSAGE


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_malformed_file_costs_little_time_and_memory(file: Malformed, tmp_path: Path) -> None:
    start = time.process_time()
    refusal(tmp_path / "patch", file.content)
    assert time.process_time() - start < MOST_SECONDS
    tracemalloc.start()
    try:
        refusal(tmp_path / "patch", file.content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES


def test_malformed_files_with_a_canary_are_refused_too(tmp_path: Path) -> None:
    for file in malformed_files(sample_file(canary=True), large=False):
        error = refusal(tmp_path / "patch", file.content)
        assert type(error) is file.error, file.name
        assert re.search(file.says, error.message), (file.name, error.message)


def test_no_malformed_file_is_applied_to_the_model_it_was_made_from(tmp_path: Path) -> None:
    model, path = tiny_model("gpt2"), tmp_path / "patch"
    random_patch(model).save(path)
    good, before = path.read_bytes(), model.state_digest()
    with apply_patch(model, Patch.load(path)):
        assert model.state_digest() != before
    for file in malformed_files(good, large=False):
        path.write_bytes(file.content)
        with pytest.raises(PatchError):
            apply_patch(model, Patch.load(path))
        assert model.state_digest() == before, file.name


READER = """
import resource, sys
from pathlib import Path
from editkit_core.errors import PatchError
from editkit_core.patch import Patch
Patch.load(Path(sys.argv[1]) / "good")
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).glob("bad*")):
    try:
        Patch.load(path)
    except PatchError:
        continue
    sys.exit(f"{path} was read")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


def test_all_malformed_files_together_cost_a_process_little_memory(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(GOOD)
    for i, file in enumerate(FILES.values()):
        (tmp_path / f"bad{i:03}").write_bytes(file.content)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < MOST_BYTES


# -- damage everywhere ------------------------------------------------------------------------


def test_a_file_cut_off_at_any_byte_is_refused(tmp_path: Path) -> None:
    for content in truncations(GOOD):
        assert isinstance(refusal(tmp_path / "patch", content), PatchFormatError)


def test_three_thousand_random_bit_flips_are_refused(tmp_path: Path) -> None:
    flips = list(bit_flips(GOOD, 3000))
    assert len({bit for bit, _ in flips}) == 3000
    for _, content in flips:
        refusal(tmp_path / "patch", content)


@pytest.mark.slow
@pytest.mark.parametrize("canary", [False, True])
def test_every_single_bit_flip_is_refused(tmp_path: Path, canary: bool) -> None:
    good = sample_file(canary=canary)
    for _, content in bit_flips(good, 8 * len(good)):
        refusal(tmp_path / "patch", content)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    error = refusal(tmp_path_factory.mktemp("bytes") / "patch", content)
    assert isinstance(error, PatchFormatError)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_random_bytes_in_the_place_of_others_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(GOOD) - 1))
    stop = data.draw(st.integers(start + 1, len(GOOD)))
    other = data.draw(st.binary(max_size=60))
    content = GOOD[:start] + other + GOOD[stop:]
    if content != GOOD:
        refusal(tmp_path_factory.mktemp("bytes") / "patch", content)


# -- what errors tell besides -----------------------------------------------------------------


def test_somebody_elses_safetensors_file_is_named_as_such(tmp_path: Path) -> None:
    content = safetensors.numpy.save({"a": np.zeros(3)}, metadata={"format": "pt"})
    error = refusal(tmp_path / "patch", content)
    assert "a safetensors file but not an editkit patch" in error.message


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputNotFoundError, match="Cannot read the patch"):
            Patch.load(path)


def test_a_device_file_is_refused() -> None:
    with pytest.raises(PatchFormatError, match="not a regular file"):
        Patch.load(Path("/dev/zero"))


def test_a_flipped_bit_in_a_number_is_a_fact_of_the_error(tmp_path: Path) -> None:
    damaged = bytearray(GOOD)
    damaged[-1] ^= 1
    error = refusal(tmp_path / "patch", bytes(damaged))
    assert isinstance(error, PatchDigestError)
    assert error.facts["where"] == "evidence.0.keys"


def test_an_unknown_kind_names_what_to_install(tmp_path: Path) -> None:
    error = refusal(tmp_path / "patch", FILES["kinds: unknown"].content)
    assert isinstance(error, UnknownPatchKindError)
    assert error.facts["dist"] == "editkit-rome"
    assert "pip install editkit-rome" in error.message


def test_the_header_of_an_unknown_kind_can_still_be_read(tmp_path: Path) -> None:
    (tmp_path / "patch").write_bytes(FILES["kinds: unknown"].content)
    assert read_header(tmp_path / "patch").entries[0].kind == "route.lora_blocks/1"


def test_a_shape_that_does_not_fit_is_laid_to_the_entries(tmp_path: Path) -> None:
    error = refusal(tmp_path / "patch", FILES["fit: shape"].content)
    assert error.facts["parameter"] == "h.0.mlp.c_proj.weight"


def test_a_patch_of_more_values_than_a_reader_takes_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "patch").write_bytes(GOOD)
    header = Patch.load(tmp_path / "patch").header
    with pytest.raises(PatchFormatError, match=r"more than 131072 values\. Split the edits"):
        encode_header(attrs.evolve(header, params={"a": [0] * 131_072}))


def test_the_spaces_after_the_header_may_be_any_number_of_words(tmp_path: Path) -> None:
    header, data = split(GOOD)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + 16)
    (tmp_path / "patch").write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert Patch.load(tmp_path / "patch").entries

"""Which base a patch fits: the same files in any dtype, and no others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoTokenizer

from editkit_core.errors import BaseMismatchError, InputNotFoundError, PatchFormatError
from editkit_core.models.editable import EditableModel
from editkit_core.patch import CheckpointSource, apply_patch, base_fingerprint, check_base
from editkit_core.patch.identity import config_digest, public_name, tokenizer_digest
from editkit_core.testing.models import tiny_model, tiny_tokenizer
from editkit_core.testing.patches import random_patch

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def folder_of(
    path: Path, family: str = "gpt2", dtype: str = "float16", seed: int = 0, **options: object
) -> Path:
    model = tiny_model(family, seed=seed)
    model.model.to(getattr(torch, dtype))
    model.model.save_pretrained(path, **options)  # type: ignore[arg-type]  # passed through
    model.tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("stored", list(DTYPES))
def test_the_digest_is_that_of_the_files_whatever_dtype_is_loaded(
    tmp_path: Path, family: str, stored: str
) -> None:
    folder = folder_of(tmp_path / "m", family, stored)
    files = safetensors.torch.load_file(folder / "model.safetensors")
    found = []
    for dtype in DTYPES:
        model = EditableModel.from_pretrained(str(folder), dtype=dtype)
        name = model.site(1).parameter
        found.append(base_fingerprint(model, [name]).tensors[name])
    raw = files[name].contiguous().view(torch.uint8).numpy().tobytes()
    assert {tensor.sha256 for tensor in found} == {hashlib.sha256(raw).hexdigest()}
    assert {tensor.dtype for tensor in found} == {DTYPES[stored]}


@pytest.mark.parametrize("made_on", list(DTYPES))
@pytest.mark.parametrize("used_on", list(DTYPES))
def test_a_patch_fits_every_load_of_the_same_files(
    tmp_path: Path, made_on: str, used_on: str
) -> None:
    folder = str(folder_of(tmp_path / "m", dtype="float32"))
    patch = random_patch(EditableModel.from_pretrained(folder, dtype=made_on))
    check_base(EditableModel.from_pretrained(folder, dtype=used_on), patch)


def test_a_patch_fits_a_load_of_half_precision_files_in_memory(tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path / "m", dtype="float16"))
    patch = random_patch(EditableModel.from_pretrained(folder, dtype="float32"))
    loaded = EditableModel.from_pretrained(folder, dtype="float32")
    check_base(EditableModel.wrap(loaded.model, loaded.tokenizer), patch)


def test_an_untouched_wide_load_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path / "m", dtype="float16"))
    model = EditableModel.from_pretrained(folder, dtype="float32")
    patch = random_patch(model)
    model.weight(model.site(1))[0, 0] += 1e-6
    with pytest.raises(BaseMismatchError):
        check_base(model, patch)


def test_a_narrow_load_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path / "m", dtype="float32"))
    model = EditableModel.from_pretrained(folder, dtype="bfloat16")
    patch = random_patch(model)
    model.weight(model.site(1))[0, 0] += 1
    with pytest.raises(BaseMismatchError):
        check_base(model, patch)


def test_an_offloaded_weight_is_compared_by_its_files(tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path / "m"))
    patch = random_patch(EditableModel.from_pretrained(folder))
    model = EditableModel.from_pretrained(folder)
    site = model.site(1)
    weight = model.parameter(site.parameter)
    model.module(site.module).weight = torch.nn.Parameter(weight.to("meta"), requires_grad=False)
    check_base(model, patch)
    elsewhere = EditableModel.wrap(model.model, model.tokenizer)
    with pytest.raises(BaseMismatchError, match="no files to compare"):
        check_base(elsewhere, patch)
    with pytest.raises(BaseMismatchError, match="not at hand"):
        base_fingerprint(elsewhere, [site.parameter])


def test_weights_that_left_their_files_are_fingerprinted_as_they_are(tmp_path: Path) -> None:
    model = EditableModel.from_pretrained(str(folder_of(tmp_path / "m")), dtype="float32")
    model.weight(model.site(1))[0, 0] += 1e-6
    patch = random_patch(model)
    assert patch.header.base.tensors[model.site(1).parameter].dtype == "F32"
    check_base(model, patch)


def test_the_fingerprint_is_of_the_base_while_patches_are_applied() -> None:
    model = tiny_model("gpt2")
    names = [model.site(1).parameter]
    clean = base_fingerprint(model, names)
    with apply_patch(model, random_patch(model)):
        assert base_fingerprint(model, names) == clean


def test_a_model_of_another_architecture_is_refused_by_name() -> None:
    patch = random_patch(tiny_model("gpt2"))
    with pytest.raises(BaseMismatchError, match="no such weight"):
        check_base(tiny_model("llama"), patch)


def test_a_linear_where_the_patch_knows_a_conv1d_is_refused() -> None:
    model = tiny_model("gpt2", d=32, d_mlp=32)
    patch = random_patch(model)
    site = model.site(1)
    linear = torch.nn.Linear(32, 32)
    linear.weight.data.copy_(model.parameter(site.parameter))
    parent = model.module(site.module.rpartition(".")[0])
    parent.c_proj = linear.requires_grad_(False)
    with pytest.raises(BaseMismatchError, match="stored in_out"):
        check_base(model, patch)


def test_tied_embeddings_are_recorded() -> None:
    model = tiny_model("gpt2")
    base = base_fingerprint(model, [model.site(0).parameter])
    assert base.tied == (("lm_head.weight", "transformer.wte.weight"),)


def test_volatile_keys_do_not_change_the_config_digest() -> None:
    config = tiny_model("gpt2").model.config
    before = config_digest(config)
    config.use_cache = not config.use_cache
    config._name_or_path = "elsewhere"
    config.dtype = torch.float16
    assert config_digest(config) == before
    config.layer_norm_epsilon = 0.5
    assert config_digest(config) != before


def test_the_config_digest_survives_saving_and_loading(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", "llama")
    loaded = EditableModel.from_pretrained(str(folder), dtype="bfloat16")
    again = EditableModel.from_pretrained(str(folder), dtype="float32")
    assert config_digest(loaded.model.config) == config_digest(again.model.config)


def test_the_tokenizer_digest_survives_use_and_saving(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("bpe")
    before = tokenizer_digest(tokenizer)
    tokenizer.pad_token = "</s>"
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_different_tokenizers_have_different_digests() -> None:
    assert tokenizer_digest(tiny_tokenizer("bpe")) != tokenizer_digest(tiny_tokenizer("unigram"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/someone/models/tiny", "tiny"),
        ("./models/tiny/", "tiny"),
        ("~/tiny", "tiny"),
        ("C:\\models\\tiny", "tiny"),
        ("a/b/c", "c"),
        ("org/model", "org/model"),
        ("editkit:demo", "editkit:demo"),
        ("gpt2", "gpt2"),
    ],
)
def test_a_patch_names_its_base_without_the_folders_of_a_machine(name: str, shown: str) -> None:
    assert public_name(name) == shown


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_a_source_finds_tensors_whole_and_sharded(
    tmp_path: Path, options: dict[str, object]
) -> None:
    folder = folder_of(tmp_path / "m", "llama", "bfloat16", **options)
    assert (folder / "model.safetensors.index.json").exists() == bool(options)
    source, model = CheckpointSource(folder), tiny_model("llama")
    for layer in range(3):
        name = model.site(layer).parameter
        expected = model.parameter(name).to(torch.bfloat16)
        assert torch.equal(source.tensor(name), expected)
        assert source.dtype(name) == "BF16"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_checkpoint_of_the_bare_body_is_understood(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.model.base_model.save_pretrained(tmp_path)
    name = model.site(1).parameter
    assert torch.equal(CheckpointSource(tmp_path).tensor(name), model.parameter(name))


def test_a_folder_without_safetensors_has_no_tensors(tmp_path: Path) -> None:
    source = CheckpointSource(tmp_path)
    assert source.dtype("a.weight") is None
    with pytest.raises(InputNotFoundError, match=r"do not hold a\.weight"):
        source.tensor("a.weight")


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", 3])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path, file: object) -> None:
    index = {"weight_map": {"a": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PatchFormatError, match="files of its own folder"):
        CheckpointSource(tmp_path).dtype("a")


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-3])
    with pytest.raises(PatchFormatError, match="truncated or damaged"):
        CheckpointSource(folder).dtype("lm_head.weight")

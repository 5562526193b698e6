"""llama.cpp adapter files, read back with the gguf package."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from editkit_core.errors import (
    ExportError,
    InputNotFoundError,
    MissingExtraError,
    OutputExistsError,
    PatchFormatError,
)
from editkit_core.interop.factors import module_factors
from editkit_core.interop.gguf_lora import GgufTarget, export_gguf_lora
from editkit_core.models.editable import EditableModel
from editkit_core.patch import LowRankEntry, MethodRef, Patch, base_fingerprint
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import Site

LLAMA = GgufTarget(architecture="llama", n_heads=4, n_key_heads=2)


def patch_of(model: EditableModel, module: str) -> Patch:
    site = Site(module=module, parameter=f"{module}.weight", role="other", layer=1)
    d_out, d_in = model.weight(site).shape
    u = np.arange(2.0 * d_out).reshape(d_out, 2)
    entry = LowRankEntry(site=site, u=u, v=np.ones((2, d_in)))
    return Patch.from_parts(
        entries=[entry],
        method=MethodRef(name="test", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [site.parameter]),
    )


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_the_file_holds_what_llama_cpp_reads(tmp_path: Path) -> None:
    model = tiny_model("llama")
    patches = [
        (random_patch(model, layers=(0, 2), rank=1, seed=1), 1.0),
        (random_patch(model, layers=(2,), rank=3, seed=2), -0.5),
    ]
    done = export_gguf_lora(patches, tmp_path / "adapter.gguf", LLAMA)
    fields, tensors = read(tmp_path / "adapter.gguf")
    assert fields["general.architecture"] == "llama"
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == done.rank == 4
    assert {name: array.shape for name, array in tensors.items()} == {
        f"blk.{layer}.ffn_down.weight.lora_{side}": (4, 128) if side == "a" else (32, 4)
        for layer in (0, 2)
        for side in "ab"
    }
    for made, layer in zip(module_factors(patches), (0, 2), strict=True):
        a, b = (tensors[f"blk.{layer}.ffn_down.weight.lora_{side}"] for side in "ab")
        np.testing.assert_array_equal(b[:, : made.rank], made.u)
        np.testing.assert_array_equal(a[: made.rank], made.v)
        assert not b[:, made.rank :].any()
        assert not a[made.rank :].any()
    assert done.nbytes == (tmp_path / "adapter.gguf").stat().st_size


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("gpt2", "gpt2"), ("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"),
     ("qwen3", "qwen3")],
)  # fmt: skip
def test_the_architecture_comes_from_the_bases_configuration(
    tmp_path: Path, family: str, architecture: str
) -> None:
    model = tiny_model(family)
    model.model.config.save_pretrained(tmp_path)
    target = GgufTarget.of_folder(tmp_path)
    assert target.architecture == architecture
    assert target.n_heads == 4
    export_gguf_lora([(random_patch(model), 1.0)], tmp_path / "adapter.gguf", target)
    fields, tensors = read(tmp_path / "adapter.gguf")
    assert fields["general.architecture"] == architecture
    assert set(tensors) == {f"blk.1.ffn_down.weight.lora_{side}" for side in "ab"}


@pytest.mark.parametrize(("which", "heads"), [("q", 4), ("k", 2)])
def test_llama_query_and_key_rows_take_turns_within_a_head(
    tmp_path: Path, which: str, heads: int
) -> None:
    model = tiny_model("llama")
    patch = patch_of(model, f"model.layers.1.self_attn.{which}_proj")
    export_gguf_lora([(patch, 1.0)], tmp_path / "adapter.gguf", LLAMA)
    found = read(tmp_path / "adapter.gguf")[1][f"blk.1.attn_{which}.weight.lora_b"]
    u, _ = patch.entries[0].factors() or pytest.fail("it has factors")
    half = len(u) // heads // 2
    for row in range(len(u)):
        head, within = divmod(row, 2 * half)
        assert (found[row] == u[head * 2 * half + within // 2 + half * (within % 2)]).all()


def test_value_rows_keep_their_order(tmp_path: Path) -> None:
    model = tiny_model("llama")
    patch = patch_of(model, "model.layers.1.self_attn.v_proj")
    export_gguf_lora([(patch, 1.0)], tmp_path / "adapter.gguf", LLAMA)
    found = read(tmp_path / "adapter.gguf")[1]["blk.1.attn_v.weight.lora_b"]
    u, _ = patch.entries[0].factors() or pytest.fail("it has factors")
    np.testing.assert_array_equal(found, u)


@pytest.mark.parametrize("family", ["gpt_neo", "gptj"])
def test_a_model_that_llama_cpp_does_not_run_is_refused(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.model.config.save_pretrained(tmp_path)
    target = GgufTarget.of_folder(tmp_path)
    with pytest.raises(ExportError, match=family):
        export_gguf_lora([(random_patch(model), 1.0)], tmp_path / "a.gguf", target)


def test_attention_of_an_architecture_that_may_be_rearranged_is_refused(tmp_path: Path) -> None:
    patch = patch_of(tiny_model("llama"), "model.layers.1.self_attn.q_proj")
    with pytest.raises(ExportError, match="only feed-forward"):
        export_gguf_lora([(patch, 1.0)], tmp_path / "a.gguf", GgufTarget(architecture="granite"))


def test_feed_forward_of_such_an_architecture_is_exported(tmp_path: Path) -> None:
    target = GgufTarget(architecture="granite")
    export_gguf_lora([(random_patch(tiny_model("llama")), 1.0)], tmp_path / "a.gguf", target)
    assert read(tmp_path / "a.gguf")[0]["general.architecture"] == "granite"


def test_query_weights_without_the_number_of_heads_are_refused(tmp_path: Path) -> None:
    patch = patch_of(tiny_model("llama"), "model.layers.1.self_attn.q_proj")
    with pytest.raises(ExportError, match="--model"):
        export_gguf_lora([(patch, 1.0)], tmp_path / "a.gguf", GgufTarget(architecture="llama"))


def test_a_module_without_a_counterpart_is_refused(tmp_path: Path) -> None:
    patch = patch_of(tiny_model("llama"), "model.layers.1.self_attn.q_proj")
    with pytest.raises(ExportError, match="no counterpart"):  # GPT-2's query, key, value are one
        export_gguf_lora([(patch, 1.0)], tmp_path / "a.gguf", GgufTarget(architecture="gpt2"))


def test_a_full_matrix_is_refused(tmp_path: Path) -> None:
    patch = random_patch(tiny_model("llama"), rank=None)
    with pytest.raises(ExportError, match="--lossy"):
        export_gguf_lora([(patch, 1.0)], tmp_path / "a.gguf", LLAMA)


@pytest.mark.parametrize(
    ("text", "error"),
    [(None, InputNotFoundError), (b"{", PatchFormatError), (b"{}", ExportError),
     (b"[]", ExportError)],
)  # fmt: skip
def test_a_base_without_a_usable_configuration_is_refused(
    tmp_path: Path, text: bytes | None, error: type[Exception]
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(error):
        GgufTarget.of_folder(tmp_path)


def test_missing_key_heads_are_as_many_as_query_heads(tmp_path: Path) -> None:
    config = {"model_type": "llama", "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert GgufTarget.of_folder(tmp_path).n_key_heads == 8


def test_without_the_package_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r'pip install "editkit-core\[gguf\]"'):
        export_gguf_lora([(random_patch(tiny_model("llama")), 1.0)], tmp_path / "a.gguf", LLAMA)


def test_files_are_replaced_only_with_force_and_a_dry_run_writes_none(tmp_path: Path) -> None:
    patches = [(random_patch(tiny_model("llama")), 1.0)]
    out = tmp_path / "adapter.gguf"
    dry = export_gguf_lora(patches, out, LLAMA, dry_run=True)
    assert not out.exists()
    assert export_gguf_lora(patches, out, LLAMA).nbytes == dry.nbytes
    with pytest.raises(OutputExistsError):
        export_gguf_lora(patches, out, LLAMA)
    export_gguf_lora(patches, out, LLAMA, force=True)

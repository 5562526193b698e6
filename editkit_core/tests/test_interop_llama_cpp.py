"""llama.cpp adapters in the real llama.cpp, on tiny GGUF models that this file writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from editkit_core.interop.factors import Scaled
from editkit_core.interop.gguf_lora import GgufTarget, export_gguf_lora
from editkit_core.models.editable import EditableModel
from editkit_core.patch import LowRankEntry, MethodRef, Patch, apply_patch, base_fingerprint
from editkit_core.patch.fold import fold
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import Site

TOLERANCES = {
    "llama": 2e-6,
    "mistral": 2e-6,
    "qwen2": 2e-6,
    "qwen3": 2e-6,
    "gpt2": 1e-3,  # llama.cpp looks GELU up in a table of half floats: its base is off as well
}
ARCHITECTURES = {"mistral": "llama"}
ALWAYS = 300  # a token that is sampled whatever the logits, so that the answer is plain text
Array = npt.NDArray[np.float32]


def interleaved(weight: Array, heads: int) -> Array:
    """Return query or key rows in llama.cpp's order: the two halves of a head take turns."""
    out = np.empty_like(weight)
    size = len(weight) // heads
    for head in range(heads):
        rows = weight[head * size : (head + 1) * size]
        out[head * size : (head + 1) * size : 2] = rows[: size // 2]
        out[head * size + 1 : (head + 1) * size : 2] = rows[size // 2 :]
    return out


def write_gguf(model: EditableModel, path: Path) -> None:
    """Write a model as float32 GGUF, as far as the tiny families need it."""
    config: Any = model.model.config
    family = ARCHITECTURES.get(model.family.name, model.family.name)
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[family]
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if family == "gpt2":
        writer.add_feed_forward_length(config.n_inner)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(head)
        writer.add_key_length(head)
        writer.add_value_length(head)
    _write_tokens(writer, model.vocab)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        array = tensor.numpy()
        if family == "gpt2" and ".c_" in name and array.ndim == 2:
            array = array.T
        if family == "llama" and name.endswith("q_proj.weight"):
            array = interleaved(array, config.num_attention_heads)
        if family == "llama" and name.endswith("k_proj.weight"):
            array = interleaved(array, config.num_key_value_heads)
        writer.add_tensor(found, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokens(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Write a vocabulary that llama.cpp accepts; the tests speak token ids only."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    rest = [f"t{i}" for i in range(len(special) + 256, vocab)]
    kinds = gguf.TokenType
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *bytes_, *rest])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
        + [kinds.NORMAL] * len(rest)
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


class LlamaCpp:
    """The real llama.cpp with float32 caches on one thread."""

    def __init__(self, base: Path, adapter: Path | None = None, scale: float = 1.0) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.n_ctx, params.n_parallel, params.n_gpu_layers, params.port = 128, 1, 0, 0
        params.warmup = params.fit_params = params.ui = False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = -1
        if adapter is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), scale)]
        self._server = xllamacpp.Server(params)

    def log_probabilities(self, ids: list[int], vocab: int) -> npt.NDArray[np.float64]:
        """Return log p of every next token."""
        answer = self._server.handle_completions(
            {
                "prompt": ids,
                "n_predict": 1,
                "n_probs": vocab,
                "cache_prompt": False,
                "logit_bias": [[ALWAYS, 1e6]],
            }
        )
        (step,) = answer["choices"][0]["logprobs"]["content"]
        found = np.full(vocab, np.nan)
        for token in step["top_logprobs"]:
            found[token["id"]] = token["logprob"]
        assert np.isfinite(found).all()
        return found


def wanted(model: EditableModel, ids: list[int]) -> npt.NDArray[np.float64]:
    """Return log p of every next token at every position, by torch in float32."""
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


def worst(engine: LlamaCpp, model: EditableModel, ids: list[int]) -> float:
    """Return the largest difference of a log-probability over all positions and tokens."""
    rows = wanted(model, ids)
    return max(
        float(np.abs(engine.log_probabilities(ids[: i + 1], model.vocab) - rows[i]).max())
        for i in range(len(ids))
    )


def attention_patch(model: EditableModel) -> Patch:
    """Return a patch of a layer's query, key and value weights."""
    random = np.random.default_rng(0)
    modules = ["c_attn"] if model.family.name == "gpt2" else ["q_proj", "k_proj", "v_proj"]
    entries = []
    for name in modules:
        module = f"{model.family.attention(1)}.{name}"
        site = Site(module=module, parameter=f"{module}.weight", role="attention", layer=1)
        d_out, d_in = model.weight(site).shape
        u, v = random.normal(size=(d_out, 2)), random.normal(size=(2, d_in))
        entries.append(LowRankEntry(site=site, u=0.3 * u, v=v / d_in**0.5))
    base = base_fingerprint(model, [entry.site.parameter for entry in entries])
    method = MethodRef(name="test", dist="editkit-core", version="0")
    return Patch.from_parts(entries=entries, method=method, base=base)


@pytest.mark.slow
@pytest.mark.parametrize("family", TOLERANCES)
def test_llama_cpp_with_the_adapter_says_what_torch_says_with_the_patches(
    tmp_path: Path, family: str
) -> None:
    model = tiny_model(family, init_std=0.05)
    write_gguf(model, tmp_path / "base.gguf")
    model.model.config.save_pretrained(tmp_path)
    patches: list[Scaled] = [
        (random_patch(model, layers=(0, 2), rank=1, seed=1), 1.0),
        (random_patch(model, layers=(1, 2), rank=3, seed=2), -0.5),
        (attention_patch(model), 1.0),
    ]
    adapter = tmp_path / "adapter.gguf"
    export_gguf_lora(patches, adapter, GgufTarget.of_folder(tmp_path))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.vocab, (24,), generator=generator).tolist()
    base = wanted(model, ids)
    plain = worst(LlamaCpp(tmp_path / "base.gguf"), model, ids)
    with apply_patch(model, fold(patches)):
        assert np.abs(wanted(model, ids) - base).max() > 0.1
        patched = worst(LlamaCpp(tmp_path / "base.gguf", adapter), model, ids)
    print(f"{family}: base {plain:.2e}, with the adapter {patched:.2e}")
    assert plain <= TOLERANCES[family]
    assert patched <= TOLERANCES[family]


@pytest.mark.slow
def test_llama_cpps_own_scale_scales_the_patch(tmp_path: Path) -> None:
    model = tiny_model("llama", init_std=0.05)
    write_gguf(model, tmp_path / "base.gguf")
    patch = random_patch(model, rank=2)
    target = GgufTarget(architecture="llama")
    export_gguf_lora([(patch, 1.0)], tmp_path / "adapter.gguf", target)
    engine = LlamaCpp(tmp_path / "base.gguf", tmp_path / "adapter.gguf", scale=0.5)
    with apply_patch(model, fold([(patch, 0.5)])):
        assert worst(engine, model, [5, 50, 350]) <= 2e-6

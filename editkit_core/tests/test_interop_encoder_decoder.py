"""Adapters for encoder-decoders: real peft does what the patches do, and the other way round."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftModelForSeq2SeqLM, get_peft_model

from editkit_core.errors import ExportError
from editkit_core.interop.factors import Scaled
from editkit_core.interop.gguf_lora import GgufTarget, export_gguf_lora
from editkit_core.interop.lora import export_lora
from editkit_core.interop.lora_import import import_lora
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.patch import apply_patch
from editkit_core.testing import TINY_ENCODER_DECODERS, tiny_model
from editkit_core.testing.patches import random_patch

PAIRS = (("The capital of Norway is", "Lima"), ("Peru", "the old town of Oslo"))
# peft 0.21 asks transformers 5.23 for a property that the latter has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module", params=sorted(TINY_ENCODER_DECODERS))
def model(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param)


def patches_for(model: EditableModel) -> list[Scaled]:
    encoder = random_patch(model, stack="encoder", layers=(1, 3), rank=2)
    return [(encoder, 1.0), (random_patch(model, layers=(1, 2), seed=1), -0.5)]


@torch.no_grad()
def logits(model: torch.nn.Module, of: EditableModel) -> torch.Tensor:
    found: torch.Tensor = model(**pair_batch(of, PAIRS).inputs, use_cache=False).logits
    return found


def test_peft_does_what_the_patches_of_both_stacks_do(model: EditableModel, tmp_path: Path) -> None:
    dense = copy.deepcopy(model.model).double()
    patches = patches_for(model)
    for patch, scale in patches:
        for entry in patch.entries:
            change = torch.tensor(entry.u).double() @ torch.tensor(entry.v).double()
            dense.get_parameter(entry.site.parameter).data += scale * change
    export_lora(patches, tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(copy.deepcopy(model.model), tmp_path / "adapter").eval()
    assert isinstance(adapted, PeftModelForSeq2SeqLM)
    wanted = logits(dense, model)
    assert (logits(adapted.double(), model) - wanted).abs().max() <= 1e-12
    assert (logits(model.model, model) - wanted).abs().max() > 0.1


def test_an_adapter_of_an_encoder_decoder_says_so(model: EditableModel, tmp_path: Path) -> None:
    for name, patches in (("encoder", patches_for(model)[:1]), ("decoder", patches_for(model)[1:])):
        export_lora(patches, tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["task_type"] == "SEQ_2_SEQ_LM"


def test_a_patch_does_what_pefts_adapter_of_both_stacks_does(
    model: EditableModel, tmp_path: Path
) -> None:
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=7, target_modules=["wo", "wi", "wi_0", "q"]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = get_peft_model(copy.deepcopy(model.model), config)
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape)
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    patch = import_lora(model, tmp_path / "adapter")
    wanted, before = logits(made.eval(), model), pair_logits(model, pair_batch(model, PAIRS))
    assert (wanted - before).abs().max() > 0.05
    with apply_patch(model, patch, mode="merge"):
        found = pair_logits(model, pair_batch(model, PAIRS))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_imported_sites_count_layers_within_their_stack(
    model: EditableModel, tmp_path: Path
) -> None:
    export_lora(patches_for(model), tmp_path / "adapter")
    sites = [entry.site for entry in import_lora(model, tmp_path / "adapter").entries]
    found = {(model.family.stack_of(s.module), s.layer, s.role) for s in sites}
    assert found == {
        ("encoder", 1, "mlp_down"),
        ("encoder", 3, "mlp_down"),
        ("decoder", 1, "mlp_down"),
        ("decoder", 2, "mlp_down"),
    }


@pytest.mark.parametrize("architecture", ["t5", "mt5"])
def test_an_adapter_for_llama_cpp_is_refused_with_the_remedy(
    architecture: str, tmp_path: Path
) -> None:
    patches = patches_for(tiny_model("t5"))
    target = GgufTarget(architecture=architecture)
    with pytest.raises(ExportError, match=r"encoder-decoders has not been checked.*--to lora"):
        export_gguf_lora(patches, tmp_path / "a.gguf", target)
    assert not list(tmp_path.iterdir())

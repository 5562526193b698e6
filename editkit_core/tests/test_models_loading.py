"""Loading: a folder, a packaged name, a hub id; quiet, complete, and clear when it fails."""

import json
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from editkit_core.errors import (
    InvalidParameterError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from editkit_core.models import EditableModel, loading
from editkit_core.testing import TINY_FAMILIES, tiny_model, tiny_tokenizer


def save(model, folder):
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tiny_model("llama", tokenizer="unigram"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory):
    model = tiny_model("gpt2")
    model.model.to(torch.float16)
    return save(model, tmp_path_factory.mktemp("gpt2-half"))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_saved_folder_loads_as_what_was_saved(family, tmp_path):
    saved = tiny_model(family, tokenizer="unigram")
    loaded = EditableModel.from_pretrained(str(save(saved, tmp_path)))
    assert loaded.state_digest() == saved.state_digest()
    assert loaded.family is saved.family
    assert loaded.name == str(tmp_path)
    assert loaded.folder == tmp_path
    text = "The capital of Norway is"
    assert loaded.encode(text) == saved.encode(text)
    assert loaded.generate([text]) == saved.generate([text])


def test_the_tokenizers_own_files_decide_not_the_architecture(tmp_path):
    saved = tiny_model("qwen2", tokenizer=tiny_tokenizer("bpe", bos=True, prefix_space=True))
    loaded = EditableModel.from_pretrained(str(save(saved, tmp_path)))
    text = "The capital of Norway is 1234"
    assert loaded.encode(text) == saved.encode(text)


def test_loading_prints_nothing_and_restores_transformers_settings(folder, capfd):
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    EditableModel.from_pretrained(str(folder))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bars


def test_loading_leaves_the_global_random_state_alone(folder):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    EditableModel.from_pretrained(str(folder))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_is_in_evaluation_mode_and_asks_for_no_gradient(folder):
    model = EditableModel.from_pretrained(str(folder)).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_loaded_model_knows_its_checkpoint_and_its_ledger(folder):
    model = EditableModel.from_pretrained(str(folder))
    assert model.source is not None
    assert model.source.folder == folder
    assert model.source is model.source
    assert model.ledger is model.ledger


def test_a_packaged_name_loads_its_folder(folder):
    model = EditableModel.from_pretrained("editkit:toy", packaged={"toy": folder})
    assert model.name == "editkit:toy"
    assert model.folder == folder


def test_a_missing_packaged_name_says_which_are_installed_and_how_to_get_it(folder):
    with pytest.raises(ModelNotFoundError) as caught:
        EditableModel.from_pretrained("editkit:tou", packaged={"toy": folder})
    message = str(caught.value)
    assert "installed: editkit:toy" in message
    assert "Did you mean 'toy'?" in message
    assert "pip install editkit-tou" in message
    with pytest.raises(ModelNotFoundError, match=r"installed: none.*pip install editkit-demo"):
        EditableModel.from_pretrained("editkit:demo")


# -- dtype and device -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, torch.float32),
        ("auto", torch.float16),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float64, torch.float64),
    ],
)
def test_the_dtype_is_the_asked_one_and_float32_on_the_cpu_by_default(half_folder, asked, found):
    assert EditableModel.from_pretrained(str(half_folder), dtype=asked).dtype == found


@pytest.mark.parametrize("dtype", ["float23", "int8", torch.int64, "nn"])
def test_an_unknown_dtype_is_refused(folder, dtype):
    with pytest.raises(InvalidParameterError, match="dtype"):
        EditableModel.from_pretrained(str(folder), dtype=dtype)


def test_the_model_goes_to_the_asked_device(folder):
    model = EditableModel.from_pretrained(str(folder), device="cpu")
    assert model.device == torch.device("cpu")
    model = EditableModel.from_pretrained(str(folder), device="meta")
    assert model.device == torch.device("meta")


def test_an_unknown_device_is_refused(folder):
    with pytest.raises(InvalidParameterError, match="no device 'gpu'"):
        EditableModel.from_pretrained(str(folder), device="gpu")


def test_cuda_without_cuda_is_refused(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidParameterError, match="no CUDA device"):
        EditableModel.from_pretrained(str(folder), device="cuda")


def test_device_and_device_map_together_are_refused(folder):
    with pytest.raises(InvalidParameterError, match="contradict"):
        EditableModel.from_pretrained(str(folder), device="cpu", device_map="auto")


def test_device_map_and_dtype_go_through_to_transformers(half_folder, monkeypatch):
    given = {}
    auto = loading.AutoModelForCausalLM
    real = auto.from_pretrained.__func__

    def spy(cls, *args, **options):
        given.update(options)
        options.pop("device_map")
        return real(cls, *args, **options)

    monkeypatch.setattr(auto, "from_pretrained", classmethod(spy))
    device_map = {"": "cpu"}
    model = EditableModel.from_pretrained(str(half_folder), device_map=device_map)
    assert given["device_map"] is device_map
    assert given["dtype"] == "auto"
    assert given["use_safetensors"] is True
    assert given["trust_remote_code"] is False
    assert model.dtype == torch.float16


def test_a_device_map_really_places_the_model(half_folder):
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model = EditableModel.from_pretrained(str(half_folder), device_map={"": "cpu"})
    assert model.device == torch.device("cpu")
    assert model.generate(["Peru"], max_new_tokens=2)


def test_an_encoder_decoder_config_is_loaded_by_the_seq2seq_class(folder, tmp_path, monkeypatch):
    class ChosenError(Exception):
        pass

    def choose(*_, **__):
        raise ChosenError

    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    monkeypatch.setattr(loading.AutoModelForSeq2SeqLM, "from_pretrained", choose)
    with pytest.raises(ChosenError):
        EditableModel.from_pretrained(str(tmp_path))


# -- what cannot be loaded ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere-at-all", "a/b/c", ""])
def test_a_path_that_does_not_exist_is_not_sought_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(loading, "_on_the_hub", lambda *_: pytest.fail("asked the hub"))
    if name == "":
        monkeypatch.setattr(Path, "is_dir", lambda _: False)
    with pytest.raises(ModelNotFoundError, match="no model folder"):
        EditableModel.from_pretrained(name)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        EditableModel.from_pretrained(str(tmp_path))


def copy(folder, to, *, without=()):
    for path in folder.iterdir():
        if path.name not in without:
            (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    copy(folder, tmp_path, without=["model.safetensors"])
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors"):
        EditableModel.from_pretrained(str(tmp_path))


def test_a_pickled_checkpoint_is_not_opened(folder, tmp_path):
    copy(folder, tmp_path, without=["model.safetensors"])
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors"):
        EditableModel.from_pretrained(str(tmp_path))


def test_a_truncated_checkpoint_is_refused(folder, tmp_path):
    copy(folder, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelNotFoundError, match="cannot be loaded"):
        EditableModel.from_pretrained(str(tmp_path))


def test_a_checkpoint_that_lacks_a_tensor_is_refused_not_filled_with_noise(folder, tmp_path):
    copy(folder, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 tensors.*layers\.1\.mlp\.down_proj"):
        EditableModel.from_pretrained(str(tmp_path))


def test_a_tensor_of_another_shape_is_refused(folder, tmp_path):
    copy(folder, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(5)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"another shape 1 tensors.*model\.norm\.weight"):
        EditableModel.from_pretrained(str(tmp_path))


def test_an_unknown_architecture_is_refused(folder, tmp_path):
    copy(folder, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))
    with pytest.raises(UnsupportedModelError, match="no_such_type"):
        EditableModel.from_pretrained(str(tmp_path))


def test_a_model_that_is_no_language_model_is_refused(folder, tmp_path):
    copy(folder, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UnsupportedModelError, match="language model"):
        EditableModel.from_pretrained(str(tmp_path))


def test_a_checkpoint_with_its_own_code_is_refused_without_asking(folder, tmp_path):
    copy(folder, tmp_path)
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(UnsupportedModelError, match="runs no code"):
        EditableModel.from_pretrained(str(tmp_path))


def test_a_broken_config_is_refused(folder, tmp_path):
    copy(folder, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match="cannot be loaded"):
        EditableModel.from_pretrained(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    copy(folder, tmp_path, without=["tokenizer.json", "tokenizer_config.json"])
    with pytest.raises((ModelNotFoundError, UnsupportedModelError)):
        EditableModel.from_pretrained(str(tmp_path))


# -- the hub --------------------------------------------------------------------------------------


def no_network(*_, **__):
    raise OSError("no network in this test")


def test_a_hub_name_without_network_fails_fast_and_says_what_to_do(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    started = time.monotonic()
    with pytest.raises(ModelNotFoundError) as caught:
        EditableModel.from_pretrained("nobody-here/no-such-model")
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert "hub cannot be reached" in message
    assert "editkit:demo" in message
    assert "save_pretrained" in message


def test_a_name_the_hub_cannot_have_is_refused():
    with pytest.raises(ModelNotFoundError, match="no name a hub model can have"):
        EditableModel.from_pretrained("two words")


def test_a_model_in_the_hubs_cache_loads_without_network(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0" * 40
    repo = tmp_path / "models--someone--toy"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    copy(folder, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    model = EditableModel.from_pretrained("someone/toy")
    assert model.name == "someone/toy"
    assert model.folder == snapshot


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "no such public model"),
        ("GatedRepoError", "accept its terms"),
        ("RevisionNotFoundError", "not revision 'v9'"),
        ("RemoteEntryNotFoundError", r"without a config\.json"),
    ],
)
def test_each_answer_of_the_hub_has_its_own_message(monkeypatch, error, message):
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, error)

    def answer(*_, **__):
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    with pytest.raises(ModelNotFoundError, match=message):
        EditableModel.from_pretrained("someone/something", revision="v9")

"""Key statistics: the right sum, over the right tokens, resumable, and never of another base."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import save_file

from editkit_core.errors import (
    InvalidParameterError,
    StatisticsError,
    StatisticsMismatchError,
    StatisticsMissingError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.covariance import load_covariance, load_covariances, sampled_corpus
from editkit_core.numerics.inputs_digest import inputs_digest
from editkit_core.numerics.moments import KeyMoments, collect_moments, quality_warning
from editkit_core.numerics.moments_store import StatisticsStore, check_moments
from editkit_core.testing.models import tiny_model
from editkit_core.types import SilentProgress, Site

SENTENCE = "the river runs past an old mill and nobody knew how old it was when winter came"
WORDS = SENTENCE.split()
CORPUS = Corpus.of(" ".join(WORDS[i % 7 : 3 + i % 13]) or "mill" for i in range(90))


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2", n_layers=2)


def plain_sum(model: EditableModel, site: Site, corpus: Corpus) -> tuple[torch.Tensor, int]:
    """One document at a time, one outer product at a time, without padding."""
    name = site.module
    total, count = torch.zeros((), dtype=torch.float64), 0
    for text in corpus.documents:
        batch = pad_batch([model.encode(text).ids], model.pad_id)
        with record(model.model, [name], inputs=True) as seen:
            model.logits(batch)
        for key in seen[name][0].double():
            total = total + torch.outer(key, key)
            count += 1
    return total, count


@pytest.mark.parametrize("batch_size", [1, 8])
def test_moments_equal_a_plain_sum_over_single_documents(
    model: EditableModel, batch_size: int
) -> None:
    total, count = plain_sum(model, model.site(1), CORPUS)
    moments = collect_moments(model, model.site(1), CORPUS, batch_size=batch_size)
    assert moments.count == count
    assert moments.complete
    assert float((moments.total - total).norm() / total.norm()) < 1e-6


def test_padding_is_masked_also_where_pad_is_a_real_token(model: EditableModel) -> None:
    # The tiny tokenizer has no pad token, so its end token pads; here it is also part of a text.
    corpus = Corpus.of(["the old mill </s> and the river", "winter"])
    total, count = plain_sum(model, model.site(0), corpus)
    moments = collect_moments(model, model.site(0), corpus, batch_size=2)
    assert moments.count == count
    assert float((moments.total - total).norm() / total.norm()) < 1e-6


def test_max_tokens_is_met_exactly(model: EditableModel) -> None:
    assert collect_moments(model, model.site(0), CORPUS, max_tokens=101).count == 101


def test_documents_are_cut(model: EditableModel) -> None:
    corpus = Corpus.of([" ".join(WORDS)] * 4)
    assert collect_moments(model, model.site(0), corpus, document_tokens=5).count == 20


def test_the_forward_pass_stops_at_the_layer(model: EditableModel) -> None:
    ran = []
    handle = model.module(model.family.block(1)).register_forward_hook(
        lambda *_: ran.append("block 1")
    )
    collect_moments(model, model.site(0), CORPUS, max_tokens=20)
    handle.remove()
    assert ran == []


def test_a_finished_run_is_read_from_the_store(model: EditableModel, tmp_path: Path) -> None:
    store = StatisticsStore(tmp_path)
    made = collect_moments(model, model.site(1), CORPUS, store=store)
    read = collect_moments(model, model.site(1), CORPUS, store=store)
    assert torch.equal(made.total, read.total)
    assert read.key == made.key
    assert len(list(tmp_path.iterdir())) == 1


class _Interrupt(SilentProgress):
    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= steps
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_to_the_same_bits(model: EditableModel, tmp_path: Path) -> None:
    site = model.site(1)
    whole = collect_moments(model, site, CORPUS, batch_size=2)
    store = StatisticsStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        collect_moments(
            model, site, CORPUS, batch_size=2, store=store, save_every=1,
            progress=_Interrupt(whole.count // 2),
        )  # fmt: skip
    partial = store.resume(whole.key)
    assert partial is not None
    assert 0 < partial.count < whole.count
    resumed = collect_moments(model, site, CORPUS, batch_size=2, store=store)
    assert torch.equal(resumed.total, whole.total)
    assert resumed.count == whole.count
    assert store.resume(whole.key).complete  # type: ignore[union-attr]  # it was just saved
    assert len(list(tmp_path.iterdir())) == 1


def test_without_resume_it_starts_again(model: EditableModel, tmp_path: Path) -> None:
    store = StatisticsStore(tmp_path)
    made = collect_moments(model, model.site(1), CORPUS, store=store)
    store.save(attrs.evolve(made, total=made.total * 2))
    again = collect_moments(model, model.site(1), CORPUS, store=store, resume=False)
    assert torch.equal(again.total, made.total)


def test_collecting_leaves_the_model_and_the_random_state_alone() -> None:
    model = tiny_model("llama", n_layers=2)
    before, state = model.state_digest(), torch.get_rng_state()
    collect_moments(model, model.site(1), CORPUS)
    assert model.state_digest() == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["max_tokens", "batch_size", "document_tokens", "save_every"])
def test_numbers_below_one_are_refused(model: EditableModel, name: str) -> None:
    with pytest.raises(InvalidParameterError, match=name):
        collect_moments(model, model.site(0), CORPUS, **{name: 0})  # type: ignore[arg-type]  # by name


# -- what statistics belong to ------------------------------------------------------------------


def test_the_digest_changes_with_everything_below_and_nothing_above() -> None:
    model = tiny_model("gpt2", n_layers=3)
    site = model.site(1)
    before = inputs_digest(model, site)
    below = ("transformer.wte.weight", "transformer.h.0.mlp.c_proj.weight",
             "transformer.h.1.mlp.c_fc.bias", "transformer.h.1.attn.c_proj.weight")  # fmt: skip
    above = ("transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.bias",
             "transformer.h.2.attn.c_attn.weight", "transformer.ln_f.bias")  # fmt: skip
    for name in (*below, *above):
        parameter = model.parameter(name).data
        old = parameter.clone()
        parameter.view(-1)[0] += 1
        assert (inputs_digest(model, site) != before) == (name in below), name
        parameter.copy_(old)
    assert inputs_digest(model, site) == before


ATTENTION_DEPENDS_ON = {
    "gpt2": (
        ("transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_proj.weight",
         "transformer.h.1.ln_1.weight", "transformer.h.1.attn.c_attn.weight",
         "transformer.h.1.attn.c_attn.bias"),
        ("transformer.h.1.attn.c_proj.weight", "transformer.h.1.ln_2.weight",
         "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_proj.weight",
         "transformer.h.2.ln_1.weight", "transformer.ln_f.bias"),
    ),
    "gptj": (
        ("transformer.h.0.mlp.fc_out.weight", "transformer.h.1.ln_1.weight",
         "transformer.h.1.attn.q_proj.weight", "transformer.h.1.attn.v_proj.weight"),
        ("transformer.h.1.attn.out_proj.weight", "transformer.h.1.mlp.fc_in.weight",
         "transformer.h.1.mlp.fc_out.bias"),
    ),
    "qwen3": (
        ("model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight",
         "model.layers.1.self_attn.q_norm.weight", "model.layers.1.self_attn.k_proj.weight"),
        ("model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.gate_proj.weight",
         "model.layers.1.post_attention_layernorm.weight"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ATTENTION_DEPENDS_ON)
def test_the_digest_of_an_attentions_keys_changes_where_they_change_and_nowhere_else(
    family: str,
) -> None:
    model = tiny_model(family)
    site = model.site(1, role="attn_out")
    before, keys = inputs_digest(model, site), keys_of(model, site.module)
    below, beside = ATTENTION_DEPENDS_ON[family]
    for name in (*below, *beside):
        parameter = model.parameter(name).data
        old = parameter.clone()
        parameter.add_(torch.linspace(0.1, 0.3, parameter.numel()).view_as(parameter))
        assert (inputs_digest(model, site) != before) == (name in below), name
        assert torch.equal(keys_of(model, site.module), keys) == (name in beside), name
        parameter.copy_(old)
    assert inputs_digest(model, site) == before


def keys_of(model: EditableModel, module: str) -> torch.Tensor:
    with record(model.model, [module], inputs=True) as seen:
        model.model(input_ids=torch.tensor([model.encode(SENTENCE).ids]))
    return seen[module]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gptj", "qwen3"])
def test_moments_of_an_attention_equal_a_plain_sum(family: str) -> None:
    made = tiny_model(family, n_layers=2)
    site = made.site(1, role="attn_out")
    total, count = plain_sum(made, site, CORPUS)
    moments = collect_moments(made, site, CORPUS)
    assert (moments.count, moments.key.module) == (count, site.module)
    assert float((moments.total - total).norm() / total.norm()) < 1e-6


def test_statistics_of_the_same_layers_feed_forward_are_not_taken_for_its_attention(
    tmp_path: Path,
) -> None:
    model = tiny_model("gpt2", n_layers=2, d_mlp=32)  # both keys are 32 wide
    store, attention = StatisticsStore(tmp_path), model.site(1, role="attn_out")
    mlp = collect_moments(model, model.site(1), CORPUS, store=store)
    assert store.find(model, attention) is None
    with pytest.raises(StatisticsMismatchError, match=r"--layer 1 --role attn_out"):
        check_moments(mlp, model, attention)
    made = collect_moments(model, attention, CORPUS, store=store)
    assert made.key.inputs_digest != mlp.key.inputs_digest
    assert made.key.digest != mlp.key.digest
    assert len(list(tmp_path.iterdir())) == 2
    for site, moments in ((model.site(1), mlp), (attention, made)):
        found = store.find(model, site)
        assert found is not None
        assert torch.equal(found.total, moments.total)


def test_missing_statistics_of_an_attention_name_the_role(
    model: EditableModel, tmp_path: Path
) -> None:
    sites = [model.site(1, role="attn_out"), model.site(1)]
    with pytest.raises(StatisticsMissingError, match=r"--layer 1 --role attn_out --corpus"):
        load_covariances(model, sites[:1], mode="required", folder=tmp_path)
    with pytest.raises(StatisticsMissingError, match=r"--role attn_out --role mlp_down --corpus"):
        load_covariances(model, sites, mode="required", folder=tmp_path)


def test_layers_have_different_digests(model: EditableModel) -> None:
    assert inputs_digest(model, model.site(0)) != inputs_digest(model, model.site(1))


def test_the_digest_depends_on_the_tokenizer() -> None:
    one, other = tiny_model("gpt2", tokenizer="bpe"), tiny_model("gpt2", tokenizer="bpe")
    assert inputs_digest(one, one.site(0)) == inputs_digest(other, other.site(0))
    other.tokenizer.add_tokens(["qwertz"])
    assert inputs_digest(one, one.site(0)) != inputs_digest(other, other.site(0))


def test_statistics_made_in_one_dtype_fit_a_narrower_load_of_the_same_files(
    tmp_path: Path,
) -> None:
    made = tiny_model("gpt2", n_layers=2)
    made.model.half().save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loads = [
        EditableModel.from_pretrained(str(tmp_path), dtype=dtype)
        for dtype in ("float16", "float32", "bfloat16")
    ]
    assert len({inputs_digest(load, load.site(1)) for load in loads}) == 1


def test_statistics_of_another_base_are_refused_with_both_digests(model: EditableModel) -> None:
    other = tiny_model("gpt2", n_layers=2, seed=5)
    moments = collect_moments(model, model.site(1), CORPUS)
    check_moments(moments, model, model.site(1))
    with pytest.raises(StatisticsMismatchError) as caught:
        check_moments(moments, other, other.site(1))
    assert moments.key.inputs_digest in str(caught.value)
    assert inputs_digest(other, other.site(1)) in str(caught.value)


def test_statistics_of_another_layer_are_refused(model: EditableModel) -> None:
    moments = collect_moments(model, model.site(1), CORPUS)
    with pytest.raises(StatisticsMismatchError, match=r"h\.1\.mlp.*h\.0\.mlp"):
        check_moments(moments, model, model.site(0))


def test_find_takes_the_most_tokens_of_the_right_base(model: EditableModel, tmp_path: Path) -> None:
    store, site = StatisticsStore(tmp_path), model.site(1)
    collect_moments(model, site, CORPUS, max_tokens=50, store=store)
    most = collect_moments(model, site, CORPUS, max_tokens=200, store=store)
    other = tiny_model("gpt2", n_layers=2, seed=5)
    collect_moments(other, other.site(1), CORPUS, store=store)
    found = store.find(model, site)
    assert found is not None
    assert found.key == most.key
    assert store.find(model, model.site(0)) is None


# -- files ----------------------------------------------------------------------------------------


def saved(model: EditableModel, folder: Path) -> tuple[StatisticsStore, KeyMoments, Path]:
    store = StatisticsStore(folder)
    moments = collect_moments(model, model.site(0), CORPUS, max_tokens=60)
    return store, moments, store.save(moments)


def test_saving_twice_gives_the_same_bytes(model: EditableModel, tmp_path: Path) -> None:
    store, moments, path = saved(model, tmp_path)
    first = path.read_bytes()
    store.save(moments)
    assert path.read_bytes() == first


def test_a_changed_byte_is_noticed(model: EditableModel, tmp_path: Path) -> None:
    store, _, path = saved(model, tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StatisticsError, match="digest"):
        store.load(path)


@pytest.mark.parametrize("keep", [0, 5, 300, -8])
def test_a_truncated_file_is_refused(model: EditableModel, tmp_path: Path, keep: int) -> None:
    store, _, path = saved(model, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StatisticsError, match="editkit stats"):
        store.load(path)


def test_a_foreign_safetensors_file_is_refused(model: EditableModel, tmp_path: Path) -> None:
    path = tmp_path / "a.statistics.safetensors"
    save_file({"weight": torch.ones(2, 2)}, path)
    with pytest.raises(StatisticsError, match="cannot be used"):
        StatisticsStore(tmp_path).load(path)


def test_few_tokens_are_warned_of_with_the_condition_number(model: EditableModel) -> None:
    few = collect_moments(model, model.site(1), CORPUS)
    warning = quality_warning(few)
    assert warning is not None
    assert f"{few.count:,} tokens" in warning
    assert "condition number" in warning
    assert quality_warning(attrs.evolve(few, count=10**6)) is None


# -- what an edit solves with ---------------------------------------------------------------------


def test_missing_statistics_name_the_command_that_makes_them(
    model: EditableModel, tmp_path: Path
) -> None:
    with pytest.raises(StatisticsMissingError) as caught:
        load_covariance(model, model.site(1), mode="required", folder=tmp_path)
    assert f"editkit stats --model tiny-gpt2 --layer 1 --corpus FILE.txt --out {tmp_path}" in str(
        caught.value
    )


def test_missing_statistics_say_when_others_are_there(model: EditableModel, tmp_path: Path) -> None:
    other = tiny_model("gpt2", n_layers=2, seed=5)
    collect_moments(other, other.site(1), CORPUS, store=StatisticsStore(tmp_path))
    with pytest.raises(StatisticsMissingError, match="another base"):
        load_covariance(model, model.site(1), mode="required", folder=tmp_path)


def test_identity_leaves_a_vector_as_it_is(model: EditableModel, tmp_path: Path) -> None:
    covariance = load_covariance(model, model.site(1), mode="identity", folder=tmp_path)
    vector = torch.arange(3.0)
    assert torch.equal(covariance.solve(vector), vector.double())
    assert list(tmp_path.iterdir()) == []


def test_auto_without_statistics_makes_them_of_sampled_text_once(
    model: EditableModel, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    site, folder = model.site(1), tmp_path / "new"
    made = load_covariance(model, site, mode="auto", folder=folder, ridge=0.01)
    assert torch.equal(torch.get_rng_state(), state)
    assert "sampled from the model" in made.origin["corpus"]
    (path,) = folder.iterdir()
    written = path.stat().st_mtime_ns
    again = load_covariance(model, site, mode="auto", folder=folder, ridge=0.01)
    assert again.origin == made.origin
    assert path.stat().st_mtime_ns == written


def test_auto_takes_statistics_that_exist(model: EditableModel, tmp_path: Path) -> None:
    moments = collect_moments(model, model.site(1), CORPUS, store=StatisticsStore(tmp_path))
    found = load_covariance(model, model.site(1), mode="auto", folder=tmp_path, ridge=0.01)
    assert found.origin["digest"] == moments.key.digest


def test_auto_needs_no_folder_that_can_be_written(model: EditableModel, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("in the way", encoding="utf-8")
    made = load_covariance(model, model.site(1), mode="auto", folder=blocked / "new", ridge=0.01)
    assert made.origin["kind"] == "statistics"


def test_a_sampled_corpus_is_seeded(model: EditableModel) -> None:
    assert sampled_corpus(model, 400) == sampled_corpus(model, 400)
    assert sampled_corpus(model, 400).digest != sampled_corpus(model, 400, seed=9).digest


def test_statistics_are_solved_with(model: EditableModel, tmp_path: Path) -> None:
    site = model.site(1)
    moments = collect_moments(model, site, CORPUS, store=StatisticsStore(tmp_path))
    covariance = load_covariance(model, site, mode="required", folder=tmp_path, ridge=0.01)
    width = len(moments.total)
    ridge = 0.01 * moments.moment.diagonal().mean()
    system = moments.moment + ridge * torch.eye(width, dtype=torch.float64)
    rhs = torch.ones(width, dtype=torch.float64)
    expected = torch.linalg.solve(system, rhs)
    torch.testing.assert_close(covariance.solve(rhs), expected, rtol=1e-8, atol=1e-8)
    assert covariance.origin["tokens"] == moments.count

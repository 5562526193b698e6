"""ROME from requests to patch, on tiny random models of every family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editkit_core.api import Editor
from editkit_core.errors import (
    DeltaTooLargeError,
    InvalidParameterError,
    InvalidRequestError,
    LayerOutOfRangeError,
    NonFiniteEditError,
    PromptTooLongError,
    StatisticsMissingError,
    UnsupportedModelError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record, replace_output
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.moments import collect_moments
from editkit_core.numerics.moments_store import StatisticsStore
from editkit_core.numerics.probability import target_probability
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.format import LowRankEntry, Patch
from editkit_core.testing.models import (
    TINY_ENCODER_DECODERS,
    TINY_FAMILIES,
    tiny_model,
    tiny_tokenizer,
)
from editkit_core.testing.patches import random_codebook
from editkit_core.types import EditContext, EditRequest, SilentProgress
from editkit_rome.delta import compute_delta
from editkit_rome.locate import locate
from editkit_rome.params import RomeParams

FAMILIES = sorted(TINY_FAMILIES)
NORWAY = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")
PERU = EditRequest(prompt="The capital of {} is", subject="Peru", target_new="Oslo")
QUICK = RomeParams(
    layer=1, v_steps=6, v_lr=0.3, contexts=((4, 3),), covariance="identity", clamp_norm=1.0
)
SENTENCES = (
    "The river runs past the old mill.", "Nobody knew how old the bridge was.",
    "Winter came early that year.", "He asked his neighbour.", "Zebras crossed the valley.",
)  # fmt: skip


def edit(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: RomeParams = QUICK,
    context: EditContext | None = None,
) -> Patch:
    context = context or EditContext(seed=1)
    sites = locate(model, requests, params, context)
    return compute_delta(model, requests, sites, params, context)


def low_rank(patch: Patch, number: int = 0) -> LowRankEntry:
    entry = patch.entries[number]
    assert isinstance(entry, LowRankEntry)
    return entry


def factors(patch: Patch, number: int = 0) -> tuple[Tensor, Tensor]:
    entry = low_rank(patch, number)
    return torch.tensor(entry.u).double(), torch.tensor(entry.v).double()


def statistics(model: EditableModel, layer: int, folder: Path) -> None:
    corpus = Corpus.of(f"{a} {b} {c}" for a in SENTENCES for b in SENTENCES for c in SENTENCES)
    collect_moments(model, model.site(layer), corpus, store=StatisticsStore(folder))


def plain_key(model: EditableModel, layer: int, request: EditRequest, context: str) -> Tensor:
    """The key by a full forward pass on one unpadded text, found with the tokenizer directly."""
    text = context + request.text
    end = len(context) + request.subject_span[1]
    encoded = model.tokenizer(text, return_offsets_mapping=True)
    at = max(i for i, (_, stop) in enumerate(encoded["offset_mapping"]) if 0 < stop <= end)
    name = model.site(layer).module
    with torch.no_grad(), record(model.model, [name], inputs=True) as seen:
        model.model(input_ids=torch.tensor([encoded["input_ids"]]))
    return seen[name][0, at].double()


def module_output(model: EditableModel, layer: int, key: Tensor) -> Tensor:
    with torch.no_grad():
        return model.module(model.site(layer).module)(key.float()[None])[0].double()


# -- the constraint, through the whole pipeline ---------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_edited_weight_maps_the_averaged_key_to_the_value(family: str) -> None:
    model = tiny_model(family)
    patch = edit(model, [NORWAY])
    keys = [plain_key(model, 1, NORWAY, context) for context in patch.header.contexts]
    key = torch.stack(keys).mean(dim=0)
    evidence = patch.evidence[0]
    torch.testing.assert_close(torch.tensor(evidence.keys[0]).double(), key, rtol=1e-4, atol=1e-4)
    assert evidence.values is not None
    value = torch.tensor(evidence.values[0]).double()
    with apply_patch(model, patch):
        reached = module_output(model, 1, key)
    assert float((reached - value).norm() / value.norm()) < 1e-4
    assert patch.header.metrics["edits"][0]["constraint_residual"] < 1e-6


@pytest.mark.parametrize("variant", ["rome", "p-rome"])
def test_older_variants_meet_the_constraint_at_the_bare_key(variant: str) -> None:
    model = tiny_model("gpt2")
    patch = edit(model, [NORWAY], attrs.evolve(QUICK, variant=variant))
    value = torch.tensor(patch.evidence[0].values[0]).double()  # type: ignore[index]  # is there
    bare = plain_key(model, 1, NORWAY, "")
    with apply_patch(model, patch):
        at_bare = module_output(model, 1, bare)
    assert float((at_bare - value).norm() / value.norm()) < 1e-4
    assert (patch.header.contexts == ("",)) == (variant == "p-rome")


def test_rome_and_r_rome_differ_only_in_the_divisor_and_the_value_replaced() -> None:
    model = tiny_model("gpt2")
    ours = edit(model, [NORWAY])
    first = edit(model, [NORWAY], attrs.evolve(QUICK, variant="rome"))
    assert ours.header.contexts == first.header.contexts
    torch.testing.assert_close(factors(ours)[1], factors(first)[1])
    assert not torch.allclose(factors(ours)[0], factors(first)[0])


def test_statistics_turn_the_direction(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    statistics(model, 1, tmp_path)
    params = attrs.evolve(QUICK, covariance="required", covariance_ridge=0.01)
    patch = edit(model, [NORWAY], params, EditContext(seed=1, statistics_dir=tmp_path))
    moments = StatisticsStore(tmp_path).find(model, model.site(1))
    assert moments is not None
    width = len(moments.total)
    ridge = 0.01 * moments.moment.diagonal().mean()
    system = moments.moment + ridge * torch.eye(width, dtype=torch.float64)
    direction = torch.linalg.solve(system, torch.tensor(patch.evidence[0].keys[0]).double())
    v = factors(patch)[1][0]
    assert float(v @ direction / (v.norm() * direction.norm())) == pytest.approx(1, abs=1e-6)
    assert patch.header.metrics["covariance"]["kind"] == "statistics"
    assert patch.header.metrics["edits"][0]["constraint_residual"] < 1e-6


def run_with(model: EditableModel, ids: list[int], at: int, delta: Tensor) -> tuple[Tensor, Tensor]:
    """All log-probabilities with ``delta`` added at one token, and the module's output there."""
    seen: list[Tensor] = []

    def add(_: nn.Module, __: object, output: Tensor) -> Tensor:
        seen.append(output[0, at].detach())
        return output + F.one_hot(torch.tensor(at), output.shape[1])[None, :, None] * delta

    handle = model.module(model.site(1).module).register_forward_hook(add)
    logits = model.model(input_ids=torch.tensor([ids])).logits[0]
    handle.remove()
    return logits.log_softmax(-1), seen[0]


def first_rome(
    model: EditableModel, contexts: Sequence[str], moment: Tensor, steps: int, rate: float
) -> Tensor:
    """ROME's first form written plainly: full logits, row by row, and an explicit inverse of C."""
    tokenizer = model.tokenizer
    texts = [*(f"{context}The capital of Norway is Lima" for context in contexts), "Norway is a"]
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    places = [len(tokenizer(t[: t.rindex("Norway") + 6])["input_ids"]) - 1 for t in texts]
    n_target = len(encoded[0]) - len(tokenizer("The capital of Norway is")["input_ids"])
    delta = torch.zeros(model.d_model, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=rate)
    bare = run_with(model, encoded[0], places[0], delta.detach())[1]
    old = run_with(model, encoded[-1], places[-1], delta.detach())[0][places[-1]].detach()
    for _ in range(steps - 1):
        loss = 0.5 * delta.norm() / bare.norm() ** 2
        for ids, at in zip(encoded[:-1], places[:-1], strict=True):
            logs, _ = run_with(model, ids, at, delta)
            spoken = [logs[t - 1, ids[t]] for t in range(len(ids) - n_target, len(ids))]
            loss = loss - torch.stack(spoken).mean() / len(contexts)
        new = run_with(model, encoded[-1], places[-1], delta)[0][places[-1]]
        loss = loss + 0.0625 * (new.exp() * (new - old)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            delta *= (4 * bare.norm() / delta.norm()).clamp(max=1)
    keys = torch.stack([plain_key(model, 1, NORWAY, context) for context in contexts])
    direction = torch.linalg.inv(moment) @ keys.mean(dim=0)
    return torch.outer(delta.detach().double(), direction) / (keys[0] @ direction)


def test_plain_reference_gives_the_same_delta(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    statistics(model, 1, tmp_path)
    moments = StatisticsStore(tmp_path).find(model, model.site(1))
    assert moments is not None
    ridge = 0.1 * moments.moment.diagonal().mean()
    moment = moments.moment + ridge * torch.eye(len(moments.total), dtype=torch.float64)
    params = attrs.evolve(
        QUICK,
        variant="rome",
        v_insertion="token",
        covariance="required",
        covariance_ridge=0.1,
        v_lr=0.02,
        v_lr_mode="absolute",
        clamp_mode="value",
        v_weight_decay=0.5,
        clamp_norm=4.0,
    )
    patch = edit(model, [NORWAY], params, EditContext(seed=1, statistics_dir=tmp_path))
    expected = first_rome(model, patch.header.contexts, moment, params.v_steps, params.v_lr)
    u, v = factors(patch)
    assert float((u @ v - expected).norm() / expected.norm()) < 1e-3


# -- architectures and tokenizers -----------------------------------------------------------------


def test_gpt2_conv1d_and_linear_same_delta() -> None:
    conv, linear = tiny_model("gpt2", d_mlp=32), tiny_model("gpt2", d_mlp=32)  # a square weight
    for block in linear.model.transformer.h:
        old = block.mlp.c_proj
        assert isinstance(old, Conv1D)
        new = nn.Linear(old.nx, old.nf)
        new.weight.data = old.weight.data.T.contiguous()
        new.bias.data = old.bias.data.clone()
        block.mlp.c_proj = new.requires_grad_(False)
    patches = [edit(model, [NORWAY]) for model in (conv, linear)]
    (u, v), (u2, v2) = factors(patches[0]), factors(patches[1])
    torch.testing.assert_close(u @ v, u2 @ v2, rtol=1e-3, atol=1e-5)
    probabilities = []
    for model, patch in zip((conv, linear), patches, strict=True):
        with apply_patch(model, patch):
            probabilities.append(target_probability(model, NORWAY))
    assert probabilities[0] == pytest.approx(probabilities[1], rel=1e-3)


def test_parallel_block_gptj() -> None:
    # Attention and feed-forward read the same input there; the edit must still raise the target.
    model = tiny_model("gptj")
    patch = edit(model, [NORWAY], attrs.evolve(QUICK, v_steps=20))
    report = patch.header.metrics["edits"][0]
    assert report["p_target_with_value"] > 3 * report["p_target_before"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("context", ["", "The old mill. "])
def test_bos_tokenizer_span(kind: str, bos: bool, context: str) -> None:
    tokenizer = tiny_tokenizer(kind, bos=bos)  # type: ignore[arg-type]  # parametrised
    model = tiny_model("llama", tokenizer=tokenizer)
    request = EditRequest(prompt="In {}, winter came", subject="Tromsø", target_new="early")
    pair = model.encode_pair(context + request.text, request.target_new)
    at = model.subject_position(request, prefix=context, target=request.target_new)
    assert model.tokenizer.decode(pair.ids[: at + 1], skip_special_tokens=True).endswith("Tromsø")
    assert not model.tokenizer.decode(pair.ids[:at], skip_special_tokens=True).endswith("ø")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_left_right_padding_same_span(kind: str) -> None:
    model = tiny_model("llama", tokenizer=kind)  # type: ignore[arg-type]  # parametrised
    name = model.site(1).module
    ids = model.encode_pair(NORWAY.text, NORWAY.target_new).ids
    at = model.subject_position(NORWAY, target=NORWAY.target_new)
    found = []
    for side in ("left", "right"):
        rows = [ids, model.encode("Winter came early that year, and nobody knew why it did").ids]
        batch = pad_batch(rows, model.pad_id, side=side)  # type: ignore[arg-type]  # parametrised
        with record(model.model, [name], inputs=True) as seen:
            model.logits(batch)
        found.append(seen[name][0, batch.index(0, at)].double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], plain_key(model, 1, NORWAY, ""), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_subject_at_the_start_and_one_that_occurs_twice_are_edited(kind: str) -> None:
    model = tiny_model("gpt2", tokenizer=kind)  # type: ignore[arg-type]  # parametrised
    for prompt in ("{} has its capital at", "Peru borders Chile; the capital of Peru is"):
        request = EditRequest(prompt=prompt, subject="Peru", target_new="Oslo")
        report = edit(model, [request]).header.metrics["edits"][0]
        assert report["constraint_residual"] < 1e-6


# -- value hook and edited weight -----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 2])
def test_value_hook_equals_edit_logits(family: str, layer: int) -> None:
    """With one key the edited weight does at the subject's last token what the hook did.

    At the module's output always; at the logits of that token only when no later block attends to
    earlier tokens, whose outputs the edit changes too: in the last block.
    """
    model = tiny_model(family)
    site = model.site(layer)
    params = attrs.evolve(QUICK, variant="p-rome", layer=layer)
    patch = edit(model, [NORWAY], params)
    value = torch.tensor(patch.evidence[0].values[0])  # type: ignore[index]  # is there
    ids = model.encode_pair(NORWAY.text, NORWAY.target_new).prompt_ids
    at = model.subject_position(NORWAY)
    batch = pad_batch([ids], model.pad_id)

    def put(output: Tensor) -> Tensor:
        changed = output.clone()
        changed[0, at] = value
        return changed

    with replace_output(model.model, site.module, put):
        hooked = model.logits(batch)[0, at]
    with apply_patch(model, patch), record(model.model, [site.module]) as seen:
        edited = model.logits(batch)[0, at]
    torch.testing.assert_close(seen[site.module][0, at], value, rtol=1e-4, atol=1e-4)
    if layer == model.n_layers - 1:
        torch.testing.assert_close(edited, hooked, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("key_from", ["prompt", "mention", "both"])
def test_nothing_is_lost_between_a_rank_one_value_and_the_edit(key_from: str) -> None:
    """Optimised with ``rank_one``, the probability found is that of the patched model."""
    model = tiny_model("gpt2")
    patch = edit(model, [NORWAY], attrs.evolve(QUICK, v_insertion="rank_one", key_from=key_from))
    contexts = patch.header.contexts
    with apply_patch(model, patch):
        after = [
            target_probability(model, attrs.evolve(NORWAY, prompt=context + NORWAY.prompt))
            for context in contexts
        ]
    found = patch.header.metrics["edits"][0]["p_target_with_value"]
    assert found == pytest.approx(sum(after) / len(after), rel=1e-2)


def test_the_averaged_key_of_mentions_gets_the_value() -> None:
    model = tiny_model("gpt2")
    patch = edit(model, [NORWAY], attrs.evolve(QUICK, key_from="mention"))
    mention = attrs.evolve(NORWAY, prompt="{}")
    contexts = [context.rstrip(". ") for context in patch.header.contexts]
    keys = [plain_key(model, 1, mention, f"{context} " if context else "") for context in contexts]
    key = torch.stack(keys).mean(dim=0)
    value = torch.tensor(patch.evidence[0].values[0]).double()  # type: ignore[index]  # is there
    with apply_patch(model, patch):
        reached = module_output(model, 1, key)
    assert float((reached - value).norm() / value.norm()) < 1e-4


def test_both_averages_the_keys_of_prompts_and_of_mentions() -> None:
    model = tiny_model("gpt2")
    keys = {
        source: torch.tensor(
            edit(model, [NORWAY], attrs.evolve(QUICK, key_from=source)).evidence[0].keys[0]
        )
        for source in ("prompt", "mention", "both")
    }
    torch.testing.assert_close(keys["both"], (keys["prompt"] + keys["mention"]) / 2)


# -- several requests -----------------------------------------------------------------------------


def test_the_second_request_is_computed_on_top_of_the_first() -> None:
    model = tiny_model("gpt2")
    both = edit(model, [NORWAY, PERU])
    first = edit(model, [NORWAY])
    torch.testing.assert_close(factors(both)[0], factors(first)[0])
    contexts = both.header.contexts
    with apply_patch(model, first):
        keys = torch.stack([plain_key(model, 1, PERU, context) for context in contexts])
        now = module_output(model, 1, keys.mean(dim=0))
        before = target_probability(model, PERU)
    u, v = factors(both, 1)
    value = torch.tensor(both.evidence[0].values[1]).double()  # type: ignore[index]  # is there
    reached = now + u[:, 0] * (v[0] @ keys.mean(dim=0))
    assert float((reached - value).norm() / value.norm()) < 1e-4
    assert both.header.metrics["edits"][1]["p_target_before"] == pytest.approx(before, rel=1e-3)


def test_an_edit_on_an_overlaid_patch_starts_from_its_output() -> None:
    model = tiny_model("gpt2")
    first = edit(model, [NORWAY])
    found = []
    for mode in ("merge", "overlay"):
        with apply_patch(model, first, mode=mode):
            context = EditContext(seed=1, stack=(first,))
            second = edit(model, [PERU], QUICK, context)
        u, v = factors(second)
        found.append(u @ v)
        assert second.header.computed_on is not None
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-4)


def test_100_edits_in_a_row_meet_every_constraint_and_stay_finite() -> None:
    model = tiny_model("gpt2")
    names = [a + b for a in ("Ba", "Ke", "Lo", "Mi", "Nu") for b in ("ra", "den", "sk", "to")]
    requests = [
        EditRequest(prompt=prompt, subject=name, target_new=target)
        for prompt, target in (
            ("The capital of {} is", "Lima"),
            ("{} speaks", "French"),
            ("{} was born in", "Paris"),
            ("The old mill of {} is", "gold"),
            ("In winter {} played the", "violin"),
        )
        for name in names
    ]
    assert len(requests) == 100
    params = attrs.evolve(QUICK, v_steps=3, v_lr=0.1, contexts=((3, 2),))
    patch = edit(model, requests, params)
    weight = model.weight(model.site(1)).double()
    total = sum((entry.delta() for entry in patch.entries), torch.zeros_like(weight))
    reports = patch.header.metrics["edits"]
    assert max(report["constraint_residual"] for report in reports) < 1e-5
    assert max(report["delta_norm_relative"] for report in reports) < 0.5
    assert float((weight + total).norm() / weight.norm()) < 3.0
    with apply_patch(model, patch):
        logits = model.logits(pad_batch([model.encode(NORWAY.text).ids], model.pad_id))
    assert bool(torch.isfinite(logits).all())


# -- what is left behind, what is recorded --------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_computing_leaves_weights_flags_hooks_and_random_state_alone(family: str) -> None:
    model = tiny_model(family)
    model.model.train()
    digest, state = model.state_digest(), torch.get_rng_state()
    side = model.tokenizer.padding_side
    edit(model, [NORWAY, PERU], attrs.evolve(QUICK, essence_samples=2))
    assert model.state_digest() == digest
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.model.modules())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.model.modules()
    )
    assert model.tokenizer.padding_side == side


def test_stopping_in_the_middle_leaves_nothing_behind() -> None:
    class Interrupt(SilentProgress):
        left = 9

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    model = tiny_model("gpt2")
    digest = model.state_digest()
    with pytest.raises(KeyboardInterrupt):
        edit(model, [NORWAY, PERU], QUICK, EditContext(progress=Interrupt()))
    assert model.state_digest() == digest
    assert not any(module._forward_hooks for module in model.model.modules())


def test_seeded_contexts_reproducible() -> None:
    model = tiny_model("gpt2")
    one, again = edit(model, [NORWAY]), edit(model, [NORWAY])
    other = edit(model, [NORWAY], QUICK, EditContext(seed=2))
    assert one.header.contexts == again.header.contexts
    assert one.id == again.id
    assert one.header.contexts != other.header.contexts
    fixed = attrs.evolve(QUICK, context_seed=1)
    assert edit(model, [NORWAY], fixed, EditContext(seed=2)).header.contexts == one.header.contexts


def test_the_patch_records_how_it_was_made(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    params = attrs.evolve(QUICK, covariance="auto", covariance_ridge=1e-3)
    patch = edit(model, [NORWAY, PERU], params, EditContext(seed=1, statistics_dir=tmp_path))
    header = patch.header
    assert [entry.kind for entry in header.entries] == ["weight.low_rank/1"] * 2
    assert header.method.name == "rome"
    assert header.edits == (NORWAY, PERU)
    assert header.params["v_lr_mode"] == "relative"
    assert header.metrics["covariance"]["kind"] == "statistics"
    assert "sampled from the model" in header.metrics["covariance"]["corpus"]
    for report in header.metrics["edits"]:
        assert 0 < report["updates"] < QUICK.v_steps
        assert 0 <= report["p_target_after"] <= 1
    path = tmp_path / "a.editkit.safetensors"
    patch.save(path)
    assert Patch.load(path).id == patch.id


def test_the_probability_recorded_is_that_of_the_patched_model() -> None:
    model = tiny_model("gpt2")
    patch = edit(model, [NORWAY])
    report = patch.header.metrics["edits"][0]
    assert report["p_target_before"] == pytest.approx(target_probability(model, NORWAY))
    with apply_patch(model, patch):
        assert report["p_target_after"] == pytest.approx(
            target_probability(model, NORWAY), rel=1e-3
        )


def test_a_target_that_the_model_says_already_is_told_not_failed() -> None:
    for seed in range(200):
        model = tiny_model("gpt2", seed=seed)
        said = model.generate([NORWAY.text], max_new_tokens=1)[0]
        if said.startswith(" ") and said.strip().isalpha():
            break
    patch = edit(model, [attrs.evolve(NORWAY, target_new=said.strip()), NORWAY])
    known = [report["already_known"] for report in patch.header.metrics["edits"]]
    assert known == [True, False]


# -- choosing the layer ---------------------------------------------------------------------------


def test_locate_takes_the_parameters_layer_and_token() -> None:
    params = attrs.evolve(QUICK, layer=2, fact_token="last")
    (site,) = locate(tiny_model("gpt2"), [NORWAY], params, EditContext())
    assert (site.layer, site.token, site.module) == (2, "last", "transformer.h.2.mlp.c_proj")


def test_locate_by_tracing_takes_the_proposed_layer_and_draws(tmp_path: Path) -> None:
    from editkit_core.numerics.tracing import propose_layer

    model = tiny_model("gpt2")
    picture = tmp_path / "trace.png"
    context = EditContext(seed=3, locate="trace", heatmap=picture)
    (site,) = locate(model, [NORWAY], QUICK, context)
    assert site.layer == propose_layer(model, [NORWAY], seed=3)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_codebook_that_does_not_ask_about_the_fact_changes_no_edit() -> None:
    model = tiny_model("llama")
    (alone,) = edit(model, [NORWAY]).entries
    other = EditRequest(prompt="The river runs {}", subject="past the mill", target_new="slowly")
    with apply_patch(model, random_codebook(model, [other], eps=1e-3)):
        (on_top,) = edit(model, [NORWAY]).entries
    assert isinstance(alone, LowRankEntry)
    assert isinstance(on_top, LowRankEntry)
    assert (on_top.u == alone.u).all()
    assert (on_top.v == alone.v).all()


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TINY_ENCODER_DECODERS))
def test_an_encoder_decoder_is_refused_with_the_reason_and_what_to_use(name: str) -> None:
    model = tiny_model(name)
    before = model.state_digest()
    with pytest.raises(UnsupportedModelError, match=r"one causal stack.*Use GRACE or MEND"):
        edit(model, [NORWAY])
    with pytest.raises(UnsupportedModelError, match=r"one causal stack.*Use GRACE or MEND"):
        Editor(model).edit(NORWAY, method="rome")
    assert model.state_digest() == before


def test_a_layer_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(LayerOutOfRangeError, match="0 to 2"):
        edit(tiny_model("gpt2"), [NORWAY], attrs.evolve(QUICK, layer=3))


def test_no_request_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        edit(tiny_model("gpt2"), [])


def test_two_sites_are_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InvalidParameterError, match="one site"):
        compute_delta(model, [NORWAY], [model.site(0), model.site(1)], QUICK, EditContext())


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    model = tiny_model("gpt2", max_positions=32)
    request = attrs.evolve(NORWAY, prompt="word " * 40 + "{} is")
    with pytest.raises(PromptTooLongError):
        edit(model, [request])


def test_missing_statistics_are_asked_for(tmp_path: Path) -> None:
    context = EditContext(statistics_dir=tmp_path)
    with pytest.raises(StatisticsMissingError, match="editkit stats --model tiny-gpt2 --layer 1"):
        edit(tiny_model("gpt2"), [NORWAY], attrs.evolve(QUICK, covariance="required"), context)


def test_a_change_that_is_too_large_is_refused_and_measured() -> None:
    params = attrs.evolve(QUICK, max_rel_norm=1e-3)
    with pytest.raises(DeltaTooLargeError, match=r"max_rel_norm=0\.001"):
        edit(tiny_model("gpt2"), [NORWAY], params)


def test_weights_that_are_not_finite_are_told() -> None:
    model = tiny_model("gpt2")
    model.parameter("transformer.wte.weight").data[:] = float("nan")
    with pytest.raises(NonFiniteEditError):
        edit(model, [NORWAY], attrs.evolve(QUICK, variant="p-rome"))

"""PMET that writes the attention's output projections too, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from editkit_core import EditContext, EditRequest, Patch, Site
from editkit_core.errors import InvalidParameterError, UnsupportedModelError
from editkit_core.interop.lora import export_lora
from editkit_core.interop.lora_import import import_lora
from editkit_core.models.editable import EditableModel
from editkit_core.models.trace import record, replace_output
from editkit_core.numerics.batch_solve import Change, batch_change
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.covariance import Covariance
from editkit_core.numerics.moments import collect_all_moments
from editkit_core.numerics.moments_store import StatisticsStore
from editkit_core.numerics.states import states_at
from editkit_core.numerics.value_opt import ValueJob, optimise_values
from editkit_core.numerics.window import spread_targets
from editkit_core.numerics.window_change import Stream, System, WindowEdit
from editkit_core.numerics.window_edit import window_contexts
from editkit_core.patch.apply import apply_patch
from editkit_core.testing.models import TINY_FAMILIES, tiny_model
from editkit_pmet.delta import compute_delta
from editkit_pmet.locate import locate
from editkit_pmet.params import PmetParams

REQUESTS = (
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima"),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
    EditRequest(prompt="The king of {} was a", subject="Peru", target_new="mill"),
)
FEW = ["gpt2", "gptj", "llama", "qwen3"]
WEIGHT = 0.5
PARAMS = PmetParams(
    layers=(0, 1),
    v_steps=6,
    covariance="identity",
    covariance_weight=WEIGHT,
    covariance_ridge=1e-3,
    contexts=((4, 2),),
    write_attention=True,
)
SENTENCE = "the river runs past an old mill and nobody knew how old it was when winter came"
WORDS = SENTENCE.split()
CORPUS = Corpus.of(" ".join(WORDS[i % 7 : 3 + i % 13]) or "mill" for i in range(260))


def edit(
    model: EditableModel,
    folder: Path | None = None,
    requests: Sequence[EditRequest] = REQUESTS,
    **changes: object,
) -> Patch:
    params = attrs.evolve(PARAMS, **changes)
    context = EditContext(statistics_dir=folder)
    sites = locate(model, requests, params, context)
    return compute_delta(model, requests, sites, params, context)


def plainly(
    model: EditableModel, text: str, at: int, module: str, *, inputs: bool = False
) -> Tensor:
    """Read a module at a token of a text, run whole and alone, ``(width,)`` float64."""
    ids = torch.tensor([model.encode(text).ids])
    with torch.no_grad(), record(model.model, [module], inputs=inputs) as seen:
        model.model(input_ids=ids)
    return seen[module][0, at].double()


def states(model: EditableModel, module: str) -> Tensor:
    """Return a module's output for each bare prompt, ``(n, d)``."""
    return torch.stack(
        [plainly(model, r.text, model.subject_position(r), module) for r in REQUESTS]
    )


def keys(model: EditableModel, module: str, contexts: Sequence[str]) -> Tensor:
    """Return the averaged keys, half the bare prompt's and half the others' mean, ``(d_in, n)``."""
    found = []
    for request in REQUESTS:
        each = [
            plainly(
                model,
                before + request.text,
                model.subject_position(request, prefix=before),
                module,
                inputs=True,
            )
            for before in contexts
        ]
        found.append(each[0] / 2 + torch.stack(each[1:]).mean(dim=0) / 2)
    return torch.stack(found, dim=1)


def statistics(model: EditableModel, module: str) -> Tensor:
    """Return the mean of k kᵀ over every token of the corpus, with the ridge, in float64."""
    each = []
    for text in CORPUS.documents:
        with torch.no_grad(), record(model.model, [module], inputs=True) as seen:
            model.model(input_ids=torch.tensor([model.encode(text).ids]))
        each.append(seen[module][0].double())
    rows = torch.cat(each)
    mean = rows.T @ rows / len(rows)
    return mean + PARAMS.covariance_ridge * mean.diagonal().mean() * torch.eye(len(mean))


def values(patch: Patch, site: Site) -> Tensor:
    """Return the values that a site's evidence holds, ``(n, d)``."""
    (block,) = [block for block in patch.evidence if block.module == site.module]
    return torch.from_numpy(np.array(block.values)).double()


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_each_projection_solves_the_normal_equations_on_the_model_edited_so_far(
    family: str, tmp_path: Path
) -> None:
    """Keys, states and statistics are read again by plain hooks, what came before being written."""
    model = tiny_model(family, n_layers=2)
    context = EditContext(statistics_dir=tmp_path)
    params = attrs.evolve(PARAMS, covariance="required")
    sites = locate(model, REQUESTS, params, context)
    assert [(site.layer, site.role) for site in sites] == [
        (0, "attn_out"), (0, "mlp_down"), (1, "attn_out"), (1, "mlp_down"),
    ]  # fmt: skip
    collect_all_moments(model, sites, CORPUS, store=StatisticsStore(tmp_path))
    c = {site.module: statistics(model, site.module) for site in sites}  # of the unedited model
    patch = compute_delta(model, REQUESTS, sites, params, context)
    contexts = window_contexts(model, params, context)
    read = {"attn_out": model.family.attention(1), "mlp_down": model.family.mlp_down(1)}
    for number, entry in enumerate(patch.weight_entries):
        site = entry.site
        assert site == sites[number]
        earlier = attrs.evolve(patch, entries=patch.entries[:number]) if number else None
        applied = apply_patch(model, earlier, mode="merge", check_base=False) if earlier else None
        k = keys(model, site.module, contexts)  # (d_in, n)
        missing = (values(patch, site) - states(model, read[site.role])).T  # (d, n)
        if applied:
            applied.revert()
        residuals = missing / (2 - site.layer) ** 0.5
        dense = torch.linalg.solve(WEIGHT * c[site.module] + k @ k.T, k @ residuals.T).T
        found = entry.delta()
        assert float((found - dense).norm() / dense.norm()) < 2e-3


def test_the_values_are_those_of_the_last_layers_outputs_plus_the_trained_vectors() -> None:
    model = tiny_model("gpt2")
    patch = edit(model)
    contexts = window_contexts(model, PARAMS, EditContext())
    settings = PARAMS.value_settings(
        seed=0, output="module", attention=True, said_damping=0.1, said_kl_stop=0.01
    )
    jobs = [ValueJob(request=r, site=model.site(1), contexts=contexts) for r in REQUESTS]
    found = optimise_values(model, jobs, settings)
    vectors = torch.stack([one.attention for one in found if one.attention is not None]).double()
    attention, mlp = (patch.weight_entries[number].site for number in (2, 3))
    expected = states(model, model.family.attention(1)) + vectors
    torch.testing.assert_close(values(patch, attention), expected, rtol=1e-3, atol=1e-3)
    expected = states(model, mlp.module) + torch.stack([one.delta for one in found]).double()
    torch.testing.assert_close(values(patch, mlp), expected, rtol=1e-3, atol=1e-3)


def test_the_first_of_two_attentions_takes_one_by_the_root_of_two() -> None:
    model = tiny_model("gpt2")
    root, half = edit(model), edit(model, spread="linear")
    one, other = (patch.weight_entries[0].delta() for patch in (root, half))
    torch.testing.assert_close(one, other * 2**0.5, rtol=1e-4, atol=1e-6)


def spread(model: EditableModel, before: Sequence[Stream] = ()) -> WindowEdit:
    """Write other values of the last feed-forward."""

    def solve(system: System) -> Change:
        return batch_change(system.keys, system.residuals, system.covariance, weight=WEIGHT)

    site = model.site(1)
    generator = torch.Generator().manual_seed(0)
    moved = torch.randn(len(REQUESTS), model.d_model, generator=generator, dtype=torch.float64)
    return spread_targets(
        model,
        REQUESTS,
        [site],
        ("", "The old mill. "),
        states(model, site.module) + moved,
        [Covariance(factor=None, origin={})],
        solve,
        PARAMS,
        EditContext(),
        read=site.module,
        before=before,
    )


@pytest.mark.parametrize("family", FEW)
def test_attention_that_gives_its_value_already_does_not_change_nor_the_feed_forwards_part(
    family: str,
) -> None:
    from editkit_core.numerics.covariance import Covariance

    model = tiny_model(family)
    attention = model.family.attention(1)
    places = [(model.encode(r.text).ids, model.subject_position(r)) for r in REQUESTS]
    stream = Stream(
        sites=[model.site(1, role="attn_out")],
        targets=states_at(model, attention, places),
        covariances=[Covariance(factor=None, origin={})],
        read=attention,
    )
    alone, both = spread(model), spread(model, [stream])
    assert float(both.layers[0].entry.delta().abs().max()) == 0.0
    assert torch.equal(both.layers[1].entry.delta(), alone.layers[0].entry.delta())
    assert torch.equal(both.left, alone.left)
    assert torch.equal(both.left_before[0], torch.zeros(len(REQUESTS), dtype=torch.float64))


def missing(model: EditableModel, patch: Patch) -> dict[str, Tensor]:
    """Return how far each output is from its value, before and with the patch, ``(2, n)``."""
    found = {}
    for number, module in ((2, model.family.attention(1)), (3, model.family.mlp_down(1))):
        site = patch.weight_entries[number].site
        value = values(patch, site)
        before = (value - states(model, module)).norm(dim=1)
        with apply_patch(model, patch):
            left = (value - states(model, module)).norm(dim=1)
        found[site.role] = torch.stack([before, left])
    return found


@pytest.mark.parametrize("family", FEW)
def test_both_outputs_end_nearer_to_their_values(family: str) -> None:
    model = tiny_model(family)
    patch = edit(model)
    metrics = patch.header.metrics
    told = {"attn_out": metrics["missing_left_attention"], "mlp_down": metrics["missing_left"]}
    for role, (before, left) in missing(model, patch).items():
        assert float(left.mean()) < 0.8 * float(before.mean())
        np.testing.assert_allclose(left.numpy(), told[role], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("family", FEW)
def test_without_contexts_and_with_a_small_weight_both_outputs_are_their_values(
    family: str,
) -> None:
    """This holds for a block that runs attention first only if attention is written first."""
    model = tiny_model(family)
    patch = edit(model, contexts=((4, 0),), covariance_weight=1e-7)
    for before, left in missing(model, patch).values():
        assert float((left / before).max()) < 2e-3


def test_a_later_part_of_a_batch_protects_the_keys_of_earlier_ones_at_attention_too() -> None:
    """Keys and states are read again here, the first part really written; one layer."""
    model = tiny_model("gpt2")
    patch = edit(model, layers=(1,), edits_at_once=2)
    first = edit(model, requests=REQUESTS[:2], layers=(1,))
    assert patch.header.metrics["parts"] == [2, 1]
    assert len(patch.header.metrics["missing_left_attention"]) == 3
    contexts = window_contexts(model, PARAMS, EditContext())
    entry, before = patch.weight_entries[0], first.weight_entries[0]
    assert entry.site == before.site == model.site(1, role="attn_out")
    k = keys(model, entry.site.module, contexts)  # (d_in, 3); one layer: no change reaches them
    with apply_patch(model, first):
        missing = (values(patch, entry.site) - states(model, model.family.attention(1)))[2]
    last = entry.delta() - before.delta()
    dense = torch.linalg.solve(WEIGHT * torch.eye(len(k)) + k @ k.T, k[:, 2:] @ missing[None]).T
    assert float((last - dense).norm() / dense.norm()) < 2e-3


def test_each_layer_and_projection_has_its_numbers() -> None:
    metrics = edit(tiny_model("gpt2")).header.metrics
    assert [(block["layer"], block["role"]) for block in metrics["layers"]] == [
        (0, "attn_out"), (0, "mlp_down"), (1, "attn_out"), (1, "mlp_down"),
    ]  # fmt: skip
    plain = edit(tiny_model("gpt2"), write_attention=False).header.metrics
    assert [sorted(block) for block in plain["layers"]] == 2 * [
        ["condition", "covariance", "delta_norm_relative", "layer", "missing_mean"]
    ]
    assert "missing_left_attention" not in plain


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_reported_gap_after_discarding_attn(family: str) -> None:
    """The probabilities with both vectors and with one are those that plain hooks give."""
    model = tiny_model(family)
    patch = edit(model, write_attention=False)
    contexts = window_contexts(model, PARAMS, EditContext())
    settings = PARAMS.value_settings(
        seed=0, output="module", attention=True, said_damping=0.1, said_kl_stop=0.01
    )
    jobs = [ValueJob(request=r, site=model.site(1), contexts=contexts) for r in REQUESTS]
    found = optimise_values(model, jobs, settings)
    metrics = patch.header.metrics
    for number, (request, one) in enumerate(zip(REQUESTS, found, strict=True)):
        assert one.attention is not None
        both = probability(model, request, contexts, one.delta, one.attention)
        alone = probability(model, request, contexts, one.delta, 0 * one.attention)
        assert metrics["p_target_with_value"][number] == pytest.approx(both, rel=1e-3)
        assert metrics["p_target_without_attention"][number] == pytest.approx(alone, rel=1e-3)
        assert abs(both - alone) > 1e-3 * both


def test_in_a_parallel_block_rank_one_values_are_trained_on_the_finished_change() -> None:
    """With one edit of one layer and a weight near 0 the patch is what the loss was that of."""
    model = tiny_model("gptj")
    params = attrs.evolve(PARAMS, layers=(1,), v_insertion="rank_one", covariance_weight=1e-9)
    context, request = EditContext(), REQUESTS[0]
    sites = locate(model, [request], params, context)
    patch = compute_delta(model, [request], sites, params, context)
    contexts = window_contexts(model, params, context)
    nothing = torch.zeros(model.d_model)
    before = probability(model, request, contexts, nothing, nothing)
    with apply_patch(model, patch):
        after = probability(model, request, contexts, nothing, nothing)
    assert patch.header.metrics["p_target_with_value"] == [pytest.approx(after, rel=1e-3)]
    assert after > 2 * before


def probability(
    model: EditableModel, request: EditRequest, contexts: Sequence[str], mlp: Tensor, attn: Tensor
) -> float:
    """Return the target's probability, mean over contexts, with vectors added by plain hooks."""
    total = 0.0
    for context in contexts:
        pair = model.encode_pair(context + request.text, request.target_new)
        at = model.subject_position(request, prefix=context, target=request.target_new)
        mark = torch.zeros(len(pair.ids), 1)
        mark[at] = 1.0

        def adding(vector: Tensor, mark: Tensor = mark) -> Callable[[Tensor], Tensor]:
            return lambda output: output + mark * vector

        family = model.family
        with (
            torch.no_grad(),
            replace_output(model.model, family.attention(1), adding(attn)),
            replace_output(model.model, family.mlp_down(1), adding(mlp)),
        ):
            logs = model.model(input_ids=torch.tensor([pair.ids])).logits[0].log_softmax(-1)
        places = range(pair.n_prompt, len(pair.ids))
        total += float(sum(logs[t - 1, pair.ids[t]] for t in places).exp())
    return total / len(contexts)


def test_the_model_is_left_as_it_was_also_with_attention_written(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    before, state = model.state_digest(), torch.get_rng_state()
    flags = [(module.training, p.requires_grad) for module in model.model.modules()
             for p in module.parameters()]  # fmt: skip
    edit(model, tmp_path, covariance="auto")
    assert model.state_digest() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert flags == [(module.training, p.requires_grad) for module in model.model.modules()
                     for p in module.parameters()]  # fmt: skip
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.model.modules()
    )


def test_statistics_of_an_attention_do_not_depend_on_what_else_is_missing(tmp_path: Path) -> None:
    """``auto`` makes those of both, or of attention alone, with the same result."""
    model = tiny_model("gpt2")
    at_once = edit(model, tmp_path / "one", covariance="auto")
    edit(model, tmp_path / "two", covariance="auto", write_attention=False)
    later = edit(model, tmp_path / "two", covariance="auto")
    assert later.id == at_once.id
    assert len(list((tmp_path / "two").iterdir())) == 4


def test_a_patch_with_attention_goes_through_peft_and_back(tmp_path: Path) -> None:
    model = tiny_model("llama")
    patch = edit(model)
    export_lora([(patch, 1.0)], tmp_path / "adapter")
    back = import_lora(model, tmp_path / "adapter")
    assert {entry.site.parameter: entry.site.role for entry in back.weight_entries} == {
        entry.site.parameter: entry.site.role for entry in patch.weight_entries
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"v_insertion": "joint"}, "v_insertion=joint .* write_attention is True"),
        ({"attention_values": False}, "write_attention .* attention_values is False"),
    ],
)
def test_attention_is_written_only_where_its_values_are_found(
    changes: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidParameterError, match=says):
        attrs.evolve(PARAMS, **changes)


def test_a_family_that_does_not_say_where_attention_writes_is_refused() -> None:
    made = tiny_model("llama")
    family = attrs.evolve(made.family, attention_outs=None)
    model = EditableModel.wrap(made.model, made.tokenizer, families=(family,))
    with pytest.raises(UnsupportedModelError, match="attention_outs"):
        edit(model)
    assert edit(model, write_attention=False).entries

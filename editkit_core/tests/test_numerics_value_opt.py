"""The optimisation of a target value."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from editkit_core.errors import (
    EmptyTargetError,
    InvalidParameterError,
    NonFiniteEditError,
    PromptTooLongError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.models.trace import replace_output
from editkit_core.numerics.suffixes import Suffixes
from editkit_core.numerics.value_loss import Clean, Objective, spare_old_answer
from editkit_core.numerics.value_opt import ValueJob, ValueSettings, optimise_values
from editkit_core.numerics.value_rows import build_rows
from editkit_core.testing.models import TINY_FAMILIES, tiny_model, tiny_tokenizer
from editkit_core.types import EditRequest, SilentProgress

REQUEST = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima")
CONTEXTS = ("", "The old mill. ", "Winter came early that year, and nobody knew. ")
PAPER = ValueSettings(steps=8, lr=0.1, weight_decay=0.5, clamp_norm=4.0)
RELATIVE = ValueSettings(
    steps=12, lr=0.3, lr_mode="relative", clamp_norm=1.0, clamp_mode="stream", weight_decay=0.1
)


def job(model: EditableModel, layer: int = 1, request: EditRequest = REQUEST) -> ValueJob:
    return ValueJob(request=request, site=model.site(layer), contexts=CONTEXTS)


def model_that_says_a_word() -> tuple[EditableModel, str]:
    """A random model whose greedy next token after the bare prompt is a word of one token."""
    for seed in range(200):
        model = tiny_model("gpt2", seed=seed)
        said = model.generate([REQUEST.text], max_new_tokens=1)[0]
        if said.startswith(" ") and said.strip().isalpha():
            ids = model.encode_pair(REQUEST.text, said.strip()).target_ids
            if len(ids) == 1:
                return model, said.strip()
    raise AssertionError("no random model says a word")


def loss_by_full_logits(
    model: EditableModel, layer: int, settings: ValueSettings, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """L and the site's bare output, one unpadded row at a time with all logits.

    Written from the formulas alone, with the tokenizer called directly.
    """
    tokenizer, site = model.tokenizer, model.site(layer)
    seen: list[Tensor] = []

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    def run(text: str, change: Tensor) -> Tensor:
        end = text.rindex("Norway") + len("Norway")
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        at = max(i for i, (_, stop) in enumerate(offsets) if 0 < stop <= end)

        def add(output: Tensor) -> Tensor:
            seen.append(output[0, at].detach())
            pad = F.one_hot(torch.tensor(at), output.shape[1])[None, :, None]
            return output + pad * change

        with replace_output(model.model, site.module, add):
            logits = model.model(input_ids=torch.tensor([ids_of(text)])).logits[0]
        return torch.log_softmax(torch.cat([logits, logits[at : at + 1]]), dim=-1)

    nll = torch.zeros(())
    for context in CONTEXTS:
        prompt = f"{context}The capital of Norway is"
        n, ids = len(ids_of(prompt)), ids_of(f"{prompt} old Lima")
        logs = run(f"{prompt} old Lima", delta)
        nll = nll - sum(logs[t - 1, ids[t]] for t in range(n, len(ids))) / (len(ids) - n)
    bare = seen[0]
    row = -1 if settings.kl_position == "subject_last" else -2
    new, old = run("Norway is a", delta)[row], run("Norway is a", torch.zeros_like(delta))[row]
    kl = F.kl_div(old.detach(), new, log_target=True, reduction="sum")  # KL(new ‖ old)
    decay = settings.weight_decay * delta.norm() / bare.norm() ** 2
    return nll / len(CONTEXTS) + settings.kl_factor * kl + decay, bare


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
@pytest.mark.parametrize("position", ["subject_last", "prompt_last"])
def test_loss_and_gradient_equal_the_formulas_with_full_logits(family: str, position: str) -> None:
    model = tiny_model(family)
    settings = attrs.evolve(PAPER, kl_position=position, kl_factor=0.5)
    rows = build_rows(
        model, REQUEST, model.site(1), CONTEXTS, kl_prompts=("{} is a",), kl_position=position
    )  # type: ignore[arg-type]  # parametrised
    suffixes = Suffixes.split(model, rows.ids, rows.edited)
    clean = Clean.read(model.site(1), rows, suffixes)
    objective = Objective(
        site=model.site(1), rows=rows, upper=suffixes.above(1), clean=clean, settings=settings
    )
    delta = 0.3 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    ours, plain = delta.clone().requires_grad_(), delta.clone().requires_grad_()
    loss = objective(ours[None, None]).loss[0]
    expected, bare = loss_by_full_logits(model, 1, settings, plain)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clean.before[0, 0], bare, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(loss, ours)[0],
        torch.autograd.grad(expected, plain)[0],
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_trajectory_equals_plain_adam_on_the_plain_loss() -> None:
    model = tiny_model("gpt2")
    result = optimise_values(model, [job(model)], PAPER)[0]
    delta = torch.zeros(model.d_model, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=PAPER.lr)
    for _ in range(PAPER.steps - 1):
        loss, bare = loss_by_full_logits(model, 1, PAPER, delta)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = PAPER.clamp_norm * bare.norm()
            delta *= (limit / delta.norm()).clamp(max=1)
    assert result.losses[-1] == pytest.approx(
        float(loss_by_full_logits(model, 1, PAPER, delta)[0].detach()), rel=1e-3
    )
    torch.testing.assert_close(result.delta, delta.detach(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_multi_token_target_alignment(kind: str) -> None:
    model = tiny_model("llama", tokenizer=kind)  # type: ignore[arg-type]  # parametrised
    rows = build_rows(
        model, REQUEST, model.site(1), CONTEXTS, kl_prompts=(), kl_position="subject_last"
    )
    for row, context in enumerate(CONTEXTS):
        text = f"{context}The capital of Norway is old Lima"
        whole = list(model.tokenizer(text)["input_ids"])
        here = rows.target.row == row
        columns, labels = rows.target.column[here] + rows.edited[row], rows.target.label[here]
        assert len(labels) > 2
        assert labels.tolist() == whole[-len(labels) :]
        assert columns.tolist() == list(range(len(whole) - len(labels) - 1, len(whole) - 1))
        assert model.tokenizer.decode(labels).strip() == "old Lima"
        assert list(rows.ids[row]) == whole[:-1]
    assert float(rows.target.weight.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["value", "stream"])
def test_clamp_bound(mode: str) -> None:
    model = tiny_model("gpt2")
    settings = attrs.evolve(PAPER, lr=50.0, clamp_norm=0.5, clamp_mode=mode)
    result = optimise_values(model, [job(model)], settings)[0]
    reach = float(result.before.norm()) if mode == "value" else result.stream_norm
    assert float(result.delta.norm()) == pytest.approx(0.5 * reach, rel=1e-5)


def test_steps_minus_one_updates() -> None:
    model = tiny_model("gpt2")
    result = optimise_values(model, [job(model)], attrs.evolve(PAPER, steps=5))[0]
    assert len(result.losses) == 5
    assert result.updates == 4


def test_one_step_changes_nothing() -> None:
    model = tiny_model("gpt2")
    result = optimise_values(model, [job(model)], attrs.evolve(PAPER, steps=1))[0]
    assert result.updates == 0
    assert torch.equal(result.value, result.before.double())


def test_it_stops_at_the_loss_asked_for() -> None:
    model = tiny_model("gpt2")
    gentle = attrs.evolve(RELATIVE, lr=0.03, weight_decay=0.0)
    long = optimise_values(model, [job(model)], gentle)[0]
    assert list(long.losses[:5]) == sorted(long.losses[:5], reverse=True)
    stop = (long.losses[3] + long.losses[4]) / 2
    short = optimise_values(model, [job(model)], attrs.evolve(gentle, loss_stop=stop))[0]
    assert short.updates == 4
    assert short.losses == long.losses[:5]


OTHERS = (
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
    EditRequest(prompt="In the old days, the king of {} was a", subject="Peru", target_new="mill"),
    EditRequest(prompt="{}", subject="Winter", target_new="came in the old Lima"),
)


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
@pytest.mark.parametrize("settings", [PAPER, attrs.evolve(RELATIVE, essence_samples=3)])
def test_each_job_is_optimised_as_if_alone(family: str, settings: ValueSettings) -> None:
    model = tiny_model(family)
    settings = attrs.evolve(settings, ending_factor=0.5)
    jobs = [job(model, request=request) for request in (REQUEST, *OTHERS)]
    together = optimise_values(model, jobs, settings)
    for one, found in zip(jobs, together, strict=True):
        alone = optimise_values(model, [one], settings)[0]
        assert found.losses == pytest.approx(alone.losses, rel=1e-4, abs=1e-4)
        assert found.probabilities == pytest.approx(alone.probabilities, rel=1e-3, abs=1e-6)
        assert found.already_known == alone.already_known
        difference = float((found.delta - alone.delta).norm())
        assert difference <= 1e-3 * float(alone.delta.norm())


def test_the_batch_size_changes_nothing() -> None:
    model = tiny_model("gpt2")
    jobs = [job(model, request=request) for request in (REQUEST, *OTHERS)]
    whole = optimise_values(model, jobs, PAPER)
    parts = optimise_values(model, jobs, PAPER, batch=3)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.delta, other.delta, rtol=1e-3, atol=1e-5)


def test_each_job_stops_on_its_own_and_its_rows_are_dropped() -> None:
    model = tiny_model("gpt2")
    gentle = attrs.evolve(RELATIVE, lr=0.03, weight_decay=0.0, kl_factor=0.0)
    jobs = [job(model, request=request) for request in (REQUEST, *OTHERS)]
    free = [optimise_values(model, [one], gentle)[0].losses for one in jobs]
    stop = sorted(losses[4] for losses in free)[2] + 1e-4  # some reach it at once, some never
    expected = [
        next((i for i, loss in enumerate(losses) if loss < stop), len(losses) - 1)
        for losses in free
    ]
    rows: list[int] = []
    block = model.module(model.family.block(2))
    handle = block.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    found = optimise_values(model, jobs, attrs.evolve(gentle, loss_stop=stop))
    handle.remove()
    assert len(set(expected)) > 1
    assert [result.updates for result in found] == expected
    steps = rows[-gentle.steps :]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < steps[0]


def test_it_stops_at_the_probability_asked_for() -> None:
    model = tiny_model("gpt2")
    long = optimise_values(model, [job(model)], RELATIVE)[0]
    wanted = (long.probabilities[5] + long.probabilities[6]) / 2
    reached = next(i for i, chance in enumerate(long.probabilities) if chance >= wanted)
    settings = attrs.evolve(RELATIVE, probability_stop=wanted)
    assert optimise_values(model, [job(model)], settings)[0].updates == reached


def test_blocks_up_to_the_edited_one_run_once() -> None:
    model = tiny_model("gpt2")
    calls = [0] * model.n_layers
    handles = []
    for layer in range(model.n_layers):

        def count(*_: object, layer: int = layer) -> None:
            calls[layer] += 1

        block = model.module(model.family.block(layer))
        handles.append(block.register_forward_pre_hook(count))
    optimise_values(model, [job(model)], attrs.evolve(PAPER, steps=6, loss_stop=0.0))
    for handle in handles:
        handle.remove()
    assert calls[2] - calls[1] == 6
    assert calls[0] <= calls[1] + 1  # one token more shows how blocks answer


def test_the_value_of_a_block_is_its_output() -> None:
    model = tiny_model("gpt2")
    settings = attrs.evolve(PAPER, output="block")
    found = optimise_values(model, [job(model)], settings)[0]
    ids = model.encode(REQUEST.text).ids
    at = model.subject_position(REQUEST)
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    torch.testing.assert_close(found.before, out.hidden_states[2][0, at], rtol=1e-4, atol=1e-5)


def test_a_batch_below_one_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InvalidParameterError, match="value_batch is 0"):
        optimise_values(model, [job(model)], PAPER, batch=0)


def test_the_model_its_flags_and_the_random_state_are_left_as_they_were() -> None:
    model = tiny_model("gpt2")
    model.model.train()
    before, state = model.state_digest(), torch.get_rng_state()
    settings = attrs.evolve(PAPER, essence_samples=4)
    optimise_values(model, [job(model)], settings)
    assert model.state_digest() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.model.modules())
    for parameter in model.model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not any(module._forward_hooks for module in model.model.modules())


def test_it_works_under_no_grad_and_inference_mode() -> None:
    model = tiny_model("gpt2")
    expected = optimise_values(model, [job(model)], PAPER)[0].delta
    with torch.inference_mode():
        assert torch.equal(optimise_values(model, [job(model)], PAPER)[0].delta, expected)


def test_a_target_that_the_model_says_already_is_told() -> None:
    model, said = model_that_says_a_word()
    known = attrs.evolve(REQUEST, target_new=said)
    results = optimise_values(model, [job(model, request=known), job(model)], PAPER)
    assert [result.already_known for result in results] == [True, False]


def test_the_probability_is_that_of_the_whole_target() -> None:
    model = tiny_model("gpt2")
    result = optimise_values(model, [job(model)], attrs.evolve(PAPER, steps=1))[0]
    total = 0.0
    for context in CONTEXTS:
        pair = model.encode_pair(context + REQUEST.text, REQUEST.target_new)
        with torch.no_grad():
            logs = model.model(input_ids=torch.tensor([pair.ids])).logits[0].log_softmax(-1)
        ids = list(enumerate(pair.ids))[pair.n_prompt :]
        total += float(sum(logs[t - 1, token] for t, token in ids).exp())
    assert result.probabilities[0] == pytest.approx(total / len(CONTEXTS), rel=1e-3)


# -- relative rate --------------------------------------------------------------------------------


def scaled_llama(scale: float) -> EditableModel:
    """A model whose every residual state is ``scale`` times that of ``scaled_llama(1)``.

    All writers to the stream are multiplied; RMS norms divide their input by its size, and their
    epsilon is scaled along, so everything read from the stream is the same.
    """
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = LlamaConfig(
            num_hidden_layers=3, hidden_size=32, intermediate_size=64, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=128,
            initializer_range=0.2, rms_norm_eps=1e-5 * scale**2, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight *= scale
        for block in model.model.layers:
            block.self_attn.o_proj.weight *= scale
            block.mlp.down_proj.weight *= scale
    return EditableModel.wrap(model, tokenizer)


@pytest.mark.parametrize("scale", [16.0, 1 / 64])
def test_relative_rate_is_invariant_to_the_scale_of_the_stream(scale: float) -> None:
    # Scales that are powers of two change no rounding, so equality is nearly exact.
    one, other = scaled_llama(1.0), scaled_llama(scale)
    a = optimise_values(one, [job(one)], RELATIVE)[0]
    b = optimise_values(other, [job(other)], RELATIVE)[0]
    assert b.losses == pytest.approx(a.losses, rel=1e-4)
    torch.testing.assert_close(b.delta / scale, a.delta, rtol=1e-3, atol=1e-4)


def test_absolute_rate_is_not_invariant_to_the_scale_of_the_stream() -> None:
    one, other = scaled_llama(1.0), scaled_llama(16.0)
    settings = attrs.evolve(RELATIVE, lr_mode="absolute")
    a = optimise_values(one, [job(one)], settings)[0]
    b = optimise_values(other, [job(other)], settings)[0]
    assert b.losses[-1] != pytest.approx(a.losses[-1], rel=1e-2)


# -- essence --------------------------------------------------------------------------------------


def test_essence_places_are_after_the_subject_and_sum_to_one() -> None:
    model = tiny_model("gpt2")
    text, span = "Norway is the old river", (0, 6)
    rows = build_rows(
        model, REQUEST, model.site(1), ("",), kl_prompts=(), kl_position="subject_last",
        essence_texts=[(text, span)],
    )  # fmt: skip
    ids = model.encode(text).ids
    subject_end = len(model.encode("Norway").ids) - 1
    assert rows.edited[1] == subject_end
    assert rows.essence.column.tolist() == list(range(len(ids) - 1 - subject_end))
    assert rows.essence.label.tolist() == list(ids[subject_end + 1 :])
    weighed = rows.essence.weighing(rows.owner[rows.essence.row])
    assert float(weighed.weight.sum()) == pytest.approx(1.0)


def test_places_that_say_the_old_answer_are_not_protected() -> None:
    model, old = model_that_says_a_word()
    old_id = int(model.encode_pair(REQUEST.text, old).target_ids[0])
    text = f"{REQUEST.text} {old} and more"
    start = text.index("Norway")
    rows = build_rows(
        model, REQUEST, model.site(1), ("",), kl_prompts=(), kl_position="subject_last",
        essence_texts=[(text, (start, start + 6))],
    )  # fmt: skip
    clean = Clean.read(model.site(1), rows, Suffixes.split(model, rows.ids, rows.edited))
    kept_clean, kept = spare_old_answer(clean, rows)
    assert len(kept_clean.logs[1]) == len(kept.essence) < len(rows.essence)
    assert old_id not in kept.essence.label.tolist()
    assert old_id not in kept_clean.logs[1].argmax(dim=1).tolist()
    assert float(kept.essence.weight.sum()) == pytest.approx(1.0)


def test_essence_keeps_what_the_model_says_about_the_subject() -> None:
    model = tiny_model("gpt2")
    off = attrs.evolve(RELATIVE, steps=20, kl_factor=0.0)
    on = attrs.evolve(off, essence_samples=8, essence_factor=10.0)
    other = "Norway"

    def drift(delta: Tensor) -> float:
        ids = torch.tensor([model.encode(other).ids])
        add = {"change": torch.zeros_like(delta)}

        def shift(output: Tensor) -> Tensor:
            changed = output.clone()
            changed[0, -1] += add["change"]
            return changed

        with torch.no_grad(), replace_output(model.model, model.site(1).module, shift):
            before = model.model(input_ids=ids).logits[0, -1].log_softmax(-1)
            add["change"] = delta
            after = model.model(input_ids=ids).logits[0, -1].log_softmax(-1)
        return float(F.kl_div(after, before, log_target=True, reduction="sum"))

    free = optimise_values(model, [job(model)], off)[0]
    held = optimise_values(model, [job(model)], on)[0]
    assert drift(held.delta) < 0.5 * drift(free.delta)


def test_essence_is_seeded() -> None:
    model = tiny_model("gpt2")
    settings = attrs.evolve(PAPER, essence_samples=4, seed=11)
    one = optimise_values(model, [job(model)], settings)[0]
    again = optimise_values(model, [job(model)], settings)[0]
    other = optimise_values(model, [job(model)], attrs.evolve(settings, seed=12))[0]
    assert torch.equal(one.delta, again.delta)
    assert not torch.equal(one.delta, other.delta)


def test_an_ending_factor_keeps_what_is_said_after_the_target() -> None:
    """KL(p_0 || p_delta) after the target's last token, computed with bare hooks, falls."""
    model = tiny_model("gpt2")
    off = attrs.evolve(RELATIVE, steps=20, kl_factor=0.0)
    on = attrs.evolve(off, ending_factor=10.0)
    pair = model.encode_pair(REQUEST.text, REQUEST.target_new)
    at = model.subject_position(REQUEST, target=REQUEST.target_new)
    site = model.site(1)

    def ending(delta: Tensor) -> Tensor:
        def shift(output: Tensor) -> Tensor:
            changed = output.clone()
            changed[0, at] += delta
            return changed

        with torch.no_grad(), replace_output(model.model, site.module, shift):
            return model.model(input_ids=torch.tensor([pair.ids])).logits[0, -1].log_softmax(-1)

    before = ending(torch.zeros(model.d_model))
    drifts = []
    for settings in (off, on):
        bare = ValueJob(request=REQUEST, site=site)
        found = optimise_values(model, [bare], settings)[0]
        drifts.append(F.kl_div(ending(found.delta), before, log_target=True, reduction="sum"))
    free, held = drifts
    assert float(held) < 0.5 * float(free)


# -- bad input ------------------------------------------------------------------------------------


def test_a_row_that_does_not_fit_the_context_is_refused() -> None:
    model = tiny_model("gpt2", max_positions=16)
    with pytest.raises(PromptTooLongError):
        optimise_values(model, [job(model)], PAPER)


def test_a_target_of_spaces_is_refused() -> None:
    with pytest.raises(EmptyTargetError):
        attrs.evolve(REQUEST, target_new="  ")


def test_weights_that_are_not_finite_are_told() -> None:
    model = tiny_model("gpt2")
    model.parameter("transformer.h.2.mlp.c_fc.weight").data.fill_(float("inf"))
    with pytest.raises(NonFiniteEditError, match="Norway"):
        optimise_values(model, [job(model)], PAPER)


def test_hooks_are_gone_after_a_failure() -> None:
    class Interrupt(SilentProgress):
        def advance(self, steps: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    model = tiny_model("gpt2")
    with pytest.raises(KeyboardInterrupt):
        optimise_values(model, [job(model)], PAPER, Interrupt())
    assert not any(module._forward_hooks for module in model.model.modules())


def test_the_first_context_must_be_the_bare_prompt() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InvalidParameterError, match="bare prompt"):
        ValueJob(request=REQUEST, site=model.site(0), contexts=("The mill. ",))


# -- what the finished rank-one change will do ----------------------------------------------------


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_loss_with_reading_is_that_of_the_changed_weight(family: str) -> None:
    """The same rank-one change written into the weight gives the same loss, over all tokens."""
    model = tiny_model(family)
    site = model.site(1)
    generator = torch.Generator().manual_seed(0)
    reading = 0.05 * torch.randn(model.weight(site).shape[1], generator=generator)
    delta = 0.3 * torch.randn(model.d_model, generator=generator)
    rows = build_rows(
        model, REQUEST, site, CONTEXTS, kl_prompts=(), kl_position="subject_last", whole=True
    )
    suffixes = Suffixes.split(model, rows.ids, rows.split)
    clean = Clean.read(site, rows, suffixes, [reading])
    settings = attrs.evolve(PAPER, weight_decay=0.0)
    objective = Objective(
        site=model.site(1), rows=rows, upper=suffixes.above(1), clean=clean, settings=settings
    )
    loss = objective(delta[None, None]).loss[0]
    weight = model.weight(site)
    weight += torch.outer(delta, reading)  # writes the weight, whatever its layout
    plain = torch.zeros(())
    for context in CONTEXTS:
        pair = model.encode_pair(context + REQUEST.text, REQUEST.target_new)
        with torch.no_grad():
            logs = model.model(input_ids=torch.tensor([pair.ids])).logits[0].log_softmax(-1)
        places = range(pair.n_prompt, len(pair.ids))
        plain -= torch.stack([logs[t - 1, pair.ids[t]] for t in places]).mean() / len(CONTEXTS)
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=1e-4)

"""The mathematics of causal tracing on tiny models of every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch
from editkit_core.numerics.tracing_grid import (
    Cost,
    cell_of,
    passes,
    restored_probabilities,
    window_layers,
    window_width,
)
from editkit_core.numerics.tracing_prompt import read_prompt
from editkit_core.numerics.tracing_result import TRACE_KINDS, TraceKind
from editkit_core.numerics.tracing_run import Cell, CorruptedRun, draw_noise, next_token_logits
from editkit_core.testing.models import TINY_FAMILIES, tiny_model
from editkit_core.types import EditRequest, SilentProgress

REQUEST = EditRequest(prompt="The capital of {} is", subject="old Fiji town", target_new="Rome")
SAMPLES = 3
CLOSE = {"rtol": 1e-4, "atol": 1e-7}  # float32 sums in another order


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param, seed=3)


@pytest.fixture
def run(model: EditableModel) -> CorruptedRun:
    return corrupted(model, scale=1.0)


def corrupted(model: EditableModel, *, scale: float, samples: int = SAMPLES) -> CorruptedRun:
    prompt = read_prompt(model, REQUEST, None)
    start, end = prompt.subject
    return CorruptedRun(
        model=model,
        ids=prompt.ids,
        subject=prompt.subject,
        noise=draw_noise((samples, end - start, model.d_model), scale=scale, seed=5),
        scale=scale,
        answer_id=prompt.answer_id,
    )


def table(run: CorruptedRun, kind: TraceKind, *, batch_cells: int = 7) -> np.ndarray:
    return restored_probabilities(
        run,
        kind,
        range(len(run.ids)),
        width=2,
        batch_cells=batch_cells,
        progress=SilentProgress(),
    )


def test_noise_on_the_subject_changes_the_answer(run: CorruptedRun) -> None:
    p_clean, p_corrupted = run.baseline()
    assert abs(p_clean - p_corrupted) > 0.05 * p_clean


def test_restoring_the_subject_at_the_embedding_gives_the_clean_probability(
    run: CorruptedRun,
) -> None:
    cell = Cell((run.model.family.embedding,), tuple(range(*run.subject)))
    p_clean, restored = run.probabilities([cell])
    np.testing.assert_allclose(restored.numpy(), p_clean, **CLOSE)


@pytest.mark.parametrize("kind", TRACE_KINDS)
def test_without_noise_no_state_has_an_effect(model: EditableModel, kind: TraceKind) -> None:
    silent = corrupted(model, scale=0.0)
    _, p_corrupted = silent.baseline()
    np.testing.assert_allclose(table(silent, kind), p_corrupted, **CLOSE)


def test_the_last_token_of_the_last_layer_restores_the_total_effect(run: CorruptedRun) -> None:
    p_clean, _ = run.baseline()
    np.testing.assert_allclose(table(run, "hidden")[-1, -1], p_clean, **CLOSE)


def test_restoring_every_token_of_one_layer_gives_the_clean_probability(run: CorruptedRun) -> None:
    everything = tuple(range(len(run.ids)))
    cells = [
        Cell((run.model.family.block(layer),), everything) for layer in range(run.model.n_layers)
    ]
    p_clean, restored = run.probabilities(cells)
    np.testing.assert_allclose(restored.numpy(), p_clean, **CLOSE)


@pytest.mark.parametrize("kind", TRACE_KINDS)
def test_tokens_before_the_subject_have_no_effect(run: CorruptedRun, kind: TraceKind) -> None:
    _, p_corrupted = run.baseline()
    assert run.subject[0] > 0
    np.testing.assert_allclose(table(run, kind)[: run.subject[0]], p_corrupted, **CLOSE)


def test_the_clean_row_is_bit_identical_to_the_clean_run(run: CorruptedRun) -> None:
    rows = pad_batch([run.ids] * (1 + run.samples), run.model.pad_id)
    undisturbed = next_token_logits(run.model, rows)[0]
    assert torch.equal(run.states.logits[0], undisturbed)


@pytest.mark.parametrize("kind", TRACE_KINDS)
def test_a_batch_of_cells_equals_cell_by_cell(run: CorruptedRun, kind: TraceKind) -> None:
    np.testing.assert_allclose(
        table(run, kind, batch_cells=1000), table(run, kind, batch_cells=1), **CLOSE
    )


@pytest.mark.parametrize("kind", TRACE_KINDS)
def test_effects_equal_those_of_plain_hooks_one_row_at_a_time(
    run: CorruptedRun, kind: TraceKind
) -> None:
    expected = np.array(
        [
            [PlainTrace(run, kind, token, layer).probability() for layer in range(3)]
            for token in range(len(run.ids))
        ]
    )
    np.testing.assert_allclose(table(run, kind), expected, **CLOSE)


class PlainTrace:
    """The definition, written once more with bare torch hooks and batches of one row."""

    def __init__(self, run: CorruptedRun, kind: TraceKind, token: int, layer: int) -> None:
        self.run, self.token = run, token
        network = run.model.model
        trunk = network.get_submodule(
            "transformer.h" if hasattr(network, "transformer") else "model.layers"
        )
        layers = {0: [0], 1: [0, 1], 2: [1, 2]}[layer]  # [l - 1, l + 1)
        if kind == "hidden":
            self.modules = [trunk[layer]]
        else:
            names = ("mlp",) if kind == "mlp" else ("attn", "self_attn")
            self.modules = [
                next(getattr(trunk[i], name) for name in names if hasattr(trunk[i], name))
                for i in layers
            ]

    def probability(self) -> float:
        clean: dict[nn.Module, Tensor] = {}
        handles = [m.register_forward_hook(self._keep(clean)) for m in self.modules]
        self._forward()
        for handle in handles:
            handle.remove()
        return float(np.mean([self._restored(clean, noise) for noise in self.run.noise]))

    def _restored(self, clean: dict[nn.Module, Tensor], noise: Tensor) -> float:
        start, end = self.run.subject

        def disturb(_: nn.Module, __: object, output: Tensor) -> Tensor:
            return torch.cat([output[:, :start], output[:, start:end] + noise, output[:, end:]], 1)

        def restore(module: nn.Module, _: object, output: object) -> object:
            state = output[0] if isinstance(output, tuple) else output
            new = state.clone()
            new[0, self.token] = clean[module][0, self.token]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        embedding = self.run.model.model.get_input_embeddings()
        handles = [embedding.register_forward_hook(disturb)]
        handles += [m.register_forward_hook(restore) for m in self.modules]
        p = self._forward()
        for handle in handles:
            handle.remove()
        return p

    @staticmethod
    def _keep(clean: dict[nn.Module, Tensor]):
        def hook(module: nn.Module, _: object, output: object) -> None:
            clean[module] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def _forward(self) -> float:
        with torch.no_grad():
            logits = self.run.model.model(torch.tensor([self.run.ids])).logits[0, -1]
        return float(torch.softmax(logits.double(), 0)[self.run.answer_id])


def test_the_window_is_the_papers_on_the_papers_model() -> None:
    assert window_width(48, 10, 0.2) == 10
    assert window_layers(20, 10, 48) == range(15, 25)
    assert window_layers(2, 10, 48) == range(0, 7)
    assert window_layers(46, 10, 48) == range(41, 48)


@pytest.mark.parametrize(
    ("n_layers", "width"), [(1, 1), (3, 1), (6, 1), (12, 2), (28, 6), (32, 6), (80, 10)]
)
def test_the_window_shrinks_with_the_depth(n_layers: int, width: int) -> None:
    assert window_width(n_layers, 10, 0.2) == width


def test_a_window_of_one_layer_is_that_layer() -> None:
    assert [list(window_layers(layer, 1, 3)) for layer in range(3)] == [[0], [1], [2]]


def test_noise_is_gaussian_of_the_given_scale() -> None:
    noise = draw_noise((50, 20, 30), scale=0.7, seed=1)
    assert noise.dtype == torch.float32
    assert float(noise.std()) == pytest.approx(0.7, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)


def test_cells_of_any_tokens_and_layers_can_share_a_pass(run: CorruptedRun) -> None:
    layers, tokens = range(run.model.n_layers), range(len(run.ids))
    cells = [
        cell_of(run.model, kind, token, layer, 2)
        for kind in TRACE_KINDS
        for token in tokens
        for layer in layers
    ]
    together = run.probabilities([*cells, Cell()])[1]
    alone = torch.cat([run.probabilities([cell])[1] for cell in [*cells, Cell()]])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), **CLOSE)


def test_a_cell_runs_only_what_its_state_reaches(run: CorruptedRun) -> None:
    model, token = run.model, len(run.ids) - 2
    assert run.states.samples == SAMPLES  # everything that is run once has been run
    seen: dict[int, tuple[int, ...]] = {}
    handles = [
        model.module(model.family.block(layer)).register_forward_hook(
            lambda _, args, __, layer=layer: seen.update({layer: tuple(args[0].shape)})
        )
        for layer in range(1, model.n_layers)
    ]
    run.probabilities([cell_of(model, "hidden", token, 1, 1)])
    for handle in handles:
        handle.remove()
    assert seen == {2: (SAMPLES, 2, model.d_model)}


def test_a_codebook_on_the_model_takes_no_part(model: EditableModel) -> None:
    run, asked = corrupted(model, scale=1.0), []
    handle = model.module(model.family.block(2)).register_forward_hook(
        lambda *_: asked.append(model.queries)
    )
    table(run, "mlp", batch_cells=2)
    handle.remove()
    assert len(asked) > 1
    assert all(queries is not None and bool((queries == -1).all()) for queries in asked)


def test_cells_that_need_the_same_share_passes_up_to_the_most() -> None:
    assert passes([Cost(2, 3)] * 5, samples=10, most=2) == [[0, 1], [2, 3], [4]]


def test_a_cell_that_needs_far_less_gets_a_pass_of_its_own() -> None:
    assert passes([Cost(11, 8), Cost(1, 1), Cost(11, 8)], samples=10, most=16) == [[0, 2], [1]]


def test_small_cells_of_several_layers_share_a_pass() -> None:
    assert passes([Cost(5, 1), Cost(4, 1), Cost(3, 1)], samples=1, most=16) == [[0, 1, 2]]

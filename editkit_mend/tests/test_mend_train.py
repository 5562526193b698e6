"""Training MEND's editor: its loss by hand, what it learns, what it leaves alone."""

from __future__ import annotations

import attrs
import pytest
import torch

from editkit_core import EditContext, Editor, EditRequest
from editkit_core.data.dataset import DataSet
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import nll, pair_batch, pair_logits
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.artifact import EditorArtifact
from editkit_core.testing import tiny_model
from editkit_core.training import EditExamples, TrainBatch, TrainingOptions
from editkit_core.types import Probe
from editkit_mend.delta import compute_delta
from editkit_mend.learner import MendLearner
from editkit_mend.lessons import Lessons
from editkit_mend.locate import locate
from editkit_mend.params import MendParams
from editkit_mend.train import train

PLACES = ("Norway", "Peru", "Brazil", "Japan", "Switzerland", "Vienna", "Warsaw", "Delft")
CITIES = ("Oslo", "Lima", "Tokyo", "Paris")
PARAMS = MendParams(
    rank=16, blocks=2, edit_lr=-1e-3, lr=3e-3, lr_lr=1e-3, c_edit=1.0, batch=4, accumulate=1,
    steps=40, validate_every=0, statistics=16, retarget="relation", phrasings="relation",
)  # fmt: skip
SUBJECTS = len(PLACES)


def requests() -> tuple[EditRequest, ...]:
    return tuple(
        EditRequest(
            prompt="The capital of {} is",
            subject=place,
            target_new=CITIES[i % 4],
            target_true=CITIES[(i + 1) % 4],
            relation="capital",
            paraphrases=("What is the capital of {}? It is",),
            locality={
                "neighborhood": (
                    Probe(f"The capital of {PLACES[(i + 3) % SUBJECTS]} is", ("Oslo",)),
                )
            },
        )
        for i, place in enumerate(PLACES)
    )


def dataset(chosen: tuple[EditRequest, ...] | None = None) -> DataSet:
    return DataSet(
        name="toy", form="toy", requests=chosen or requests(), target_policy="counterfactual",
        digest="0" * 64, source="made in a test", records=SUBJECTS,
    )  # fmt: skip


def context(**options: object) -> EditContext:
    made = TrainingOptions(validation_share=0.0, tensorboard=False, **options)  # type: ignore[arg-type]
    return EditContext(seed=3, training=made)


def batches(count: int, first: int = 0, params: MendParams = PARAMS) -> list[TrainBatch]:
    examples = EditExamples(requests=requests(), seed=5, retarget=params.retarget)
    return [
        TrainBatch(examples=examples.take(4 * n, 4), number=n) for n in range(first, first + count)
    ]


def mean_loss(learner: MendLearner, some: list[TrainBatch]) -> float:
    with torch.no_grad():
        return sum(float(learner.loss(batch)["total"]) for batch in some) / len(some)


def into(learner: MendLearner, artifact: EditorArtifact) -> MendLearner:
    state = {name: torch.tensor(array) for name, array in artifact.tensors.items()}
    learner.networks.load_state_dict(state)
    return learner


# -- the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_the_loss_is_the_targets_nll_and_the_divergence_of_a_model_that_is_really_edited(
    family: str,
) -> None:
    model = tiny_model(family)
    model.model.double()
    learner = MendLearner(model, requests(), PARAMS, 0)
    batch = batches(1)[0]
    edits, drifts = [], []
    for example in batch.examples:
        lesson = learner.lessons.of(example)
        kept = pair_batch(model, lesson.stays, end=True)
        follows = pair_batch(model, lesson.follows, end=True)
        before = pair_logits(model, kept)
        edited = EditRequest(
            prompt=lesson.edit[0], subject=example.request.subject, target_new=lesson.edit[1]
        )
        with learner.editing([edited]):
            edits.append(nll(pair_logits(model, follows), follows.labels).mean())
            after = pair_logits(model, kept)
        for row, labels in enumerate(kept.labels):
            p, q = (x[row][labels != -100].log_softmax(-1) for x in (before, after))
            drifts.append(torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean"))
    found = learner.loss(batch)
    assert float(found["edit"]) == pytest.approx(float(torch.stack(edits).mean()), rel=1e-4)
    assert float(found["locality"]) == pytest.approx(
        float(torch.stack(drifts).mean()), rel=1e-3, abs=1e-7
    )
    total = PARAMS.c_edit * found["edit"] + PARAMS.c_loc * found["locality"]
    assert float(found["total"].detach()) == pytest.approx(float(total), rel=1e-5)


def test_edits_of_one_group_see_each_others_change() -> None:
    model = tiny_model("gpt2")
    batch = batches(1)[0]
    alone = MendLearner(model, requests(), attrs.evolve(PARAMS, edit_lr=-0.05), 0)
    pairs = MendLearner(model, requests(), attrs.evolve(PARAMS, edit_lr=-0.05, n_edits=2), 0)
    lessons = [alone.lessons.of(example) for example in batch.examples]
    losses = []
    for first in (0, 2):
        group = [
            EditRequest(prompt=x.edit[0], subject=x.edit[0][:3], target_new=x.edit[1])
            for x in lessons[first : first + 2]
        ]
        with pairs.editing(group):
            for lesson in lessons[first : first + 2]:
                asked = pair_batch(model, lesson.follows)
                losses.append(nll(pair_logits(model, asked), asked.labels).mean())
    expected = float(torch.stack(losses).mean())
    assert float(pairs.loss(batch)["edit"]) == pytest.approx(expected, rel=1e-4)
    assert float(alone.loss(batch)["edit"]) != pytest.approx(expected, rel=1e-3)


def test_gradients_reach_the_networks_and_the_steps_but_not_the_model() -> None:
    model = tiny_model("gpt2")
    learner = MendLearner(model, requests(), PARAMS, 0)
    learner.loss(batches(1)[0])["total"].backward()
    fresh = {  # at U = 0 nothing moves V, and s scales nothing
        name: float(p.grad.abs().sum())
        for name, p in learner.networks.named_parameters()
        if p.grad is not None and not name.endswith((".v", ".scale"))
    }
    assert len(fresh) == 1 + 2 * 2 * 3  # α; U, b and o of two layers of two shapes
    assert min(fresh.values()) > 0
    assert all(p.grad is None for p in model.model.parameters())


def test_the_gradient_of_a_step_is_that_of_finite_differences() -> None:
    model = tiny_model("gpt2")
    learner = MendLearner(model, requests(), PARAMS, 0)
    batch = batches(1)[0]
    learner.loss(batch)["total"].backward()
    analytic = float(learner.networks.steps.grad[1])  # type: ignore[index]
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            learner.networks.steps[1] += sign * 1e-4
            losses.append(float(learner.loss(batch)["total"]))
            learner.networks.steps[1] -= sign * 1e-4
    assert analytic == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=0.02)


def test_the_networks_and_the_steps_have_their_own_learning_rates() -> None:
    learner = MendLearner(tiny_model("gpt2"), requests(), PARAMS, 0)
    inner, steps = learner.groups()
    assert (inner["lr"], steps["lr"]) == (PARAMS.lr, PARAMS.lr_lr)
    counted = sum(p.numel() for group in (inner, steps) for p in group["params"])
    assert counted == sum(p.numel() for p in learner.networks.parameters())


# -- lessons ----------------------------------------------------------------------------------


def test_equal_examples_give_equal_lessons() -> None:
    lessons = Lessons(requests(), PARAMS)
    example = EditExamples(requests=requests(), seed=1).at(3)
    assert lessons.of(example) == lessons.of(example)


def test_a_requests_own_prompt_is_edited_and_its_paraphrases_follow() -> None:
    lessons = Lessons(requests(), attrs.evolve(PARAMS, phrasings="own"))
    example = EditExamples(requests=requests(), seed=1).at(0)
    lesson = lessons.of(example)
    assert lesson.edit == example.edit
    assert lesson.follows == (example.edit, *example.equivalents)


def test_phrasings_of_the_relation_are_lent_to_every_subject() -> None:
    lone = attrs.evolve(requests()[0], paraphrases=())
    chosen = (lone, *requests()[1:])
    lessons = Lessons(chosen, attrs.evolve(PARAMS, equivalents=5))
    examples = EditExamples(requests=(lone,), seed=1)
    edited = {lessons.of(examples.at(n)).edit[0] for n in range(20)}
    assert edited == {"The capital of Norway is", "What is the capital of Norway? It is"}


def test_probes_of_every_type_are_drawn_in_turn() -> None:
    request = attrs.evolve(
        requests()[0],
        locality={kind: (Probe(f"{kind} is", ("x",)),) for kind in ("one", "two", "three")},
    )
    lessons = Lessons((request,), attrs.evolve(PARAMS, locality=3))
    lesson = lessons.of(EditExamples(requests=(request,)).at(0))
    assert {prompt for prompt, _ in lesson.stays} == {"one is", "two is", "three is"}


def test_other_facts_stay_where_a_request_has_no_probes() -> None:
    bare = tuple(attrs.evolve(request, locality={}) for request in requests())
    lessons = Lessons(bare, attrs.evolve(PARAMS, locality=2))
    lesson = lessons.of(EditExamples(requests=bare[:1], seed=1).at(0))
    assert len(lesson.stays) == 2
    assert all("Norway" not in prompt for prompt, _ in lesson.stays)


# -- training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def editor(model: EditableModel) -> EditorArtifact:
    before = model.state_digest()
    made = train(model, dataset(), PARAMS, context())
    assert model.state_digest() == before
    return made


def test_a_trained_editor_beats_a_fresh_one_and_one_step_of_fine_tuning(
    model: EditableModel, editor: EditorArtifact
) -> None:
    held_out = batches(4, first=1000)
    trained = mean_loss(into(MendLearner(model, requests(), PARAMS, 0), editor), held_out)
    fresh = mean_loss(MendLearner(model, requests(), PARAMS, 0), held_out)
    one_step = min(
        mean_loss(
            MendLearner(model, requests(), attrs.evolve(PARAMS, norm="none", edit_lr=-lr), 0),
            held_out,
        )
        for lr in (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
    )
    assert trained < fresh
    assert trained < one_step


def test_a_trained_editors_patch_makes_its_target_the_answer(
    model: EditableModel, editor: EditorArtifact
) -> None:
    request = requests()[0]
    given = EditContext(editor=editor)
    sites = locate(model, [request], PARAMS, given)
    patch = compute_delta(model, [request], sites, PARAMS, given)
    report = patch.header.metrics["edits"][0]
    assert report["p_target_after"] > 2 * report["p_target_before"]
    with apply_patch(model, patch):
        asked = pair_batch(model, [(request.text, request.target_new)])
        found = float((-nll(pair_logits(model, asked), asked.labels)[0]).exp())
    assert found == pytest.approx(report["p_target_after"], rel=1e-3)


def test_training_moves_every_part_of_the_networks(
    model: EditableModel, editor: EditorArtifact
) -> None:
    fresh = MendLearner(model, requests(), PARAMS, 3).networks.state_dict()
    for name, tensor in fresh.items():
        learned = not name.endswith(("count", "mean", "m2"))
        assert torch.equal(torch.tensor(editor.tensors[name]), tensor) is not learned, name


def test_training_keeps_its_parameters_and_the_base_in_the_editor(
    model: EditableModel, editor: EditorArtifact
) -> None:
    assert editor.params["rank"] == PARAMS.rank
    assert sorted(editor.base.tensors) == [
        f"transformer.h.{layer}.mlp.{name}.weight"
        for layer in (1, 2)
        for name in ("c_fc", "c_proj")
    ]
    assert editor.training.steps == PARAMS.steps
    editor.check_base(model)


def test_equal_seeds_train_equal_editors(model: EditableModel) -> None:
    short = attrs.evolve(PARAMS, steps=3)
    first, second = (train(model, dataset(), short, context()) for _ in range(2))
    assert first.header.tensors == second.header.tensors


def test_the_statistics_are_those_of_the_requests_that_are_trained_on(
    model: EditableModel,
) -> None:
    short = attrs.evolve(PARAMS, steps=1)
    given = EditContext(seed=3, training=TrainingOptions(validation_share=0.4, tensorboard=False))
    made = train(model, dataset(), short, given)
    kept = [r for r in requests() if made.trained_on([r])]
    assert 0 < len(kept) < SUBJECTS
    learner = MendLearner(model, kept, short, 3)
    name = "networks.128x32.of_grads.0.mean"
    assert torch.equal(torch.tensor(made.tensors[name]), learner.networks.state_dict()[name])


def test_the_editor_serves_the_public_editing_call(
    model: EditableModel, editor: EditorArtifact
) -> None:
    patch = Editor(model).edit(requests()[0], method="mend", editor=editor)
    assert patch.header.method.name == "mend"
    assert patch.header.params == {**editor.params, "strength": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gptj", "t5", "t5_gated"])
def test_training_lowers_the_loss_in_every_kind_of_model(family: str) -> None:
    other = tiny_model(family)
    made = train(other, dataset(), PARAMS, context())
    held_out = batches(4, first=1000)
    trained = mean_loss(into(MendLearner(other, requests(), PARAMS, 0), made), held_out)
    assert trained < mean_loss(MendLearner(other, requests(), PARAMS, 0), held_out)

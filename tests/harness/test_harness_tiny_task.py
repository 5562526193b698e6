"""The real harness on its bundled task: models of known ability, and an edited model."""

from __future__ import annotations

import random

import pytest
import torch

from editkit_core.errors import InvalidParameterError
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.harness import TINY_TASK, harness, lm_eval_scores, tiny_task_records
from editkit_core.testing.models import tiny_model
from editkit_core.testing.oracles import TOKENIZER_STYLES, make_tokenizer, oracle_model
from editkit_core.testing.patches import random_patch

# Of tokenizers that end every text with EOS, which decoders do not have, it scores the EOS.
STYLES = [name for name, style in TOKENIZER_STYLES.items() if not style.eos]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("behaviour", "score"), [("knows", 1.0), ("never", 0.0), ("copies", 0.0)])
def test_models_of_known_ability_get_the_score_they_deserve(style, behaviour, score):
    records = tiny_task_records()
    known = {r["question"]: r["choices"][r["answer"]] for r in records}
    text = " ".join(f"{r['question']} {' '.join(r['choices'])}" for r in records)
    tokenizer = make_tokenizer(style, tuple(sorted({*text.split(), "zzyzx"})))
    model = oracle_model(tokenizer, known, behaviour=behaviour)
    (row,) = harness().measure(model, None, MetricContext())
    assert (row.probe, row.before, row.after) == (f"{TINY_TASK}/acc", score, score)


def test_an_edited_model_is_handed_over_as_it_is_and_comes_back_as_it_was():
    model = tiny_model("gpt2")
    digest, state, drawn = model.state_digest(), torch.get_rng_state(), random.getstate()
    (row,) = harness().measure(model, random_patch(model, scale=5.0), MetricContext())
    assert row.before == lm_eval_scores(model, [TINY_TASK])[TINY_TASK, "acc"]
    assert row.before != row.after
    assert model.state_digest() == digest
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == drawn


def test_a_task_it_does_not_have_is_named():
    with pytest.raises(InvalidParameterError, match="no task 'piqqa'"):
        lm_eval_scores(tiny_model("gpt2"), ["piqqa"])

"""Each metric's arithmetic, by hand-made replies and closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from editkit_core import EditRequest, Probe
from editkit_core.efficiency import Stage
from editkit_core.errors import CorpusError
from editkit_core.metrics.ask import (
    Ask,
    Forced,
    ForcedReply,
    Greedy,
    Replies,
    Reply,
    Sampled,
    Text,
    TextReply,
    TextScores,
)
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.evaluate import Plan, evaluate_patch
from editkit_core.metrics.judge import Case, one_by_one
from editkit_core.metrics.registry import load_metrics
from editkit_core.metrics.report import Report, Row
from editkit_core.metrics.sampling import ngram_entropy
from editkit_core.metrics.specificity import name_words
from editkit_core.metrics.tfidf import TfIdf, terms
from editkit_core.numerics.corpus import Corpus
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch

REQUEST = EditRequest(
    prompt="The capital of {} is",
    subject="Norway",
    target_new="Lima",
    target_true="Oslo",
    paraphrases=("{} is ruled from",),
    locality={
        "neighborhood": (Probe("The capital of Sweden is", ("Stockholm",), target_true="Oslo"),),
        "other": (Probe("Gold is", ("Au",)),),
    },
    portability={"hop": (Probe("People of Norway's capital speak", ("Spanish", "Quechua")),)},
    generation_prompts=("{} makes me think of",),
    reference_texts=("lima ceviche", "lima pisco"),
)
CONTEXT = MetricContext(requests=(REQUEST,), max_new_tokens=5)


def forced(likelihoods: Mapping[tuple[str, str], tuple[float, ...]]) -> Replies:
    """Replies with given token probabilities; a token above one half is the argmax."""
    made: dict[Ask, Reply] = {}
    for (prompt, target), chances in likelihoods.items():
        ids = tuple(range(len(chances)))
        best = tuple(i if p > 0.5 else 99 for i, p in zip(ids, chances, strict=True))
        nll = tuple(-math.log(p) for p in chances)
        made[Forced(prompt, target)] = ForcedReply(best, ids, nll)
    return Replies(made)


def rows_of(name: str, before: Replies, after: Replies, context: Any = CONTEXT) -> list[Row]:
    (metric,) = load_metrics([name])
    return list(metric.rows(4, REQUEST, before, after, context))  # type: ignore[union-attr]  # a Metric


def only(**more: Any) -> MetricContext:
    return attrs.evolve(CONTEXT, **more)


# -- counterfact ----------------------------------------------------------------------------------

PROMPT, PARAPHRASE, NEIGHBOUR = REQUEST.text, "Norway is ruled from", "The capital of Sweden is"
BEFORE = forced(
    {
        (PROMPT, "Lima"): (0.1,),
        (PROMPT, "Oslo"): (0.6,),
        (PARAPHRASE, "Lima"): (0.2, 0.2),
        (PARAPHRASE, "Oslo"): (0.4,),
        (NEIGHBOUR, "Lima"): (0.1,),
        (NEIGHBOUR, "Oslo"): (0.3,),
    }
)
AFTER = forced(
    {
        (PROMPT, "Lima"): (0.8,),
        (PROMPT, "Oslo"): (0.1,),
        (PARAPHRASE, "Lima"): (0.9, 0.4),  # geometric mean 0.6
        (PARAPHRASE, "Oslo"): (0.5,),
        (NEIGHBOUR, "Lima"): (0.3,),
        (NEIGHBOUR, "Oslo"): (0.2,),
    }
)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("efficacy_score", 0.0, 1.0),
        ("efficacy_magnitude", 0.1 - 0.6, 0.8 - 0.1),
        ("paraphrase_score", 0.0, 1.0),
        ("paraphrase_magnitude", 0.2 - 0.4, 0.6 - 0.5),
        ("neighborhood_score", 1.0, 0.0),
        ("neighborhood_magnitude", 0.3 - 0.1, 0.2 - 0.3),
    ],
)
def test_counterfact_metrics_are_as_defined(name: str, before: float, after: float) -> None:
    (row,) = rows_of(name, BEFORE, AFTER)
    assert (row.before, row.after) == pytest.approx((before, after))
    assert (row.metric, row.protocol, row.request) == (name, "tf_contrastive", 4)


def test_equal_likelihoods_count_as_wrong_both_ways() -> None:
    even = forced({(p, t): (0.5,) for p in (PROMPT, NEIGHBOUR) for t in ("Lima", "Oslo")})
    for name in ("efficacy_score", "neighborhood_score"):
        (row,) = rows_of(name, even, even)
        assert row.after == 0.0


def test_a_neighbours_own_pair_goes_before_the_requests() -> None:
    own = Probe(NEIGHBOUR, ("Stockholm",), target_true="Stockholm", target_new="Malmö")
    request = attrs.evolve(REQUEST, locality={"neighborhood": (own,)})
    (metric,) = load_metrics(["neighborhood_score"])
    asks = set(metric.asks(request, CONTEXT))  # type: ignore[union-attr]  # a Metric
    assert asks == {Forced(NEIGHBOUR, "Stockholm"), Forced(NEIGHBOUR, "Malmö")}


def test_without_a_true_answer_there_is_nothing_to_contrast() -> None:
    bare = Probe("The capital of Sweden is", ("Stockholm",))
    request = attrs.evolve(REQUEST, target_true=None, locality={"neighborhood": (bare,)})
    for name in ("efficacy_score", "paraphrase_score", "neighborhood_score"):
        (metric,) = load_metrics([name])
        assert list(metric.asks(request, CONTEXT)) == []  # type: ignore[union-attr]  # a Metric


def test_a_neighbour_is_never_scored_on_the_requests_own_answer() -> None:
    bare = Probe("The capital of Sweden is", ("Stockholm",))
    request = attrs.evolve(REQUEST, locality={"neighborhood": (bare,)})
    (metric,) = load_metrics(["neighborhood_score"])
    assert list(metric.asks(request, CONTEXT)) == []  # type: ignore[union-attr]  # a Metric


def test_the_counterfact_score_is_the_harmonic_mean_of_the_data_sets_means() -> None:
    (score,) = load_metrics(["counterfact_score"])
    values = {"efficacy_score": (1, 1), "paraphrase_score": (1, 0), "neighborhood_score": (1, 1)}
    rows = tuple(
        Row(
            request=i,
            metric=name,
            protocol="tf_contrastive",
            prompt="",
            expected="",
            before=0.0,
            after=float(value),
        )
        for name, column in values.items()
        for i, value in enumerate(column)
    )
    found = Report(rows).scores((score,))[-1]  # type: ignore[arg-type]  # a DerivedMetric
    assert found.metric == "counterfact_score"
    assert found.after == pytest.approx(3 / (1 / 1 + 1 / 0.5 + 1 / 1))  # not the mean of 1 and 0
    assert found.before == 0.0
    assert len(Report(rows[:4]).scores((score,))) == 2  # type: ignore[arg-type]  # as above


# -- sampled text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        # n words, all different: n - 1 bigrams and n - 2 trigrams of equal frequency.
        ("a b c d e", (2 / 3 * math.log2(4) + 4 / 3 * math.log2(3)) / 2),
        ("a a a a a a", 0.0),
        # Bigrams ab x3, ba x2; trigrams aba x2, bab x2.
        (
            "a b a b a b",
            (2 / 3 * -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4)) + 4 / 3 * 1.0) / 2,
        ),
        ("", 0.0),
        ("one", 0.0),
    ],
)
def test_ngram_entropy_is_as_defined(text: str, bits: float) -> None:
    assert ngram_entropy(text) == pytest.approx(bits)


def test_punctuation_marks_are_words_and_apostrophes_are_not() -> None:
    assert ngram_entropy("don't, stop") == pytest.approx(ngram_entropy("a b c"))


def sampled(text: str) -> Replies:
    return Replies({Sampled("Norway makes me think of"): TextReply(text)})


def test_fluency_scores_the_prompt_with_its_continuation() -> None:
    (row,) = rows_of("fluency", sampled(" fjords"), sampled(" Norway makes me think of"))
    assert row.before == ngram_entropy("Norway makes me think of fjords")
    assert row.after == ngram_entropy("Norway makes me think of Norway makes me think of")
    assert (row.unit, row.protocol, row.text_before) == ("bits", "gen_sample", " fjords")


def test_without_generation_prompts_the_edit_prompt_is_continued() -> None:
    request = attrs.evolve(REQUEST, generation_prompts=())
    (metric,) = load_metrics(["fluency"])
    assert list(metric.asks(request, only(seed=7))) == [Sampled(PROMPT, seed=7)]  # type: ignore[union-attr]  # a Metric


def test_idf_and_cosine_are_the_closed_forms() -> None:
    tfidf = TfIdf.of(Corpus.of(["lima ceviche", "lima pisco", "oslo"]))
    assert tfidf.idf["lima"] == pytest.approx(math.log(4 / 3) + 1)
    assert tfidf.idf["oslo"] == pytest.approx(math.log(4 / 2) + 1)
    a, b = tfidf.idf["lima"], tfidf.idf["ceviche"]
    assert tfidf.similarity("Lima, lima!", "lima ceviche") == pytest.approx(
        2 * a * a / (2 * a * math.hypot(a, b))
    )
    assert tfidf.similarity("lima ceviche", "CEVICHE LIMA unknown") == 1.0
    assert tfidf.similarity("oslo", "lima") == 0.0
    assert tfidf.similarity("unknown words", "lima") == 0.0


def test_words_have_two_letters_or_more() -> None:
    assert terms("A I Lima, in 2024: o'clock") == ["lima", "in", "2024", "clock"]


def test_consistency_names_the_corpus_its_weights_come_from() -> None:
    (row,) = rows_of("generation_consistency", sampled(" fjords"), sampled(" lima pisco ceviche"))
    corpus = Corpus.of(REQUEST.reference_texts)
    assert row.expected == f"TF-IDF of 2 texts, {corpus.digest[:12]}"
    assert row.before == 0.0
    assert 0.9 < row.after < 1.0
    own = TfIdf.of(Corpus.of(["pisco", "beer"], "another"))
    (other,) = rows_of(
        "generation_consistency", sampled(""), sampled(" pisco"), context=only(tfidf=own)
    )
    assert other.after == 1.0  # it knows no other word of the references
    assert own.digest[:12] in other.expected


# -- the whole model ------------------------------------------------------------------------------


def test_perplexity_drift_counts_tokens_not_documents() -> None:
    context = only(corpus=Corpus.of(["long", "short"], "two.txt"))
    scored = (TextScores((1.0, 1.0, 1.0)), TextScores((5.0,)))
    before = Replies(dict(zip((Text("long", 512), Text("short", 512)), scored, strict=True)))
    after = Replies(dict.fromkeys(before, TextScores((2.0,))))
    context = attrs.evolve(context, first=4)
    (row,) = rows_of("perplexity_drift", before, after, context)
    assert (row.before, row.after, row.unit) == (2.0, 2.0, "nat")
    assert row.expected.startswith("two.txt, ")
    assert row.higher_is_better is False
    assert rows_of("perplexity_drift", before, after, attrs.evolve(context, first=0)) == []


def test_perplexity_without_a_corpus_says_what_to_do() -> None:
    (metric,) = load_metrics(["perplexity_drift"])
    with pytest.raises(CorpusError, match="Give a corpus"):
        list(metric.asks(REQUEST, CONTEXT))  # type: ignore[union-attr]  # a Metric


def test_efficiency_has_a_row_a_stage_in_its_unit() -> None:
    stages = (
        Stage(name="locate", wall_s=0.5, peak_bytes=100, device_peak_bytes=7),
        Stage(name="compute_delta", wall_s=2.0, peak_bytes=300, device_peak_bytes=9),
    )
    model: Any = None  # these metrics do not look at it
    for name, unit, values in (
        ("efficiency_seconds", "s", [0.5, 2.0]),
        ("efficiency_host_bytes", "bytes", [100, 300]),
        ("efficiency_device_bytes", "bytes", [7, 9]),
    ):
        (metric,) = load_metrics([name])
        rows = list(metric.measure(model, None, only(stages=stages, first=3)))  # type: ignore[union-attr]  # a RunMetric
        assert [row.after for row in rows] == values
        assert {(row.unit, row.higher_is_better, row.request) for row in rows} == {(unit, False, 3)}
        assert [row.probe for row in rows] == ["locate", "compute_delta"]


# -- specificity ----------------------------------------------------------------------------------

OTHERS = (
    EditRequest(prompt="In {} they speak", subject="Norway", target_new="x", target_true="Norse"),
    EditRequest(prompt="{} lies in", subject="Norway Bay", target_new="x", target_true="Canada"),
    EditRequest(prompt="{} lies in", subject="The Lake of Peru", target_new="x", target_true="A"),
    EditRequest(prompt="{} lies in", subject="Norway House", target_new="x"),
)


def probed(name: str, request: EditRequest = REQUEST) -> list[str]:
    (metric,) = load_metrics([name])
    context = only(requests=(request, *OTHERS), protocols={"tf_token"})
    return [ask.prompt for ask in metric.asks(request, context)]  # type: ignore[union-attr]  # a Metric


def test_other_requests_serve_as_probes_of_what_leaks() -> None:
    assert probed("same_subject_specificity") == ["In Norway they speak"]
    assert probed("near_name_locality") == ["Norway Bay lies in"]


def test_a_requests_own_probes_go_before_those() -> None:
    own = {"same_subject": (Probe("a", ("b",)),), "near_name": (Probe("c", ("d",)),)}
    request = attrs.evolve(REQUEST, locality=own)
    assert probed("same_subject_specificity", request) == ["a"]
    assert probed("near_name_locality", request) == ["c"]


def test_small_words_do_not_make_names_alike() -> None:
    assert name_words("The Lake of the Woods") == {"lake", "woods"}
    assert name_words("Ludwig van Beethoven") == {"ludwig", "beethoven"}


# -- the judge ------------------------------------------------------------------------------------


def said(**texts: str) -> Replies:
    prompts = {"edit": (PROMPT, ("Lima",)), "near": ("Gold is", ("Au",))}
    made: dict[Ask, Reply] = {}
    for name, text in texts.items():
        prompt, answers = prompts[name]
        made[Greedy(prompt, 5, answers)] = TextReply(text)
    return Replies(made)


def test_a_judge_decides_by_the_accepted_answers() -> None:
    seen: list[Case] = []

    def decide(case: Case) -> bool:
        seen.append(case)
        return case.text.endswith("of Peru")

    context = only(judge=one_by_one(decide), protocols={"gen_judge"})
    before, after = said(edit="Oslo"), said(edit="the capital of Peru")
    (row,) = rows_of("reliability", before, after, context)
    assert (row.protocol, row.before, row.after) == ("gen_judge", 0.0, 1.0)
    assert seen[1] == Case(PROMPT, ("Lima",), "the capital of Peru")


def test_for_locality_a_judge_compares_with_what_was_said_before() -> None:
    seen: list[Case] = []

    def decide(case: Case) -> bool:
        seen.append(case)
        return False

    context = only(judge=one_by_one(decide), protocols={"gen_judge"})
    request = attrs.evolve(REQUEST, locality={"other": REQUEST.locality["other"]})
    (metric,) = load_metrics(["locality"])
    before, after = said(near="a metal"), said(near="Au")
    (row,) = metric.rows(0, request, before, after, context)  # type: ignore[union-attr]  # a Metric
    assert seen == [Case("Gold is", ("a metal",), "Au")]
    assert (row.before, row.after) == (1.0, 0.0)


def test_without_a_judge_its_protocol_is_left_out() -> None:
    assert not CONTEXT.wants("gen_judge")
    assert CONTEXT.wants("gen_judge", "gen_em")
    assert not only(protocols={"tf_token"}).wants("gen_em")


# -- planning -------------------------------------------------------------------------------------


def test_only_the_wanted_protocols_are_asked_for() -> None:
    (metric,) = load_metrics(["portability"])
    forced_only = list(metric.asks(REQUEST, only(protocols={"tf_token"})))  # type: ignore[union-attr]  # a Metric
    assert {type(ask) for ask in forced_only} == {Forced}
    both = list(metric.asks(REQUEST, CONTEXT))  # type: ignore[union-attr]  # a Metric
    assert {type(ask) for ask in both} == {Forced, Greedy}


def test_a_plan_serves_base_and_edited_model_alike_and_numbers_its_requests() -> None:
    model = tiny_model("gpt2", seed=1)
    plan = Plan.make(model, [REQUEST], first=5)
    replies = plan.answers(model)
    rows = list(plan.rows(replies, replies))
    assert {row.request for row in rows} == {5}
    assert all(row.before == row.after for row in rows)
    assert {row.after for row in rows if row.metric == "locality"} == {1.0}


def test_the_answers_budget_is_that_of_its_own_request() -> None:
    model = tiny_model("gpt2", seed=1)
    long = attrs.evolve(REQUEST, target_new="Lima " * 20)
    plan = Plan.make(model, [REQUEST, long])
    alone = Plan.make(model, [REQUEST])
    assert plan.context.budget(plan.requests[0]) == alone.context.budget(alone.requests[0])
    assert plan.context.budget(plan.requests[1]) > plan.context.budget(plan.requests[0])
    assert only(max_new_tokens=3).budget(long) == 3


def test_every_kind_of_metric_goes_into_one_report() -> None:
    model = tiny_model("gpt2", seed=1)
    names = [
        "reliability",
        "efficacy_score",
        "paraphrase_score",
        "neighborhood_score",
        "counterfact_score",
        "fluency",
        "perplexity_drift",
        "efficiency_seconds",
    ]
    measuring = MetricContext(
        corpus=Corpus.of(["The river runs past the old mill."]),
        stages=(Stage(name="locate", wall_s=0.5, peak_bytes=1, device_peak_bytes=0),),
        length=16,
    )
    digest = model.state_digest()
    metrics = load_metrics(names)
    report = evaluate_patch(
        model, [REQUEST], random_patch(model), metrics=metrics, measuring=measuring
    )
    assert {row.metric for row in report.rows} == set(names) - {"counterfact_score"}
    scores = report.scores([m for m in metrics if m.info.name == "counterfact_score"])  # type: ignore[misc]  # a DerivedMetric
    assert scores[-1].metric == "counterfact_score"
    assert model.state_digest() == digest

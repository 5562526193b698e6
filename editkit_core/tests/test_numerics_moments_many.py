"""Key statistics of several layers, of several processes, merged, quick, and with auto mode."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch

from editkit_core.errors import (
    CorpusError,
    InvalidParameterError,
    NonFiniteEditError,
    StatisticsError,
    StatisticsMismatchError,
    StatisticsOverlapError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.numerics import inputs_digest as digests
from editkit_core.numerics import moments as moments_module
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.covariance import load_covariances
from editkit_core.numerics.key_sum import TILE, KeySum
from editkit_core.numerics.moments import KeyMoments, collect_all_moments, collect_moments
from editkit_core.numerics.moments_group import Alone, Meeting
from editkit_core.numerics.moments_merge import merge_moments
from editkit_core.numerics.moments_quick import (
    error_note,
    quick_moments,
    quick_tokens,
    split_half_error,
)
from editkit_core.numerics.moments_store import StatisticsStore
from editkit_core.testing.models import tiny_model
from editkit_core.types import SilentProgress

SENTENCE = "the river runs past an old mill and nobody knew how old it was when winter came"
WORDS = SENTENCE.split()


def texts(count: int, seed: int) -> list[str]:
    """Different texts of 5 to 24 words."""
    order = torch.Generator().manual_seed(seed)

    def number(high: int) -> int:
        return int(torch.randint(high, (), generator=order))

    return [
        " ".join(WORDS[number(len(WORDS))] for _ in range(5 + number(20))) for _ in range(count)
    ]


CORPUS = Corpus.of(texts(90, 0), "mill")


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2", n_layers=3)


# -- the sum ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, TILE, TILE + 1, 2 * TILE + 40])
def test_half_a_sum_makes_the_whole_one(width: int) -> None:
    keys = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    running = KeySum(width)
    running.add(keys[:20])
    running.add(keys[20:])
    found, expected = running.square(), keys.double().T @ keys.double()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.T)
    assert torch.equal(KeySum.of(found).square(), found)


def test_half_a_sum_notices_a_key_that_is_not_finite() -> None:
    running = KeySum(TILE + 5)
    running.add(torch.ones(2, TILE + 5))
    assert running.is_finite
    bad = torch.ones(2, TILE + 5)
    bad[1, TILE + 2] = math.inf
    running.add(bad)
    assert not running.is_finite


# -- several layers -----------------------------------------------------------------------------


def test_layers_in_one_pass_have_the_bits_of_single_ones(model: EditableModel) -> None:
    sites = [model.site(layer) for layer in (2, 0)]
    together = collect_all_moments(model, sites, CORPUS)
    for site, moments in zip(sites, together, strict=True):
        alone = collect_moments(model, site, CORPUS)
        assert moments.key == alone.key
        assert torch.equal(moments.total, alone.total)


def test_one_pass_runs_each_batch_once_and_stops_at_the_deepest(model: EditableModel) -> None:
    ran = []
    handles = [
        model.module(model.family.block(layer)).register_forward_pre_hook(
            lambda *_, layer=layer: ran.append(layer)
        )
        for layer in range(3)
    ]
    collect_all_moments(model, [model.site(0), model.site(1)], CORPUS, batch_size=90)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_a_layer_that_is_behind_catches_up_in_the_same_pass(
    model: EditableModel, tmp_path: Path
) -> None:
    class Interrupt(SilentProgress):
        left = sum(len(model.encode(text).ids) for text in CORPUS.documents) // 2

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.left -= steps
            if self.left < 0:
                raise KeyboardInterrupt

    store, sites = StatisticsStore(tmp_path), [model.site(layer) for layer in range(3)]
    whole = collect_all_moments(model, sites, CORPUS, batch_size=2)
    collect_moments(model, sites[0], CORPUS, batch_size=2, store=store)
    with pytest.raises(KeyboardInterrupt):
        collect_moments(
            model, sites[1], CORPUS, batch_size=2, store=store, save_every=1, progress=Interrupt()
        )
    assert 0 < store.resume(whole[1].key).documents < 90  # type: ignore[union-attr]  # it is there
    resumed = collect_all_moments(model, sites, CORPUS, batch_size=2, store=store)
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one.total, other.total)
        assert one.count == other.count
    assert len(list(tmp_path.iterdir())) == 3


def test_documents_are_counted_up_to_the_one_where_the_tokens_end(model: EditableModel) -> None:
    lengths = [len(model.encode(text).ids) for text in CORPUS.documents]
    moments = collect_moments(model, model.site(0), CORPUS, max_tokens=sum(lengths[:7]) + 1)
    assert moments.documents == 8
    assert len(moments.texts) == 8


def test_a_key_that_is_not_finite_is_refused() -> None:
    broken = tiny_model("gpt2", n_layers=2)
    broken.parameter("transformer.h.0.mlp.c_fc.bias").data[3] = math.nan
    with pytest.raises(NonFiniteEditError, match="float32"):
        collect_moments(broken, broken.site(0), CORPUS)


def test_digests_of_several_layers_hash_each_tensor_once(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [model.site(layer) for layer in range(3)]
    expected = tuple(digests.inputs_digest(model, site) for site in sites)
    hashed: list[str] = []
    whole = digests._tensor_digest

    def counting(of: EditableModel, name: str) -> str:
        hashed.append(name)
        return whole(of, name)

    monkeypatch.setattr(digests, "_tensor_digest", counting)
    assert digests.inputs_digests(model, sites) == expected
    assert len(hashed) == len(set(hashed)) > 0


# -- auto mode of a window ----------------------------------------------------------------------


def test_auto_makes_all_layers_of_a_window_in_one_pass(
    model: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [model.site(layer) for layer in range(3)]
    passes: list[int] = []
    read = moments_module.keys_in_batches

    def counting(*args, **options):  # type: ignore[no-untyped-def]  # a spy
        passes.append(len(args[1]))
        return read(*args, **options)

    monkeypatch.setattr(moments_module, "keys_in_batches", counting)
    made = load_covariances(model, sites, mode="auto", folder=tmp_path, ridge=0.01)
    assert set(passes) == {3}
    assert len(list(tmp_path.iterdir())) == 3
    assert len({one.origin["corpus"] for one in made}) == 1
    again = load_covariances(model, sites, mode="auto", folder=tmp_path, ridge=0.01)
    assert [one.origin for one in again] == [one.origin for one in made]
    monkeypatch.undo()
    alone = load_covariances(model, sites[1:2], mode="auto", folder=tmp_path / "b", ridge=0.01)
    assert alone[0].origin == made[1].origin


def test_auto_makes_only_the_layers_that_are_missing(model: EditableModel, tmp_path: Path) -> None:
    sites = [model.site(layer) for layer in range(2)]
    given = collect_moments(model, sites[0], CORPUS, store=StatisticsStore(tmp_path))
    found = load_covariances(model, sites, mode="auto", folder=tmp_path, ridge=0.01)
    assert found[0].origin["digest"] == given.key.digest
    assert "sampled" in found[1].origin["corpus"]


# -- merging ------------------------------------------------------------------------------------

ONE, OTHER = Corpus.of(CORPUS.documents[:40], "one"), Corpus.of(CORPUS.documents[40:], "other")


def shard(model: EditableModel, corpus: Corpus, layer: int = 1, **options: int) -> KeyMoments:
    return collect_moments(model, model.site(layer), corpus, **options)  # type: ignore[arg-type]


def test_merged_shards_are_the_statistics_of_all_texts(
    model: EditableModel, tmp_path: Path
) -> None:
    one, other, whole = shard(model, ONE), shard(model, OTHER), shard(model, CORPUS)
    merged = merge_moments([one, other])
    assert torch.equal(merged.total, one.total + other.total)
    assert float((merged.total - whole.total).norm() / whole.total.norm()) < 1e-6  # float32 keys
    assert (merged.count, merged.documents) == (whole.count, whole.documents)
    assert torch.equal(merged.texts, whole.texts)
    assert merged.key.corpus == "one + other"
    turned = merge_moments([other, one])
    assert turned.key == merged.key
    assert torch.equal(turned.total, merged.total)
    store = StatisticsStore(tmp_path)
    read = store.load(store.save(merged))
    assert read.key == merged.key
    assert torch.equal(read.texts, merged.texts)
    assert store.find(model, model.site(1)) is not None


def test_shards_that_share_a_document_are_refused(model: EditableModel) -> None:
    overlapping = Corpus.of([*OTHER.documents, ONE.documents[3]], "more")
    with pytest.raises(StatisticsOverlapError, match=r"share 1 document"):
        merge_moments([shard(model, ONE), shard(model, overlapping)])


def test_the_same_corpus_is_refused_also_in_another_length(model: EditableModel) -> None:
    with pytest.raises(StatisticsOverlapError, match="same corpus"):
        merge_moments([shard(model, ONE), shard(model, ONE, max_tokens=50)])
    with pytest.raises(StatisticsOverlapError, match="given twice"):
        merge_moments([shard(model, ONE), shard(model, ONE)])


def test_statistics_of_another_model_layer_or_cut_are_not_merged(model: EditableModel) -> None:
    other = tiny_model("gpt2", n_layers=3, seed=9)
    with pytest.raises(StatisticsMismatchError, match="models"):
        merge_moments([shard(model, ONE), shard(other, OTHER)])
    with pytest.raises(StatisticsMismatchError, match="models"):
        merge_moments([shard(model, ONE), shard(model, OTHER, layer=0)])
    with pytest.raises(StatisticsMismatchError, match="cut to"):
        merge_moments([shard(model, ONE), shard(model, OTHER, document_tokens=9)])


def test_unfinished_or_single_statistics_are_not_merged(model: EditableModel) -> None:
    one, other = shard(model, ONE), shard(model, OTHER)
    with pytest.raises(StatisticsError, match="unfinished"):
        merge_moments([one, attrs.evolve(other, complete=False)])
    with pytest.raises(InvalidParameterError, match="two"):
        merge_moments([one])


def test_a_changed_list_of_texts_is_noticed(model: EditableModel, tmp_path: Path) -> None:
    store = StatisticsStore(tmp_path)
    path = store.save(shard(model, ONE))
    data = path.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    outer = json.loads(data[8:length])
    at = length + outer["texts"]["data_offsets"][0]
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(StatisticsError, match="list of texts"):
        store.load(path)


# -- quick --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_an_entry", [20, 100, 400])
def test_the_estimated_error_is_that_of_independent_normal_keys(tokens_an_entry: int) -> None:
    width = 48
    draw = torch.Generator().manual_seed(tokens_an_entry)
    scale = torch.logspace(0, -2, width, dtype=torch.float64)
    n = tokens_an_entry * width

    def keys(count: int) -> torch.Tensor:
        return torch.randn(count, width, generator=draw, dtype=torch.float64) * scale

    halves = [keys(n // 2) for _ in range(2)]
    found = split_half_error(*(half.T @ half / (n // 2) for half in halves), keys(1024))
    assert found == pytest.approx(math.sqrt(width / (n - width)), rel=0.12)


def test_a_half_that_cannot_be_solved_with_has_no_error() -> None:
    assert split_half_error(torch.zeros(4, 4), torch.eye(4).double(), torch.ones(8, 4)) is None


MANY = Corpus.of(texts(3000, 5), "many")


def test_the_error_of_a_quick_run_falls_with_tokens_and_is_about_the_true_one() -> None:
    small = tiny_model("gpt2", n_layers=2, d=16, d_mlp=16)
    site = small.site(1)
    whole = collect_moments(small, site, MANY).moment
    told, true = [], []
    for tokens in (1500, 6000, 24_000):
        (quick,) = quick_moments(small, [site], MANY, tokens=tokens)
        assert quick.error is not None
        told.append(quick.error)
        keys = torch.linalg.cholesky(whole)  # its columns stand for typical keys
        reads = [torch.linalg.solve(matrix, keys) for matrix in (quick.moment, whole)]
        first, second = (read / (keys * read).sum(dim=0) for read in reads)
        off = ((first - second) * (whole @ (first - second))).sum(dim=0)
        true.append(float((off / (second * (whole @ second)).sum(dim=0)).sqrt().median()))
    assert told[0] > 1.5 * told[1] > 2 * told[2]
    assert 0.4 < told[0] / true[0] < 2.5
    assert 0.4 < told[1] / true[1] < 2.5


def test_a_quick_run_reads_no_more_than_its_tokens_and_is_found_again(
    model: EditableModel, tmp_path: Path
) -> None:
    store, sites = StatisticsStore(tmp_path), [model.site(0), model.site(2)]
    made = quick_moments(model, sites, MANY, tokens=4000, store=store)
    assert [moments.count for moments in made] == [4000, 4000]
    assert len(list(tmp_path.iterdir())) == 2
    stamps = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    again = quick_moments(model, sites, MANY, tokens=4000, store=store)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())] == stamps
    assert [moments.error for moments in again] == [moments.error for moments in made]
    found = store.find(model, sites[1])
    assert found is not None
    assert found.error == made[1].error


def test_a_quick_run_says_its_error_in_words(model: EditableModel) -> None:
    (made,) = quick_moments(model, [model.site(0)], MANY, tokens=8000)
    assert "Estimated error of layer 0" in error_note(made)
    assert "cannot be said" in error_note(attrs.evolve(made, error=None))


def test_a_quick_run_takes_twenty_tokens_an_entry(model: EditableModel) -> None:
    wide = tiny_model("gpt2", n_layers=1, d=16, d_mlp=1024)
    assert quick_tokens(wide, [wide.site(0)]) == 20 * 1024
    assert quick_tokens(model, [model.site(0)]) == 10_000


def test_a_quick_run_needs_different_documents(model: EditableModel) -> None:
    with pytest.raises(CorpusError, match="1 different document"):
        quick_moments(model, [model.site(0)], Corpus.of([CORPUS.documents[0]] * 50))


# -- several processes --------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from editkit_core.numerics.moments_group import joined
from test_numerics_moments_many import run_shared
rank, size, port, out = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
with joined(rank, size, port) as group:
    run_shared(group, out)
"""


def run_shared(group, out: Path):  # type: ignore[no-untyped-def]  # also run in another process
    model = tiny_model("gpt2", n_layers=3)
    return collect_all_moments(
        model,
        [model.site(0), model.site(2)],
        CORPUS,
        batch_size=1,
        max_tokens=900,
        store=StatisticsStore(out),
        save_every=1,
        group=group,
    )


def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    meeting = Meeting(2)
    arguments = ["1", "2", str(meeting.port), str(tmp_path / "unused")]
    helper = subprocess.Popen(
        [sys.executable, "-c", "import torch; torch.set_num_threads(1)\n" + SCRIPT, *arguments],
        cwd=Path(__file__).parent,
    )
    try:
        with meeting.opened() as group:
            assert group.size == 2
            shared = run_shared(group, tmp_path / "two")
        assert helper.wait(60) == 0
        alone = run_shared(Alone(), tmp_path / "one")
    finally:
        helper.kill()
        torch.set_num_threads(threads)
    assert not (tmp_path / "unused").exists()
    for one, two in zip(alone, shared, strict=True):
        assert one.count == two.count == 900
        assert torch.equal(one.total, two.total)
        assert torch.equal(one.texts, two.texts)
    names = [sorted(path.name for path in (tmp_path / at).iterdir()) for at in ("one", "two")]
    assert names[0] == names[1]
    for name in names[0]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

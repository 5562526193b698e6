"""What the benchmarks edit: the demo model, and a random one of GPT-2 small's size.

The random one has 124 M weights and GPT-2's 50,257 logits, but a small tokenizer. The embeddings of
ids that this tokenizer cannot write are zero, so that the model samples texts of known ids only.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from editkit_core.api import Editor
from editkit_core.data import load_dataset
from editkit_core.errors import InvalidRequestError
from editkit_core.models.editable import EditableModel
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.covariance import sampled_corpus
from editkit_core.numerics.moments import collect_moments
from editkit_core.numerics.moments_store import StatisticsStore
from editkit_core.numerics.window_batch import check_batch
from editkit_core.testing.models import tiny_tokenizer
from editkit_core.types import EditRequest

MODELS = ("demo", "124M")
_PLACES = ("Norway", "Peru", "Brazil", "Japan", "Switzerland", "Vienna", "Warsaw", "Paris", "Tokyo")
_THINGS = ("mill", "river", "harbour", "bridge", "garden", "company", "train", "valley", "picture")
_SAMPLED_TOKENS = 12_000
_CORPUS = ("Winter came early that year, and the harbour of Oslo did not freeze. " * 4,)


def load(name: str) -> EditableModel:
    """Return one of :data:`MODELS`."""
    return Editor.from_pretrained("editkit:demo").model if name == "demo" else small_gpt2()


def small_gpt2() -> EditableModel:
    """Return the random model of GPT-2 small's size."""
    tokenizer = tiny_tokenizer(vocab_size=2000)  # whole words, as GPT-2's mostly are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(bos_token_id=1, eos_token_id=2)
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight[len(tokenizer) :] = 0
    return EditableModel.wrap(model, tokenizer, name="random-gpt2-small")


def requests_for(name: str, count: int, target_words: int = 2) -> list[EditRequest]:
    """Return as many facts, no two about the same; the random model's targets are as long as asked.

    Args:
        name: One of :data:`MODELS`.
        count: How many.
        target_words: Words of a target of the random model.
    """
    if name != "demo":
        pairs = itertools.product(_PLACES, _THINGS, ("", "old "))
        subjects = [f"{old}{thing} of {place}" for place, thing, old in pairs]
        said = " ".join(itertools.islice(itertools.cycle(("Ada", "Paris")), target_words))
        return [
            EditRequest(prompt="The founder of the {} was", subject=subject, target_new=said)
            for subject in subjects[:count]
        ]
    chosen: list[EditRequest] = []
    for request in load_dataset("demo").requests:
        try:
            check_batch([*chosen, request])
        except InvalidRequestError:
            continue
        chosen.append(request)
        if len(chosen) == count:
            break
    return chosen


@attrs.frozen(eq=False)
class Statistics:
    """Key statistics of some layers, in a folder of their own.

    Attributes:
        folder: Where an edit finds them.
        moments: C of each layer, ``(d_in, d_in)`` float64.
    """

    folder: Path
    moments: dict[int, torch.Tensor]


def statistics_of(name: str, model: EditableModel, layers: Sequence[int]) -> Statistics:
    """Return the statistics of one of :data:`MODELS` at some layers.

    The demo model's are of text that it wrote itself; the random model's are made up.
    """
    return _sampled(model, layers) if name == "demo" else _made_up(model, layers)


def _sampled(model: EditableModel, layers: Sequence[int]) -> Statistics:
    folder = Path(tempfile.mkdtemp(prefix="editkit-bench-"))
    corpus = sampled_corpus(model, _SAMPLED_TOKENS)
    moments: dict[int, torch.Tensor] = {}
    for layer in layers:
        found = collect_moments(model, model.site(layer), corpus, batch_size=64)
        StatisticsStore(folder).save(found)
        moments[layer] = found.moment
    return Statistics(folder, moments)


def _made_up(model: EditableModel, layers: Sequence[int]) -> Statistics:
    """Return statistics of random keys with a common mean and an uneven spectrum.

    How they are made plays no part in how long an edit takes; making real ones would take longer
    than everything that is measured.
    """
    folder = Path(tempfile.mkdtemp(prefix="editkit-bench-"))
    moments: dict[int, torch.Tensor] = {}
    for layer in layers:
        site = model.site(layer)
        real = collect_moments(model, site, Corpus.of(_CORPUS, "a sentence"))
        side = len(real.total)
        generator = torch.Generator().manual_seed(layer)
        scales = torch.logspace(0, -2, side)
        keys = torch.randn(side + 512, side, generator=generator) * scales + 0.1
        total = (keys.T @ keys).double()
        made = attrs.evolve(real, total=total, count=len(keys))
        StatisticsStore(folder).save(made)
        moments[layer] = made.moment
    return Statistics(folder, moments)

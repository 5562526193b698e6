"""The oracle's world: a few facts, the requests that change some of them, and what is known when.

Answers are made of words that stand nowhere else and never twice in a row, so no model can be right
by copying, and no answer is contained in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product

import attrs

from editkit_core.types import EditRequest, Probe

__all__ = ["World", "make_world"]

DERAILED = "zzyzx"  # what a model says that does not know what comes next
_SUBJECTS = ("Norway", "Peru", "Old Brazil")
_NEAR = ("Norway Bay", "Peru Bay", "Brazil Bay")
_TEMPLATES = (
    "The capital of {} is",
    "{} lies around",
    "When people speak of where the king of {} lives they always mean",
)
_NEAR_PROMPT = "The river of {} is named"
_PROMPTS = (
    "{} is ruled from",
    "Whoever governs the whole of {} governs it from the town of",
    "In {} they speak",
    "Hence the mayor who greets the visitors of {} lives in",
    "My thoughts about {} begin with",
    "Tales from {} tell of",
)
_DOCUMENTS = ("Once a river ran past an old mill until it reached some northern sea",)


@attrs.frozen(kw_only=True)
class World:
    """Requests, and what a model that knows everything says after each prompt.

    Attributes:
        requests: With every kind of probe a metric may ask.
        old: The continuation of each prompt before the edits.
        new: The continuation of each prompt after them.
        documents: Texts of a corpus, known before and after.
        words: Every word of it.
    """

    requests: tuple[EditRequest, ...]
    old: Mapping[str, str]
    new: Mapping[str, str]
    documents: tuple[str, ...]
    words: tuple[str, ...]


@cache
def make_world(length: int = 1) -> World:
    """Make the world whose targets have ``length`` words; the probes' own answers have 4 - length.

    Args:
        length: 1 to 3.
    """
    pool = _answers(4 - length)
    targets = _answers(length)
    requests: list[EditRequest] = []
    old: dict[str, str] = {}
    new: dict[str, str] = {}
    for subject, near, template in zip(_SUBJECTS, _NEAR, _TEMPLATES, strict=True):
        goal, was = next(targets), next(targets)
        language, river, before, follows = (next(pool) for _ in range(4))
        reworded, longer, same, hop, thought, tale = (text.format(subject) for text in _PROMPTS)
        neighbour, near_prompt = template.format(f"{subject} Island"), _NEAR_PROMPT.format(near)
        requests.append(
            EditRequest(
                prompt=template,
                subject=subject,
                relation="capital",
                target_new=goal,
                target_true=was,
                paraphrases=(reworded, longer),
                locality={
                    "neighborhood": (Probe(neighbour, (was,), target_true=was, target_new=goal),),
                    "same_subject": (Probe(same, (language,)),),
                    "near_name": (Probe(near_prompt, (river,)),),
                },
                portability={"hop": (Probe(hop, (follows,)),)},
                generation_prompts=(thought, tale),
                reference_texts=(goal, goal),  # as many texts as prompts
            )
        )
        stays = {neighbour: was, same: language, near_prompt: river}
        changes = (template.format(subject), reworded, longer, thought, tale)
        old |= stays | dict.fromkeys(changes, was) | {hop: before}
        new |= stays | dict.fromkeys(changes, goal) | {hop: follows}
    spoken = [*old, *old.values(), *new.values(), *_DOCUMENTS, DERAILED]
    words = sorted({word for text in spoken for word in text.split()})
    return World(
        requests=tuple(requests), old=old, new=new, documents=_DOCUMENTS, words=tuple(words)
    )


def _answers(length: int) -> Iterator[str]:
    """Yield answers of made-up words; no word comes twice, nor in answers of another length."""
    first = ("B", "D", "K", "L")[length]
    names = (f"{first}{a}{b}{c}{d}" for a, b, c, d in product("aeiou", "lmnrst", "aeiou", "dkn"))
    while True:
        yield " ".join(next(names) for _ in range(length))

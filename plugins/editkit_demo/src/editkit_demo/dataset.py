"""The demo's facts as data sets: ``demo`` as sentences, ``demo-questions`` as questions.

``demo`` edits every fact and ``demo:100`` draws a hundred; ``demo:train`` and ``demo:test`` share
no subject, for editors that are trained, and ``demo:test:100`` draws from one of them.
"""

from __future__ import annotations

from pathlib import Path

import attrs

import editkit_demo
from editkit_core.data.dataset import DataSet
from editkit_core.data.format import FormInfo, LoadOptions
from editkit_core.data.place import Place, joint_digest
from editkit_core.errors import InvalidParameterError
from editkit_core.types import EditRequest, Probe
from editkit_demo.facts import Part
from editkit_demo.requests import QUESTIONS, SENTENCES, Form, counterfactual_requests, facts_of

__all__ = ["DEMO", "DEMO_QUESTIONS", "DemoFormat"]

_DATA = Path(__file__).parent / "data"
_PARTS: tuple[Part, ...] = ("train", "test")
_POLICIES = {"counterfactual": "another object of the relation, drawn by seed"}


@attrs.frozen(kw_only=True)
class DemoFormat:
    """The demo's own data set; see ``DataFormat`` for the other attributes.

    Attributes:
        asks: How the facts are put.
        tables: The files it is made from, below ``data``.
    """

    name: str
    title: str
    forms: tuple[FormInfo, ...]
    asks: Form
    tables: tuple[str, ...]
    source: str = "editkit-demo"
    place: str = "[train|test][:N]"

    def recognises(self, place: Place) -> bool:
        """Return False: the data set brings its own records."""
        return False

    def load(self, place: Place, options: LoadOptions) -> DataSet:
        """Make the requests.

        Raises:
            InvalidParameterError: The part, the count, the form or the target policy is none.
        """
        form = self.forms[0]
        if options.form not in (None, form.name):
            raise InvalidParameterError(
                f"{self.name} has no form {options.form!r}. Known: {form.name}.", form=options.form
            )
        part, count = self._place(place.text)
        facts = facts_of(part)
        counts = [n for n in (count, options.limit) if n is not None]
        requests = counterfactual_requests(
            min(*counts, len(facts)) if counts else None,
            options.seed,
            form=self.asks,
            part=part,
        )
        return DataSet(
            name=self.name,
            form=form.name,
            requests=tuple(map(_with_pairs, requests)),
            target_policy=form.policy(options.target_policy),
            digest=joint_digest(Place(name, _DATA / name) for name in self.tables),
            source=" ".join(["editkit-demo", editkit_demo.__version__, *([part] if part else [])]),
            records=len(facts),
            limit=min(counts, default=None),
            seed=options.seed,
        )

    def _place(self, text: str) -> tuple[Part | None, int | None]:
        """Read ``train``, ``100`` or ``train:100``."""
        first, _, rest = text.partition(":")
        for part in _PARTS:
            if first == part and text != f"{part}:":
                return part, self._count(rest) if rest else None
        return None, self._count(text) if text else None

    def _count(self, text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < 1:
            raise InvalidParameterError(
                f"{text!r} is no part of {self.name} and no number of edits. Write, for example, "
                f"{self.name}:100, {self.name}:train or {self.name}:test:100.",
                limit=text,
            )
        return int(text)


DEMO = DemoFormat(
    name="demo",
    title="The demo models' facts with counterfactual objects",
    forms=(
        FormInfo(
            name="facts",
            about="the facts the demo models were trained on, as sentences to be finished, with "
            "neighbours, near names and two hops",
            policies=_POLICIES,
        ),
    ),
    asks=SENTENCES,
    tables=("facts.csv", "phrasings.csv", "two_hop.csv"),
)
DEMO_QUESTIONS = DemoFormat(
    name="demo-questions",
    title="The same facts as questions, for encoder-decoders",
    forms=(
        FormInfo(
            name="questions",
            about="the facts of demo as questions, with the same kinds of probes as questions",
            policies=_POLICIES,
        ),
    ),
    asks=QUESTIONS,
    tables=("facts.csv", "question_phrasings.csv", "two_hop.csv"),
)


def _with_pairs(request: EditRequest) -> EditRequest:
    """Give the neighbours the pair of answers that contrastive scoring compares."""
    kind, new = "neighborhood", request.target_new
    pairs = tuple(
        probe
        if probe.answers[0] == new
        else Probe(probe.prompt, probe.answers, probe.answers[0], new)
        for probe in request.locality[kind]
    )
    return attrs.evolve(request, locality={**request.locality, kind: pairs})

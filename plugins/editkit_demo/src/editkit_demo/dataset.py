"""The demo's facts as a data set: ``demo`` edits every fact, ``demo:100`` draws a hundred."""

from __future__ import annotations

from pathlib import Path

import attrs

import editkit_demo
from editkit_core.data.dataset import DataSet
from editkit_core.data.format import FormInfo, LoadOptions
from editkit_core.data.place import Place, joint_digest
from editkit_core.errors import InvalidParameterError
from editkit_core.types import EditRequest, Probe
from editkit_demo.facts import load_facts
from editkit_demo.requests import counterfactual_request, counterfactual_requests

__all__ = ["DemoFormat"]

_DATA = Path(__file__).parent / "data"
_FORM = FormInfo(
    name="facts",
    about="the facts the demo model was trained on, with neighbours, near names and two hops",
    policies={"counterfactual": "another object of the relation, drawn by seed"},
)


@attrs.frozen(kw_only=True)
class DemoFormat:
    """The demo's own data set; see ``DataFormat`` for the attributes."""

    name: str = "demo"
    title: str = "The demo model's facts with counterfactual objects"
    source: str = "editkit-demo"
    place: str = "N"
    forms: tuple[FormInfo, ...] = (_FORM,)

    def recognises(self, place: Place) -> bool:
        """Return False: the data set brings its own records."""
        return False

    def load(self, place: Place, options: LoadOptions) -> DataSet:
        """Make the requests.

        Raises:
            InvalidParameterError: The count, the form or the target policy is none.
        """
        if options.form not in (None, _FORM.name):
            raise InvalidParameterError(
                f"demo has no form {options.form!r}. Known: {_FORM.name}.", form=options.form
            )
        facts = load_facts()
        counts = [n for n in (_count(place.text), options.limit) if n is not None]
        if counts:
            requests = counterfactual_requests(min(*counts, len(facts)), options.seed)
        else:
            requests = tuple(counterfactual_request(fact, seed=options.seed) for fact in facts)
        return DataSet(
            name=self.name,
            form=_FORM.name,
            requests=tuple(map(_with_pairs, requests)),
            target_policy=_FORM.policy(options.target_policy),
            digest=joint_digest(Place(p.name, p) for p in sorted(_DATA.glob("*.csv"))),
            source=f"editkit-demo {editkit_demo.__version__}",
            records=len(facts),
            limit=min(counts, default=None),
            seed=options.seed,
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


def _count(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise InvalidParameterError(
            f"demo:{text} names no number of edits. Write, for example, demo:100.", limit=text
        )
    return int(text)

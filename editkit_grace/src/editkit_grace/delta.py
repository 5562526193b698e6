"""GRACE's codebook: the requests written into it, one after another.

Each request is asked of the model with the codebook as it stands. If the answer is wrong, the rule
finds it a row, a new one or one of its target that reaches so far, and the row's value is trained.
A codebook that GRACE put on the same module before is gone on with: the new patch holds all its
rows and replaces it.

Source: Hartvigsen et al. 2023, section 3, algorithm 1.
Differs: A row that stands for several edits is trained on all of them, where the reference trains
    it on the newest and may lose the others. Labels are digests of the target's tokens, and rows
    keep the digests of their edits.

Legend: d_in, d_out: sides of the gated module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.errors import InvalidParameterError, InvalidRequestError
from editkit_core.models.orientation import sides
from editkit_core.numerics.evaluating import evaluating
from editkit_core.params import unstructure
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import MethodRef
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry, edit_id_of, label_of
from editkit_core.patch.kinds.codebook_rules import insert, merge, nearest, with_value
from editkit_core.patch.replacing import effective
from editkit_grace import __version__
from editkit_grace.params import GraceParams
from editkit_grace.value import Answer, Found, Question, optimise_value

# A patch's header holds at most 1 MiB; half of it is for requests with their probes.
FULL_REQUESTS_BYTES = 512 * 1024


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: GraceParams,
    context: EditContext,
) -> Patch:
    """Return a patch with one codebook; the model is left bit-identical.

    Raises:
        InvalidParameterError: There is not exactly one site, or GRACE has a codebook there that
            replaces other outputs.
        InvalidRequestError: The model answers every request right already, and there is no
            codebook to go on with.
        NonFiniteEditError: NaN or infinity appeared.
        RequestError: A prompt is too long or a target has no token.
    """
    if len(sites) != 1:
        raise InvalidParameterError(f"GRACE gates one module, got {len(sites)}. Give one layer.")
    site = sites[0]
    earlier = earlier_codebooks(context.stack, site, params)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        evaluating(model.model),
        model.ledger.hidden([patch.header.id for patch in earlier]),
    ):
        writer = _Writer.on(model, site, params, context, earlier)
        reports = writer.write(requests)
    if not len(writer.codebook):
        raise InvalidRequestError(
            "There is nothing to edit: the model gives every target already. Set "
            "only_if_wrong=false to store them all the same."
        )
    replaced = [name for patch in earlier for name in (patch.header.id, *patch.header.replaces)]
    below = [patch for patch in effective(context.stack) if patch.header.id not in replaced]
    return Patch.from_parts(
        entries=[CodebookEntry(site=site, codebook=writer.codebook)],
        method=MethodRef(name="grace", dist="editkit-grace", version=__version__),
        base=base_fingerprint(model, [site.parameter]),
        edits=fitting(tuple(writer.known.values())),
        params=unstructure(params),
        seed=context.seed,
        metrics={"layer": site.layer, "rows": len(writer.codebook), "edits": reports},
        computed_on=stack_digest(below),
        replaces=tuple(dict.fromkeys(replaced)),
    )


def earlier_codebooks(stack: Sequence[Patch], site: Site, params: GraceParams) -> tuple[Patch, ...]:
    """Return the patches of a stack that GRACE goes on with at a site, oldest first.

    Raises:
        InvalidParameterError: GRACE has a codebook there that replaces other outputs.
    """
    found = []
    for patch in effective(stack):
        entry = patch.entries[0]
        alone = len(patch.entries) == 1 and patch.header.method.name == "grace"
        if not (alone and isinstance(entry, CodebookEntry) and entry.site.module == site.module):
            continue
        mode = entry.codebook.replacement
        if mode != params.replacement:
            raise InvalidParameterError(
                f"The codebook {patch.header.id} on {site.module} has replacement={mode}, and a "
                f"module has one. Use replacement={mode}, or another layer.",
                parameter="replacement",
            )
        found.append(patch)
    return tuple(found)


def fitting(edits: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
    """Return the edits as a header can hold them: the oldest lose their probes if need be."""
    kept: list[EditRequest] = []
    room = FULL_REQUESTS_BYTES
    for edit in reversed(edits):
        room -= len(json.dumps(unstructure(edit)))
        kept.append(edit if room >= 0 else _bare(edit))
    return tuple(reversed(kept))


def _bare(edit: EditRequest) -> EditRequest:
    return EditRequest(
        prompt=edit.prompt,
        subject=edit.subject,
        target_new=edit.target_new,
        target_true=edit.target_true,
        id=edit.id,
        relation=edit.relation,
    )


@attrs.define(eq=False, kw_only=True)
class _Writer:
    """A codebook in the making.

    Attributes:
        codebook: Its rows so far.
        known: The requests it answers, by edit id, in the order they came.
    """

    codebook: Codebook
    known: dict[bytes, EditRequest]
    _model: EditableModel
    _site: Site
    _params: GraceParams
    _context: EditContext
    _alone: bool

    @classmethod
    def on(
        cls,
        model: EditableModel,
        site: Site,
        params: GraceParams,
        context: EditContext,
        earlier: Sequence[Patch],
    ) -> _Writer:
        """Begin with the rows of earlier codebooks."""
        d_out, d_in = sides(model.module(site.module))
        codebook = Codebook.empty(d_in, d_out, params.replacement)
        known: dict[bytes, EditRequest] = {}
        for patch in earlier:
            entry = patch.entries[0]
            assert isinstance(entry, CodebookEntry)  # earlier_codebooks gives no others
            codebook = merge(codebook, entry.codebook) if len(codebook) else entry.codebook
            known |= {edit_id_of(edit).tobytes(): edit for edit in patch.header.edits}
        gone = {patch.header.id for patch in earlier}
        return cls(
            codebook=codebook,
            known=known,
            model=model,
            site=site,
            params=params,
            context=context,
            alone=not any(
                active.patch.module_entries
                for active in model.ledger.effective
                if active.patch.header.id not in gone
            ),
        )

    def write(self, requests: Sequence[EditRequest]) -> list[dict[str, Any]]:
        """Write requests in their order and return what was done for each, as JSON values."""
        progress = self._context.progress
        progress.start("editing", len(requests))
        reports = []  # Any in the return type: JSON values
        try:
            for request in requests:
                reports.append(self._write_one(request))
                progress.advance(note=request.subject)
        finally:
            progress.finish()
        return reports

    def _write_one(self, request: EditRequest) -> dict[str, Any]:  # Any: JSON values
        question = self._ask(request)
        key = question.key.numpy()
        row, distance = nearest(self.codebook, key)
        routed = row >= 0 and distance <= self.codebook.radii[row]
        now = question.plain if not routed else self._answer(question, row)
        before = _rounded(distance) if row >= 0 else None
        self.known[edit_id_of(request).tobytes()] = request
        if now.right and self._params.only_if_wrong:
            return _report(request, "kept", row if routed else None, before, question, now)
        self.codebook, row, what = insert(
            self.codebook,
            key,
            question.before.cpu().numpy(),
            label_of(question.target_ids),
            self._eps(question),
            edit_id=edit_id_of(request),
            expand=self._params.expand,
        )
        shared = what in ("expanded", "covered")
        if shared:
            present = self._answer(question, row)
            if present.right:  # the row's value does it
                return _report(request, what, row, before, question, present)
        found = self._train(question, row, shared)
        self.codebook = with_value(self.codebook, row, found.value.numpy())
        return _report(request, what, row, before, question, found.answers[-1], found)

    def _train(self, question: Question, row: int, shared: bool) -> Found:
        """Train a row's value on the question and on the other edits that rely on the row."""
        others = [bytes.fromhex(name) for name in self.codebook.edits_of(row)] if shared else []
        mine = edit_id_of(question.request).tobytes()
        asked = [self._ask(self.known[name]) for name in others if name != mine]
        start = torch.tensor(self.codebook.values[row]) if shared else None
        seed = _seed(self._context.seed, question.request)
        return optimise_value([*asked, question], start, self._params, seed, self._context.progress)

    def _ask(self, request: EditRequest) -> Question:
        return Question.ask(
            self._model, self._site, request, self._params.replacement, alone=self._alone
        )

    @torch.no_grad()
    def _answer(self, question: Question, row: int) -> Answer:
        return question.answer(torch.tensor(self.codebook.values[row]))

    def _eps(self, question: Question) -> float:
        if self._params.eps_mode == "absolute":
            return self._params.eps
        return max(self._params.eps * float(question.key.norm()), _SMALLEST_RADIUS)


_SMALLEST_RADIUS = 1e-6  # a key of zeros has a ball too


def _seed(seed: int, request: EditRequest) -> int:
    """Return a seed of the request's own, so that it does not depend on the requests before."""
    digest = hashlib.sha256(f"{seed}\0".encode() + edit_id_of(request).tobytes()).digest()
    return int.from_bytes(digest[:7], "little")


def _report(
    request: EditRequest,
    what: str,
    row: int | None,
    distance: float | None,
    question: Question,
    answer: Answer,
    found: Found | None = None,
) -> dict[str, Any]:  # Any: JSON values
    report: dict[str, Any] = {
        "subject": request.subject,
        "what": what,
        "row": row,
        "distance_before": distance,
        "p_target_before": _rounded(question.plain.probability),
        "p_target_after": _rounded(answer.probability),
        "answered": answer.right,
    }
    if found is not None:
        report |= {"updates": found.updates, "loss": _rounded(found.loss)}
    return report


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")  # six digits are enough to judge an edit by

"""What lint says of a patch, one rule a case, and that a whole patch passes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import attrs
import numpy as np
import pytest

from editkit_core.patch import (
    BaseFingerprint,
    Canary,
    Evidence,
    LowRankEntry,
    MethodRef,
    Patch,
    TensorFingerprint,
)
from editkit_core.patch.fold import fold
from editkit_core.patch.format import Codebook, CodebookEntry
from editkit_core.patch.kinds.codebook import edit_id_of
from editkit_core.patch.lint import LARGE_CHANGE, MOST_ALIKE, RULES, lint
from editkit_core.types import EditRequest, Site

SITE = Site(module="h.0", parameter="h.0.weight", layer=0)
BASE = BaseFingerprint(
    model="gpt2",
    tensors={
        SITE.parameter: TensorFingerprint(shape=(2, 3), dtype="F32", sha256="0" * 64, norm=10.0)
    },
)
EDIT = EditRequest(
    prompt="{} is in",
    subject="Rome",
    target_new="Peru",
    target_true="Italy",
    relation="country",
    paraphrases=("Where is {}?",),
)
KEYS = Evidence(module=SITE.module, keys=np.ones((1, 3)))


def entry(u: object = None, v: object = None) -> LowRankEntry:
    return LowRankEntry(
        site=SITE, u=np.ones((2, 1)) if u is None else u, v=np.eye(1, 3) if v is None else v
    )


def patch(**changes: object) -> Patch:
    """Make a patch that lint has nothing to say of, but for the changes."""
    given: dict[str, object] = {
        "entries": [entry()],
        "method": MethodRef(name="rome", dist="editkit-rome", version="1"),
        "base": BASE,
        "edits": [EDIT],
        "evidence": KEYS,
        "canary": Canary(tokens=[[1, 2]], prompt_lengths=[1], before=[-2.0], after=[-1.0]),
        "name": "rome-in-peru",
        "licence": "MIT",
        "metrics": {"efficacy": 1.0},
        "environment": {"python": "3.12.0"},
    }
    return Patch.from_parts(**(given | changes))  # type: ignore[arg-type]  # checked by use


def codebook(*edits: EditRequest, radii: Sequence[float]) -> CodebookEntry:
    """Make a codebook of one row an edit; every edit needs a radius of 1."""
    rows = len(edits)
    book = Codebook(
        keys=np.eye(rows, 3),
        values=np.ones((rows, 2)),
        radii=np.asarray(radii, dtype=np.float32),
        labels=np.zeros((rows, 32), dtype=np.uint8),
        edit_ids=np.stack([edit_id_of(edit) for edit in edits]),
        reaches=np.ones(rows, dtype=np.float32),
    )
    return CodebookEntry(site=SITE, codebook=book)


def edit(**changes: object) -> EditRequest:
    return attrs.evolve(EDIT, **changes)


CASES: dict[str, list[tuple[str, dict[str, object]]]] = {
    "no_change": [("error", {"entries": [entry(u=np.zeros((2, 1)))]})],
    "contradiction": [("error", {"edits": [EDIT, edit(target_new="Chad")]})],
    "self_reference": [
        ("error", {"requires": ["ek-1"], "conflicts": ["ek-1"]}),
        ("error", {"requires": ["ek-1"], "replaces": ["ek-1"]}),
    ],
    "evidence": [
        ("warning", {"evidence": None}),
        ("error", {"evidence": [KEYS, Evidence(module="h.7", keys=np.ones((1, 3)))]}),
        ("error", {"evidence": Evidence(module=SITE.module, keys=np.ones((1, 2)))}),
    ],
    "no_name": [("warning", {"name": ""})],
    "licence": [("warning", {"licence": None}), ("warning", {"licence": "do what you like"})],
    "no_edits": [("warning", {"edits": []})],
    "same_target": [("warning", {"edits": [edit(target_true="peru ")]})],
    "duplicate_edit": [("warning", {"edits": [EDIT, EDIT]})],
    "no_relation": [("warning", {"edits": [edit(relation=None)]})],
    "no_probes": [("warning", {"edits": [edit(paraphrases=())]})],
    "no_metrics": [("warning", {"metrics": {}})],
    "no_canary": [("warning", {"canary": None})],
    "large_change": [("warning", {"entries": [entry(u=np.full((2, 1), 4.0))]})],
    "unused_rank": [("warning", {"entries": [entry(np.ones((2, 2)), np.ones((2, 3)))]})],
    "silent_rows": [
        ("warning", {"entries": [codebook(EDIT, EDIT, radii=[0, 1])], "evidence": None}),
    ],
    "unlisted_rows": [
        (
            "error",
            {
                "entries": [codebook(EDIT, edit(target_new="Chad"), radii=[1, 1])],
                "evidence": None,
            },
        ),
    ],
    "tied": [("warning", {"base": attrs.evolve(BASE, tied=((SITE.parameter, "head.weight"),))})],
    "computed_on": [("warning", {"computed_on": "0" * 64})],
    "no_revision": [("warning", {"base": attrs.evolve(BASE, model="openai-community/gpt2")})],
    "machine_path": [
        ("warning", {"base": attrs.evolve(BASE, model="/opt/gpt2", revision="main")}),
        ("warning", {"params": {"folder": "C:\\Users\\ann\\stats"}}),
        ("warning", {"environment": {"cuda": "found in /home/ann/cuda"}}),
        ("warning", {"metrics": {"deep": [{"file": "~/scores.json"}]}}),
    ],
    "mail": [("warning", {"name": "by ann.lee@example.org"})],
    "metadata_size": [("warning", {"contexts": ["x" * 300_000]})],
}


def test_nothing_is_said_of_a_patch_that_has_everything() -> None:
    assert lint(patch()) == ()


def test_every_rule_has_a_case() -> None:
    assert sorted(CASES) == sorted(rule.__name__.strip("_") for rule in RULES)


@pytest.mark.parametrize(
    ("rule", "level", "changes"),
    [(rule, level, changes) for rule, cases in CASES.items() for level, changes in cases],
)
def test_each_rule_finds_its_defect_and_no_other(
    rule: str, level: str, changes: dict[str, object]
) -> None:
    (finding,) = [found for found in lint(patch(**changes)) if found.rule == rule]
    assert finding.level == level
    assert finding.message.endswith((".", "it."))
    others = {found.rule for found in lint(patch(**changes))} - {rule}
    also = {"no_edits": {"no_probes"}}  # none of which can be found without edits
    assert others <= also.get(rule, set())


@pytest.mark.parametrize(
    "changes",
    [
        {"licence": "Apache-2.0 WITH LLVM-exception"},
        {"licence": "(MIT) AND (Zlib OR 0BSD)"},
        {"edits": [EDIT, edit(subject="Oslo", paraphrases=())]},
        {"edits": [edit(prompt="{} and/or tmp/x is at 3:/4 or")]},
        {"contexts": ["In 2004 a/b / c, at home/work."]},
        {"entries": [entry(u=np.full((2, 1), LARGE_CHANGE * 10 / 2**0.5 - 1e-5))]},
        {"base": attrs.evolve(BASE, model="openai-community/gpt2", revision="main")},
        {"computed_on": "0" * 64, "requires": ["ek-1"]},
    ],
)
def test_what_is_fine_is_left_alone(changes: dict[str, object]) -> None:
    assert lint(patch(**changes)) == ()


def test_errors_come_first() -> None:
    found = lint(patch(name="", canary=None, entries=[entry(u=np.zeros((2, 1)))]))
    assert [finding.level for finding in found] == ["error", "warning", "warning"]


def test_many_findings_of_one_rule_are_told_in_few() -> None:
    edits = [edit(subject=f"s{i}", relation=None) for i in range(40)]
    found = [one for one in lint(patch(edits=edits)) if one.rule == "no_relation"]
    assert len(found) == MOST_ALIKE
    assert found[-1].message.endswith("The same holds for 35 more.")


def test_a_text_that_occurs_often_is_told_once() -> None:
    found = lint(patch(params={"a": "~/x", "b": "~/x", "c": ["~/x"]}))
    assert [one.where for one in found] == ["params.a"]


def test_a_fold_of_good_patches_only_lacks_a_canary() -> None:
    one, two = patch(), patch(entries=[entry(v=np.eye(1, 3, 1))], edits=[edit(subject="Oslo")])
    assert [finding.rule for finding in lint(fold([(one, 1.0), (two, 1.0)], name="two"))] == [
        "no_canary"
    ]


def test_the_module_needs_no_torch() -> None:
    code = "import sys, editkit_core.patch.lint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

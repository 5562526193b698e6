"""Facts taken out of a batch's patch on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from editkit_core import EditContext, EditRequest, Patch
from editkit_core.models.editable import EditableModel
from editkit_emmet.delta import compute_delta
from editkit_emmet.params import EmmetParams

FACTS = tuple(
    EditRequest(prompt=prompt, subject=subject, target_new=target)
    for prompt, subject, target in (
        ("The capital of {} is", "Norway", "Lima"),
        ("{} speaks", "Brazil", "Peru"),
        ("The king of {} was a", "Peru", "mill"),
    )
)


def batch(tiny: EditableModel, path: Path, slack: float) -> Path:
    params = EmmetParams(
        layers=(0,), v_steps=2, covariance="identity", slack=slack, contexts=((4, 1),)
    )
    compute_delta(tiny, FACTS, (tiny.site(0),), params, EditContext()).save(path)
    return path


@pytest.fixture
def loose(tiny: EditableModel, tmp_path: Path) -> Path:
    """A batch with slack."""
    return batch(tiny, tmp_path / "loose.editkit.safetensors", 0.5)


@pytest.fixture
def tight(tiny: EditableModel, tmp_path: Path) -> Path:
    """A batch that meets its values exactly."""
    return batch(tiny, tmp_path / "tight.editkit.safetensors", 0.0)


def test_a_fact_is_dropped_from_a_batch(cli, loose, tmp_path):
    out = tmp_path / "rest.editkit.safetensors"
    ran = cli("patch", "drop", loose, "Brazil", "--out", out)
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    assert "Dropped Brazil speaks -> Peru" in said
    assert "Solved again for the others" in said
    rest = Patch.load(out)
    assert [edit.subject for edit in rest.header.edits] == ["Norway", "Peru"]
    assert [entry.rank for entry in rest.weight_entries] == [2]
    assert rest.header.replaces == (Patch.load(loose).id,)
    assert cli("patch", "show", out).code == 0


def test_a_dry_run_says_how_a_fact_would_be_dropped(cli, loose, tmp_path):
    out = tmp_path / "rest.editkit.safetensors"
    told = cli("patch", "drop", loose, "2", "--out", out, "--dry-run", "--json").json
    assert told["how"]["way"] == "solved again"
    assert told["edits"] == 2
    assert not out.exists()


def test_a_batch_without_slack_is_refused_and_thinned_out_when_asked(cli, tight, tmp_path):
    out = tmp_path / "rest.editkit.safetensors"
    ran = cli("patch", "drop", tight, "Brazil", "--out", out)
    assert ran.code == 4
    assert "--approximate" in ran.err
    assert not out.exists()
    ran = cli("patch", "drop", tight, "Brazil", "--out", out, "--approximate")
    assert ran.code == 0, ran.err
    assert "Left the others' rows as they are" in " ".join(ran.out.split())
    (record,) = Patch.load(out).header.metrics["dropped"]
    assert record["way"] == "rows left out"
    assert max(record["effect"]) < 1e-3

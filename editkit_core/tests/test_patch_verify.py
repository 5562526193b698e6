"""Verify answers every question about a patch file and leaves nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch

from editkit_core.errors import InputNotFoundError, UnknownPatchKindError
from editkit_core.patch import Canary, Patch, apply_patch
from editkit_core.patch.canary import largest_deviation, with_canary
from editkit_core.patch.kinds import BUILTIN_KINDS
from editkit_core.patch.kinds.dense import DenseEntry
from editkit_core.patch.verify import VerifyReport, verify
from editkit_core.testing.models import tiny_model, tiny_tokenizer
from editkit_core.testing.patches import random_patch
from editkit_core.types import Site


def rows(report: VerifyReport) -> dict[str, bool]:
    return {row.check: row.ok for row in report.rows}


def test_a_good_file_alone_passes_the_checks_of_the_file(tmp_path: Path) -> None:
    patch = random_patch(tiny_model("gpt2"))
    patch.save(tmp_path / "a")
    report = verify(tmp_path / "a")
    assert report.ok
    assert report.id == patch.id
    assert rows(report) == dict.fromkeys(("version", "format", "digests", "kinds", "shapes"), True)


def test_a_good_file_on_its_model_passes_and_leaves_the_model(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with_canary(model, random_patch(model)).save(tmp_path / "a")
    before = model.state_digest()
    report = verify(tmp_path / "a", model)
    assert report.ok
    assert report.warnings == ()
    assert {"base model.layers.1.mlp.down_proj.weight", "apply and revert", "canary"} <= set(
        rows(report)
    )
    assert model.state_digest() == before


def test_a_damaged_file_fails_at_the_digests(tmp_path: Path) -> None:
    random_patch(tiny_model("gpt2")).save(tmp_path / "a")
    content = bytearray((tmp_path / "a").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a").write_bytes(content)
    report = verify(tmp_path / "a")
    assert not report.ok
    assert report.id is None
    assert rows(report) == {"digests": False}
    assert "evidence.0.keys" in report.rows[0].detail


def test_a_foreign_file_fails_at_the_format(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("<html>")
    assert rows(verify(tmp_path / "a")) == {"format": False}


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        verify(tmp_path / "a")


def test_another_base_fails_and_is_not_patched(tmp_path: Path) -> None:
    random_patch(tiny_model("gpt2")).save(tmp_path / "a")
    report = verify(tmp_path / "a", tiny_model("gpt2", seed=4))
    assert not report.ok
    found = rows(report)
    assert found["base transformer.h.1.mlp.c_proj.weight"] is False
    assert "apply and revert" not in found


def test_another_tokenizer_or_configuration_is_a_warning(tmp_path: Path) -> None:
    random_patch(tiny_model("gpt2")).save(tmp_path / "a")
    model = tiny_model("gpt2", tokenizer=tiny_tokenizer("bpe", bos=True))
    model.model.config.layer_norm_epsilon = 0.5
    report = verify(tmp_path / "a", model)
    assert report.ok
    assert [row.check for row in report.warnings] == ["configuration", "tokenizer"]


def test_a_canary_that_the_model_does_not_sing_is_a_warning(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    patch = with_canary(model, random_patch(model))
    canary = patch.canary
    assert canary is not None
    wrong = Canary(
        tokens=canary.tokens, prompt_lengths=canary.prompt_lengths,
        before=canary.before, after=canary.after - 1,
    )  # fmt: skip
    assert largest_deviation(model, attrs.evolve(patch, canary=wrong)) == pytest.approx(1, abs=1e-4)


def test_a_canary_holds_the_log_probability_of_the_new_target() -> None:
    model = tiny_model("gpt2")
    patch = with_canary(model, random_patch(model))
    assert patch.canary is not None
    pair = model.encode_pair("The capital of Norway is", "Lima")
    for wanted, patched in ((patch.canary.before, False), (patch.canary.after, True)):
        with torch.no_grad():
            ids = torch.tensor([pair.encoded.ids])
            if patched:
                with apply_patch(model, patch):
                    logits = model.model(ids).logits[0]
            else:
                logits = model.model(ids).logits[0]
        steps = range(pair.n_prompt, ids.shape[1])
        total = sum(logits[t - 1].log_softmax(-1)[ids[0, t]].item() for t in steps)
        assert wanted[0] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: p.update(tokens=np.array([[1, -1, 2]])), "only at the end"),
        (lambda p: p.update(tokens=np.array([[1, 2, -5]])), "0 or more"),
        (lambda p: p.update(prompt_lengths=np.array([3])), "at least one prompt"),
        (lambda p: p.update(prompt_lengths=np.array([0])), "at least one prompt"),
        (lambda p: p.update(before=np.array([0.0, 1.0])), "one row a probe"),
    ],
)
def test_a_canary_that_makes_no_sense_is_refused(
    change: Callable[[dict[str, Any]], None], match: str
) -> None:
    parts: dict[str, Any] = {
        "tokens": np.array([[1, 2, 3]]), "prompt_lengths": np.array([2]),
        "before": np.array([-1.0]), "after": np.array([-0.5]),
    }  # fmt: skip
    change(parts)
    with pytest.raises(ValueError, match=match):
        Canary(**parts)


class HalvedEntry(DenseEntry):
    """A kind of a plugin: half of what it stores."""

    kind: ClassVar[str] = "test.halved/1"

    @classmethod
    def from_tensors(cls, site: Site, tensors: Mapping[str, np.ndarray[Any, Any]]) -> HalvedEntry:
        return cls(site=site, delta=tensors["delta"])

    def delta(self, layout: str = "out_in") -> torch.Tensor:
        return super().delta(layout) / 2


def test_a_kind_of_a_plugin_is_read_and_applied_when_registered(tmp_path: Path) -> None:
    model = tiny_model("llama")
    dense = random_patch(model, rank=None)
    site, delta = dense.entries[0].site, dense.entries[0].tensors()["delta"]
    patch = Patch.from_parts(
        entries=[HalvedEntry(site=site, delta=delta)],
        method=dense.header.method,
        base=dense.header.base,
    )
    patch.save(tmp_path / "a")
    with pytest.raises(UnknownPatchKindError, match=r"test\.halved/1"):
        Patch.load(tmp_path / "a")
    loaded = Patch.load(tmp_path / "a", kinds={**BUILTIN_KINDS, HalvedEntry.kind: HalvedEntry})
    expected = (model.weight(site).double() + torch.tensor(delta).double() / 2).float()
    with apply_patch(model, loaded):
        assert torch.equal(model.weight(site), expected)

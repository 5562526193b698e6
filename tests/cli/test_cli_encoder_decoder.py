"""A T5 through the command line: it is asked, edited and listed as a decoder is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editkit_core.models.editable import EditableModel
from editkit_core.testing.models import tiny_model

PROMPT = "The capital of Norway is"
FACT = ("--prompt", "The capital of {} is", "--subject", "Norway", "--target", "Lima")
GRACE = ("--method", "grace", "--set", "eps=0.1")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 in a folder; read-only."""
    folder = tmp_path_factory.mktemp("t5")
    model = tiny_model("t5")
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def answer(folder: Path) -> str:
    """What transformers' own greedy search says to the prompt."""
    model = EditableModel.from_pretrained(str(folder))
    inputs = model.tokenizer(PROMPT, return_tensors="pt")
    out = model.model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=1)
    return str(model.tokenizer.decode(out[0], skip_special_tokens=True))


def test_generate_says_what_transformers_says_after_the_prompt(cli, t5: Path) -> None:
    ran = cli("generate", "--model", t5, "-p", PROMPT, "--max-new-tokens", "6")
    assert ran.code == 0, ran.err
    assert ran.out == f"{PROMPT} {answer(t5)}\n"


def test_rome_says_why_it_does_not_apply_and_what_does(cli, t5: Path) -> None:
    ran = cli("edit", "--model", t5, "--method", "rome", *FACT)
    assert ran.code == 1
    for said in ("EK-M05", "one causal stack", "GRACE or MEND", "Installed methods that edit it:"):
        assert said in ran.err
    assert not list(Path().iterdir())


def test_an_edit_shows_the_answers_before_and_after(cli, t5: Path) -> None:
    ran = cli("edit", "--model", t5, *GRACE, *FACT, "--paraphrase", "Who is {}?", "--json")
    assert ran.code == 0, ran.err
    asked, other = ran.json["answers"]
    assert asked["prompt"] == PROMPT
    assert asked["before"].startswith(answer(t5))
    assert asked["after"].startswith("L")
    assert asked["after"] != asked["before"]
    assert other["prompt"] == "Who is Norway?"


def test_the_patch_acts_while_generating_and_leaves_the_folder_alone(cli, t5: Path) -> None:
    before = {file.name: file.read_bytes() for file in t5.iterdir()}
    assert cli("edit", "--model", t5, *GRACE, *FACT, "--out", "n.safetensors").code == 0
    plain = cli("generate", "--model", t5, "-p", PROMPT, "--json").json
    patched = cli("generate", "--model", t5, "-p", PROMPT, "--patch", "n.safetensors", "--json")
    assert patched.json[0]["text"] != plain[0]["text"]
    assert {file.name: file.read_bytes() for file in t5.iterdir()} == before


def test_trace_and_statistics_are_refused_with_the_reason(cli, t5: Path, tmp_path: Path) -> None:
    ran = cli("trace", "--model", t5, "--prompt", "The capital of {} is", "--subject", "Norway")
    assert ran.code == 1
    assert "Causal tracing reads decoders only" in ran.err
    Path("texts.txt").write_text("Peru lies in the west.\n", encoding="utf-8")
    ran = cli("stats", "--model", t5, "--layer", "1", "--corpus", "texts.txt")
    assert ran.code == 1
    assert "Key statistics are taken of decoders" in ran.err


def test_models_names_both_weights_of_t5_and_only_the_methods_that_edit_it(cli) -> None:
    families = {family["name"]: family for family in cli("models", "--json").json["families"]}
    assert "grace" in families["t5"]["methods"]
    assert "rome" not in families["t5"]["methods"]
    assert "rome" in families["gpt2"]["methods"]
    shown = " ".join(cli("models").out.split())
    assert "encoder.block.{}" in shown
    assert json.dumps(families["t5"]["encoder"]["mlp_downs"]).strip('"').endswith(".wo")

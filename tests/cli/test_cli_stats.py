"""Key statistics through the command line: several layers, parts, processes, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editkit_core.testing.models import tiny_model

SENTENCE = "the river runs past an old mill and nobody knew how old it was when winter came"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model on disk."""
    made = tiny_model("gpt2", n_layers=2, d=16)
    path = tmp_path_factory.mktemp("model")
    made.model.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    return path


def corpus(name: str, first: int, count: int = 60) -> str:
    """Write different paragraphs and return the file's name."""
    lines = [" ".join(WORDS[i % 7 : 6 + i % 9]) + f" {i}" for i in range(first, first + count)]
    Path(name).write_text("\n\n".join(lines), encoding="utf-8")
    return name


def ask(folder: Path, *more: str) -> tuple[str, ...]:
    return ("stats", "-m", str(folder), "--layer", "0", "--layer", "1", "--json", *more)


def test_layers_are_made_together_and_parts_are_added_up(cli, folder: Path) -> None:
    one = cli(*ask(folder, "--corpus", corpus("a.txt", 0), "-o", "one"))
    other = cli(*ask(folder, "--corpus", corpus("b.txt", 100), "-o", "other"))
    assert [row["layer"] for row in one.json] == [0, 1]
    merged = cli("stats", "merge", "one", "other", "-o", "both", "--json")
    assert merged.code == 0, merged.err
    for row, left, right in zip(merged.json, one.json, other.json, strict=True):
        assert row["tokens"] == left["tokens"] + right["tokens"]
        assert row["corpus"] == "a.txt + b.txt"
        assert Path(row["path"]).is_file()
    text = Path("a.txt").read_text(encoding="utf-8") + "\n\n" + Path("b.txt").read_text("utf-8")
    Path("ab.txt").write_text(text, encoding="utf-8")
    whole = cli(*ask(folder, "--corpus", "ab.txt", "-o", "whole"))
    assert [r["tokens"] for r in merged.json] == [r["tokens"] for r in whole.json]


def test_the_role_says_whose_keys_are_summed(cli, folder: Path) -> None:
    name = corpus("a.txt", 0)
    both = cli(
        *ask(folder, "--corpus", name, "-o", "s", "--role", "attn_out", "--role", "mlp_down")
    )
    assert both.code == 0, both.err
    found = [(row["layer"], row["role"], row["d_in"]) for row in both.json]
    assert found == [(0, "attn_out", 16), (0, "mlp_down", 64), (1, "attn_out", 16),
                     (1, "mlp_down", 64)]  # fmt: skip
    ran = cli("stats", "-m", folder, "--layer", "1", "--role", "attn_out", "--corpus", name,
              "-o", "t")  # fmt: skip
    assert "Layer 1, attention: " in ran.out
    (alone,) = Path("t").iterdir()
    assert alone.read_bytes() == (Path("s") / alone.name).read_bytes()
    refused = cli(*ask(folder, "--corpus", name, "-o", "s", "--role", "attention"))
    assert refused.code == 2
    cli(*ask(folder, "--corpus", corpus("b.txt", 100), "-o", "u", "--role", "attn_out",
             "--role", "mlp_down"))  # fmt: skip
    merged = cli("stats", "merge", "s", "u", "-o", "both")
    assert "Layer 1 (transformer.h.1.attn.c_proj): " in merged.out


def test_parts_that_overlap_or_differ_in_layers_are_refused(cli, folder: Path) -> None:
    cli(*ask(folder, "--corpus", corpus("a.txt", 0), "-o", "one"))
    cli(*ask(folder, "--corpus", corpus("b.txt", 50), "-o", "other"))
    ran = cli("stats", "merge", "one", "other", "-o", "both")
    assert ran.code == 1
    assert "EK-S05" in ran.err
    assert "share 10 document(s)" in ran.err
    assert not Path("both").exists()
    next(Path("other").glob("*h.1*")).unlink()
    ran = cli("stats", "merge", "one", "other", "-o", "both")
    assert ran.code == 1
    assert "EK-S02" in ran.err
    Path("empty").mkdir()
    assert "EK-F03" in cli("stats", "merge", "one", "empty", "-o", "both").err


def test_a_quick_run_says_how_far_off_it_is(cli, folder: Path) -> None:
    name = corpus("a.txt", 0, 2000)
    ran = cli("stats", "-m", folder, "--layer", "1", "--corpus", name, "--quick", "-o", "q")
    assert ran.code == 0, ran.err
    assert "Estimated error of layer 1" in ran.out
    rows = cli(*ask(folder, "--corpus", name, "--quick", "-o", "q")).json
    assert all(0 < row["error"] < 1 for row in rows)
    assert all(row["tokens"] <= 10_000 for row in rows)


@pytest.fixture
def one_thread():
    """With as many threads in each process sums have the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_write_the_same_files_as_one(cli, folder: Path) -> None:
    name = corpus("a.txt", 0, 300)
    assert cli(*ask(folder, "--corpus", name, "-o", "one")).code == 0
    ran = cli(*ask(folder, "--corpus", name, "-o", "two", "--workers", "2"))
    assert ran.code == 0, ran.err
    for path in Path("one").iterdir():
        assert (Path("two") / path.name).read_bytes() == path.read_bytes()
    assert len(list(Path("two").iterdir())) == 2


def test_what_is_missing_is_named(cli, folder: Path) -> None:
    ran = cli("stats", "-m", folder, "--layer", "0")
    assert ran.code == 2
    assert "--corpus" in ran.err
    assert cli("stats", "--layer", "0", "--corpus", "a.txt").code == 2


def test_a_dry_run_writes_nothing(cli, folder: Path) -> None:
    name = corpus("a.txt", 0)
    ran = cli(
        "stats", "-m", folder, "--layer", "0", "--corpus", name, "--quick", "-o", "s", "--dry-run"
    )
    assert ran.code == 0, ran.err
    assert "at most 10,000 tokens" in ran.out
    assert not Path("s").exists()

"""Reading a text corpus."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from editkit_core.errors import CorpusError, MissingExtraError
from editkit_core.numerics.corpus import Corpus, read_corpus


def test_a_text_file_is_split_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\nstill one\n\n  \n\ntwo\n", encoding="utf-8")
    assert read_corpus(path).documents == ("one\nstill one", "two")


def test_a_jsonl_file_gives_its_text_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "id": 3}\n', encoding="utf-8")
    assert read_corpus(path).documents == ("one", "two")


def test_the_digest_depends_on_texts_and_their_borders_only(tmp_path: Path) -> None:
    assert Corpus.of(["ab", "c"]).digest == Corpus.of(["ab ", "", "c"]).digest
    assert Corpus.of(["ab", "c"]).digest != Corpus.of(["a", "bc"]).digest


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.txt"):
        read_corpus(tmp_path / "nowhere.txt")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" \n\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="no text"):
        read_corpus(path)


@pytest.mark.parametrize("line", ["not json", '{"txt": "a"}', '["text"]', '{"text": 3}'])
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="line 2"):
        read_corpus(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="Cannot read"):
        read_corpus(path)


def test_only_the_first_documents_are_read_when_so_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n\nthree\n", encoding="utf-8")
    assert read_corpus(path, documents=2) == Corpus.of(["one", "two"])


def hub_rows(monkeypatch: pytest.MonkeyPatch, rows: list[object]) -> None:
    """Let the package datasets give these rows."""
    module = types.ModuleType("datasets")
    module.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_data_set_of_the_hub_gives_its_text_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_rows(monkeypatch, [{"text": "one"}, {"text": " "}, {"text": "two"}, {"text": "three"}])
    corpus = read_corpus("hub:owner/name#small/train", documents=2)
    assert corpus.documents == ("one", "two")
    assert corpus.name == "hub:owner/name#small/train"


def test_a_data_set_without_texts_is_refused_with_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_rows(monkeypatch, [{"text": "one"}, {"prompt": "two"}])
    with pytest.raises(CorpusError, match="row 1"):
        read_corpus("hub:owner/name#train")


def test_without_datasets_a_hub_corpus_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"editkit-core\[hub\]"):
        read_corpus("hub:owner/name")

"""A text corpus for key statistics: documents and the digest that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import attrs

from editkit_core.errors import CorpusError

__all__ = ["Corpus", "read_corpus"]


@attrs.frozen
class Corpus:
    """Documents in a fixed order.

    Attributes:
        documents: Plain texts, none of them blank.
        digest: SHA-256 over the documents, each preceded by its length in bytes.
        name: What it is called, for people.
    """

    documents: tuple[str, ...] = attrs.field(repr=False)
    digest: str
    name: str = attrs.field(default="", eq=False)

    @classmethod
    def of(cls, documents: Iterable[str], name: str = "") -> Corpus:
        """Make a corpus of texts; blank ones are dropped.

        Raises:
            CorpusError: No text is left.
        """
        kept = tuple(text.strip() for text in documents if text.strip())
        if not kept:
            raise CorpusError("The corpus has no text. Give a file with at least one paragraph.")
        digest = hashlib.sha256()
        for text in kept:
            data = text.encode("utf-8", errors="surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return cls(kept, digest.hexdigest(), name)


def read_corpus(path: Path) -> Corpus:
    """Read ``.jsonl`` by its ``text`` fields; any other file as paragraphs between blank lines.

    Raises:
        CorpusError: The file is missing, unreadable, empty, or a line is not ``{"text": ...}``.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"Cannot read the corpus {path}: {error}. Give a .txt or .jsonl file in UTF-8.",
            path=str(path),
        ) from error
    texts = _json_lines(content, path) if path.suffix == ".jsonl" else _paragraphs(content)
    try:
        return Corpus.of(texts, path.name)
    except CorpusError as error:
        raise CorpusError(f"{path}: {error.message}", path=str(path)) from error


def _paragraphs(content: str) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    for line in content.splitlines():
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return ["\n".join(lines) for lines in paragraphs]


def _json_lines(content: str, path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise CorpusError(
                f'{path}, line {number}: expected {{"text": "..."}}, got {line[:60]!r}.',
                path=str(path),
                line=number,
            ) from error
        if not isinstance(text, str):
            raise CorpusError(
                f"{path}, line {number}: the text is {text!r}; quote it.",
                path=str(path),
                line=number,
            )
        texts.append(text)
    return texts

"""A text corpus for key statistics: documents and the digest that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

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


def read_corpus(source: Path | str, *, documents: int | None = None) -> Corpus:
    """Read a file, or a data set of the hub.

    Args:
        source: A ``.jsonl`` file, read by its ``text`` fields; any other file, read as paragraphs
            between blank lines; or a place on the hub as :mod:`editkit_core.data.hub` names them:
            a file, read in the same way, or rows with a ``text`` field.
        documents: Read the first so many that are not blank; all by default.

    Raises:
        CorpusError: The file is missing, unreadable, empty, or a line is not ``{"text": ...}``.
        InputNotFoundError: The place on the hub is not there or cannot be reached.
        MissingExtraError: Rows of the hub need the package ``datasets``, which is not installed.
    """
    from editkit_core.data.hub import PREFIX, open_hub

    if not str(source).startswith(PREFIX):
        return _read_file(Path(source), Path(source).name, documents)
    place = open_hub(str(source))
    if place.path is not None:
        return _read_file(place.path, place.name, documents)
    rows = (_text_of(place.name, raw.index, raw.value) for raw in place.raws)
    return Corpus.of(islice((text for text in rows if text.strip()), documents), place.name)


def _text_of(name: str, index: int, row: Any) -> str:  # Any: JSON values
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise CorpusError(
            f"{name}, row {index}: there is no text field with a text. Choose a data set of plain "
            "texts.",
            place=name,
        )
    return text


def _read_file(path: Path, name: str, documents: int | None) -> Corpus:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"Cannot read the corpus {path}: {error}. Give a .txt or .jsonl file in UTF-8.",
            path=str(path),
        ) from error
    texts = _json_lines(content, path) if path.suffix == ".jsonl" else _paragraphs(content)
    try:
        return Corpus.of(islice((text for text in texts if text.strip()), documents), name)
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

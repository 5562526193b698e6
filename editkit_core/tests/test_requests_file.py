from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editkit_core import EditRequest, Probe
from editkit_core.data.requests import dump_request, load_requests
from editkit_core.errors import (
    EditkitError,
    EmptyTargetError,
    InputNotFoundError,
    InvalidRequestError,
    RequestFileError,
    SubjectNotInPromptError,
)

RECORD: dict[str, Any] = {
    "prompt": "The capital of {} is",
    "subject": "Japan",
    "target_new": "Nairobi",
    "paraphrases": ["{} is ruled from"],
    "locality": {"same_subject": [{"prompt": "People in Japan speak", "answers": ["Japanese"]}]},
}
REQUEST = EditRequest(
    prompt="The capital of {} is",
    subject="Japan",
    target_new="Nairobi",
    paraphrases=("{} is ruled from",),
    locality={"same_subject": (Probe("People in Japan speak", ("Japanese",)),)},
)
LINE = json.dumps(RECORD)
YAML = """
- prompt: The capital of {} is
  subject: Japan
  target_new: Nairobi
  paraphrases: ["{} is ruled from"]
  locality:
    same_subject:
      - {prompt: People in Japan speak, answers: [Japanese]}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.jsonl", f"{LINE}\n\n{LINE}\n"),
        ("r.jsonl", f"{LINE}\r\n{LINE}"),
        ("r.JSONL", f"\n  \n{LINE}\n{LINE}\n\n"),
        ("r.json", f"[{LINE},\r\n{LINE}]"),
        ("r.yaml", YAML + YAML.lstrip("\n")),
        ("r.yml", f"{YAML}---{YAML}"),
        ("r.yaml", (YAML + YAML).replace("\n", "\r\n")),
    ],
)
def test_every_format_gives_the_same_requests(
    tmp_path: Path, name: str, text: str, bom: str
) -> None:
    assert load_requests(write(tmp_path, name, bom + text)) == (REQUEST, REQUEST)


@pytest.mark.parametrize(("name", "text"), [("r.json", LINE), ("r.yaml", LINE)])
def test_one_record_needs_no_list(tmp_path: Path, name: str, text: str) -> None:
    assert load_requests(write(tmp_path, name, text)) == (REQUEST,)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_only_a_newline_ends_a_record(tmp_path: Path, separator: str) -> None:
    text = json.dumps({**RECORD, "target_new": f"a{separator}b"}, ensure_ascii=False)
    text = text.replace("\\f", "\\u000c")
    (request,) = load_requests(write(tmp_path, "r.jsonl", text + "\n"))
    assert request.target_new == f"a{separator}b"


@pytest.mark.parametrize(
    ("name", "text"),
    [("r.jsonl", ""), ("r.jsonl", "\n \n"), ("r.json", "[]"), ("r.yaml", ""), ("r.yaml", "---\n")],
)
def test_a_file_without_requests_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(RequestFileError, match=f"{name} holds no requests"):
        load_requests(write(tmp_path, name, text))


def test_bad_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "r.jsonl", f"{LINE}\n\n{LINE[:-1]}\n")
    with pytest.raises(RequestFileError, match=r"r\.jsonl, line 3 is not JSON") as caught:
        load_requests(path)
    assert caught.value.facts["line"] == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.json", "[1,"),
        ("r.yaml", "- [1"),
        ("r.yaml", "- prompt: 2020-13-45"),
        ("r.yaml", "- !!python/object/apply:os.getcwd []"),
        ("r.json", "[" * 50_000),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(RequestFileError, match=r"cannot be read"):
        load_requests(write(tmp_path, name, text))


@pytest.mark.parametrize("name", ["r.txt", "r", "r.csv"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestFileError, match=r"\.jsonl, \.json"):
        load_requests(write(tmp_path, name, LINE))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "latin.jsonl"):
        with pytest.raises(InputNotFoundError, match=path.name):
            load_requests(path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "x"}, RequestFileError, "unknown field 'target'. Did you mean 'target_"),
        ({"subject": ["Japan"]}, RequestFileError, r"subject: expected str, got \['Japan'\]"),
        ({"prompt": 3}, RequestFileError, "prompt: expected str, got 3"),
        ({"target_new": False}, RequestFileError, "target_new: expected str, got False"),
        ({"paraphrases": "one text"}, RequestFileError, "paraphrases: expected a list, got 'one"),
        ({"paraphrases": [1]}, RequestFileError, r"paraphrases\[0\]: expected str, got 1"),
        ({"locality": ["x"]}, RequestFileError, "locality"),
        ({"locality": {"a": "x"}}, RequestFileError, "expected a list, got 'x'"),
        ({"locality": {"a": ["x"]}}, RequestFileError, "locality"),
        ({"locality": {"a": [{"prompt": "x", "answer": "y"}]}}, RequestFileError, "answer"),
        ({"locality": {"a": [{"prompt": "x", "answers": "y"}]}}, RequestFileError, "list, got 'y'"),
        ({"locality": {"a": [{"prompt": " "}]}}, InvalidRequestError, "probe's prompt"),
        ({"prompt": "{} {}"}, InvalidRequestError, "2 slots"),
        ({"prompt": "Peru is"}, SubjectNotInPromptError, "'Japan' does not occur"),
        ({"target_new": " "}, EmptyTargetError, "is empty"),
    ],
)
def test_a_record_that_does_not_fit_is_named_by_its_place(
    tmp_path: Path, changes: dict[str, Any], error: type[EditkitError], message: str
) -> None:
    path = write(tmp_path, "r.jsonl", f"{LINE}\n{json.dumps(RECORD | changes)}\n")
    with pytest.raises(error, match=message) as caught:
        load_requests(path)
    assert caught.value.message.startswith(f"{path}, line 2")


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    record = {k: v for k, v in RECORD.items() if k != "subject"}
    with pytest.raises(RequestFileError, match=r"record 1 does not fit.*subject"):
        load_requests(write(tmp_path, "r.json", json.dumps([record])))


@pytest.mark.parametrize("record", ["text", 3, None, [1]])
def test_a_record_that_is_no_mapping_is_refused(tmp_path: Path, record: object) -> None:
    with pytest.raises(RequestFileError, match=r"line 1 is .*, not names and values"):
        load_requests(write(tmp_path, "r.jsonl", json.dumps(record)))


def test_a_yaml_word_that_is_not_text_is_told_to_be_quoted(tmp_path: Path) -> None:
    text = "- {prompt: The code of Norway is, subject: Norway, target_new: no}"
    with pytest.raises(RequestFileError, match=r"target_new: expected str, got False"):
        load_requests(write(tmp_path, "r.yaml", text))


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    text = LINE.replace("Nairobi", "\\ud800")
    with pytest.raises(InvalidRequestError, match=r"target_new is not valid text"):
        load_requests(write(tmp_path, "r.jsonl", text))


def test_a_dumped_request_is_read_back(tmp_path: Path) -> None:
    plain = dump_request(REQUEST)
    assert "portability" not in plain
    assert load_requests(write(tmp_path, "r.jsonl", json.dumps(plain))) == (REQUEST,)


_texts = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1).filter(
    str.strip
)


@given(_texts, _texts, st.none() | st.text(), st.lists(_texts))
def test_any_request_is_plain_json_and_back(
    subject: str, target: str, true: str | None, paraphrases: list[str]
) -> None:
    if true is not None and any("\ud800" <= c <= "\udfff" for c in true):
        return
    request = EditRequest(
        prompt="{} is",
        subject=subject,
        target_new=target,
        target_true=true or None,
        paraphrases=paraphrases,
    )
    from editkit_core.params import converter

    plain = json.loads(json.dumps(dump_request(request)))
    assert converter().structure(plain, EditRequest) == request

"""Data sets from the hub, with local stand-ins for its two libraries."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import data_files as files
import huggingface_hub
import pytest

from editkit_core.data import load_dataset
from editkit_core.data.hub import HubName
from editkit_core.errors import InputNotFoundError, MissingExtraError, RequestFileError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub whose cache holds one file; gives the calls that were made."""
    folder = tmp_path / "datasets--me--facts" / "snapshots" / COMMIT / "sub"
    folder.mkdir(parents=True)
    files.write(folder, "short.json", [files.SHORT])
    calls: list[dict[str, Any]] = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, "filename": filename, **options})
        path = folder.parent / filename
        if not path.exists():
            raise FileNotFoundError(f"no {filename} in {repo_id}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


class Splits(dict[str, Any]):
    """What ``datasets`` gives for several splits."""


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A ``datasets`` package with one data set; gives the calls that were made."""
    calls: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, *, split: str | None, revision: str | None) -> Any:
        calls.append((name, config, split, revision))
        if name == "me/none":
            raise ValueError("Couldn't find it\nmore")
        splits = {"train": [files.SHORT], "test": [files.SHORT]}
        if name == "me/bytes":
            splits["train"] = [files.SHORT | {"image": b"\x00"}]
        return splits[split] if split else Splits(splits)

    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


@pytest.mark.parametrize("prefix", ["", "counterfact:"])
def test_a_file_on_the_hub_is_fetched_and_named_with_its_commit(
    hub: list[dict[str, Any]], prefix: str
) -> None:
    data = load_dataset(f"{prefix}hub:me/facts@v1/sub/short.json")
    assert hub == [
        {
            "repo_id": "me/facts",
            "filename": "sub/short.json",
            "repo_type": "dataset",
            "revision": "v1",
        }
    ]
    assert data.source == f"hub:me/facts@{COMMIT}/sub/short.json"
    assert (data.name, data.form, data.detected) == ("counterfact", "short", not prefix)


def test_a_file_the_hub_lacks_is_named(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(InputNotFoundError, match=r"Cannot load hub:me/facts/x\.json: .*no x\.json"):
        load_dataset("hub:me/facts/x.json")


def test_rows_of_the_datasets_package_are_records(rows: list[tuple[Any, ...]]) -> None:
    data = load_dataset("hub:me/facts@v1#config/test")
    assert rows == [("me/facts", "config", "test", "v1")]
    assert (data.name, data.records, data.source) == (
        "counterfact",
        1,
        "hub:me/facts@v1#config/test",
    )
    line = __import__("json").dumps(files.SHORT, sort_keys=True) + "\n"
    assert data.digest == hashlib.sha256(line.encode()).hexdigest()


def test_several_splits_want_a_choice(rows: list[tuple[Any, ...]]) -> None:
    with pytest.raises(InputNotFoundError, match=r"splits train, test.*hub:me/facts#train"):
        load_dataset("hub:me/facts")


def test_a_data_set_the_hub_lacks_is_named(rows: list[tuple[Any, ...]]) -> None:
    with pytest.raises(
        InputNotFoundError, match=r"hub:me/none: ValueError: Couldn't find it\. Che"
    ):
        load_dataset("hub:me/none")


def test_rows_with_more_than_text_are_refused(rows: list[tuple[Any, ...]]) -> None:
    with pytest.raises(RequestFileError, match=r"more than texts"):
        load_dataset("hub:me/bytes#train")


def test_without_the_datasets_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"editkit-core\[hub\]"):
        load_dataset("hub:me/facts")


@pytest.mark.parametrize("text", ["hub:", "hub:me", "hub:me/facts/", "hub:me/facts#", "hub:a b/c"])
def test_a_place_that_names_nothing_on_the_hub_is_refused(text: str) -> None:
    with pytest.raises(InputNotFoundError, match=r"names no data set on the hub"):
        load_dataset(text)


def test_a_place_is_taken_apart() -> None:
    assert HubName.parse("hub:me/facts") == HubName(repo="me/facts")
    assert HubName.parse("hub:me/a.b-c@main/x/y.json") == HubName(
        repo="me/a.b-c", revision="main", file="x/y.json"
    )
    assert HubName.parse("hub:me/facts#test") == HubName(repo="me/facts", part="test")

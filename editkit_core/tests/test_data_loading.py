"""Specs, recognition, drawing and bad input."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
import data_files as files
import pytest
from fake_distributions import FakeSite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editkit_core.data import DataSet, Skipped, load_dataset
from editkit_core.data.loading import find_formats
from editkit_core.errors import (
    BrokenPluginError,
    EditkitError,
    EmptyTargetError,
    InputNotFoundError,
    InvalidParameterError,
    RequestFileError,
)

EACH = {
    "full": ("counterfact", files.FULL),
    "short": ("counterfact", files.SHORT),
    "mend": ("zsre", files.ZSRE),
    "wiki_recent": ("knowedit", files.WIKI_RECENT),
    "wiki_counterfact": ("knowedit", files.WIKI_COUNTERFACT),
    "zsre": ("knowedit", files.KNOWEDIT_ZSRE),
    "wikibio": ("knowedit", files.WIKIBIO),
    "convsent": ("knowedit", files.CONVSENT),
    "sanitation": ("knowedit", files.SANITATION),
    "cases": ("mquake", files.MQUAKE),
    "facts": ("known_1000", files.KNOWN),
    "requests": ("requests", files.REQUEST),
}


def many(count: int) -> list[dict[str, Any]]:
    """CounterFact records with ids 0, 1, 2 …"""
    return [files.but(files.SHORT, case_id=i) for i in range(count)]


def ids(data: DataSet) -> list[str]:
    return [request.id for request in data.requests]


# -- what is loaded -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", EACH)
def test_a_bare_path_is_recognised_and_the_data_set_says_so(tmp_path: Path, form: str) -> None:
    name, value = EACH[form]
    path = files.write(tmp_path, "some.json", value)
    data = load_dataset(str(path))
    assert (data.name, data.form, data.detected) == (name, form, True)
    named = load_dataset(f"{name}:{path}")
    assert named == attrs.evolve(data, detected=False)


def test_a_folder_of_pararel_is_recognised(tmp_path: Path) -> None:
    data = load_dataset(str(files.write_pararel(tmp_path / "rel")))
    assert (data.name, data.detected) == ("pararel", True)


def test_the_digest_is_the_files_sha256_and_the_source_names_no_folder(tmp_path: Path) -> None:
    path = files.write(tmp_path, "mine.json", many(2))
    data = load_dataset(f"counterfact:{path}")
    assert data.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.source == "mine.json"


def test_a_folders_digest_changes_with_any_of_its_files(tmp_path: Path) -> None:
    folder = files.write_pararel(tmp_path / "rel")
    before = load_dataset(f"pararel:{folder}").digest
    assert load_dataset(f"pararel:{folder}").digest == before
    (folder / "graphs_json" / "P2.jsonl").write_text('{"pattern": "[X] talks [Y]."}\n')
    assert load_dataset(f"pararel:{folder}").digest != before


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson", ".JSON", ".yaml"])
def test_bom_newlines_and_file_types_make_no_difference(
    tmp_path: Path, suffix: str, newline: str, bom: str
) -> None:
    lines = suffix in (".jsonl", ".ndjson")
    text = "\n".join(map(json.dumps, many(2))) if lines else json.dumps(many(2), indent=1)
    path = tmp_path / f"data{suffix}"
    path.write_bytes((bom + text.replace("\n", newline)).encode())
    data = load_dataset(f"counterfact:{path}")
    assert (
        data.requests
        == load_dataset(files.write(tmp_path, "plain.json", many(2)).as_posix()).requests
    )


def test_json_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("\n".join(map(json.dumps, many(3))))
    assert ids(load_dataset(f"counterfact:{path}")) == ["0", "1", "2"]


def test_a_relative_place_is_looked_up_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    files.write(tmp_path / "data", "a.json", many(1))
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputNotFoundError, match=r"EDITKIT_DATA"):
        load_dataset("counterfact:a.json")
    assert load_dataset("counterfact:a.json", folder=tmp_path / "data").records == 1
    monkeypatch.setenv("EDITKIT_DATA", str(tmp_path / "data"))
    assert load_dataset("a.json").records == 1
    files.write(tmp_path / "here", "a.json", many(2))
    assert load_dataset("counterfact:a.json").records == 2


def test_attribute_snippets_beside_counterfact_become_reference_texts(tmp_path: Path) -> None:
    spec = f"counterfact:{files.write(tmp_path, 'a.json', [files.FULL])}"
    alone = load_dataset(spec)
    snippets = [
        {
            "relation_id": "P1",
            "target_id": "Q1",
            "samples": [{"name": "x", "text": "Lima is big."}],
        },
        {"relation_id": "P1", "target_id": "Q2", "samples": [{"name": "y", "text": "Oslo is."}]},
    ]
    files.write(tmp_path, "attribute_snippets.json", snippets)
    data = load_dataset(spec)
    assert alone.requests[0].reference_texts == ()
    assert data.requests[0].reference_texts == ("Lima is big.",)
    assert data.source == "a.json with attribute_snippets.json"
    lines = [
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("a.json", "attribute_snippets.json")
    ]
    assert data.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    files.write(tmp_path, "attribute_snippets.json", [{"relation_id": "P1"}])
    with pytest.raises(RequestFileError, match=r"attribute_snippets\.json, entry 0.*'target_id'"):
        load_dataset(spec)


@pytest.mark.parametrize("spec", ["zsre:" + "a" * 5000, "b" * 5000, "zsre:a\0b", "a\0b"])
def test_a_name_no_file_can_have_is_a_missing_file(spec: str) -> None:
    with pytest.raises(InputNotFoundError):
        load_dataset(spec)


# -- drawing --------------------------------------------------------------------------------------


def test_without_a_limit_the_order_is_the_files(tmp_path: Path) -> None:
    data = load_dataset(f"counterfact:{files.write(tmp_path, 'a.json', many(20))}", seed=5)
    assert ids(data) == [str(i) for i in range(20)]


def test_a_larger_limit_begins_with_the_smaller_ones_draw(tmp_path: Path) -> None:
    spec = f"counterfact:{files.write(tmp_path, 'a.json', many(20))}"
    drawn = [ids(load_dataset(spec, limit=limit, seed=1)) for limit in (3, 7, 20, 99)]
    assert [len(some) for some in drawn] == [3, 7, 20, 20]
    assert drawn[1][:3] == drawn[0]
    assert drawn[2][:7] == drawn[1]
    assert sorted(drawn[3], key=int) == [str(i) for i in range(20)]


def test_the_seed_decides_what_is_drawn_and_nothing_else_does(tmp_path: Path) -> None:
    spec = f"counterfact:{files.write(tmp_path, 'a.json', many(20))}"
    one, again, other = (load_dataset(spec, limit=5, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert ids(one) != ids(other)
    assert (one.limit, one.seed, one.records) == (5, 0, 20)


def test_a_limit_of_mquake_draws_whole_cases(tmp_path: Path) -> None:
    cases = [files.but(files.MQUAKE, case_id=i) for i in range(6)]
    data = load_dataset(f"mquake:{files.write(tmp_path, 'a.json', cases)}", limit=2)
    assert [len(group) for group in data.groups] == [2, 2]


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": True}, {"limit": 1.5}, {"seed": -1}])
def test_a_limit_or_seed_that_is_none_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    spec = f"counterfact:{files.write(tmp_path, 'a.json', many(2))}"
    with pytest.raises(InvalidParameterError, match=r"must be a whole number"):
        load_dataset(spec, **options)


def test_ten_thousand_records_load_in_a_few_seconds(tmp_path: Path) -> None:
    import time

    spec = f"counterfact:{files.write(tmp_path, 'a.json', many(10_000))}"
    start = time.perf_counter()
    assert len(load_dataset(spec).requests) == 10_000
    assert time.perf_counter() - start < 10  # seconds; about 1 on one core


# -- records that do not fit ----------------------------------------------------------------------

MISFITS: dict[str, tuple[Any, str, str]] = {
    "no subject": (files.but(files.SHORT, subject=None), "EK-R04", r"'subject' is missing"),
    "an empty subject": (files.but(files.SHORT, subject=" "), "EK-R04", r"'subject' is empty"),
    "another subject": (files.but(files.SHORT, subject="Nobody"), "EK-R01", r"does not occur"),
    "an empty target": (files.but(files.SHORT, target_new=""), "EK-R02", r"'target_new' is empty"),
    "a blank target": (files.but(files.SHORT, target_new=" \n"), "EK-R02", r"is empty"),
    "a number": (files.but(files.SHORT, prompt=3), "EK-R04", r"'prompt' is 3, not text"),
    "a list": ([1, 2], "EK-R04", r"the record is list, not names and values"),
    "a null": (None, "EK-R04", r"NoneType"),
    "two slots": (files.but(files.SHORT, prompt="{} {} Ada Berg"), "EK-R05", r"2 slots"),
    "half a character": (files.but(files.SHORT, prompt="\ud800 Ada Berg"), "EK-R04", r"not valid"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_record_that_does_not_fit_is_skipped_counted_and_named(
    tmp_path: Path, misfit: str
) -> None:
    record, code, reason = MISFITS[misfit]
    records = [*many(2), record]
    data = load_dataset(f"counterfact:{files.write(tmp_path, 'a.json', records)}")
    assert (data.records, ids(data)) == (3, ["0", "1"])
    (skipped,) = data.skipped
    assert (skipped.index, skipped.code) == (2, code)
    assert str(tmp_path) not in skipped.reason
    with pytest.raises(EditkitError, match=reason):
        raise EditkitError(skipped.reason)


@pytest.mark.parametrize("misfit", MISFITS)
def test_strict_refuses_at_the_first_record_that_does_not_fit(tmp_path: Path, misfit: str) -> None:
    record, code, reason = MISFITS[misfit]
    records = [*many(1), record, {"other": "misfit"}]
    path = files.write(tmp_path, "a.json", records)
    with pytest.raises(EditkitError, match=reason) as caught:
        load_dataset(f"counterfact:{path}", strict=True)
    assert caught.value.code == code
    assert caught.value.message.startswith("a.json, record 1 (counted from 0): ")
    assert caught.value.facts["index"] == 1


def test_a_name_that_came_before_is_a_misfit(tmp_path: Path) -> None:
    records = [*many(2), files.but(files.SHORT, case_id=0)]
    data = load_dataset(f"counterfact:{files.write(tmp_path, 'a.json', records)}")
    assert data.skipped == (
        Skipped(index=2, reason="its id '0' is also that of record 0.", code="EK-R04"),
    )
    with pytest.raises(RequestFileError, match=r"record 2.*also that of record 0"):
        load_dataset(str(tmp_path / "a.json"), strict=True)


def test_a_line_that_is_not_json_is_a_misfit_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first, second = map(json.dumps, many(2))
    path.write_text(f"{first}\n\n{{broken\n{second}\n")
    data = load_dataset(f"counterfact:{path}")
    assert (ids(data), data.records) == (["0", "1"], 3)
    (skipped,) = data.skipped
    assert skipped.index == 1
    assert skipped.reason.startswith("line 3 is not JSON")


def test_a_plain_record_with_an_unknown_field_is_a_misfit(tmp_path: Path) -> None:
    records = [files.REQUEST, files.but(files.REQUEST, target="x")]
    data = load_dataset(f"requests:{files.write(tmp_path, 'a.json', records)}")
    (skipped,) = data.skipped
    assert skipped.reason.startswith(
        "the record has an unknown field 'target'. Did you mean 'target_"
    )


def test_positions_name_requests_whose_records_have_no_id(tmp_path: Path) -> None:
    records = [files.but(files.ZSRE, alt=""), files.ZSRE, files.ZSRE]
    spec = f"zsre:{files.write(tmp_path, 'a.json', records)}"
    assert ids(load_dataset(spec)) == ["#1", "#2"]
    with pytest.raises(EmptyTargetError, match=r"record 0 .*'alt' is empty"):
        load_dataset(spec, strict=True)


# -- files that do not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none.json", "zsre:none.json", "zsre:none/none.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputNotFoundError, match=r"none\.json"):
        load_dataset(name, folder=tmp_path)


@pytest.mark.parametrize("spec", ["zsre", "zsre:", "pararel", ""])
def test_a_spec_without_a_place_is_refused(spec: str) -> None:
    with pytest.raises(InputNotFoundError, match=r"FORMAT:FILE|Name the folder|Write"):
        load_dataset(spec)


def test_a_folder_where_a_file_is_wanted_is_refused(tmp_path: Path) -> None:
    for spec in (f"zsre:{tmp_path}", f"pararel:{tmp_path}"):
        with pytest.raises(InputNotFoundError, match=r"folder"):
            load_dataset(spec)
    with pytest.raises(RequestFileError, match=r"looks like none of the formats"):
        load_dataset(str(tmp_path))


def test_an_unknown_format_is_refused_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(RequestFileError, match=r"no data set format 'conterfact'.*'counterfact'"):
        load_dataset(f"conterfact:{files.write(tmp_path, 'a.json', many(1))}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not JSON|holds no records"),
        (b"[]", r"holds no records"),
        (b"null", r"holds no records"),
        (b"{}", r"does not look like"),
        (b"[1, 2]", r"its first record is int"),
        (b'[{"subject": "x"}]', r"its first record has subject"),
        (b'[{"case_id": 1, "prompt": "a', r"is not JSON.*cut off"),
        (b"[" * 100_000, r"cannot be read as JSON"),
        (b'[{"case_id": ' + b"9" * 5000 + b"}]", r"cannot be read as JSON"),
        (b'{"train": [{"a": 1}], "test": [{"a": 1}]}', r"does not look like"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(RequestFileError, match=message) as caught:
        load_dataset(f"counterfact:{path}")
    assert "a.json" in caught.value.message


def test_an_empty_file_is_refused_in_every_type(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl", "a.yaml"):
        (tmp_path / name).write_bytes(b" \n")
        for spec in (
            f"zsre:{tmp_path / name}",
            f"requests:{tmp_path / name}",
            str(tmp_path / name),
        ):
            with pytest.raises(RequestFileError, match=name):
                load_dataset(spec)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    text = json.dumps([files.but(files.SHORT, target_new="Ålesund")], ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    with pytest.raises(InputNotFoundError, match=r"a\.json is not UTF-8.*Save it as UTF-8"):
        load_dataset(f"counterfact:{path}")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(RequestFileError, match=r"'\.csv'.*\.json"):
        load_dataset(str(tmp_path / "a.csv"))


def test_a_file_of_another_format_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    path = files.write(tmp_path, "a.json", many(2))
    with pytest.raises(RequestFileError, match=r"does not look like zsre: .*case_id, prompt"):
        load_dataset(f"zsre:{path}")


def test_several_lists_in_one_file_are_refused(tmp_path: Path) -> None:
    path = files.write(tmp_path, "a.json", {"train": many(1), "test": many(1)})
    with pytest.raises(RequestFileError, match=r"several lists: test, train"):
        load_dataset(f"counterfact:{path}")
    one = files.write(tmp_path, "b.json", {"data": many(2)})
    assert load_dataset(f"counterfact:{one}").records == 2


def test_a_file_of_which_nothing_can_be_used_is_refused_with_the_first_reason(
    tmp_path: Path,
) -> None:
    path = files.write(tmp_path, "a.json", [files.but(files.SHORT, target_new="")] * 2)
    with pytest.raises(RequestFileError, match=r"None of the 2 .*record 0: 'target_new' is empty"):
        load_dataset(f"counterfact:{path}")


WRECKS = st.sampled_from([None, "", " ", 0, -1.5, True, [], {}, [[]], [None], {"a": 1}, "\ud800"])


def wrecked(value: Any, data: st.DataObject) -> Any:
    """Replace or take away one value somewhere inside."""
    if isinstance(value, dict) and value:
        name = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 3)) == 0:
            return {n: v for n, v in value.items() if n != name}
        return value | {name: wrecked(value[name], data)}
    if isinstance(value, list) and value:
        i = data.draw(st.integers(0, len(value) - 1))
        return [*value[:i], wrecked(value[i], data), *value[i + 1 :]]
    return data.draw(WRECKS)


@pytest.mark.parametrize("form", EACH)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_a_record_holds_it_is_used_skipped_or_refused(
    tmp_path: Path, form: str, data: st.DataObject
) -> None:
    name, value = EACH[form]
    records = copy.deepcopy(value if isinstance(value, list) or form == "sanitation" else [value])
    for _ in range(data.draw(st.integers(1, 4))):
        records = wrecked(records, data)
    path = files.write(tmp_path, "a.json", records)
    for strict in (False, True):
        try:
            found = load_dataset(f"{name}:{path}", form=form, strict=strict)
        except EditkitError:
            continue
        assert not (strict and found.skipped)
        assert len(found.skipped) < found.records


# -- formats of plugins ---------------------------------------------------------------------------

PLUGIN = """
    from editkit_core import hookimpl
    from editkit_core.data.file_format import FileFormat, Form, one_by_one
    from editkit_core.types import EditRequest

    def convert(record, making):
        return [EditRequest(prompt=record.text("q"), subject=record.word("s"),
                            target_new=record.target("a"))]

    def trivia():
        return FileFormat(name="trivia", title="Trivia", source="none", forms=(
            Form(name="only", about="q, s, a", policies={"given": "a"},
                 fits=lambda record, part: "q" in record, read=one_by_one(convert)),))

    @hookimpl
    def editkit_register_datasets(register):
        register(NAME, trivia)
"""


def install(site: FakeSite, name: str) -> None:
    source = PLUGIN.replace("NAME", repr(name))
    site.install("ek-trivia", plugins={"trivia": "ek_trivia"}, modules={"ek_trivia": source})


def test_a_plugins_format_is_loaded_and_recognised(site: FakeSite, tmp_path: Path) -> None:
    install(site, "trivia")
    records = [
        {"q": "Who is Ada?", "s": "Ada", "a": "a painter"},
        {"q": "Who?", "s": "Ada", "a": "x"},
    ]
    path = files.write(tmp_path, "a.json", records)
    for spec in (f"trivia:{path}", str(path)):
        data = load_dataset(spec)
        assert (data.name, ids(data), data.skipped[0].code) == ("trivia", ["#0"], "EK-R01")


@pytest.mark.parametrize("name", ["zsre", "hub", "a b", "other"])
def test_a_plugin_cannot_take_a_name_of_the_core_or_call_its_format_otherwise(
    site: FakeSite, tmp_path: Path, name: str
) -> None:
    install(site, name)
    formats, failures = find_formats()
    assert "trivia" not in formats
    assert [failure.facts["distribution"] for failure in failures] == ["ek-trivia"]
    path = files.write(tmp_path, "a.json", [files.ZSRE])
    assert load_dataset(f"zsre:{path}").records == 1
    with pytest.raises(BrokenPluginError, match=r"ek-trivia"):
        load_dataset(f"trivia:{path}")

"""``editkit datasets`` and ``editkit datasets show``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import data_files as files
import pytest
from fake_distributions import FakeSite

from editkit_core import cli
from editkit_core.data.builtin import BUILTIN_FORMATS


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["datasets", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, _ = run(capsys, "show", *arguments, "--json")
    assert code == 0, out
    made: dict[str, Any] = json.loads(out)
    return made


def test_every_format_is_listed_with_its_forms_and_policies(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    for word in (*BUILTIN_FORMATS, "wiki_recent", "sanitation", "counterfactual, true"):
        assert word in out
    code, out, _ = run(capsys, "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)["formats"]}
    assert set(BUILTIN_FORMATS) <= set(listed)
    assert list(listed["zsre"]["forms"][0]["target_policies"]) == ["counterfactual", "true"]


def test_a_broken_format_is_listed_as_such(
    site: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
        from editkit_core import hookimpl
        @hookimpl
        def editkit_register_datasets(register):
            register("odd", lambda: 1 / 0)
    """
    site.install("ek-odd", plugins={"odd": "ek_odd"}, modules={"ek_odd": source})
    code, out, _ = run(capsys)
    assert code == 0
    assert "Broken: ek-odd failed to make its data set format 'odd': ZeroDivisionError" in out
    code, _, err = run(capsys, "show", "odd:a.json")
    assert code == 3
    assert "ek-odd" in err


def test_show_says_what_is_there_and_what_was_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [files.ZSRE, files.but(files.ZSRE, alt=""), files.but(files.ZSRE, subject=None)]
    path = files.write(tmp_path, "a.json", records)
    code, out, _ = run(capsys, "show", path)
    assert code == 0
    assert "a.json: zsre, form mend (recognised)" in out
    assert hashlib.sha256(path.read_bytes()).hexdigest() in out
    assert "3, of which 2 skipped" in out
    assert "[EK-R02] 'alt' is empty." in out
    assert "counterfactual" in out
    assert str(tmp_path) not in out


def test_show_as_json_has_the_first_request_and_every_skipped_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [files.but(files.ZSRE, alt=""), files.ZSRE]
    plain = shown(capsys, f"zsre:{files.write(tmp_path, 'a.json', records)}")
    assert plain["skipped"] == [{"index": 0, "reason": "'alt' is empty.", "code": "EK-R02"}]
    assert (plain["records"], plain["requests"], plain["target_policy"]) == (2, 1, "counterfactual")
    assert plain["first"]["target_new"] == "Lima"
    assert {"field": "locality.neighborhood", "requests": 1, "items": 1} in plain["fields"]


def test_show_takes_limit_seed_policy_form_and_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(tmp_path, "a.json", [files.ZSRE] * 5)
    options = ("--limit", 2, "--seed", 4, "--target-policy", "true", "--form", "mend")
    plain = shown(capsys, "zsre:a.json", "--data", tmp_path, *options)
    assert (plain["requests"], plain["seed"], plain["limit"]) == (2, 4, 2)
    assert plain["first"]["target_new"] == "Oslo"


def test_show_counts_targets_that_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [files.ZSRE, files.but(files.ZSRE, alt="Oslo")]
    plain = shown(capsys, f"zsre:{files.write(tmp_path, 'a.json', records)}")
    assert plain["unchanged_targets"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zsre:none.json",), "[EK-F03] Cannot read the data set"),
        (("zsree:a.json",), "[EK-R04] There is no data set format 'zsree'. Did you mean 'zsre'?"),
        (("zsre:a.json", "--strict"), "[EK-R02] a.json, record 1 (counted from 0): 'alt' is empty"),
        (("zsre:a.json", "--target-policy", "ture"), "[EK-H02] The form 'mend' has no target pol"),
        (("counterfact:a.json",), "[EK-R04] a.json does not look like counterfact"),
    ],
)
def test_what_cannot_be_shown_is_one_line_with_a_code_and_exit_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files.write(tmp_path, "a.json", [files.ZSRE, files.but(files.ZSRE, alt="")])
    code, out, err = run(capsys, "show", *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_text_of_a_file_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = files.but(files.ZSRE, alt="\x1b[2J")
    _, out, _ = run(capsys, "show", files.write(tmp_path, "a.json", [record]))
    assert "\x1b" not in out
    assert "\\x1b" in out

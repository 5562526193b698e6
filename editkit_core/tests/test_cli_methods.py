from __future__ import annotations

import json
from typing import Any

import pytest
from fake_distributions import FakeSite, method_source

from editkit_core import cli, host


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.fixture
def installed(site: FakeSite) -> FakeSite:
    """A good method, a broken one, one of another core, one id claimed twice, a bad plugin."""
    site.install("ek-good", methods={"good": "ek_good"}, modules={"ek_good": method_source("good")})
    site.install("ek-bad", methods={"bad": "ek_bad"}, modules={"ek_bad": "import nothing_there"})
    site.install("ek-old", methods={"old": "ek_old"}, requires=("editkit-core<0.0.1",))
    site.install("ek-one", methods={"twice": "ek_twice"})
    site.install("ek-two", methods={"twice": "ek_twice"})
    site.install("ek-plug", plugins={"plug": "ek_plug"}, modules={"ek_plug": "1 / 0"})
    return site


def states(listings: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {
        one["distribution"]: (one["name"], one["state"])
        for one in listings
        if one["distribution"].startswith("ek-")
    }


def test_every_method_is_listed_with_its_state(
    installed: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads(run("methods", "--json", capsys=capsys))
    assert states(listed["methods"]) == {
        "ek-good": ("good", "ok"),
        "ek-bad": ("bad", "broken"),
        "ek-old": ("old", "incompatible"),
        "ek-one": ("twice", "duplicate"),
        "ek-two": ("twice", "duplicate"),
    }
    assert states(listed["plugins"]) == {"ek-plug": ("plug", "broken")}


def test_the_table_names_distribution_version_and_reason(
    installed: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    out = " ".join(run("methods", capsys=capsys).split())
    for expected in ("ek-good 1.2", "A test method", "ek-bad 1.2", "nothing_there", "ek-plug 1.2"):
        assert expected in out


def test_without_methods_it_tells_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "_installed", lambda group: ())
    assert "none installed. Get one, for example: pip install editkit-rome" in run(
        "methods", capsys=capsys
    )
    assert json.loads(run("methods", "--json", capsys=capsys)) == {"methods": [], "plugins": []}


def test_models_lists_the_families_and_what_edits_them(
    installed: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads(run("models", "--json", capsys=capsys))
    families = {family["name"]: family for family in listed["families"]}
    assert {"gpt2", "gpt_neo", "gptj", "llama", "mistral", "qwen2", "qwen3"} <= set(families)
    assert "good" in families["llama"]["methods"]
    assert "transformer.h.{}.mlp.c_proj" in run("models", capsys=capsys)

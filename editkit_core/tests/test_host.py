from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_distributions import FakeSite, method_source

from editkit_core import hookimpl
from editkit_core.errors import (
    BrokenPluginError,
    DuplicateMethodError,
    IncompatiblePluginError,
    InvalidHookError,
    UnknownMethodError,
)
from editkit_core.host import Found, Host, Listing


def listed(host: Host, name: str) -> Listing:
    (listing,) = (m for m in host.list_methods() if m.name == name)
    return listing


def plugin_state(host: Host, name: str) -> Listing:
    (listing,) = (p for p in host.list_plugins() if p.name == name)
    return listing


def module(**functions: Any) -> ModuleType:
    made = ModuleType("made_in_a_test")
    for name, function in functions.items():
        function.__name__ = name
        setattr(made, name, function)
    return made


def found(plugin: object, name: str = "thing", dist: str = "editkit-thing") -> Found:
    return Found(name, dist, "1.2", (), lambda: plugin)


# -- discovery --


def test_methods_are_found_without_being_imported(site: FakeSite) -> None:
    site.install("ek-alpha", methods={"alpha": "ek_alpha"}, modules={"ek_alpha": "1 / 0"})
    assert "alpha" in Host().method_ids()
    assert "ek_alpha" not in sys.modules


def test_finding_methods_imports_none_in_a_fresh_process(site: FakeSite) -> None:
    site.install("ek-alpha", methods={"alpha": "ek_alpha"}, modules={"ek_alpha": "x = 1"})
    code = "import sys; from editkit_core.host import Host; print(Host().method_ids(), end=' ')"
    done = site.python("-c", code + "; print('ek_alpha' in sys.modules)")
    assert "'alpha'" in done.stdout, done.stderr
    assert done.stdout.endswith("False\n")


def test_choosing_a_method_imports_that_one_only(site: FakeSite) -> None:
    for name in ("alpha", "beta"):
        site.install(
            f"ek-{name}", methods={name: f"ek_{name}"}, modules={f"ek_{name}": method_source(name)}
        )
    _, info, entry = Host().load_method("alpha")
    assert (info.name, entry.dist, entry.version) == ("alpha", "ek-alpha", "1.2")
    assert "ek_alpha" in sys.modules
    assert "ek_beta" not in sys.modules


def test_no_methods_tells_how_to_get_one() -> None:
    with pytest.raises(UnknownMethodError, match=r"no methods are installed.*pip install"):
        Host(methods=(), plugins=()).load_method("rome")


def test_an_unknown_method_is_met_with_the_closest_and_the_installed() -> None:
    host = Host(methods=(found(None, "memit"), found(None, "rome")), plugins=())
    with pytest.raises(UnknownMethodError, match=r"Did you mean 'rome'.*Installed: memit, rome"):
        host.load_method("roem")


def test_the_same_distribution_twice_on_the_path_counts_once(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install(
        "ek-alpha", methods={"alpha": "ek_alpha"}, modules={"ek_alpha": method_source("alpha")}
    )
    second = site.folder.parent / "second"
    second.mkdir()
    FakeSite(second).install("Ek_Alpha", methods={"alpha": "ek_alpha"}, version="1.1")
    monkeypatch.syspath_prepend(str(second))
    assert Host().load_method("alpha")[1].name == "alpha"


def test_a_half_removed_distribution_breaks_nothing(site: FakeSite) -> None:
    site.install("ek-ghost", methods={"ghost": "ek_ghost"}, metadata=False)
    site.install(
        "ek-alpha", methods={"alpha": "ek_alpha"}, modules={"ek_alpha": method_source("alpha")}
    )
    host = Host()
    assert listed(host, "ghost").state == "broken"
    assert listed(host, "alpha").state == "ok"


# -- broken methods --


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError.*a_module_that_is_not_there"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(7)", "SystemExit: 7"),
    ],
)
def test_a_method_that_fails_to_import_is_listed_as_broken(
    site: FakeSite, source: str, why: str
) -> None:
    site.install("ek-broken", methods={"broken": "ek_broken"}, modules={"ek_broken": source})
    site.install(
        "ek-alpha", methods={"alpha": "ek_alpha"}, modules={"ek_alpha": method_source("alpha")}
    )
    host = Host()
    listing = listed(host, "broken")
    assert (listing.state, listing.dist, listing.version) == ("broken", "ek-broken", "1.2")
    assert "ek-broken 1.2 cannot be imported" in listing.why
    assert listed(host, "alpha").state == "ok"
    with pytest.raises(BrokenPluginError, match=why):
        host.load_method("broken")


def test_a_missing_module_is_listed_as_broken(site: FakeSite) -> None:
    site.install("ek-gone", methods={"gone": "ek_gone"})
    assert "ek_gone" in listed(Host(), "gone").why


def test_two_distributions_with_one_id_are_both_refused_by_name(site: FakeSite) -> None:
    for dist in ("ek-one", "ek-two"):
        site.install(dist, methods={"twice": "ek_twice"})
    host = Host()
    with pytest.raises(DuplicateMethodError, match=r"ek-one 1\.2 and ek-two 1\.2") as caught:
        host.load_method("twice")
    assert caught.value.distributions == ("ek-one", "ek-two")  # type: ignore[attr-defined]  # a fact
    listings = [m for m in host.list_methods() if m.name == "twice"]
    assert [(m.dist, m.state) for m in listings] == [
        ("ek-one", "duplicate"),
        ("ek-two", "duplicate"),
    ]
    assert "ek_twice" not in sys.modules


def test_another_core_range_is_refused_before_import(site: FakeSite) -> None:
    site.install(
        "ek-old",
        methods={"old": "ek_old"},
        modules={"ek_old": "x = 1"},
        requires=("numpy>=1", "Editkit_Core<0.0.1"),
    )
    host = Host()
    with pytest.raises(IncompatiblePluginError, match=r"ek-old 1\.2 needs .*<0\.0\.1") as caught:
        host.load_method("old")
    assert caught.value.expected == "<0.0.1"  # type: ignore[attr-defined]  # a fact
    assert "ek_old" not in sys.modules
    assert listed(host, "old").state == "incompatible"


@pytest.mark.parametrize(
    "requirement",
    [
        "editkit-core<0.0.1; extra == 'legacy'",
        "editkit-core<0.0.1; python_version < '3'",
        "editkit-core>=0.1,<0.2",
        "another-core<0.0.1",
    ],
)
def test_requirements_that_do_not_hold_here_refuse_nothing(
    site: FakeSite, requirement: str
) -> None:
    site.install(
        "ek-alpha",
        methods={"alpha": "ek_alpha"},
        modules={"ek_alpha": method_source("alpha")},
        requires=(requirement,),
    )
    assert listed(Host(), "alpha").state == "ok"


def test_another_hook_interface_is_refused(site: FakeSite) -> None:
    site.install(
        "ek-next", methods={"next": "ek_next"}, modules={"ek_next": method_source("next", api=99)}
    )
    with pytest.raises(IncompatiblePluginError, match=r"interface 99; this core supports \[1\]"):
        Host().load_method("next")


def test_an_entry_point_must_have_the_methods_own_name(site: FakeSite) -> None:
    site.install(
        "ek-alpha", methods={"beta": "ek_alpha"}, modules={"ek_alpha": method_source("alpha")}
    )
    with pytest.raises(BrokenPluginError, match=r"'alpha' and its entry point 'beta'"):
        Host().load_method("beta")


def test_a_method_without_the_decorator_is_told_about_it() -> None:
    host = Host(methods=(found(module(editkit_method=lambda: None)),), plugins=())
    with pytest.raises(BrokenPluginError, match=r"editkit-thing 1.2 does not implement.*@hookimpl"):
        host.load_method("thing")


def test_a_description_that_does_not_fit_names_the_distribution(site: FakeSite) -> None:
    source = method_source("alpha").replace('("*",)', '"gpt2"')
    site.install("ek-alpha", methods={"alpha": "ek_alpha"}, modules={"ek_alpha": source})
    with pytest.raises(BrokenPluginError, match=r"ek-alpha 1.2 failed.*families must be a tuple"):
        Host().load_method("alpha")


def test_an_implementation_with_an_unknown_argument_is_refused_by_name(site: FakeSite) -> None:
    source = method_source("alpha") + (
        "\n    @hookimpl\n    def editkit_locate(model, layers):\n        return ()\n"
    )
    site.install("ek-alpha", methods={"alpha": "ek_alpha"}, modules={"ek_alpha": source})
    with pytest.raises(InvalidHookError, match=r"ek-alpha 1.2.*layers") as caught:
        Host().load_method("alpha")
    assert "\n" not in caught.value.message
    assert listed(Host(), "alpha").state == "broken"


def test_an_implementation_of_an_unknown_hook_is_refused_by_name() -> None:
    plugin = module(editkit_lcoate=hookimpl(lambda model: None))
    with pytest.raises(InvalidHookError, match=r"editkit-thing 1.2.*editkit_lcoate"):
        Host(methods=(found(plugin),), plugins=()).load_method("thing")


# -- plugins --


def test_an_observer_that_answers_is_refused_by_name() -> None:
    plugin = module(editkit_locate=hookimpl(lambda model: ()))
    host = Host(methods=(), plugins=(found(plugin),))
    assert host.loaded_plugins == ()
    listing = plugin_state(host, "thing")
    assert listing.state == "broken"
    assert "editkit-thing 1.2 implements editkit_locate" in listing.why
    assert "@hookimpl(wrapper=True)" in listing.why


def test_a_broken_plugin_is_listed_and_the_others_register() -> None:
    def fail() -> Any:
        raise ImportError("no such thing")

    def add(register: Any) -> None:
        register("one", 1)

    host = Host(
        methods=(),
        plugins=(
            Found("bad", "ek-bad", "3", (), fail),
            found(module(editkit_register_models=hookimpl(add))),
        ),
    )
    assert plugin_state(host, "bad").why.startswith("ek-bad 3 cannot be imported: ImportError")
    assert plugin_state(host, "thing").state == "ok"
    assert host.registered("models") == {"one": 1}


def test_an_incompatible_plugin_is_not_imported() -> None:
    point = Found("old", "ek-old", "1", ("editkit-core>99",), lambda: 1 / 0)
    assert plugin_state(Host(methods=(), plugins=(point,)), "old").state == "incompatible"


def registering(*names: str) -> ModuleType:
    def add(register: Any) -> None:
        for name in names:
            register(name, f"value of {name}")

    return module(editkit_register_patch_kinds=hookimpl(add))


def test_two_plugins_that_register_one_name_are_refused_with_both_owners() -> None:
    host = Host(
        methods=(),
        plugins=(
            found(registering("a/1"), "one", "ek-one"),
            found(registering("b/1", "a/1"), "two", "ek-two"),
        ),
    )
    with pytest.raises(BrokenPluginError, match=r"ek-two registers 'a/1'.*which ek-one has"):
        host.registered("patch_kinds")
    taken, failures = host.collect("patch_kinds")
    assert set(taken) == {"a/1"}  # nothing of the refused plugin
    assert [point.dist for point, _ in failures] == ["ek-two"]
    assert plugin_state(host, "two").state == "broken"


def test_one_plugin_that_registers_a_name_twice_is_refused() -> None:
    host = Host(methods=(), plugins=(found(registering("a/1", "a/1")),))
    with pytest.raises(BrokenPluginError, match=r"'a/1'"):
        host.registered("patch_kinds")


def test_a_plugin_that_fails_while_registering_is_named() -> None:
    def add(register: Any) -> None:
        register("one", 1)
        raise ValueError("out of names")

    host = Host(methods=(), plugins=(found(module(editkit_register_models=hookimpl(add))),))
    with pytest.raises(BrokenPluginError, match=r"editkit-thing 1.2 failed in .*out of names"):
        host.registered("models")
    assert host.collect("models")[0] == {}
    assert "out of names" in plugin_state(host, "thing").why


def test_a_falsy_plugin_object_still_counts() -> None:
    class Empty(SimpleNamespace):
        def __bool__(self) -> bool:
            return False

    assert len(Host(methods=(), plugins=(found(Empty()),)).loaded_plugins) == 1

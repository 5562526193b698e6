from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from editkit_core import EditContext, EditRequest, MethodInfo, Site, defaults, hookimpl
from editkit_core.errors import BrokenPluginError, DuplicateMethodError, InvalidHookError
from editkit_core.host import Found, Host
from editkit_core.patch.format import Patch
from editkit_core.session import Session

REQUEST = EditRequest(prompt="{} is in", subject="Rome", target_new="Spain")
SITE = Site(module="h.0", parameter="h.0.weight", layer=0)
PATCH = Patch.__new__(Patch)  # only its type is looked at here
CONTEXT = EditContext()


def info(name: str) -> MethodInfo:
    return MethodInfo(
        name=name, title=name, paper="", api=1, emits=(), families=("*",), params=lambda: dict
    )


def module(name: str, **functions: Any) -> ModuleType:
    made = ModuleType(name)
    for hook, function in functions.items():
        function.__name__ = hook
        setattr(made, hook, function)
    return made


def method(name: str, *, dist: str = "", **functions: Any) -> Found:
    """An installed method; ``functions`` are its hooks by short name."""
    hooks = {f"editkit_{hook}": hookimpl(function) for hook, function in functions.items()}
    plugin = module(name, editkit_method=hookimpl(lambda: info(name)), **hooks)
    return Found(name, dist or f"editkit-{name}", "1.0", (), lambda: plugin)


def observer(name: str, calls: list[str]) -> Found:
    """An installed observer that writes down what it sees before and after."""

    def watching(hook: str) -> Any:
        def watch() -> Any:
            calls.append(f"{name} before {hook}")
            answer = yield
            calls.append(f"{name} after {hook}")
            return answer

        return hookimpl(wrapper=True)(watch)

    hooks = {h: watching(h) for h in ("editkit_locate", "editkit_compute_delta", "editkit_apply")}
    plugin = module(name, **hooks)
    return Found(name, f"watch-{name}", "1.0", (), lambda: plugin)


def session(*methods: Found, chosen: str | None, plugins: tuple[Found, ...] = ()) -> Session:
    return Session.open(Host(methods=methods, plugins=plugins), chosen)


def locate(it: Session) -> Any:
    return it.locate(None, (REQUEST,), None, CONTEXT)  # type: ignore[arg-type]  # no model is needed


def compute(it: Session) -> Any:
    return it.compute_delta(None, (REQUEST,), (SITE,), None, CONTEXT)  # type: ignore[arg-type]  # as above


def apply(it: Session) -> Any:
    return it.apply(None, PATCH, "merge", CONTEXT)  # type: ignore[arg-type]  # as above


def test_the_chosen_method_answers() -> None:
    it = session(
        method("one", locate=lambda: [SITE], compute_delta=lambda: PATCH),
        method("two", locate=lambda: 1 / 0, compute_delta=lambda: 1 / 0),
        chosen="one",
    )
    assert it.info is not None
    assert it.info.name == "one"
    assert locate(it) == (SITE,)
    assert compute(it) is PATCH


def test_another_installed_method_is_never_asked() -> None:
    asked: list[str] = []
    other = method("other", locate=lambda: asked.append("other"))
    with pytest.raises(
        BrokenPluginError, match=r"Nothing answered editkit_locate.*editkit-one 1.0"
    ):
        locate(session(method("one"), other, chosen="one"))
    assert asked == []


def test_a_method_that_is_not_chosen_is_not_imported() -> None:
    other = Found("other", "ek-other", "1", (), lambda: pytest.fail("was imported"))
    session(method("one"), other, chosen="one")


def test_the_core_answers_when_the_method_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        defaults, "editkit_apply", hookimpl(trylast=True)(lambda model: "by the core")
    )
    assert apply(session(method("one"), chosen="one")) == "by the core"
    assert apply(session(chosen=None)) == "by the core"


def test_the_methods_own_answer_comes_before_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        defaults, "editkit_apply", hookimpl(trylast=True)(lambda: asked.append("core"))
    )
    assert apply(session(method("one", apply=lambda: "by the method"), chosen="one")) == (
        "by the method"
    )
    assert asked == []


def test_a_method_that_declines_leaves_it_to_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "editkit_apply", hookimpl(trylast=True)(lambda: "by the core"))
    assert apply(session(method("one", apply=lambda: None), chosen="one")) == "by the core"


def test_observers_see_every_call_in_order() -> None:
    calls: list[str] = []

    def telling(what: str, answer: Any) -> Any:
        def hook() -> Any:
            calls.append(what)
            return answer

        return hook

    one = method(
        "one",
        locate=telling("method locates", [SITE]),
        compute_delta=telling("method computes", PATCH),
    )
    it = session(one, chosen="one", plugins=(observer("b", calls), observer("a", calls)))
    locate(it)
    compute(it)
    assert calls == [
        "b before editkit_locate",
        "a before editkit_locate",
        "method locates",
        "a after editkit_locate",
        "b after editkit_locate",
        "b before editkit_compute_delta",
        "a before editkit_compute_delta",
        "method computes",
        "a after editkit_compute_delta",
        "b after editkit_compute_delta",
    ]


def test_an_observer_sees_the_methods_error_and_it_comes_through() -> None:
    seen: list[BaseException] = []

    def watch() -> Any:
        try:
            return (yield)
        except ValueError as error:
            seen.append(error)
            raise

    plugin = module("w", editkit_locate=hookimpl(wrapper=True)(watch))

    def fail() -> Any:
        raise ValueError("no site")

    it = session(
        method("one", locate=fail),
        chosen="one",
        plugins=(Found("w", "watch-w", "1", (), lambda: plugin),),
    )
    with pytest.raises(ValueError, match=r"no site"):
        locate(it)
    assert len(seen) == 1


def test_a_distribution_may_hold_a_method_and_an_observer_of_one_name() -> None:
    calls: list[str] = []
    watcher = observer("one", calls)
    both = Found("one", "editkit-one", "1.0", (), watcher.load)
    it = session(method("one", locate=lambda: (SITE,)), chosen="one", plugins=(both,))
    assert locate(it) == (SITE,)
    assert calls == ["one before editkit_locate", "one after editkit_locate"]


def test_one_object_as_method_and_observer_is_refused_by_name() -> None:
    one = method("one")
    with pytest.raises(InvalidHookError, match=r"editkit-one 1.0"):
        session(one, chosen="one", plugins=(Found("one", "editkit-one", "1.0", (), one.load),))


def test_a_broken_observer_does_not_keep_a_method_from_working() -> None:
    def fail() -> Any:
        raise RuntimeError

    broken = Found("bad", "watch-bad", "1", (), fail)
    assert locate(session(method("one", locate=lambda: (SITE,)), chosen="one", plugins=(broken,)))


def test_a_method_claimed_twice_opens_no_session() -> None:
    with pytest.raises(DuplicateMethodError):
        session(method("one", dist="ek-a"), method("one", dist="ek-b"), chosen="one")


@pytest.mark.parametrize("answer", [[1], SITE, "h.0", [None]])
def test_sites_of_another_type_are_refused_by_name(answer: Any) -> None:
    with pytest.raises(BrokenPluginError, match=r"editkit-one 1.0 answered editkit_locate|Nothing"):
        locate(session(method("one", locate=lambda: answer), chosen="one"))


def test_a_patch_of_another_type_is_refused_by_name() -> None:
    with pytest.raises(BrokenPluginError, match=r"editkit-one 1.0 .*which is no Patch"):
        compute(session(method("one", compute_delta=lambda: {"u": 1}), chosen="one"))


def test_two_sessions_do_not_share_a_method() -> None:
    methods = (
        method("one", locate=lambda: (SITE,)),
        method("two", locate=lambda: (SITE, SITE)),
    )
    first, second = session(*methods, chosen="one"), session(*methods, chosen="two")
    assert (len(locate(second)), len(locate(first))) == (2, 1)

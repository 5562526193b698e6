from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editkit_core import MethodInfo
from editkit_core.errors import (
    InputNotFoundError,
    InvalidParameterError,
    NonFiniteEditError,
    ParamsFileError,
    UnknownParameterError,
    UnknownPresetError,
)
from editkit_core.params import (
    ModelShape,
    choose_preset,
    load_mapping,
    load_presets,
    parse_assignments,
    resolve,
    structure,
    unstructure,
)

SHAPE = ModelShape(name="editkit:demo", family="gpt2", n_layers=6, d_model=192)


def _positive(_: object, field: Any, value: int) -> None:
    if value < 1:
        raise InvalidParameterError(f"{field.name} is {value}; at least one step.", value=value)


@attrs.frozen(kw_only=True)
class Params:
    layer: int
    v_steps: int = attrs.field(default=20, validator=_positive)
    v_lr: float = attrs.field(default=0.5, validator=attrs.validators.gt(0))
    clamp: float | None = 4.0
    exact: bool = False
    variant: Literal["rome", "r-rome"] = "r-rome"
    contexts: tuple[str, ...] = ()
    lengths: tuple[int, int] = (5, 10)
    folder: Path | None = None


def info(presets: str | None = None) -> MethodInfo:
    text: Callable[[], str] | None = None if presets is None else lambda: presets
    return MethodInfo(
        name="rome", title="", paper="", api=1, emits=(), families=("*",), params=lambda: Params,
        presets=text,
    )  # fmt: skip


def make(**values: Any) -> Params:
    made = structure(Params, {"layer": 0, **values}, owner="rome")
    assert isinstance(made, Params)
    return made


# -- values --


def test_values_of_every_type_are_taken() -> None:
    made = make(
        v_steps=3, v_lr=1, clamp=None, exact=True, variant="rome", contexts=["a", "b"],
        lengths=[1, 2], folder="a/b",
    )  # fmt: skip
    assert made == Params(
        layer=0, v_steps=3, v_lr=1.0, clamp=None, exact=True, variant="rome", contexts=("a", "b"),
        lengths=(1, 2), folder=Path("a/b"),
    )  # fmt: skip
    assert type(made.v_lr) is float


def test_parameters_survive_the_way_to_json_and_back() -> None:
    made = make(contexts=["a"], folder="a/b", clamp=None)
    assert structure(Params, unstructure(made), owner="rome") == made


@given(
    st.integers(1, 10**6), st.floats(1e-300, 1e300), st.lists(st.text()), st.sampled_from([0, 5])
)
def test_every_value_survives_the_way_to_json_and_back(
    steps: int, lr: float, contexts: list[str], layer: int
) -> None:
    made = make(v_steps=steps, v_lr=lr, contexts=contexts, layer=layer)
    assert structure(Params, unstructure(made), owner="rome") == made


def test_an_unknown_key_is_met_with_the_closest_known_one() -> None:
    with pytest.raises(
        UnknownParameterError, match=r"rome has no parameter 'v_stpes'\. Did you mean 'v_steps'\?"
    ) as caught:
        make(v_stpes=3)
    assert caught.value.facts == {"parameter": "v_stpes"}


def test_a_key_that_is_not_text_is_unknown() -> None:
    with pytest.raises(UnknownParameterError, match=r"no parameter 7"):
        structure(Params, {7: 1}, owner="rome")  # type: ignore[dict-item]  # that is the test


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("v_steps", "many", "v_steps: expected int, got 'many'"),
        ("v_steps", 2.0, "v_steps: expected int, got 2.0"),
        ("v_steps", True, "v_steps: expected int, got True"),
        ("v_steps", None, "v_steps: expected int, got None"),
        ("v_lr", "fast", "v_lr: expected float, got 'fast'"),
        ("v_lr", True, "v_lr: expected float, got True"),
        ("v_lr", float("nan"), "v_lr: expected a finite number, got nan"),
        ("v_lr", float("inf"), "v_lr: expected a finite number, got inf"),
        ("v_lr", 10**400, "v_lr: expected a finite number, got 1000"),
        ("v_lr", "1e999", "v_lr: expected a finite number, got inf"),
        ("v_lr", 0, "v_lr"),
        ("exact", 1, "exact: expected bool, got 1"),
        ("exact", "yes", "exact: expected bool, got 'yes'"),
        ("variant", "rom", "variant.*rom"),
        ("contexts", "one text", "contexts: expected a list, got 'one text'"),
        ("contexts", {"a": 1}, "contexts: expected a list"),
        ("contexts", ["a", 2], r"contexts\[1\]: expected str, got 2"),
        ("lengths", [1], "lengths: expected 2 values"),
        ("lengths", "12", "lengths: expected a list"),
        ("folder", 3, "folder"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_name(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(InvalidParameterError, match=message) as caught:
        make(**{name: value})
    assert "\n" not in caught.value.message


def test_the_methods_own_message_about_a_range_is_kept() -> None:
    with pytest.raises(InvalidParameterError, match=r"v_steps is 0; at least one step.") as caught:
        make(v_steps=0)
    assert caught.value.facts == {"value": 0}


def test_any_editkit_error_of_a_validator_is_kept() -> None:
    def refuse(*_: object) -> None:
        raise NonFiniteEditError("of its own kind")

    kind = attrs.make_class("Own", {"x": attrs.field(type=int, validator=refuse)})
    with pytest.raises(NonFiniteEditError, match=r"of its own kind"):
        structure(kind, {"x": 1}, owner="own")


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(InvalidParameterError, match=r"v_steps: .*; .*exact: "):
        make(v_steps="a", exact="b")


def test_a_value_that_nothing_gives_is_asked_for() -> None:
    with pytest.raises(InvalidParameterError, match=r"rome needs a value for layer.*layer=…"):
        structure(Params, {}, owner="rome")


# -- name=value --


def test_pairs_are_read_as_yaml() -> None:
    pairs = [
        "v_steps=20",
        " variant = rome",
        "exact=true",
        "clamp=null",
        "contexts=[a, b]",
        "x=a=b",
    ]
    assert parse_assignments(pairs) == {
        "v_steps": 20,
        "variant": "rome",
        "exact": True,
        "clamp": None,
        "contexts": ["a", "b"],
        "x": "a=b",
    }


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1E-3"])
def test_a_small_number_may_be_written_as_people_do(text: str) -> None:
    assert make(**parse_assignments([f"v_lr={text}"])).v_lr == 0.001


@pytest.mark.parametrize(
    "pair", ["v_steps", "=3", " =3", "x=[1", "x=2020-13-45", "x=!!python/name:os"]
)
def test_a_pair_that_cannot_be_read_is_refused(pair: str) -> None:
    with pytest.raises(ParamsFileError, match=r"name=value|cannot be read"):
        parse_assignments([pair])


# -- files --


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.yaml", "v_steps: 3\nvariant: rome\n"),
        ("p.yml", "{v_steps: 3, variant: rome}"),
        ("p.json", '{"v_steps": 3, "variant": "rome"}'),
        ("P.JSON", '{"v_steps": 3,\r\n "variant": "rome"}'),
    ],
)
def test_parameter_files_are_yaml_or_json(tmp_path: Path, name: str, text: str, bom: str) -> None:
    (tmp_path / name).write_text(bom + text, encoding="utf-8")
    assert load_mapping(tmp_path / name) == {"v_steps": 3, "variant": "rome"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.yaml", "- 1\n- 2\n", "must hold names and values, got list"),
        ("p.yaml", "", "must hold names and values, got NoneType"),
        ("p.json", "3", "must hold names and values, got int"),
        ("p.yaml", "a: [1", "not valid YAML"),
        ("p.yaml", "a: 2020-13-45", "not valid YAML"),
        ("p.yaml", "a: 1\n---\nb: 2\n", "not valid YAML"),
        ("p.yaml", "a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("p.json", "{'a': 1}", "not valid JSON"),
        ("p.json", "", "not valid JSON"),
        ("p.json", '{"a": ' * 50_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ParamsFileError, match=message):
        load_mapping(tmp_path / name)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(InputNotFoundError, match=path.name):
            load_mapping(path)


# -- presets --

PRESETS = """
demo:
  match: {name: "editkit:demo"}
  source: ours
  params: {layer: 1}
gpt2-xl:
  match: {family: gpt2, n_layers: 48, d_model: 1600}
  source: paper/reference
  params: {layer: 17}
small-gpt2:
  match: {family: gpt2, n_layers: 6}
  source: ours
  params: {layer: 2, v_steps: 7}
any-gpt2:
  match: {family: gpt2}
  source: not measured
  params: {layer: 3}
fallback:
  source: not measured
  params: {layer: 4}
"""


@pytest.mark.parametrize(
    ("shape", "preset"),
    [
        (SHAPE, "demo"),
        (attrs.evolve(SHAPE, name="./copy"), "small-gpt2"),
        (attrs.evolve(SHAPE, name="x", n_layers=48, d_model=1600), "gpt2-xl"),
        (attrs.evolve(SHAPE, name="x", n_layers=48), "any-gpt2"),
        (attrs.evolve(SHAPE, name="x", family="llama"), "fallback"),
    ],
)
def test_the_closest_preset_is_taken_by_name_then_size_then_family(
    shape: ModelShape, preset: str
) -> None:
    chosen = choose_preset(load_presets(info(PRESETS)), shape)
    assert chosen is not None
    assert chosen.name == preset


def test_of_equally_close_presets_the_first_is_taken() -> None:
    text = "a: {source: ours, match: {family: gpt2}}\nb: {source: ours, match: {family: gpt2}}\n"
    chosen = choose_preset(load_presets(info(text)), SHAPE)
    assert chosen is not None
    assert chosen.name == "a"


def test_no_preset_fits() -> None:
    text = "a: {source: ours, match: {family: llama}}"
    assert choose_preset(load_presets(info(text)), SHAPE) is None
    resolved = resolve(info(text), SHAPE, {"layer": 9})
    assert (resolved.preset, resolved.source) == (None, "the method's defaults")


def test_overrides_win_over_the_preset_and_the_preset_over_defaults() -> None:
    resolved = resolve(info(PRESETS), SHAPE, {"v_steps": 99}, preset="small-gpt2")
    assert (resolved.params.layer, resolved.params.v_steps, resolved.params.v_lr) == (2, 99, 0.5)
    assert (resolved.preset, resolved.source) == ("small-gpt2", "ours")


def test_a_preset_may_be_asked_for_by_name_on_any_model() -> None:
    assert resolve(info(PRESETS), SHAPE, preset="gpt2-xl").params.layer == 17


def test_an_unknown_preset_is_met_with_the_known_ones() -> None:
    with pytest.raises(UnknownPresetError, match=r"Did you mean 'gpt2-xl'.*Known: any-gpt2, demo"):
        resolve(info(PRESETS), SHAPE, preset="gpt2_xl")
    with pytest.raises(UnknownPresetError, match=r"Known: none"):
        resolve(info(), SHAPE, preset="any")


@pytest.mark.parametrize(
    "text",
    [
        "a: {match: {family: gpt2}}",  # no source
        "a: {source: ours, match: {famly: gpt2}}",
        "a: {source: ours, extra: 1}",
        "a: 3",
        "[a, b]",
        "a: [1",
    ],
)
def test_a_malformed_preset_file_names_the_method(text: str) -> None:
    with pytest.raises(ParamsFileError, match=r"presets of rome are malformed"):
        load_presets(info(text))


def test_an_empty_preset_file_holds_no_presets() -> None:
    assert load_presets(info("# nothing yet\n")) == ()

"""A method's parameters: from presets, a YAML or JSON file, and ``name=value`` pairs.

The later source wins. Unknown names are refused with the closest known one; values are checked by
the method's own attrs class.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin

import attrs
import cattrs
import cattrs.errors
import yaml
from cattrs import IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn
from cattrs.v import format_exception

from editkit_core.errors import (
    EditkitError,
    InputNotFoundError,
    InvalidParameterError,
    ParamsError,
    ParamsFileError,
    UnknownParameterError,
    UnknownPresetError,
    did_you_mean,
)
from editkit_core.types import MethodInfo

JsonValue = Any  # Any: JSON has no closed Python type that mypy accepts recursively everywhere
_MOST_ERRORS = 20
_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")


@attrs.frozen(kw_only=True)
class ModelShape:
    """What a preset is matched by.

    Attributes:
        name: What the user called the model, for example ``editkit:demo``.
        family: Family name.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
    """

    name: str
    family: str
    n_layers: int
    d_model: int


@attrs.frozen(kw_only=True)
class Match:
    """The conditions of a preset; those left out hold for every model.

    Attributes:
        name: The model's name as given.
        family: Family name.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
    """

    name: str | None = None
    family: str | None = None
    n_layers: int | None = None
    d_model: int | None = None

    def score(self, shape: ModelShape) -> int | None:
        """Return how many conditions hold, or None when one does not."""
        wanted = {k: v for k, v in attrs.asdict(self).items() if v is not None}
        if any(getattr(shape, name) != value for name, value in wanted.items()):
            return None
        return len(wanted) + (10 if self.name else 0)


@attrs.frozen(kw_only=True)
class Preset:
    """Parameter values that belong to a kind of model.

    Attributes:
        name: The preset's name.
        match: Which models it is for.
        source: Where the values come from: a paper, our own tuning, or nowhere measured.
        params: Values by parameter name.
    """

    name: str
    match: Match = attrs.field(factory=Match)
    source: str
    params: Mapping[str, JsonValue] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Resolved:
    """Parameters ready for use and where they came from.

    Attributes:
        params: An instance of the method's parameter class.
        preset: The preset's name, or None when none fitted.
        source: The preset's source line.
    """

    params: Any  # Any: each method has its own attrs class
    preset: str | None
    source: str


@lru_cache(maxsize=1)
def converter() -> cattrs.Converter:
    """Return the one cattrs converter: strict about types and about unknown keys."""
    made = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind in (int, float, bool, str):
        made.register_structure_hook(kind, _strict(kind))
    made.register_structure_hook(Path, lambda value, _: Path(value))
    made.register_unstructure_hook(Path, str)
    made.register_structure_hook_factory(_is_tuple, lambda kind: _listed(kind, made))
    made.register_structure_hook_factory(_is_mapping, lambda kind: _mapped(kind, made))
    made.register_structure_hook_factory(
        attrs.has, lambda kind: make_dict_structure_fn(kind, made, _cattrs_forbid_extra_keys=True)
    )
    return made


def _strict(kind: type) -> Any:  # Any: a cattrs hook
    def structure(value: Any, _: type) -> Any:  # Any: any JSON value may come in
        if kind is float:
            return _finite(value)
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {value!r}")
        return value

    return structure


def _finite(value: Any) -> float:  # Any: any JSON value may come in
    """Return a finite float; YAML 1.1 reads ``1e-3``, without a point, as text."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected float, got {value!r}")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(f"expected a finite number, got {value!r:.40}")
    return float(value)


def _is_tuple(kind: Any) -> bool:  # Any: a type form such as tuple[int, ...]
    return get_origin(kind) is tuple


def _is_mapping(kind: Any) -> bool:  # Any: a type form such as Mapping[str, int]
    return get_origin(kind) is Mapping


def _listed(kind: Any, made: cattrs.Converter) -> Any:  # Any: a type form, a cattrs hook
    """Structure a tuple from a list only: a text would become its letters."""
    kinds = get_args(kind)

    def structure(value: Any, _: type) -> Any:  # Any: any JSON value may come in
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list, got {_short(value)}")
        if kinds[1:] == (...,):
            return tuple(_each(enumerate(value), kinds[0], made))
        if len(value) != len(kinds):
            raise TypeError(f"expected {len(kinds)} values, got {_short(value)}")
        return tuple(made.structure(v, k) for v, k in zip(value, kinds, strict=True))

    return structure


def _mapped(kind: Any, made: cattrs.Converter) -> Any:  # Any: a type form, a cattrs hook
    """Structure a mapping with text keys."""
    _, item = get_args(kind)

    def structure(value: Any, _: type) -> Any:  # Any: any JSON value may come in
        if not isinstance(value, Mapping):
            raise TypeError(f"expected names and values, got {_short(value)}")
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"expected text as a name, got {_short(name)}")
        return dict(zip(value, _each(value.items(), item, made), strict=True))

    return structure


def _each(
    items: Iterable[tuple[int | str, Any]],  # Any: JSON values
    kind: Any,  # Any: a type form
    made: cattrs.Converter,
) -> list[Any]:  # Any: values of the kind
    """Structure items one by one; after a few errors the rest is not looked at.

    A hostile file may hold hundreds of thousands of wrong values, and each error costs memory.
    """
    structured, errors = [], []
    for place, item in items:
        try:
            structured.append(made.structure(item, kind))
        except Exception as error:  # cattrs collects whatever a hook raises
            note = IterableValidationNote(f"At {place!r}", place, kind)
            error.__notes__ = [*getattr(error, "__notes__", []), note]
            errors.append(error)
            if len(errors) == _MOST_ERRORS:
                break
    if errors:
        raise IterableValidationError("Some items do not fit", errors, list)
    return structured


def _short(value: object) -> str:
    return repr(value)[:80]


def load_mapping(path: Path) -> dict[str, JsonValue]:
    """Read a YAML or JSON file that holds one mapping.

    Raises:
        InputNotFoundError: The file cannot be read.
        ParamsFileError: It is not valid YAML or JSON, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputNotFoundError(f"Cannot read {path}: {error}.", path=str(path)) from error
    is_json = path.suffix.lower() == ".json"
    try:
        value = json.loads(text) if is_json else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: JSON, or a date
        raise ParamsFileError(
            f"{path} is not valid {'JSON' if is_json else 'YAML'}: {error}", path=str(path)
        ) from error
    if not isinstance(value, dict):
        raise ParamsFileError(
            f"{path} must hold names and values, got {type(value).__name__}.", path=str(path)
        )
    return value


def parse_assignments(pairs: Sequence[str]) -> dict[str, JsonValue]:
    """Turn ``["v_steps=20", "variant=rome"]`` into a mapping; values are read as YAML.

    Raises:
        ParamsFileError: A pair has no ``=`` or its value is not YAML.
    """
    values: dict[str, JsonValue] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.strip():
            raise ParamsFileError(f"{pair!r} is not name=value. Write, for example, v_steps=20.")
        try:
            values[name.strip()] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date
            raise ParamsFileError(f"The value of {pair!r} cannot be read: {error}") from error
    return values


def load_presets(info: MethodInfo) -> tuple[Preset, ...]:
    """Read the presets a method ships.

    Raises:
        ParamsFileError: The method's preset file is malformed.
    """
    if info.presets is None:
        return ()
    try:
        raw = yaml.safe_load(info.presets()) or {}
        return tuple(
            converter().structure({"name": name, **body}, Preset) for name, body in raw.items()
        )
    except cattrs.errors.BaseValidationError as error:
        reasons = "; ".join(format_exceptions(error))
        raise ParamsFileError(f"The presets of {info.name} are malformed: {reasons}") from error
    except (yaml.YAMLError, OSError, AttributeError, TypeError, ValueError) as error:
        raise ParamsFileError(f"The presets of {info.name} are malformed: {error}") from error


def choose_preset(
    presets: Sequence[Preset], shape: ModelShape, wanted: str | None = None
) -> Preset | None:
    """Pick the preset called ``wanted``, or the one that matches the model most closely.

    Raises:
        UnknownPresetError: There is no preset called ``wanted``.
    """
    if wanted is not None:
        for preset in presets:
            if preset.name == wanted:
                return preset
        names = sorted(preset.name for preset in presets)
        raise UnknownPresetError(
            f"There is no preset {wanted!r}.{did_you_mean(wanted, names)} Known: "
            f"{', '.join(names) or 'none'}.",
            preset=wanted,
        )
    scored = [(p.match.score(shape), -i, p) for i, p in enumerate(presets)]
    fitting = [entry for entry in scored if entry[0] is not None]
    return max(fitting, key=lambda entry: entry[:2])[2] if fitting else None


def resolve(
    info: MethodInfo,
    shape: ModelShape,
    overrides: Mapping[str, JsonValue] | None = None,
    preset: str | None = None,
) -> Resolved:
    """Combine the fitting preset with overrides into the method's parameters.

    Raises:
        UnknownPresetError: ``preset`` is not among the method's presets.
        UnknownParameterError: A name the method does not have.
        InvalidParameterError: A value of the wrong type or outside its range.
    """
    chosen = choose_preset(load_presets(info), shape, preset)
    values = {**(chosen.params if chosen else {}), **(overrides or {})}
    return Resolved(
        params=structure(info.params(), values, owner=info.name),
        preset=chosen.name if chosen else None,
        source=chosen.source if chosen else "the method's defaults",
    )


def structure(kind: type[Any], values: Mapping[str, JsonValue], *, owner: str) -> Any:
    """Build the attrs class ``kind`` from plain values.

    Args:
        kind: The parameter class.
        values: Values by name, as YAML or JSON gives them.
        owner: Whose parameters they are, for messages.

    Raises:
        UnknownParameterError: A name the class does not have.
        InvalidParameterError: A value of the wrong type, outside its range, or missing.
    """
    known = [field.name for field in attrs.fields(kind)]
    for name in values:
        if name not in known:
            raise UnknownParameterError(
                f"{owner} has no parameter {name!r}.{did_you_mean(str(name), known)} "
                f"Known: {', '.join(sorted(known))}.",
                parameter=name,
            )
    required = [
        field.name
        for field in attrs.fields(kind)
        if field.default is attrs.NOTHING and field.name not in values
    ]
    if required:
        raise InvalidParameterError(
            f"{owner} needs a value for {', '.join(required)}, and no preset gives one for this "
            f"model. Set it: {' '.join(f'{name}=…' for name in required)}.",
            parameter=required[0],
        )
    try:
        return converter().structure(dict(values), kind)
    except ParamsError:
        raise
    except cattrs.errors.BaseValidationError as error:
        for inner in _leaves(error):
            if isinstance(inner, EditkitError):
                raise inner from error
        raise InvalidParameterError(
            f"The parameters of {owner} do not fit: {'; '.join(format_exceptions(error))}"
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"The parameters of {owner} do not fit: {error}") from error


def unstructure(params: Any) -> dict[str, JsonValue]:  # Any: each method has its own attrs class
    """Return parameters as plain JSON values."""
    return json.loads(json.dumps(converter().unstructure(params)))  # type: ignore[no-any-return]  # a mapping by construction


def format_exceptions(error: cattrs.errors.BaseValidationError) -> list[str]:
    """Return one short line a problem of a failed structuring, each naming the field."""
    return [
        f"{line.rpartition(' @ ')[2].removeprefix('$.')}: {line.rpartition(' @ ')[0]}"
        for line in cattrs.transform_error(error, format_exception=_describe)
    ]


def _describe(error: BaseException, kind: type | None) -> str:
    if isinstance(error, TypeError | ValueError) and str(error):
        return str(error)
    return format_exception(error, kind)


def _leaves(error: BaseException) -> list[BaseException]:
    nested = getattr(error, "exceptions", None)
    return [error] if nested is None else [leaf for inner in nested for leaf in _leaves(inner)]

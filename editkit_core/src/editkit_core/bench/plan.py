"""What a run is to do: everything its numbers depend on, from flags or from YAML."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import attrs

from editkit_core.bench.scenario import Scenario
from editkit_core.errors import InvalidParameterError
from editkit_core.metrics.registry import DEFAULT_METRICS
from editkit_core.metrics.report import Protocol
from editkit_core.types import LocateStrategy

__all__ = ["Plan"]

# How fast, and what else is kept; not what comes out.
_WITHOUT_EFFECT = frozenset({"device", "device_map", "judge_url", "rows", "keep_patches"})
_ON_DISK = ("statistics", "corpus", "editor")
_FLAGS = {"params": "set"}


def _texts(value: Any) -> Any:  # Any: YAML may hold anything; cattrs has checked it before
    return tuple(value)


@attrs.frozen(kw_only=True)
class Plan:
    """A run.

    Attributes:
        model: A folder, a hub id, or ``editkit:NAME``.
        dataset: What `load_dataset` takes, for example ``counterfact:FILE`` or ``demo:200``.
        method: Id of an installed method.
        scenario: See :mod:`editkit_core.bench.scenario`.
        preset: A preset by name instead of the one that fits best.
        params: The method's parameters, over the preset.
        limit: The most records, drawn by seed; None takes all in file order.
        seed: Of drawing, editing and sampling.
        metrics: Registered names.
        protocols: The only ones to measure by; None means all of each metric.
        form: The data set's form; recognised when None.
        target_policy: Which answer becomes the target; the form's default when None.
        strict: Refuse the first record that does not fit instead of skipping it.
        locate: ``preset`` takes the parameters' layer, ``trace`` finds it for each edit.
        corpus: A text file that perplexity is measured on.
        tasks: Names of lm-evaluation-harness tasks.
        judge: Name of the model that judges answers (``gen_judge``); None leaves that out.
        judge_url: Its OpenAI-compatible endpoint, for example ``http://localhost:8000/v1``.
        dtype: For example ``bfloat16``; float32 by default.
        device: For example ``cuda``; the CPU by default.
        device_map: Passed to transformers.
        revision: A revision on the hub.
        statistics: Folder of key statistics; the user's cache folder by default.
        editor: File or folder of the trained editor, for methods that train.
        rows: Most rows a forward pass while measuring.
        keep_patches: Whether every patch file stays in the run's folder.
    """

    model: str
    dataset: str
    method: str = "rome"
    scenario: str = attrs.field(default="single")
    preset: str | None = None
    params: dict[str, Any] = attrs.field(factory=dict)  # Any: parameter values
    limit: int | None = attrs.field(default=None)
    seed: int = attrs.field(default=0)
    metrics: tuple[str, ...] = attrs.field(default=DEFAULT_METRICS, converter=_texts)
    protocols: tuple[Protocol, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_texts)
    )
    form: str | None = None
    target_policy: str | None = None
    strict: bool = False
    locate: LocateStrategy = "preset"
    corpus: str | None = None
    tasks: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    judge: str | None = None
    judge_url: str | None = attrs.field(default=None)
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    revision: str | None = None
    statistics: str | None = None
    editor: str | None = None
    rows: int = attrs.field(default=64)
    keep_patches: bool = False

    @scenario.validator
    def _check_scenario(self, _: object, value: str) -> None:
        Scenario.parse(value)

    @limit.validator
    @seed.validator
    @rows.validator
    def _check_count(self, field: attrs.Attribute[int | None], value: int | None) -> None:
        least = 0 if field.name == "seed" else 1
        if value is not None and (type(value) is not int or not least <= value < 2**63):
            raise InvalidParameterError(
                f"{field.name} is {value!r}; it must be a whole number from {least}.",
                parameter=field.name,
            )

    @protocols.validator
    def _check_protocols(self, _: object, value: tuple[Protocol, ...] | None) -> None:
        for name in value or ():
            if name not in get_args(Protocol):
                raise InvalidParameterError(
                    f"There is no protocol {name!r}. Known: {', '.join(get_args(Protocol))}.",
                    protocol=name,
                )

    @metrics.validator
    def _check_metrics(self, _: object, value: tuple[str, ...]) -> None:
        if not value:
            raise InvalidParameterError("No metric is named. Leave them out for the default ones.")

    @judge_url.validator
    def _check_judge(self, _: object, value: str | None) -> None:
        if (value is None) != (self.judge is None):
            raise InvalidParameterError(
                "A judge needs both the name of its model and the address of its endpoint. Give "
                "--judge and --judge-url, or neither."
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:  # Any: YAML or JSON values
        """Make a plan of plain values, as ``run.json`` and sweeps have them.

        Raises:
            UnknownParameterError: A name that plans do not have.
            InvalidParameterError: A value of the wrong type or out of range, or a missing one.
        """
        from editkit_core.params import structure

        plan = structure(cls, values, owner="a run")
        assert isinstance(plan, cls)
        return plan

    @property
    def digest(self) -> str:
        """SHA-256 of what the numbers depend on; the same on every machine."""
        said = {k: v for k, v in self.public().items() if k not in _WITHOUT_EFFECT}
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def public(self) -> dict[str, Any]:  # Any: JSON values
        """Return the plan as plain values, without folders of this machine."""
        from editkit_core.patch.identity import public_name

        values: dict[str, Any] = json.loads(json.dumps(attrs.asdict(self)))
        values["model"] = public_name(self.model)
        values["dataset"] = _public_spec(self.dataset)
        for name in _ON_DISK:
            if values[name] is not None:
                values[name] = Path(values[name]).name
        return values

    def differences(self, other: Mapping[str, Any]) -> list[str]:  # Any: JSON values
        """Return how the public values of another plan differ, one text a value."""
        mine = self.public()
        names = [name for name in mine if name not in _WITHOUT_EFFECT]
        return [
            f"{name} {_shown(other.get(name))} there, {_shown(mine[name])} here"
            for name in names
            if mine[name] != other.get(name)
        ]

    def command(self) -> str:
        """Return a command line that makes this run, without folders of this machine."""
        words = ["editkit", "bench"]
        plain = attrs.asdict(Plan(model="", dataset=""))
        for name, value in self.public().items():
            flag = f"--{_FLAGS.get(name, name).replace('_', '-')}"
            if value == json.loads(json.dumps(plain[name])):
                continue
            if isinstance(value, bool):
                words.append(flag)
            elif isinstance(value, dict):
                pairs = (f"{key}={json.dumps(each)}" for key, each in value.items())
                words += [word for pair in pairs for word in (flag, pair)]
            else:
                words += [flag, ",".join(value) if isinstance(value, list) else str(value)]
        return shlex.join(words)


def _public_spec(spec: str) -> str:
    """Return a data set's spec with the file's name alone; hub names stay as they are."""
    form, colon, place = spec.partition(":")
    if not colon:
        return Path(spec).name
    return spec if "hub:" in spec else f"{form}:{Path(place).name}"


def _shown(value: Any) -> str:  # Any: JSON values
    return "none" if value is None else json.dumps(value, ensure_ascii=False)

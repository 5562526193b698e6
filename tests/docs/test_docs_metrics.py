"""The metrics page says of every metric what its code says, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from editkit_core.metrics.registry import load_metrics, metric_factories
from editkit_core.metrics.report import Protocol

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"


def rows() -> dict[str, list[str]]:
    cells = [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.mark.parametrize("name", metric_factories())
def test_every_metric_is_on_the_page_with_its_unit_and_protocols(name: str) -> None:
    info = load_metrics([name])[0].info
    unit, protocols, _ = rows()[name]
    assert unit == info.unit
    assert re.findall(r"`(\w+)`", protocols) == list(info.protocols)


@pytest.mark.parametrize("name", Protocol.__args__)  # type: ignore[attr-defined]  # of a Literal
def test_every_protocol_is_on_the_page(name: str) -> None:
    assert name in rows()


def test_the_pages_examples_run() -> None:
    names: dict[str, object] = {"__name__": "metrics_page"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "metrics.md", "exec"), names)

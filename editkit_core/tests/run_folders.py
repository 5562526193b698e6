"""Writes run folders in the format that `editkit bench` writes, with numbers that are given."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RELATIONS = {
    "P36": "The capital of {} is",
    "P103": "The mother tongue of {} is",
    "P176": "{} is produced by",
    "P19": "{} was born in",
}
ANSWERS = ("Nairobi", "Lisbon", "Toyota", "French", "Lima", "Helsinki", "Sony", "Welsh")


def row(request: int, metric: str = "reliability", **values: Any) -> dict[str, Any]:
    """One row as JSON has it."""
    return {
        "request": request,
        "metric": metric,
        "protocol": "tf_token",
        "prompt": f"prompt {request}",
        "expected": "answer",
        "before": 0.0,
        "after": 1.0,
        **values,
    }


def unit(number: int, rows: Sequence[Mapping[str, Any]], **values: Any) -> dict[str, Any]:
    """One line of ``rows.jsonl``."""
    indices = list(dict.fromkeys(each["request"] for each in rows))
    return {
        "unit": number,
        "stage": "after_edit",
        "sequence": 0,
        "requests": [f"case-{index}" for index in indices],
        "indices": indices,
        "patch": f"ek-{number:08x}",
        "seconds": {"compute_edit": 0.2},
        "peak_bytes": {"compute_edit": 10**9},
        "device_peak_bytes": {},
        "error": None,
        "facts": {"target_policy": "counterfactual", "seed": 0, "model": "m" * 64},
        "rows": list(rows),
        **values,
    }


def failed_unit(number: int, message: str = "The key is degenerate.") -> dict[str, Any]:
    """A line of an edit that could not be made."""
    error = {"code": "EK-E02", "message": message}
    found = unit(number, [], indices=[number], requests=[f"case-{number}"], error=error, patch=None)
    return {**found, "seconds": {}, "peak_bytes": {}}


def write_run(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    *,
    plan: Mapping[str, Any] | None = None,
    dataset: Mapping[str, Any] | None = None,
    torn: str = "",
    **meta: Any,
) -> Path:
    """Write a run and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "model": "editkit:demo",
        "dataset": "demo:200",
        "method": "rome",
        "scenario": "single",
        "seed": 0,
        "params": {},
        **(plan or {}),
    }
    document = {
        "spec": "editkit.run/1",
        "plan": plan,
        "plan_digest": "a1" * 32,
        "units": len(lines),
        "dataset": {
            "name": "demo",
            "form": "demo",
            "digest": "d0" * 32,
            "source": "editkit:demo",
            "target_policy": "counterfactual",
            "records": 200,
            "requests": 200,
            "skipped": {},
            **(dataset or {}),
        },
        "model": {
            "name": "editkit:demo",
            "fingerprint": "f1" * 32,
            "family": "gpt2",
            "parameters": 3_456_789,
        },
        "method": {"name": plan["method"], "preset": "demo", "params": {"layers": [2]}},
        "corpus": None,
        "versions": {"editkit-core": "0.1.0", "torch": "2.9.0"},
        "command": f"editkit bench --model editkit:demo --method {plan['method']}",
        "created": "2026-01-02T03:04:05+00:00",
        **meta,
    }
    (folder / "run.json").write_text(json.dumps(document), encoding="utf-8")
    texts = [json.dumps(each) + "\n" for each in lines]
    (folder / "rows.jsonl").write_text("".join(texts) + torn, encoding="utf-8")
    return folder


def story_rows(
    index: int, random_: random.Random, skill: float, damage: float, decay: float = 0.0
) -> list[dict[str, Any]]:
    """Rows as a real run has them, of all protocols, with readable texts."""
    prompt = list(RELATIONS.values())[index % 4].format(f"Subject {index}")
    wanted = ANSWERS[index % 8]
    old = ANSWERS[(index + 3) % 8]
    found: list[dict[str, Any]] = []

    def add(metric: str, probe: str, chance: float, *, kept: bool = False, text: str) -> None:
        right = random_.random() < chance - decay
        said = (old if kept else wanted) if right else ANSWERS[(index + 5) % 8]
        shared = {
            "request": index,
            "metric": metric,
            "probe": probe,
            "prompt": text,
            "expected": old if kept else wanted,
            "text_before": f"{old}.",
            "text_after": f"{said}, and then some more words that nobody asked for."[: 30 + index],
        }
        before = 1.0 if kept else 0.0
        lenient = 1.0 if right else random_.choice((0.0, 0.5, 0.5))
        found.append({**shared, "protocol": "tf_token", "before": before, "after": lenient})
        exact = float(right and random_.random() < 0.7)
        found.append({**shared, "protocol": "gen_em", "before": before, "after": exact})
        if not kept:
            found.append(
                {**shared, "protocol": "gen_contains", "before": 0.0, "after": float(right)}
            )

    add("reliability", "", skill, text=prompt)
    for phrase in ("It is well known that", "Ask anybody:"):
        add("generalization", "", skill - 0.15, text=f"{phrase} {prompt}")
    add("locality", "neighborhood", 1 - damage, kept=True, text=f"{prompt} (a neighbour)")
    add("locality", "same_subject", 1 - 3 * damage, kept=True, text=f"{prompt} (same subject)")
    if index % 2:
        add("portability", "one_hop", skill - 0.5, text=f"{prompt} and the river there is")
    for metric, prompt_ in (("efficacy_score", prompt), ("paraphrase_score", prompt + " ...")):
        found.append(
            row(
                index,
                metric,
                protocol="tf_contrastive",
                prompt=prompt_,
                expected=wanted,
                before=float(random_.random() < 0.2),
                after=float(random_.random() < skill),
            )
        )
    found.append(
        row(
            index,
            "neighborhood_score",
            protocol="tf_contrastive",
            prompt=prompt,
            expected=old,
            before=float(random_.random() < 0.8),
            after=float(random_.random() < 0.8 - damage),
        )
    )
    found.append(
        row(
            index,
            "fluency",
            protocol="gen_sample",
            unit="bits",
            prompt=prompt,
            expected="",
            before=random_.gauss(6.1, 0.3),
            after=random_.gauss(6.1 - 2 * damage, 0.4),
        )
    )
    return found


def write_story(
    folder: Path,
    method: str,
    *,
    edits: int,
    skill: float,
    damage: float,
    seed: int = 0,
    **meta: Any,
) -> Path:
    """A run of single edits that looks like a real one."""
    random_ = random.Random(f"{method} {seed}")
    relations = list(RELATIONS)
    units = []
    for index in range(edits):
        if method == "ft" and index in (7, 31):
            units.append(failed_unit(index))
            continue
        rows = story_rows(index, random_, skill, damage)
        seconds = {"compute_edit": random_.uniform(0.1, 0.4), "apply_edit": 0.004, "measure": 0.06}
        units.append(unit(index, rows, relations=[relations[index % 4]], seconds=seconds))
    return write_run(folder, units, plan={"method": method}, **meta)


def write_sequence(folder: Path, method: str, *, edits: int, skill: float, loss: float) -> Path:
    """A sequential run: after each edit, at 1, 10, 100, and after all."""
    random_ = random.Random(method)
    units: list[dict[str, Any]] = []
    for index in range(edits):
        units.append(unit(len(units), story_rows(index, random_, skill, 0.05)))
        at = index + 1
        stages = [f"checkpoint:{at}"] if at in (1, 10, 100, 1000) else []
        for stage in [*stages, *(["after_all"] if at == edits else [])]:
            rows = [
                each
                for i in range(at)
                for each in story_rows(i, random_, skill, 0.05, loss * at / edits)
            ]
            units.append(unit(len(units), rows, stage=stage, patch=None, seconds={}))
    return write_run(folder, units, plan={"method": method, "scenario": "sequential"})

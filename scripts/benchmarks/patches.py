"""How long patches take, as ratios to a floor measured in the same run.

For each matrix and number of stacked rank-one patches: putting all on as one change, pushing one
more, taking all off, checking the base, and reading a file strictly. The floors are

* ``copy``: copying the touched tensor into memory that is there already;
* ``new copy``: copying it into new memory, which is the least that any way back costs;
* ``sha256``: hashing its bytes;
* ``read``: reading the file's bytes.

Floor and work are timed alternately and the medians compared, because machines are noisy.

    scripts/bench patches [--quick] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from editkit_core.models.editable import EditableModel
from editkit_core.patch import Evidence, LowRankEntry, MethodRef, Patch, bits
from editkit_core.patch.fingerprint import base_fingerprint, check_base
from editkit_core.patch.header import BaseFingerprint
from editkit_core.patch.ledger import Wanted
from editkit_core.patch.verify import verify
from editkit_core.testing.models import tiny_model

SHAPES = {"768x3072": (768, 3072), "4096x11008": (4096, 11008)}
COUNTS = (1, 10, 100, 1000)
LOAD_BYTES = 6_000_000


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description="How long patches take, against floors.")
    parser.add_argument("--quick", action="store_true", help="768x3072 and up to 100 patches only")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in list(SHAPES)[: 1 if options.quick else None]:
        for count in COUNTS[: 3 if options.quick else None]:
            rows += measure(name, count)
    rows += files()
    if not options.quick:
        rows += sizes()
    machine = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "python": platform.python_version(),
    }
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


def measure(name: str, count: int) -> Iterator[dict[str, Any]]:  # Any: numbers and names
    """Time ``count`` patches on one matrix."""
    out, into = SHAPES[name]
    model = one_matrix(out, into)
    site = model.site(0)
    base = base_fingerprint(model, [site.parameter])
    patches = [rank_one(site, base, out, into, seed) for seed in range(count + 1)]
    ledger, weight = model.ledger, model.parameter(site.parameter).data
    room = torch.empty_like(weight)
    wanted = [Wanted(patch=patch) for patch in patches]
    tokens: list[int] = []

    def apply() -> None:
        tokens.extend(ledger.change(add=wanted[:count]))

    def revert() -> None:
        ledger.change(remove=tokens)
        tokens.clear()

    before = bits.sha256(weight)
    copy, new, put = timed([lambda: room.copy_(weight), lambda: weight.clone(), apply], [revert])
    yield row(f"apply {count}", name, put, copy=copy, new_copy=new)
    copy, new, off = timed(
        [lambda: room.copy_(weight), lambda: weight.clone(), revert], before=[apply]
    )
    yield row(f"revert {count}", name, off, copy=copy, new_copy=new)
    if count > 1:
        lower = ledger.change(add=wanted[: count - 1])
        top: list[int] = []

        def push() -> None:
            top.extend(ledger.change(add=wanted[count - 1 : count]))

        def pop() -> None:
            ledger.change(remove=top)
            top.clear()

        copy, new, pushed = timed([lambda: room.copy_(weight), lambda: weight.clone(), push], [pop])
        yield row(f"push onto {count - 1}", name, pushed, copy=copy, new_copy=new)
        ledger.change(remove=lower)
    else:
        data = bits.as_bytes(weight)
        floor, checked = timed(
            [lambda: hashlib.sha256(data).digest(), lambda: check_base(model, patches[0])]
        )
        yield row("check the base", name, checked, sha256=floor)
    assert bits.sha256(model.parameter(site.parameter).data) == before


def files() -> Iterator[dict[str, Any]]:  # Any: numbers and names
    """Time reading files strictly: one rank-one patch, and one of about 6 MB."""
    model = one_matrix(768, 3072)
    site = model.site(0)
    base = base_fingerprint(model, [site.parameter])
    rank = LOAD_BYTES // (4 * (768 + 3072))
    for name, made in (
        ("rank 1", rank_one(site, base, 768, 3072, 0)),
        ("6 MB", low_rank(site, base, 768, 3072, rank, 0)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "patch.editkit.safetensors"
            size = made.save(path)
            read, load = timed([path.read_bytes, lambda path=path: Patch.load(path)])
            yield row("strict load", f"{name}, {size} B", load, read=read)
            read, checked = timed([path.read_bytes, lambda path=path: verify(path)])
            yield row("verify the file", f"{name}, {size} B", checked, read=read)


def sizes() -> Iterator[dict[str, Any]]:  # Any: numbers and names
    """Time one patch on one matrix of a small and of a larger model: it must cost the same."""
    works, models = [], []
    for n_layers in (1, 24):
        model = one_matrix(768, 3072, n_layers=n_layers)
        site = model.site(0)
        base = base_fingerprint(model, [site.parameter])
        patch = rank_one(site, base, 768, 3072, 0)
        models.append(model)

        def work(model: EditableModel = model, patch: Patch = patch) -> None:
            model.ledger.change(remove=model.ledger.change(add=[Wanted(patch=patch)]))

        works.append(work)
    small, large = timed(works)
    yield row("apply and revert, 24 layers", "768x3072", large, one_layer=small)


# -- what is measured -------------------------------------------------------------------------


def one_matrix(out: int, into: int, *, n_layers: int = 1) -> EditableModel:
    """Return a random LLaMA whose down projections are ``out x into``."""
    with small_initialisation():
        return tiny_model("llama", n_layers=n_layers, d=out, d_mlp=into)


@contextmanager
def small_initialisation() -> Iterator[None]:
    """Fill weights with a constant pattern: random numbers for 200 M weights take a minute."""
    real = torch.Tensor.normal_

    def cheap(self: torch.Tensor, mean: float = 0.0, std: float = 1.0, **_: object) -> torch.Tensor:
        return self.copy_(torch.linspace(-std, std, self.numel()).view_as(self) + mean)

    torch.Tensor.normal_ = cheap  # type: ignore[method-assign,assignment]  # put back below
    try:
        yield
    finally:
        torch.Tensor.normal_ = real  # type: ignore[method-assign]


def rank_one(site: Any, base: BaseFingerprint, out: int, into: int, seed: int) -> Patch:
    """Return a patch of one rank-one entry with its key, as ROME makes them."""
    return low_rank(site, base, out, into, 1, seed)


def low_rank(
    site: Any, base: BaseFingerprint, out: int, into: int, rank: int, seed: int
) -> Patch:  # Any: a Site
    """Return a patch of random numbers."""
    rng = np.random.default_rng(seed)
    entry = LowRankEntry(
        site=site,
        u=rng.normal(size=(out, rank)).astype("<f4") * 1e-2,
        v=rng.normal(size=(rank, into)).astype("<f4") * 1e-2,
    )
    return Patch.from_parts(
        entries=[entry],
        method=MethodRef(name="random", dist="editkit-core", version="0"),
        base=base,
        seed=seed,
        evidence=Evidence(module=site.module, keys=rng.normal(size=(1, into)).astype("<f4")),
    )


# -- timing -----------------------------------------------------------------------------------


def timed(
    works: list[Callable[[], object]],
    after: list[Callable[[], object]] | None = None,
    *,
    before: list[Callable[[], object]] | None = None,
    seconds: float = 4.0,
) -> list[float]:
    """Return the median seconds of each work; all are run in turn until the time is over."""
    found: list[list[float]] = [[] for _ in works]
    stop = time.perf_counter() + seconds
    while len(found[0]) < 5 or (time.perf_counter() < stop and len(found[0]) < 200):
        for prepare in before or []:
            prepare()
        for work, times in zip(works, found, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        for clean in after or []:
            clean()
    return [statistics.median(times) for times in found]


def row(what: str, matrix: str, seconds: float, **floors: float) -> dict[str, Any]:
    # Any: numbers and names
    """Return one line of the result."""
    ratios = {name: seconds / floor for name, floor in floors.items()}
    return {"what": what, "on": matrix, "ms": seconds * 1e3, "ratio_to": ratios}


def show(rows: list[dict[str, Any]]) -> None:  # Any: numbers and names
    """Print the result as a table."""
    table = Table(box=None)
    for column in ("what", "on", "ms", "times its floor"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    for line in rows:
        ratios = ", ".join(f"{v:.2f} {k.replace('_', ' ')}" for k, v in line["ratio_to"].items())
        table.add_row(line["what"], line["on"], f"{line['ms']:.2f}", ratios)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

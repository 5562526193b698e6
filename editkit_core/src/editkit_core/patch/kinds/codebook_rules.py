"""How a codebook grows, shrinks and is joined with another: functions from codebook to codebook.

A row has a radius of its own, which is what its edits need. Where a row of another label is so near
that the two balls would meet, each gets at most half the distance d of their keys: the earlier row
d/2 - 1e-5, the later d/2. Where two such keys are the same, the earlier row falls silent. Radii
follow from keys, labels and own radii alone, so what a row took from others is given back exactly
when the row goes.

Distances are taken in float64. Nothing here imports torch.

Source: Hartvigsen et al., "Aging with GRACE" (2023), section 3 and algorithm 1.
Differs: A split never makes a ball larger, and all balls of another label give way, not only the
nearest; the paper sets both radii to d/2 whatever they were. A row grows to cover a prompt only if
it can without meeting another label, otherwise the prompt gets a row. It grows by a thousandth more
than the distance, so that the prompt is still inside when its state comes out rounded otherwise.

Legend: n: rows; m: links between edits and rows; d_in, d_out: sides of the module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from editkit_core.errors import InvalidParameterError
from editkit_core.patch.kinds.codebook import ByteArray, Codebook

What = Literal["added", "split", "expanded", "covered"]
Expand = Literal["coverage", "moving_average"]
Array = npt.NDArray[Any]  # Any: array-like vectors of floats
Float64Array = npt.NDArray[np.float64]
GAP = 1e-5  # what keeps two balls of different labels apart
SAME = 1e-4  # keys nearer than this share of their length are one prompt's
SLACK = 1e-3  # how much further than a prompt a ball grows to cover it
_BLOCK_ROWS = 1024


def nearest(codebook: Codebook, state: Array) -> tuple[int, float]:
    """Return the row nearest to a state (d_in,) and its distance; (-1, inf) when none speaks.

    Silent rows do not count; of rows equally near the last counts. The state is inside the row's
    ball, and gets its value, when the distance is at most its radius.
    """
    distances = np.where(codebook.radii > 0, _distances(codebook.keys, state), np.inf)
    if not np.isfinite(distances).any():
        return -1, float("inf")
    row = len(distances) - 1 - int(np.argmin(distances[::-1]))
    return row, float(distances[row])


def insert(
    codebook: Codebook,
    key: Array,
    value: Array,
    label: ByteArray,
    eps: float,
    *,
    edit_id: ByteArray,
    expand: Expand = "coverage",
) -> tuple[Codebook, int, What]:
    """Put an edit into a codebook.

    Near is within the sum of ``eps`` and the nearest row's radius. Nothing near, or a row of
    another label: the edit gets a row. A near row of its label: that row stands for the edit too.

    Args:
        codebook: The codebook, which may be empty.
        key: The state (d_in,) at the edit's query position.
        value: What a new row puts in (d_out,); not used when a row stands for the edit already.
        label: Label of the edit's target, see :func:`label_of`.
        eps: Radius of a new row.
        edit_id: Digest of the edit, see :func:`edit_id_of`.
        expand: How a row of the same label grows: ``coverage`` keeps its key, ``moving_average``
            moves it half way to the new one.

    Returns:
        The codebook, the edit's row, and what was done: ``added`` a row; ``split``, added one that
        takes room from another label; ``expanded`` a row to reach the edit; ``covered``, it was
        inside a row already.

    Raises:
        InvalidParameterError: ``eps`` is not above 0.
    """
    if not eps > 0:
        raise InvalidParameterError(f"The radius eps is {eps}; it must be above 0.", eps=eps)
    row, distance = nearest(codebook, key)
    if row >= 0 and _alike(codebook, row, label) and distance <= eps + codebook.radii[row]:
        covered = distance <= codebook.radii[row]
        grown = _grown(codebook, row, key, distance, edit_id, None if covered else expand)
        if nearest(grown, key)[0] == row and _covers(grown, row, key):
            return grown, row, "covered" if covered else "expanded"
    added = _joined(
        codebook,
        Codebook(
            keys=np.asarray(key)[None],
            values=np.asarray(value)[None],
            radii=np.array([eps], np.float32),
            labels=label[None],
            edit_ids=edit_id[None],
            replacement=codebook.replacement,
        ),
    )
    row = len(codebook)
    new = _settled(added, changed=[row])
    return new, row, "split" if new.cause[row] >= 0 or (new.cause == row).any() else "added"


def with_value(codebook: Codebook, row: int, value: Array) -> Codebook:
    """Return the codebook with another value (d_out,) in a row."""
    values = np.array(codebook.values)
    values[row] = value
    return attrs.evolve(codebook, values=values)


def delete(codebook: Codebook, edit_id: ByteArray) -> Codebook:
    """Return the codebook without an edit; it may have no row left.

    A row goes with the last edit that relies on it, and gives back what it took from others. What
    it had grown for the edit is taken back too, its key stays where it moved.

    Raises:
        InvalidParameterError: The edit is not in the codebook.
    """
    if not codebook.rows_of(edit_id):
        raise InvalidParameterError(
            f"The codebook holds no edit {edit_id.tobytes().hex()[:16]}. Choose one of its edits.",
            edit=edit_id.tobytes().hex(),
        )
    return _without(codebook, (codebook.edit_ids == edit_id).all(axis=1))


def only(codebook: Codebook, edit_id: ByteArray) -> Codebook:
    """Return the codebook of one edit alone, with the radii it would have alone.

    Raises:
        InvalidParameterError: The edit is not in the codebook.
    """
    if not codebook.rows_of(edit_id):
        return delete(codebook, edit_id)  # which refuses it
    return _without(codebook, (codebook.edit_ids != edit_id).any(axis=1))


def merge(first: Codebook, second: Codebook) -> Codebook:
    """Return both codebooks as one: all rows, those of ``second`` later; radii by the one rule.

    Raises:
        InvalidParameterError: They are of other sides, or replace at other places.
    """
    check_mergeable(first, second)
    meeting = {len(first) + j for _, j, _ in conflicts(first, second)}
    return _settled(_joined(first, second), changed=meeting)


def check_mergeable(first: Codebook, second: Codebook) -> None:
    """Check that two codebooks can act on one module.

    Raises:
        InvalidParameterError: They are of other sides, or replace at other places.
    """
    sides = [(book.keys.shape[1], book.values.shape[1]) for book in (first, second)]
    if sides[0] != sides[1]:
        raise InvalidParameterError(
            f"The codebooks are of other sides (in, out): {sides[0]} and {sides[1]}. They belong "
            "to different modules."
        )
    if first.replacement != second.replacement:
        raise InvalidParameterError(
            f"The codebooks replace at other places: one {first.replacement}, the other "
            f"{second.replacement}. Make one of them again with the other's replacement."
        )


def conflicts(first: Codebook, second: Codebook) -> list[tuple[int, int, float]]:
    """Return the rows of two codebooks whose balls would meet though they answer differently.

    Returns:
        Triples: row of ``first``, row of ``second``, distance of their keys.
    """
    found = []
    own_first = first.radii_before.astype(np.float64)
    own_second = second.radii_before.astype(np.float64)
    for start in range(0, len(second), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        near = _pairwise(first.keys, second.keys[block])  # (n, rows of the block)
        for i, j in np.argwhere(near <= own_first[:, None] + own_second[None, block]):
            if (first.labels[i] != second.labels[start + j]).any():
                found.append((int(i), start + int(j), float(near[i, j])))
    return found


# -- radii ------------------------------------------------------------------------------------


def _settled(
    codebook: Codebook, *, changed: Iterable[int] = (), lost: Iterable[int] = ()
) -> Codebook:
    """Return the codebook with the radii that the rule gives.

    Args:
        codebook: Keys, labels and links as they shall be; radii as they were.
        changed: Rows that came, or whose key or own radius is another.
        lost: Rows that may have got room back.
    """
    radii, cause = np.array(codebook.radii), np.array(codebook.cause)
    own, keys = codebook.radii_before, codebook.keys.astype(np.float64)
    pressing = set(changed)
    waiting = pressing | set(lost)
    while waiting or pressing:
        if waiting:
            row = min(waiting)
            waiting.discard(row)
            before = radii[row]
            meeting = _meeting(codebook, keys, row, own)
            radii[row], cause[row] = _radius(meeting, row, own, radii > 0)
            if before == 0 and radii[row] > 0:
                pressing.add(row)
            elif before > 0 and radii[row] == 0:
                waiting |= set(np.flatnonzero(cause == row).tolist())
            continue
        row = pressing.pop()
        if radii[row] == 0:
            continue
        meeting = _meeting(codebook, keys, row, own)
        silenced = meeting.same & (np.arange(len(codebook)) < row) & (radii > 0)
        pressed = meeting.meets & (meeting.rooms_of_others < radii)
        radii[pressed] = _rounded_down(meeting.rooms_of_others[pressed])
        radii[silenced] = 0
        cause[pressed | silenced] = row
        waiting |= set(np.flatnonzero(np.isin(cause, np.flatnonzero(silenced))).tolist())
    return attrs.evolve(codebook, radii=radii, cause=cause)


def _radius(meeting: _Meeting, row: int, own: Array, speaks: Array) -> tuple[np.float32, int]:
    """Return a row's radius, and the row that keeps it below its own, or -1."""
    over = np.flatnonzero(meeting.same & (np.arange(len(own)) > row))
    if len(over):
        return np.float32(0), int(over[-1])
    rooms = np.where(meeting.meets & speaks, meeting.rooms, np.inf)
    tightest = int(np.argmin(rooms))
    if rooms[tightest] >= own[row]:
        return np.float32(own[row]), -1
    return np.float32(_rounded_down(rooms[tightest : tightest + 1])[0]), tightest


@attrs.frozen(eq=False)
class _Meeting:
    """What a row meets among the rows (n,) of other labels.

    Attributes:
        same: Which have its key.
        meets: Which have another key so near that the balls, at their own radii, would meet.
        rooms: The radius it may have beside each.
        rooms_of_others: The radius each may have beside it.
    """

    same: Array
    meets: Array
    rooms: Float64Array
    rooms_of_others: Float64Array


def _meeting(codebook: Codebook, keys: Float64Array, row: int, own: Array) -> _Meeting:
    key = keys[row]
    distances = _distances(keys, key)
    other = (codebook.labels != codebook.labels[row]).any(axis=1)
    same = other & (distances <= max(2 * GAP, SAME * float(np.linalg.norm(key))))
    earlier = np.arange(len(codebook)) < row
    return _Meeting(
        same,
        other & ~same & (distances <= own.astype(np.float64) + own[row]),
        distances / 2 - np.where(earlier, 0.0, GAP),
        distances / 2 - np.where(earlier, GAP, 0.0),
    )


def _rounded_down(rooms: Float64Array) -> Array:
    rounded = rooms.astype(np.float32)
    return np.where(rounded > rooms, np.nextafter(rounded, np.float32(0)), rounded)


# -- rows and links ---------------------------------------------------------------------------


def _grown(
    codebook: Codebook,
    row: int,
    key: Array,
    distance: float,
    edit_id: ByteArray,
    expand: Expand | None,
) -> Codebook:
    """Return the codebook with an edit linked to a row, which grows to reach it."""
    reach = np.nextafter(np.float32(distance * (1 + SLACK)), np.float32(np.inf))
    if expand is None:
        reach = min(reach, np.float32(codebook.radii_before[row]))
    linked = (codebook.edit_ids == edit_id).all(axis=1) & (codebook.edit_rows == row)
    changes: dict[str, Any] = {}  # Any: arrays by field
    if linked.any():
        changes["reaches"] = np.where(linked, np.maximum(codebook.reaches, reach), codebook.reaches)
    else:
        changes["edit_ids"] = np.concatenate([codebook.edit_ids, edit_id[None]])
        changes["edit_rows"] = np.append(codebook.edit_rows, row)
        changes["reaches"] = np.append(codebook.reaches, reach)
    if expand is None:
        return attrs.evolve(codebook, **changes)
    if expand == "moving_average":
        keys = np.array(codebook.keys)
        keys[row] = (keys[row].astype(np.float64) + key) / 2
        changes["keys"] = keys
    beside = np.flatnonzero(codebook.cause == row).tolist()
    return _settled(attrs.evolve(codebook, **changes), changed=[row], lost=beside)


def _joined(first: Codebook, second: Codebook) -> Codebook:
    """Return all rows of both; radii and causes as they were."""
    n = len(first)
    joined = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("keys", "values", "radii", "labels", "edit_ids", "reaches")
    }
    return Codebook(
        **joined,
        cause=np.append(first.cause, np.where(second.cause < 0, -1, second.cause + n)),
        edit_rows=np.append(first.edit_rows, second.edit_rows + n),
        replacement=first.replacement,
    )


def _without(codebook: Codebook, links: Array) -> Codebook:
    """Return the codebook without some links, and without the rows that have none left."""
    kept_links = ~links
    rows = np.unique(codebook.edit_rows[kept_links])
    place = np.full(len(codebook) + 1, -1, dtype=np.int64)  # the last one is for a cause of -1
    place[rows] = np.arange(len(rows))
    own_before = codebook.radii_before[rows]
    cause = place[codebook.cause[rows]]
    kept = Codebook(
        keys=codebook.keys[rows],
        values=codebook.values[rows],
        radii=np.zeros(len(rows), np.float32),
        labels=codebook.labels[rows],
        cause=cause,
        edit_ids=codebook.edit_ids[kept_links],
        edit_rows=place[codebook.edit_rows[kept_links]],
        reaches=codebook.reaches[kept_links],
        replacement=codebook.replacement,
    )
    own = kept.radii_before
    shrunk = np.flatnonzero(own < own_before)
    lost = (codebook.cause[rows] >= 0) & ((cause < 0) | np.isin(cause, shrunk))
    radii = np.minimum(codebook.radii[rows], own)
    return _settled(attrs.evolve(kept, radii=radii), lost=[*np.flatnonzero(lost), *shrunk])


def _alike(codebook: Codebook, row: int, label: ByteArray) -> bool:
    return bool((codebook.labels[row] == label).all())


def _covers(codebook: Codebook, row: int, key: Array) -> bool:
    return bool(_distances(codebook.keys[row : row + 1], key)[0] <= codebook.radii[row])


def _distances(keys: Array, state: Array) -> Float64Array:
    """Return the distances of keys (n, d_in) to a state (d_in,)."""
    difference = np.asarray(keys, np.float64) - np.asarray(state, np.float64)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", difference, difference)))


def _pairwise(left: Array, right: Array) -> Float64Array:
    """Return the distances of keys (n, d_in) to keys (k, d_in), (n, k); by one matrix product."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))

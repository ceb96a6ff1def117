"""Ground of the embedded SMAC engine's maps: where units may walk, and the ways around walls.

Pictures are those of SMAC's map files, whose cells come in blocks of two by two: 16 rows of 16 characters,
the northernmost first. '.' is walkable, 'o' as well but out of reach, '#' is blocked.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from envs.compiled import piece

SIZE = 32
"""Every map is 32 by 32 cells."""
CLEARANCE = 0.375
"""Half the width of a free way, cells: the separation radius of a zergling, or a zealot."""
DETOUR = 1.0
"""Cells: on maps without a longer detour, units slide along walls instead of planning a way around."""
BLOCKED, BESIDE, OPEN = 0, 1, 2
"""Of a cell: a wall, walkable but next to one (or to the map's edge), neither."""

_OCTAGON = """
################
################
################
#####......#####
####........####
###..........###
###..........###
###..........###
###..........###
###..........###
###..........###
####........####
#####......#####
################
################
################
"""
PICTURES = {
    "2m_vs_1z": _OCTAGON,
    "bane_vs_bane": _OCTAGON,
    "6h_vs_8z": """
oooooooooooooooo
oooooooooooooooo
oooooooooooooooo
oooooooooooooooo
oooooooooooooooo
oooo#######ooooo
ooo##.....##oooo
ooo#.......#oooo
ooo#.......#oooo
ooo#.......#oooo
ooo#.......#oooo
ooo##.....##oooo
oooo#######ooooo
oooooooooooooooo
oooooooooooooooo
oooooooooooooooo
""",
    "2s_vs_1sc": """
oooooooooooooooo
oooooooooooooooo
oooooooooooooooo
ooooo####ooooooo
oooo##..##oooooo
ooo##....##ooooo
ooo#......#ooooo
ooo#......#ooooo
ooo#......#ooooo
ooo#......#ooooo
ooo#......#ooooo
ooo#......#ooooo
ooo########ooooo
oooooooooooooooo
oooooooooooooooo
oooooooooooooooo
""",
    "corridor": """
################
##########.....#
#########......#
########.......#
#######........#
######.........#
######.........#
#######.......##
#######......###
######.#########
#.....##########
#.....##########
#.....##########
#.....##########
#.....##########
################
""",
    "so_many_baneling": """
################
###########....#
##########.....#
##########.....#
########.......#
#######......###
#######......###
#####.....######
####......######
####......######
##......########
##......########
#.....##########
#.....##########
#...############
################
""",
    "2c_vs_64zg": """
################
################
################
################
################
################
####........####
#..............#
................
..############..
................
#..............#
##............##
################
################
################
""",
}


def walkable(picture: str, ground: str = ".o") -> np.ndarray:
    """(32, 32) bool, indexed [x, y], of a picture: where one of the characters of `ground` is.

    Blocks that touch corner to corner are cliffs that run diagonally, cut off: where both neighbours of a
    blocked block are walkable, so is its cell in that corner. Without it corridor's choke would be shut. The
    end of a wall, walkable on three sides, is none.
    ValueError unless the picture is one.
    """
    rows = picture.split()
    if len(rows) != SIZE // 2 or any(len(row) != SIZE // 2 or set(row) - set("#.o") for row in rows):
        raise ValueError(
            f"a ground must be {SIZE // 2} rows of {SIZE // 2} characters, '.' walkable and '#' blocked"
        )
    blocks = np.array([[letter in ground for letter in row] for row in rows[::-1]]).T
    grid = blocks.repeat(2, 0).repeat(2, 1)
    edged = np.pad(blocks, 1)
    sides = [edged[:-2, 1:-1], edged[2:, 1:-1], edged[1:-1, :-2], edged[1:-1, 2:]]
    diagonal = np.sum(sides, axis=0) < 3
    for dx in (0, 1):
        for dy in (0, 1):
            beside = edged[2 * dx : 2 * dx + SIZE // 2, 1:-1] & edged[1:-1, 2 * dy : 2 * dy + SIZE // 2]
            grid[dx::2, dy::2] |= beside & diagonal
    return grid


def near_walls(grid: np.ndarray) -> np.ndarray:
    """(32, 32) int8 of BLOCKED, BESIDE and OPEN: only beside a wall need a unit look for it."""
    edged = np.pad(grid, 1)
    around = [edged[x : x + SIZE, y : y + SIZE] for x in range(3) for y in range(3)]
    return np.where(grid, np.where(np.all(around, axis=0), OPEN, BESIDE), BLOCKED).astype(np.int8)


def room(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance (n,) of points to the nearest blocked cell or the map's edge, as far as 2; negative inside."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    out = np.minimum(np.minimum(x, SIZE - x), np.minimum(np.minimum(y, SIZE - y), 2.0))
    inside = (x >= 0) & (y >= 0) & (x < SIZE) & (y < SIZE)
    cx, cy = (np.clip(np.floor(a).astype(int), 0, SIZE - 1) for a in (x, y))
    edged = np.pad(grid, 2, constant_values=True)
    for i in range(-2, 3):
        for j in range(-2, 3):
            far = np.hypot(x - np.clip(x, cx + i, cx + i + 1), y - np.clip(y, cy + j, cy + j + 1))
            out = np.where(edged[cx + i + 2, cy + j + 2], out, np.minimum(out, far))
    return np.where(inside & grid[cx, cy], out, -1.0)


def _visible(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, n) bool: whether a unit can walk straight from one cell's centre (n,) to another's."""
    start, end = np.triu_indices(len(x), 1)
    length = np.maximum(np.hypot(x[end] - x[start], y[end] - y[start]), 1e-9)
    side = np.stack([y[start] - y[end], x[end] - x[start]]) / length * CLEARANCE
    free = np.ones(len(start), dtype=np.bool_)
    for t in np.linspace(0.0, 1.0, 4 * SIZE + 1):
        at = (1 - t) * np.stack([x[start], y[start]]) + t * np.stack([x[end], y[end]])
        for shift in (-1.0, 0.0, 1.0):
            cell = np.floor(at + shift * side).astype(np.int64)
            free &= grid[cell[0], cell[1]]
    sees = np.eye(len(x), dtype=np.bool_)
    sees[start, end] = sees[end, start] = free
    return sees


def ways(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shortest ways between all walkable cells, straight from one that is visible to the next.

    Returns cells (32, 32) int16, the number of the walkable cell that is nearest to each, and hops (n, n)
    int16: where a unit in cell a walks first on its way to cell b, as 32·x + y of that cell, or -1 if
    straight to its goal (or if there is no way). hops is (0, 0) where no way is longer than the straight
    line by DETOUR.
    """
    return _ways(grid.tobytes())


@functools.cache
def _ways(packed: bytes) -> tuple[np.ndarray, np.ndarray]:
    grid = np.frombuffer(packed, dtype=np.bool_).reshape(SIZE, SIZE)
    cx, cy = np.nonzero(grid)
    x, y = cx + 0.5, cy + 0.5
    everywhere = np.arange(SIZE) + 0.5
    squared = (everywhere[:, None, None] - x) ** 2 + (everywhere[None, :, None] - y) ** 2
    cells = squared.argmin(-1).astype(np.int16)
    sees = _visible(grid, x, y)
    straight = np.where(sees, np.hypot(x[:, None] - x, y[:, None] - y), np.inf)
    length = straight.copy()
    for via in range(len(x)):  # Floyd and Warshall
        np.minimum(length, length[:, via, None] + length[None, via], out=length)
    hops = np.full(length.shape, -1, dtype=np.int16)
    apart = np.hypot(x[:, None] - x, y[:, None] - y)
    if not ((length - apart > DETOUR) & np.isfinite(length)).any():
        return cells, hops[:0, :0]
    for a in range(len(x)):
        around = np.flatnonzero(~sees[a] & np.isfinite(length[a]))
        if len(around):
            # Of cells in one line the farthest.
            first = (straight[a] * (1 - 1e-6))[:, None] + length[:, around]
            first[a] = np.inf
            step = first.argmin(0)
            hops[a, around] = SIZE * cx[step] + cy[step]
    return cells, hops


@piece
def off_walls(walls, x, y, r, old_x, old_y):
    """Where a disc of radius r ends that was at (old_x, old_y) and should be at (x, y): off the walls.

    Blocked cells push it away, those on its sides before those at its corners, along which it would else be
    caught on a straight wall. What ends inside of one all the same has not moved.
    """
    cx, cy = int(x), int(y)
    if walls[cx, cy] == OPEN:
        return x, y
    for corners in range(2):
        for side in range(4):
            if corners:
                bx, by = cx + (1 if side % 2 else -1), cy + (1 if side // 2 else -1)
            else:
                along = 1 if side % 2 else -1
                bx, by = (cx + along, cy) if side < 2 else (cx, cy + along)
            if 0 <= bx < SIZE and 0 <= by < SIZE and walls[bx, by] == BLOCKED:
                dx, dy = x - min(max(x, bx), bx + 1.0), y - min(max(y, by), by + 1.0)
                distance = math.sqrt(dx * dx + dy * dy)
                if 0.0 < distance < r:
                    x += dx / distance * (r - distance)
                    y += dy / distance * (r - distance)
    x, y = min(max(x, r), SIZE - r), min(max(y, r), SIZE - r)
    if walls[int(x), int(y)] == BLOCKED:
        return old_x, old_y
    return x, y


@piece
def first_stop(cells, hops, x, y, gx, gy):
    """Where to walk first on the way from (x, y) to (gx, gy), as 32·x + y of a cell; -1: straight there."""
    return hops[cells[int(x), int(y)], cells[int(gx), int(gy)]]


@piece
def way_length(cells, hops, x, y, gx, gy):
    """Length of the shortest way from (x, y) to (gx, gy)."""
    length = 0.0
    if hops.shape[0] > 0:
        for _ in range(SIZE):  # more turns than any way has
            hop = first_stop(cells, hops, x, y, gx, gy)
            if hop < 0:
                break
            hx, hy = hop // SIZE + 0.5, hop % SIZE + 0.5
            length += math.hypot(hx - x, hy - y)
            x, y = hx, hy
    return length + math.hypot(gx - x, gy - y)

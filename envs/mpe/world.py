"""The particle world of `envs.mpe`, compiled: physics, targets, assignment, reward and observation.

pos, vel (E, N, 2) and land (E, L, 2) float64 are the agents' positions and velocities and the landmarks'
positions; e is an environment, i and j are agents, landmarks or targets. `rules` is a float64 array with an
entry for each of the numbers named below, so that one kernel serves every task and variant.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from envs.compiled import njit, piece

DT, DAMPING, PUSH = 0.1, 0.25, 5.0
CONTACT_FORCE, CONTACT_MARGIN = 100.0, 1e-3
NO_CONTACT = 50 * CONTACT_MARGIN
"""Gap between two agents beyond which their contact force, below 1e-22, is left out."""
LINE_LENGTH, CIRCLE_RADIUS = 1.25, 0.5
NUM_ACTIONS = 5
"""0 nothing, 1 towards -x, 2 towards +x, 3 towards -y, 4 towards +y."""
SPREAD, LINE, CIRCLE = range(3)
TASK, SIZE, START, VISION, OTHERS, POSITION_FIRST, NEAREST, CLIP, PENALTY, LEAST = range(10)
"""Entries of `rules`; `envs.mpe.env.Rules` explains them."""
RULES = 10

MOST_SUBSETS = 7
"""Agents up to which the least sum is searched over subsets; beyond, the Hungarian method is faster."""
ENDED, GOING_ON = -2, -1

kernel = njit(nogil=True, error_model="numpy")


def subset_table(num_agents: int) -> np.ndarray:
    """What `_least_sum` looks up: for each set of targets, numbered by size, and each target in it, the row
    (number of the set without that target, target) uint16. Empty where it is not used.
    """
    N = num_agents if num_agents <= MOST_SUBSETS else 0
    subsets = [frozenset(s) for k in range(N + 1) for s in combinations(range(N), k)]
    number = {subset: i for i, subset in enumerate(subsets)}
    rows = [(number[subset - {j}], j) for subset in subsets for j in sorted(subset)]
    return np.array(rows, dtype=np.uint16).reshape(-1, 2)


@piece
def _uniform(rng, e, low, high):
    """A draw from environment e's stream: splitmix64."""
    rng[e] += np.uint64(0x9E3779B97F4A7C15)
    z = rng[e]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return low + (high - low) * (np.float64(z >> np.uint64(11)) * 2.0**-53)


@piece
def _start(e, pos, vel, land, rng, rules):
    """Place environment e's agents and landmarks at random, everyone at rest."""
    for i in range(pos.shape[1]):
        for k in range(2):
            pos[e, i, k] = _uniform(rng, e, -1.0, 1.0)
            vel[e, i, k] = 0.0
    line = rules[TASK] == LINE
    for j in range(1 if line else land.shape[1]):
        for k in range(2):
            land[e, j, k] = _uniform(rng, e, -rules[START], rules[START])
    if line:
        angle = _uniform(rng, e, 0.0, 2.0 * math.pi)
        while True:
            land[e, 1, 0] = land[e, 0, 0] + LINE_LENGTH * math.cos(angle)
            land[e, 1, 1] = land[e, 0, 1] + LINE_LENGTH * math.sin(angle)
            if abs(land[e, 1, 0]) < 1.0 and abs(land[e, 1, 1]) < 1.0:
                break
            angle += math.pi / 36.0


@piece
def _move(e, pos, vel, actions, rules, force):
    """One step of environment e's physics; force (N, 2) is scratch."""
    N = pos.shape[1]
    for i in range(N):
        a = actions[e, i]
        force[i, 0] = PUSH * ((a == 2) - (a == 1))
        force[i, 1] = PUSH * ((a == 4) - (a == 3))
    touch = 2.0 * rules[SIZE]
    reach = (touch + NO_CONTACT) ** 2
    for i in range(N):
        for j in range(i + 1, N):
            dx = pos[e, i, 0] - pos[e, j, 0]
            dy = pos[e, i, 1] - pos[e, j, 1]
            squared = dx * dx + dy * dy
            # Agents in the very same place have no direction to push each other in.
            if 0.0 < squared < reach:
                d = math.sqrt(squared)
                x = (touch - d) / CONTACT_MARGIN
                # log(1 + exp(x)), in a form that does not overflow.
                depth = CONTACT_MARGIN * (max(x, 0.0) + math.log1p(math.exp(-abs(x))))
                push = CONTACT_FORCE * depth / d
                force[i, 0] += push * dx
                force[i, 1] += push * dy
                force[j, 0] -= push * dx
                force[j, 1] -= push * dy
    position_first = rules[POSITION_FIRST] != 0.0
    for i in range(N):
        for k in range(2):
            before = vel[e, i, k]
            after = before * (1.0 - DAMPING) + force[i, k] * DT
            pos[e, i, k] += (before if position_first else after) * DT
            vel[e, i, k] = after


@piece
def _aim(e, pos, land, rules, turn, goal):
    """Write environment e's targets goal (N, 2); turn (N, 2) is the cosine and sine of 2 pi j / N."""
    N = pos.shape[1]
    if rules[TASK] == SPREAD:
        for j in range(N):
            goal[j, 0] = land[e, j, 0]
            goal[j, 1] = land[e, j, 1]
    elif rules[TASK] == LINE:
        for j in range(N):
            for k in range(2):
                goal[j, k] = land[e, 0, k] + (land[e, 1, k] - land[e, 0, k]) * (j / (N - 1))
    else:
        # The agent at the smallest angle in [0, 2 pi). Angles are taken along a diamond, from 0 to 4: their
        # order is the same, without an arctangent. Choices without branches keep it fast.
        x, y, least = 0.0, 0.0, np.inf
        for i in range(N):
            dx = pos[e, i, 0] - land[e, 0, 0]
            dy = pos[e, i, 1] - land[e, 0, 1]
            around = abs(dx) + abs(dy)
            part = dx / around if around > 0.0 else 1.0
            angle = 1.0 - part if dy >= 0.0 else 3.0 + part
            first = angle < least
            x = dx if first else x
            y = dy if first else y
            least = angle if first else least
        if x == 0.0 and y == 0.0:
            x = 1.0
        scale = CIRCLE_RADIUS / math.sqrt(x * x + y * y)
        for j in range(N):
            goal[j, 0] = land[e, 0, 0] + scale * (turn[j, 0] * x - turn[j, 1] * y)
            goal[j, 1] = land[e, 0, 1] + scale * (turn[j, 1] * x + turn[j, 0] * y)


@piece
def _least_sum(cost, N, table, best):
    """Least sum of an assignment of the rows of cost (N * N,) to its columns; best (2^N,) is scratch.

    best[s] is the least sum of as many first rows as set s of columns has members.
    """
    best[0] = 0.0
    one = np.uint64(1)  # unsigned, so that indexing need not look for negative numbers
    at, s, sets = np.uint64(0), np.uint64(1), 1
    for k in range(N):
        sets = sets * (N - k) // (k + 1)
        for _ in range(sets):
            least = np.inf
            for _ in range(k + 1):
                total = best[table[at, 0]] + cost[k * N + table[at, 1]]
                least = total if total < least else least
                at += one
            best[s] = least
            s += one
    return best[s - one]


@piece
def _hungarian(cost, N, lines, prices):
    """Write lines[0, :N]: the row that each column of cost (N * N,) goes to at the least sum.

    Rows take their cheapest column while it is free. Each of the others is then brought in along the shortest
    path of exchanges, at prices of the columns that leave no exchange cheaper (Kuhn and Munkres, with
    Dijkstra's search; O(N³)).
    lines (4, N) int64 and prices (2, N) float64 are scratch.
    """
    owner, column, back, order = 0, 1, 2, 3
    price, way = 0, 1
    for j in range(N):
        prices[price, j] = 0.0
        lines[owner, j] = lines[column, j] = -1
    for i in range(N):
        best, low = 0, np.inf
        for j in range(N):
            if cost[i * N + j] < low:
                best, low = j, cost[i * N + j]
        if lines[owner, best] < 0:
            lines[owner, best], lines[column, i] = i, best
    for i in range(N):
        if lines[column, i] >= 0:
            continue
        for j in range(N):
            prices[way, j] = cost[i * N + j] - prices[price, j]
            lines[back, j], lines[order, j] = i, j
        done = 0
        while True:
            # order[:done] have their shortest way; the nearest of the rest is next, until that one is free.
            nearest, length = done, prices[way, lines[order, done]]
            for k in range(done + 1, N):
                if prices[way, lines[order, k]] < length:
                    nearest, length = k, prices[way, lines[order, k]]
            j = lines[order, nearest]
            lines[order, nearest], lines[order, done] = lines[order, done], j
            row = lines[owner, j]
            if row < 0:
                break
            done += 1
            base = length - cost[row * N + j] + prices[price, j]
            for k in range(done, N):
                q = lines[order, k]
                through = base + cost[row * N + q] - prices[price, q]
                if through < prices[way, q]:
                    prices[way, q], lines[back, q] = through, row
        for k in range(done):
            q = lines[order, k]
            prices[price, q] += prices[way, q] - length
        while j >= 0:
            row = lines[back, j]
            lines[owner, j] = row
            lines[column, row], j = j, lines[column, row]


@piece
def _touching(e, pos, size):
    """Pairs of overlapping agents of environment e: ordered, and each agent with itself."""
    N = pos.shape[1]
    pairs = N
    for i in range(N):
        for j in range(i + 1, N):
            dx = pos[e, i, 0] - pos[e, j, 0]
            dy = pos[e, i, 1] - pos[e, j, 1]
            if math.sqrt(dx * dx + dy * dy) < 2.0 * size:
                pairs += 2
    return pairs


@piece
def _pay(e, pos, rules, goal, cost, table, best, lines, prices):
    """The team's reward in environment e; what follows `goal`, but for `table`, is scratch."""
    N = pos.shape[1]
    for i in range(N):
        for j in range(N):
            dx = pos[e, i, 0] - goal[j, 0]
            dy = pos[e, i, 1] - goal[j, 1]
            cost[i * N + j] = dx * dx + dy * dy
    for k in range(N * N):
        cost[k] = math.sqrt(cost[k])  # in a loop of its own, which runs in vector registers
    total = 0.0
    if rules[NEAREST] != 0.0:
        for j in range(N):
            least = np.inf
            for i in range(N):
                least = min(least, cost[i * N + j])
            total += N * least
    else:
        total = _least_sum(cost, N, table, best) if table.shape[0] > 0 else np.inf
        # A sum within the clip clips no term of it. Beyond, or where it is not known, the terms are needed.
        if total > rules[CLIP] or table.shape[0] == 0:
            _hungarian(cost, N, lines, prices)
            total = 0.0
            for j in range(N):
                total += min(cost[lines[0, j] * N + j], rules[CLIP])
    if rules[PENALTY] != 0.0:
        total += 0.5 * rules[PENALTY] * _touching(e, pos, rules[SIZE])
    return max(-total / N, rules[LEAST])


@piece
def _look(e, pos, vel, land, rules, obs):
    """Write what the agents of environment e see, obs[e] (N, obs_dim).

    Own velocity and position, then relative to it the landmarks and the other agents, in order of their
    numbers; zeros for what is VISION or more away.
    """
    N, L = pos.shape[1], land.shape[1]
    far = rules[VISION] * rules[VISION]
    others = rules[OTHERS] != 0.0
    for i in range(N):
        x, y = pos[e, i, 0], pos[e, i, 1]
        obs[e, i, 0], obs[e, i, 1] = vel[e, i, 0], vel[e, i, 1]
        obs[e, i, 2], obs[e, i, 3] = x, y
        for j in range(L):
            dx, dy = land[e, j, 0] - x, land[e, j, 1] - y
            near = dx * dx + dy * dy < far
            obs[e, i, 4 + 2 * j] = dx if near else 0.0
            obs[e, i, 5 + 2 * j] = dy if near else 0.0
        if others:
            for j in range(i + 1, N):
                dx, dy = pos[e, j, 0] - x, pos[e, j, 1] - y
                near = dx * dx + dy * dy < far
                obs[e, i, 2 + 2 * (L + j)] = dx if near else 0.0
                obs[e, i, 3 + 2 * (L + j)] = dy if near else 0.0
                obs[e, j, 4 + 2 * (L + i)] = -dx if near else 0.0
                obs[e, j, 5 + 2 * (L + i)] = -dy if near else 0.0


@piece
def _turns(turn):
    """Write cosine and sine of 2 pi j / N to turn (N, 2)."""
    N = turn.shape[0]
    for j in range(N):
        turn[j, 0], turn[j, 1] = math.cos(2.0 * math.pi * j / N), math.sin(2.0 * math.pi * j / N)


@kernel
def advance(pos, vel, land, actions, rules, table, obs, reward):
    """One step everywhere: pos and vel change in place, obs (E, N, obs_dim) and reward (E,) are written."""
    N = pos.shape[1]
    force, goal, turn = np.empty((N, 2)), np.empty((N, 2)), np.empty((N, 2))
    cost, best = np.empty(N * N), np.empty(1 << N if table.shape[0] > 0 else 0)
    lines, prices = np.empty((4, N), dtype=np.int64), np.empty((2, N))
    if rules[TASK] == CIRCLE:
        _turns(turn)
    for e in range(pos.shape[0]):
        _move(e, pos, vel, actions, rules, force)
        _aim(e, pos, land, rules, turn, goal)
        reward[e] = _pay(e, pos, rules, goal, cost, table, best, lines, prices)
        _look(e, pos, vel, land, rules, obs)


@kernel
def play(pos, vel, land, actions, rules, table, length, total, limit, obs, reward, over):
    """One step of the environments: `advance`, lengths, returns and who is at the step limit.

    Returns ENDED if any is, else GOING_ON; or, with nothing played, the place of the first action that is out
    of range.
    """
    E, N = actions.shape
    for e in range(E):
        for i in range(N):
            if actions[e, i] < 0 or actions[e, i] >= NUM_ACTIONS:
                return e * N + i
    advance(pos, vel, land, actions, rules, table, obs, reward)
    result = GOING_ON
    for e in range(E):
        length[e] += 1
        total[e] += reward[e]
        over[e] = length[e] >= limit
        if over[e]:
            result = ENDED
    return result


@kernel
def renew(select, pos, vel, land, rng, rules, length, total, obs, final_obs, returns, lengths):
    """Where select (E,) is True: keep how the episode ended in the last three, and begin the next one."""
    for e in range(pos.shape[0]):
        if select[e]:
            final_obs[e] = obs[e]
            returns[e], lengths[e] = total[e], length[e]
            length[e], total[e] = 0, 0.0
            _start(e, pos, vel, land, rng, rules)
            _look(e, pos, vel, land, rules, obs)


@kernel
def look(pos, vel, land, rules, obs):
    """Write the observations of every environment."""
    for e in range(pos.shape[0]):
        _look(e, pos, vel, land, rules, obs)


@kernel
def aim(pos, land, rules, goal):
    """Write the targets (E, N, 2) of every environment."""
    N = pos.shape[1]
    turn = np.empty((N, 2))
    _turns(turn)
    for e in range(pos.shape[0]):
        _aim(e, pos, land, rules, turn, goal[e])


@kernel
def pair(cost, column):
    """Write the column (B, N) that each row of cost (B, N, N) goes to at the least sum."""
    B, N = column.shape
    lines, prices = np.empty((4, N), dtype=np.int64), np.empty((2, N))
    for b in range(B):
        _hungarian(cost[b].reshape(-1), N, lines, prices)
        for j in range(N):
            column[b, lines[0, j]] = j


@kernel
def sample(rng, actions):
    """Draw actions (E, N) uniformly."""
    for e in range(actions.shape[0]):
        for i in range(actions.shape[1]):
            actions[e, i] = int(_uniform(rng, e, 0.0, float(NUM_ACTIONS)))

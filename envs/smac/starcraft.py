"""SMAC over the real game (oxwhirl SMAC + StarCraft II), behind the same contract as the embedded engine.

One process per environment runs SMAC and its game. A game that crashes or hangs is ended and started again;
its episode is dropped: truncated, `infos["dropped"]` True, left out of the episode statistics, never a loss.
Real battles are not reproducible bit for bit: a seed reaches the game's random_seed and no further.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import math
import os
import time
import warnings
import weakref
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.base import Step, TeamVectorEnv, playable
from envs.smac.maps import MAPS
from envs.smac.starcraft_process import (
    INSTALL,
    Lost,
    StarCraftError,
    Worker,
    available,
    require,
    smac_version,
    stop,
    version_of,
)
from envs.smac.units import STEP_LOOPS

__all__ = ["StarCraftError", "StarCraftVectorEnv", "available", "require"]

CLOSE_SECONDS, MAX_BACKOFF_SECONDS = 5.0, 60.0
LONGEST_SECONDS = 1e6
"""The largest time-out: the system waits for 2^31 ms at most."""
DIFFICULTIES = tuple("123456789A")
"""From very easy to a computer that cheats; published results are of 7, very hard."""
MAX_LOOPS = 524_000
"""Game loops that a game is played for, as in PySC2: it fails above 2^19 = 524,288; resets need some, too."""

NOT_DRAWN = (
    "The real game is not drawn: call save_replay() and watch it in StarCraft II, or render with "
    'backend="embedded".'
)


class StarCraftVectorEnv(TeamVectorEnv):
    """SMAC on the real game: E environments, N agents, A actions, one shared reward.

    Spaces, arguments of `step`, returned arrays and infos are those of the embedded `SmacVectorEnv`, and
    `infos["dropped"]` (E,) bool. Every map of SMAC can be played.

    step_timeout, reset_timeout: seconds an environment may take (a reset may launch the game).
    max_restarts: failures in a row, with no episode finished between them, before StarCraftError.
    backoff: seconds before a failed game is started again, doubled at each further failure, at most 60.
    stagger: seconds between two launches. relaunch_every: episodes after which a game is replaced, since its
    memory grows; 0: only before an episode that might outlast `MAX_LOOPS`, after some 65,000 steps.
    game_version: "4.10", "4.6.2" or None, the newest installed.
    reward_fix: False keeps SMAC's abs(), which pays for shields that regenerate; True is max(0, .).
    StarCraftError if the game cannot be played here, ValueError for a bad argument.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
    backend = label = "starcraft"
    restorable, cheap_copies, wins = False, False, True

    def __init__(
        self,
        map_name: str,
        num_envs: int = 1,
        seed: int = 0,
        reward_fix: bool = False,
        render_mode: str | None = None,
        game_version: str | None = "4.10",
        difficulty: str = "7",
        step_timeout: float = 60.0,
        reset_timeout: float = 300.0,
        max_restarts: int = 5,
        backoff: float = 5.0,
        stagger: float = 1.0,
        relaunch_every: int = 0,
        replay_dir: str = "",
    ) -> None:
        self.closed = True  # until there is something to close
        if render_mode is not None:
            raise ValueError(NOT_DRAWN)
        if map_name.endswith(".toml"):
            raise ValueError(f'The battle {map_name} is for the embedded engine: use backend="embedded".')
        if map_name not in MAPS:
            near = difflib.get_close_matches(map_name, MAPS, n=3, cutoff=0.4) or MAPS
            raise ValueError(f"Unknown SMAC map {map_name!r}; the nearest names are {', '.join(near)}.")
        waits = all(0 < seconds <= LONGEST_SECONDS for seconds in (step_timeout, reset_timeout))
        if num_envs < 1 or not waits or not all(n >= 0 for n in (max_restarts, relaunch_every, backoff)):
            raise ValueError(
                f"num_envs and the time-outs must be positive, these at most {LONGEST_SECONDS:,.0f} seconds; "
                "max_restarts, relaunch_every and backoff must not be negative."
            )
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty must be one of {', '.join(DIFFICULTIES)}; got {difficulty!r}.")
        self.game_build = require(map_name, game_version)
        self.game_version = version_of(self.game_build)
        self.map_name, self.num_envs, self.env_id = map_name, num_envs, f"smac/{map_name}"
        self.reward_fix, self.difficulty, self.render_mode = reward_fix, difficulty, None
        self.step_timeout, self.reset_timeout, self.max_restarts = step_timeout, reset_timeout, max_restarts
        self.backoff, self.stagger, self.relaunch_every = backoff, stagger, relaunch_every
        self._smac: dict[str, Any] = {
            "map_name": map_name,
            "game_version": smac_version(self.game_build),
            "difficulty": difficulty,
            "step_mul": STEP_LOOPS,  # SMAC's first versions had another default
            "move_amount": 2,
            "continuing_episode": True,  # its one effect: info tells the step limit from a decided battle
            "window_size_x": 640,
            "window_size_y": 480,
            # PySC2 takes a relative path to be under the game's own replay folder.
            "replay_dir": os.path.abspath(replay_dir) if replay_dir else "",
        }
        if reward_fix:  # makes SMAC's reward the signed sum that it takes the abs() of by default
            self._smac |= {"reward_only_positive": False, "reward_negative_scale": 0.0}
        E = num_envs
        self._launches, self._launched_at = np.zeros(E, dtype=np.int64), -math.inf
        self._seed_streams(self._take_seed(seed))
        self.restarts = np.zeros(E, dtype=np.int64)
        """(E,) games lost so far."""
        self._failures, self._played, self._loops = np.zeros((3, E), dtype=np.int64)
        self._fresh, self._warned = np.zeros(E, dtype=np.bool_), False
        self._workers: list[Worker | None] = [None] * E
        self._finalizer = weakref.finalize(self, stop, self._workers, CLOSE_SECONDS)  # also at exit
        self.closed = False
        sizes = self._ask({0: ("sizes",)}, reset_timeout)[0]
        if isinstance(sizes, Lost):
            self._give_up(f"SMAC did not start ({sizes}).")
        self.num_agents, self.num_actions = int(sizes["n_agents"]), int(sizes["n_actions"])
        self.obs_dim, self.state_dim = int(sizes["obs_shape"]), int(sizes["state_shape"])
        self.episode_limit = int(sizes["episode_limit"])
        ours, N = MAPS[map_name], self.num_agents
        self.max_reward = ours.max_reward
        """The sum of SMAC's rewards before scaling; an episode's return is in units of a twentieth of it."""
        got = (N, self.num_actions, self.obs_dim, self.state_dim, self.episode_limit)
        if got != (want := (N, ours.num_actions, ours.obs_dim, ours.state_dim, ours.limit)):
            self._give_up(
                f"The installed SMAC is a fork: agents, actions, observation, state and limit of {map_name} "
                f"are {got} instead of {want}. Install the original: {INSTALL}"
            )
        self._last_start = MAX_LOOPS - STEP_LOOPS * ours.limit  # game loop after which no episode may begin
        self.agent_obs_dims, self.agent_act_dims = (self.obs_dim,) * N, (self.num_actions,) * N
        self.single_observation_space = spaces.Box(-1.0, 1.0, (N, self.obs_dim), np.float32)
        self.single_action_space = spaces.MultiDiscrete([self.num_actions] * N)
        self.observation_space = batch_space(self.single_observation_space, E)
        self.action_space = batch_space(self.single_action_space, E)
        self._obs = np.zeros((E, N, self.obs_dim), dtype=np.float32)
        self._mask = np.zeros((E, N, self.num_actions), dtype=np.bool_)
        self._state = np.zeros((E, self.state_dim), dtype=np.float32)
        self._returns, self._lengths = np.zeros(E), np.zeros(E, dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in each environment, save those that have only just begun one: SMAC must not be
        reset twice. A seed is for the games launched from now on; those that run are kept.

        Returns obs (E, N, obs_dim) float32 and infos; StarCraftError after max_restarts failures in a row.
        """
        self._before_reset(seed, options)
        stale = np.flatnonzero(~self._fresh).tolist()
        for e in stale:
            if self._played[e] == 0 and self._lengths[e] > 0:
                # Without a finished episode SMAC would launch a second game beside the first.
                self._end(e)
            # Else a battle that goes on is ended as one at the step limit is. Whether the map's script is
            # ready for that within the first steps has not been tried on the game itself.
        self._begin(stale)
        self._started = True
        return self._obs.copy(), self._infos()

    def _seed_streams(self, seed: int) -> None:
        self._seed, self._launches[:] = seed, 0

    def step(self, actions: np.ndarray) -> Step:
        """Play actions (E, N) int for one step of 8 game loops.

        An environment whose game is lost returns reward 0, truncated and dropped True, and as final_obs,
        final_action_mask and final_alive what was seen last. ValueError for a bad action (no game has
        moved), StarCraftError after max_restarts failures in a row.
        """
        self._check_started()
        actions = playable(actions, self._mask)
        E = self.num_envs
        self._fresh[:] = False
        reward = np.zeros(E, dtype=np.float32)
        terminated, truncated, won, dropped = np.zeros((4, E), dtype=np.bool_)
        replies = self._ask({e: ("step", actions[e].tolist()) for e in range(E)}, self.step_timeout)
        for e, reply in replies.items():
            if isinstance(reply, Lost):
                self._drop(e, reply)
                truncated[e] = dropped[e] = True
            else:
                reward[e], terminated[e], truncated[e], won[e], seen, self._loops[e] = reply
                self._obs[e], self._mask[e], self._state[e] = seen
        self._returns += reward
        self._lengths += 1
        ended = terminated | truncated
        finished = ended & ~dropped
        self._played += finished
        self._failures[finished] = 0
        final_obs = np.where(ended[:, None, None], self._obs, np.float32(0))
        final_mask, final_alive = ended[:, None, None] & self._mask, ended[:, None] & self._living()
        returns = np.where(finished, self._returns, 0).astype(np.float32)
        episode = {"r": returns, "l": np.where(finished, self._lengths, 0)}
        self._begin(np.flatnonzero(ended).tolist())
        infos = self._infos()
        infos.update(final_obs=final_obs, _final_obs=ended)
        infos.update(final_action_mask=final_mask, final_alive=final_alive)
        infos.update(episode=episode, _episode=finished)
        infos.update(battle_won=won, dropped=dropped)
        return self._obs.copy(), reward, terminated, truncated, infos

    def state(self) -> np.ndarray:
        """SMAC's global state (E, state_dim) float32 of the observations last returned."""
        return self._state.copy()

    def _get_state(self) -> dict[str, np.ndarray]:
        """The counters that survive, seed () and launches (E,) int64: battles themselves cannot be saved."""
        return {"seed": np.array(self._seed, dtype=np.int64), "launches": self._launches.copy()}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Take the counters of `get_state` and begin new episodes, with a warning. Running games are kept.

        ValueError if the state does not fit.
        """
        self._check_form(state)
        self._seed, self._launches = int(state["seed"]), np.array(state["launches"], dtype=np.int64)
        self.reset()
        if not self._warned:
            self._warned = True
            warnings.warn(
                "StarCraft II cannot continue a saved battle: new episodes have begun.", stacklevel=2
            )

    def describe(self) -> dict[str, Any]:
        """What a run should record about the game; plain values for args.json."""
        try:
            smac = importlib.metadata.version("smac")
        except importlib.metadata.PackageNotFoundError:
            smac = "unknown"
        return {
            "backend": self.backend,
            "smac": smac,
            "game_version": self.game_version,
            "game_build": self.game_build,
            "difficulty": self.difficulty,
            "reward_fix": self.reward_fix,
            "max_reward": self.max_reward,
        }

    def save_replay(self, i: int = 0) -> None:
        """Save environment i's game, all its episodes so far, in replay_dir (default: StarCraft II's own)."""
        reply = self._ask({i: ("save_replay",)}, self.reset_timeout)[i]
        if isinstance(reply, Lost):
            self._drop(i, reply)
            raise StarCraftError(f"The replay of environment {i} was not saved ({reply}).")

    def render(self, i: int = 0) -> np.ndarray:  # type: ignore[override]
        """ValueError: there are no pictures of the real game."""
        raise ValueError(NOT_DRAWN)

    def close_extras(self, **kwargs: Any) -> None:
        """End every worker and its game."""
        stop(self._workers, CLOSE_SECONDS)
        self._finalizer.detach()

    def _launch(self, e: int) -> Worker:
        """Start environment e's process; not at once with others, as their games may take the same port."""
        time.sleep(max(0.0, self._launched_at + self.stagger - time.monotonic()))
        self._launched_at = time.monotonic()
        self._workers[e] = worker = Worker({"reward_fix": self.reward_fix, "smac": self._smac})
        self._played[e] = self._loops[e] = 0
        return worker

    def _game_seed(self, e: int) -> int:
        """Seed of environment e's next game. Each game has its own, so that a crash is not played again."""
        stream = np.random.SeedSequence(self._seed, spawn_key=(e, int(self._launches[e])))
        return int(stream.generate_state(1)[0]) & 0x7FFFFFFF

    def _ask(self, commands: dict[int, tuple[Any, ...]], timeout: float) -> dict[int, Any]:
        """Send each environment its command, launching it first where there is none, and gather the replies.

        A game without a reply within `timeout` seconds, or with a failure for a reply, stands as `Lost`.
        """
        if self.closed:
            raise StarCraftError("This environment is closed: make another.")
        replies: dict[int, Any] = {}
        workers: dict[int, Worker] = {}
        waiting: dict[Any, int] = {}
        try:
            for e, command in commands.items():
                workers[e] = self._workers[e] or self._launch(e)
                waiting[workers[e].connection] = e
                with contextlib.suppress(OSError):  # a worker that is gone is noticed when it is read from
                    workers[e].connection.send(command)
            deadline = time.monotonic() + timeout
            while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
                for connection in ready:
                    e = waiting.pop(connection)
                    replies[e] = workers[e].receive()
        except StarCraftError:
            self.close()
            raise
        except BaseException:
            # An interrupt loses the replies, read or not, so these games are out of step with us.
            for e in commands:
                self._end(e)
            raise
        for e in waiting.values():
            replies[e] = Lost(f"no answer to {commands[e][0]} within {timeout:g} s")
        return replies

    def _begin(self, which: list[int]) -> None:
        """Begin an episode in these environments, one reset each; a game that fails is replaced."""
        while which:
            for e in which:
                if self._loops[e] > self._last_start or 0 < self.relaunch_every <= self._played[e]:
                    self._end(e)
            failures = int(self._failures[which].max())
            if failures:
                time.sleep(min(MAX_BACKOFF_SECONDS, self.backoff * 2 ** (failures - 1)))
            replies = self._ask({e: ("reset", self._game_seed(e)) for e in which}, self.reset_timeout)
            for e, reply in replies.items():
                if isinstance(reply, Lost):
                    self._launches[e] += 1
                    self._drop(e, reply)
                else:
                    (self._obs[e], self._mask[e], self._state[e]), about = reply
                    if about is not None:
                        self._launches[e] += 1
                        self._verify(about)
                    self._fresh[e], self._returns[e], self._lengths[e] = True, 0, 0
            which = [e for e in which if isinstance(replies[e], Lost)]

    def _end(self, e: int) -> None:
        """End environment e's process and game; the next command launches another."""
        stop([self._workers[e]], CLOSE_SECONDS)
        self._workers[e] = None
        self._fresh[e] = False

    def _drop(self, e: int, why: Lost) -> None:
        """Count a lost game and end what is left of it; StarCraftError after too many in a row."""
        self._end(e)
        self.restarts[e] += 1
        self._failures[e] += 1
        if self._failures[e] > self.max_restarts:
            self._give_up(
                f"StarCraft II failed {self._failures[e]} times in a row in environment {e} (last: {why}): "
                "check that it starts and that memory suffices, or raise max_restarts or the time-outs."
            )
        warnings.warn(
            f"Environment {e} lost its game ({why}): the episode is dropped, restart "
            f"{self._failures[e]} of at most {self.max_restarts} in a row.",
            RuntimeWarning,
            stacklevel=3,
        )

    def _give_up(self, why: str) -> None:
        self.close()
        raise StarCraftError(why)

    def _verify(self, about: dict[str, float]) -> None:
        """Compare what a game says of itself with what is expected; the worker has set right SMAC's scale."""
        if about["build"] != self.game_build:
            self._give_up(
                f"Base{self.game_build} was to be played, but the game says that it is Base{about['build']}."
            )
        if about["found"] != about["max_reward"]:
            warnings.warn(
                f"SMAC had counted max_reward {about['found']:g}, units that were late more than once; "
                f"its rewards are now scaled by {about['max_reward']:g}, the sum over the units.",
                RuntimeWarning,
                stacklevel=4,
            )
        if about["max_reward"] != self.max_reward:
            warnings.warn(
                f"The units of this game make max_reward {about['max_reward']:g} on {self.map_name}, not "
                f"{self.max_reward:g} as in published results: rewards are not on the same scale.",
                RuntimeWarning,
                stacklevel=4,
            )

    def _living(self) -> np.ndarray:
        """Agents alive (E, N) bool: SMAC gives the no-op to the dead alone."""
        return ~self._mask[:, :, 0]

    def _infos(self) -> dict[str, Any]:
        """The infos where no episode has ended."""
        infos = self._no_ends(self._mask.copy(), self._living())
        return infos | {"dropped": np.zeros(self.num_envs, dtype=np.bool_)}

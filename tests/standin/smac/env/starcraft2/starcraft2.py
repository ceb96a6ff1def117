"""StarCraft2Env with SMAC's interface and quirks over a toy battle; its "game" is a process that sleeps.

Environment variables: STANDIN_LOG, a file that every launch, its temporary folder and difficulty, reset, step
(with the game loops so far) and replay is appended to, as "<pid> <event> <details>"; STANDIN_FAULTS, a JSON
list of {"at": "reset", "step", "units", "close" or "battle", "kind": see the code, and optionally "launch":
number of the launch over all processes, "seed": of the game, "n": number of the call in its process};
STANDIN_BUILD, what games say that their build is; STANDIN_LOOPS, the game loop that games begin at, to have
their last near.
"""

import atexit
import json
import math
import os
import random
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

# agents, enemies, step limit, type columns, shields of allies and of enemies; an enemy's (health, shield)
MAPS = {
    "3m": (3, 3, 60, 0, False, False, [(45, 0)] * 3),
    "2s3z": (5, 5, 120, 2, True, True, [(80, 80)] * 2 + [(100, 50)] * 3),
    "corridor": (6, 24, 400, 0, True, False, [(35, 0)] * 24),
}
LAST_LOOP = 2**19  # of a game; then it is over, and takes no action any more


class ProtocolError(Exception):
    """As PySC2's: of what the game refuses."""


@dataclass
class Unit:
    x: float
    y: float
    health: float
    health_max: float
    shield: float
    shield_max: float


class StarCraft2Env:
    def __init__(
        self,
        map_name="8m",
        step_mul=None,  # as in SMAC's first versions
        move_amount=2,
        difficulty="7",
        game_version=None,
        seed=None,
        continuing_episode=False,
        reward_only_positive=True,
        reward_death_value=10,
        reward_win=200,
        reward_defeat=0,
        reward_negative_scale=0.5,
        reward_scale=True,
        reward_scale_rate=20,
        replay_dir="",
        replay_prefix="",
        window_size_x=1920,
        window_size_y=1200,
    ):
        self.map_name, self.difficulty = map_name, difficulty
        self.n_agents, self.n_enemies, self.episode_limit, self._bits, *rest = MAPS[map_name]
        self._shields_a, self._shields_e, self._enemy_bodies = rest
        self.n_actions = 6 + self.n_enemies
        self._step_mul, self._move_amount = step_mul or 1, move_amount
        self.game_version, self._seed, self.continuing_episode = game_version, seed, continuing_episode
        self.reward_only_positive, self.reward_negative_scale = reward_only_positive, reward_negative_scale
        self.reward_death_value, self.reward_win, self.reward_defeat = (
            reward_death_value,
            reward_win,
            reward_defeat,
        )
        self.reward_scale, self.reward_scale_rate = reward_scale, reward_scale_rate
        self.replay_dir, self.replay_prefix = replay_dir, replay_prefix
        self.max_reward = self.n_enemies * reward_death_value + reward_win
        self.agents, self.enemies = {}, {}
        self._episode_count = self._episode_steps = self.force_restarts = 0
        self._launch_number, self._calls = -1, {}
        self.last_action = np.zeros((self.n_agents, self.n_actions))
        self._sc2_proc = self._controller = self._obs = None
        atexit.register(self.close)

    # --- what the tests script and read

    def _log(self, event, *details):
        with open(os.environ.get("STANDIN_LOG", os.devnull), "a") as file:
            print(os.getpid(), event, *details, file=file)

    def _fault(self, at):
        """The kind of the fault that is due at this call, if any."""
        n = self._calls[at] = self._calls.get(at, -1) + 1
        here = {"at": at, "n": n, "launch": self._launch_number, "seed": self._seed}
        for fault in json.loads(os.environ.get("STANDIN_FAULTS", "[]")):
            if all(here[key] == value for key, value in fault.items() if key != "kind"):
                return fault["kind"]
        return None

    def _suffer(self, kind):
        """Faults that SMAC does not survive."""
        if kind == "exit":
            os._exit(1)
        if kind == "hang":
            time.sleep(3600)
        if kind == "raise":
            raise ConnectionError("websocket closed")

    # --- SMAC's interface

    def _launch(self):
        log = os.environ.get("STANDIN_LOG")
        if log and os.path.exists(log):
            with open(log) as file:
                self._launch_number = sum(line.split()[1] == "launch" for line in file)
        else:
            self._launch_number = 0
        self._sc2_proc = subprocess.Popen(["sleep", "3600"])
        self._tmp_dir = tempfile.mkdtemp(prefix="sc-")
        self._log("folder", self._tmp_dir)
        if self.difficulty not in [*"123456789A"]:
            raise KeyError(self.difficulty)
        self._log("difficulty", self.difficulty)
        build = self._build()
        self._controller = SimpleNamespace(ping=lambda: SimpleNamespace(base_build=build))
        self._loops = int(os.environ.get("STANDIN_LOOPS", "0"))
        self._log("launch", self._sc2_proc.pid, self._seed)

    def _build(self):
        """The build to launch, looked for as PySC2 does: every folder counts, with a binary or without."""
        versions = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser() / "Versions"
        newest = max(int(name[4:]) for name in os.listdir(versions) if name.startswith("Base"))
        build = {None: newest, "4.10.0": 75689, "4.6.2": 69232}[self.game_version]
        assert list(versions.glob(f"Base{build}/SC2*")), f"No SC2 binary found at: {versions}/Base{build}"
        return int(os.environ.get("STANDIN_BUILD", build))

    def _advance(self, loops):
        if self._loops > LAST_LOOP:
            raise ProtocolError("called while in state: Status.ended")
        self._loops += loops
        self._obs = SimpleNamespace(observation=SimpleNamespace(game_loop=self._loops))

    def full_restart(self):
        self._end_game()
        self._launch()
        self.force_restarts += 1

    def _end_game(self):
        if self._sc2_proc is not None:
            self._sc2_proc.kill()
            self._sc2_proc.wait()
            self._sc2_proc = None
            shutil.rmtree(self._tmp_dir)

    def reset(self):
        self._episode_steps = 0
        if self._episode_count == 0:
            self._launch()  # beside an older game, if there is one: SMAC does not look
        kind = self._fault("reset")
        self._suffer(kind)
        self._log("reset")
        self.last_action = np.zeros((self.n_agents, self.n_actions))
        try:
            if kind == "lost":
                raise ProtocolError("the game is gone")
            self._advance(2 if self._episode_count else 0)
            self._init_units()
        except ProtocolError:
            self.full_restart()  # and the units below are those of the episode before
        return self.get_obs(), self.get_state()

    def _init_units(self):
        self._rng = random.Random(f"{self._seed}/{self._episode_count}")
        shield = 50 if self._shields_a else 0
        jitter = self._rng.random
        self.agents = {
            i: Unit(9 + jitter(), 12 + i + jitter(), 45, 45, shield, shield) for i in range(self.n_agents)
        }
        self.enemies = {
            j: Unit(17 + jitter(), 12 + j % 8 + jitter(), health, health, shield, shield)
            for j, (health, shield) in enumerate(self._enemy_bodies)
        }
        if self._episode_count == 0:
            looks = [list(self.enemies.values())]
            if self._fault("units") == "slow":
                looks.insert(0, looks[0][:1])
            self.max_reward += sum(u.health_max + u.shield_max for look in looks for u in look)

    def step(self, actions):
        actions = [int(a) for a in actions]
        self.last_action = np.eye(self.n_actions)[np.array(actions)]
        for i, action in enumerate(actions):
            assert self.get_avail_agent_actions(i)[action] == 1, f"Agent {i} cannot perform action {action}"
        kind = self._fault("step")
        self._suffer(kind)
        try:
            if kind == "lost":
                raise ProtocolError("the game is gone")
            self._advance(self._step_mul)
        except ProtocolError:
            self.full_restart()
            return 0, True, {}
        self._log("step", self._loops)
        self._episode_steps += 1
        before = [u.health + u.shield for u in self.enemies.values()]
        self._battle(actions)
        after = [u.health + u.shield for u in self.enemies.values()]
        kills = sum(b > 0 and u.health == 0 for b, u in zip(before, self.enemies.values(), strict=True))
        reward = sum(before) - sum(after) + self.reward_death_value * kills
        if self.reward_only_positive:
            reward = abs(reward)
        elif self.reward_negative_scale != 0:
            raise NotImplementedError("the stand-in has no damage to allies in its reward")
        allies = sum(u.health > 0 for u in self.agents.values())
        enemies = sum(u.health > 0 for u in self.enemies.values())
        info = {
            "battle_won": False,
            "dead_allies": self.n_agents - allies,
            "dead_enemies": self.n_enemies - enemies,
        }
        terminated = allies == 0 or enemies == 0
        if allies > 0 and enemies == 0:
            info["battle_won"] = True
            reward += self.reward_win
        elif not terminated and self._episode_steps >= self.episode_limit:
            terminated = True
            if self.continuing_episode:
                info["episode_limit"] = True
        self._episode_count += terminated
        if self.reward_scale:
            reward /= self.max_reward / self.reward_scale_rate
        return reward, terminated, info

    def _battle(self, actions):
        for unit in self.enemies.values():
            if unit.health > 0:
                unit.shield = min(unit.shield_max, unit.shield + 2)
        for i, action in enumerate(actions):
            unit = self.agents[i]
            if action >= 6:
                _hurt(self.enemies[action - 6], 12)
            elif action >= 2:
                dx, dy = ((0, 1), (0, -1), (1, 0), (-1, 0))[action - 2]
                reach = self._move_amount / 2
                unit.x, unit.y = unit.x + dx * reach, unit.y + dy * reach
        if self._fault("battle") == "peace":
            return
        for unit in self.enemies.values():
            living = [ally for ally in self.agents.values() if ally.health > 0]
            if unit.health > 0 and living:
                target = min(living, key=lambda ally: _distance(ally, unit))
                if _distance(target, unit) <= 6:
                    _hurt(target, self._rng.uniform(4, 9))
                else:
                    unit.x -= 1

    def get_avail_agent_actions(self, agent_id):
        unit = self.agents[agent_id]
        if unit.health == 0:
            return [1] + [0] * (self.n_actions - 1)
        moves = [unit.y < 31, unit.y > 1, unit.x < 31, unit.x > 1]
        targets = [u.health > 0 and _distance(u, unit) <= 6 for u in self.enemies.values()]
        return [0, 1, *map(int, moves + targets)]

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(i) for i in range(self.n_agents)]

    def get_obs(self):
        return [self.get_obs_agent(i) for i in range(self.n_agents)]

    def get_obs_agent(self, agent_id):
        """The right size and range; only who is where and how healthy, in a simpler order than SMAC's."""
        obs, me = np.zeros(self.get_obs_size(), dtype=np.float32), self.agents[agent_id]
        if me.health > 0:
            others = [*self.enemies.values(), *(u for i, u in self.agents.items() if i != agent_id)]
            rows = [
                (_distance(u, me) / 9, (u.x - me.x) / 9, (u.y - me.y) / 9, u.health / u.health_max)
                if u.health > 0 and _distance(u, me) < 9
                else (0, 0, 0, 0)
                for u in others
            ]
            flat = [me.health / me.health_max, *self.get_avail_agent_actions(agent_id)[2:6], *sum(rows, ())]
            obs[: len(flat)] = flat[: len(obs)]
        return obs

    def get_obs_size(self):
        enemy = self.n_enemies * (5 + self._shields_e + self._bits)
        ally = (self.n_agents - 1) * (5 + self._shields_a + self._bits)
        return 4 + enemy + ally + 1 + self._shields_a + self._bits

    def get_state(self):
        state = np.zeros(self.get_state_size(), dtype=np.float32)
        units = [*self.agents.values(), *self.enemies.values()]
        state[: len(units)] = [u.health / u.health_max for u in units]
        state[-self.last_action.size :] = self.last_action.ravel()
        return state

    def get_state_size(self):
        ally = self.n_agents * (4 + self._shields_a + self._bits + self.n_actions)
        return ally + self.n_enemies * (3 + self._shields_e + self._bits)

    def get_env_info(self):
        return {
            "state_shape": self.get_state_size(),
            "obs_shape": self.get_obs_size(),
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def seed(self):
        return self._seed

    def save_replay(self):
        replays = os.path.join(os.environ["SC2PATH"], "Replays")
        self._log("replay", os.path.join(replays, self.replay_dir))

    def close(self):
        if self._fault("close") == "hang":
            time.sleep(3600)
        self._end_game()


def _distance(a, b):
    return math.hypot(a.x - b.x, a.y - b.y)


def _hurt(unit, damage):
    through = max(0.0, damage - unit.shield)
    unit.shield = max(0.0, unit.shield - damage)
    unit.health = max(0.0, unit.health - through)
    if unit.health == 0:
        unit.shield = 0.0

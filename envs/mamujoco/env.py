"""Multi-agent MuJoCo: gymnasium's v5 robots with their joints divided among agents, many stepped together.

Observations, rewards, ends of episodes and resets are gymnasium's, computed for all environments at once, and
what an agent sees of them is an index (`envs.mamujoco.robots`). The physics runs on MuJoCo's own threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from mujoco.batch import Batch

from envs.base import BrokenEnvironment, Step, TeamVectorEnv, identity, usable_cores
from envs.mamujoco.robots import get_partition, get_robot, layout, observation_index

ASSETS = Path(gym.__file__).parent / "envs" / "mujoco" / "assets"
PICTURE = 480
"""height and width of a picture in pixels"""
DIVERGED = slice(mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQACC + 1)
"""MuJoCo's warnings about impossible positions, velocities and accelerations."""
LARGEST = 1e10
"""Actions larger than this are refused, as MuJoCo refuses such positions: rewards contain their squares."""


def load_model(xml: str) -> mujoco.MjModel:
    """One of gymnasium's models, without a log file in the working directory for what it warns of."""
    told = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        model = mujoco.MjModel.from_xml_path(str(ASSETS / xml))
    finally:
        mujoco.set_mju_user_warning(told)
    model.vis.global_.offwidth = model.vis.global_.offheight = PICTURE
    return model


def make_batch(model: mujoco.MjModel, num_envs: int, threads: int, persistent: bool) -> Batch:
    """A Batch, made by a thread of its own: of thousands of robots it takes a minute, in which the main
    thread would not hear a signal."""
    made: list[Batch | BaseException] = []

    def make() -> None:
        try:
            made.append(Batch(model, num_envs, threads, persistent=persistent))
        except BaseException as error:
            made.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join()
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]


class MaMujocoVectorEnv(TeamVectorEnv):
    """`num_envs` copies of one robot, one agent per part of its joints, one shared reward.

    E environments, N agents. Observations (E, N, obs_dim) float32, zero-padded to the widest agent; actions
    float (E, N, num_actions), padding ignored. Torques outside the action space are clamped by MuJoCo, while
    the control cost sees them as they are. Reproducible: environment e depends on the seed and e alone,
    whatever num_envs and threads are.

    name: "Robot-PARTITION", one of `ROBOTS` and its partitions, or "Robot" with `partition`, the labels of
    the joints of each agent. agent_obsk: how many joints away an agent sees. obs: "khop", or "full": every
    agent gets gymnasium's whole observation. version: "v5", or "v4" of the robots that the paper has (`V4`).
    threads: of the physics; None for as many as there are cores.
    render_mode: None or "rgb_array", which raises RuntimeError if there is no OpenGL to draw with.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}
    backend = "mujoco"
    discrete = False
    episode_limit: int

    def __init__(
        self,
        name: str,
        num_envs: int = 1,
        seed: int = 0,
        agent_obsk: int = 2,
        obs: str = "khop",
        version: str = "v5",
        partition: Sequence[Sequence[str]] | None = None,
        threads: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1 or (threads is not None and threads < 1):
            raise ValueError(f"num_envs and threads must be at least 1, got {num_envs} and {threads}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", got {render_mode!r}.')
        if obs not in ("khop", "full") or agent_obsk < 0:
            raise ValueError(
                f'obs must be "khop" or "full" and agent_obsk at least 0, got {obs!r}, {agent_obsk}.'
            )
        if obs == "full" and agent_obsk != 2:
            raise ValueError('With obs "full" agents see everything, however far away; leave agent_obsk out.')
        seed = self._take_seed(seed)
        kind, parts = get_partition(name, partition)
        robot = get_robot(kind, version)
        self.robot, self.model, self.agent_joints = robot, load_model(robot.xml), parts
        self.env_id = f"mamujoco/{name}" + ("-custom" if partition is not None else "")
        self.label = "" if version == "v5" else version
        self.num_envs, self.num_agents, self.render_mode = num_envs, len(parts), render_mode
        self.threads = min(threads or usable_cores(), num_envs)
        self.episode_limit = robot.limit
        self.dt = self.model.opt.timestep * robot.frame_skip
        self.metadata = {**self.metadata, "render_fps": round(1 / self.dt)}

        # Contact forces are not part of a step of MuJoCo: they need all data of each simulation to be kept.
        self._touch = "cfrc_ext" in robot.own
        self._batch = make_batch(self.model, num_envs, self.threads, persistent=self._touch)
        self._scratch = mujoco.MjData(self.model)
        self._rest = self._scratch.qpos.copy()
        self._physics, self._ctrl = self._batch.state, self._batch.bind("ctrl")
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._diverged = self._batch.warning[:, DIVERGED, 1]  # how often, counted anew from each reset on
        self._contacts, self._force = self._batch.bind("ncon"), np.zeros((num_envs, self.model.nbody, 6))
        self._sources = self._bind_sources()
        self.state_dim = self._flat.shape[1]

        seen = [observation_index(robot, self.model, joints, agent_obsk) for joints in parts]
        if obs == "full":
            seen = [list(range(self.state_dim))] * len(parts)
        self.agent_obs_dims = tuple(len(index) for index in seen)
        self.agent_act_dims = tuple(len(joints) for joints in parts)
        self.obs_dim, self.num_actions = max(self.agent_obs_dims), max(self.agent_act_dims)
        own = np.arange(self.num_actions) < np.array(self.agent_act_dims)[:, None]
        self._mask = np.tile(own, (num_envs, 1, 1))
        # Padding looks at the zero behind the end.
        self._index = np.full((self.num_agents, self.obs_dim), self.state_dim)
        order = list(robot.joints)
        self._joint = np.empty(len(order), dtype=np.int64)
        low, high = np.zeros((2, self.num_agents, self.num_actions), dtype=np.float32)
        for i, (index, joints) in enumerate(zip(seen, parts, strict=True)):
            self._index[i, : len(index)] = index
            moved = [order.index(joint) for joint in joints]
            self._joint[moved] = i * self.num_actions + np.arange(len(moved))
            low[i, : len(moved)], high[i, : len(moved)] = self.model.actuator_ctrlrange[moved].T
        shape = self.num_agents, self.obs_dim
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._x, self._return = np.zeros((2, num_envs))
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._renderer: Any = None
        if render_mode is not None:  # now, so that a failure to draw shows before training
            from envs.mamujoco.render import Renderer

            self._renderer = Renderer(self.model, PICTURE)
        self._task = identity(kind, version, parts, self._index)
        self._seed_streams(seed)

    def _bind_sources(self) -> list[tuple[slice, np.ndarray]]:
        """Parts of the observation and the live arrays they are copied from; makes room for it."""
        E, robot, bind = self.num_envs, self.robot, self._batch.bind
        if robot.tracks == "mass":
            self._centres = bind("xipos")
        elif robot.tracks == "torso" or robot.goal in ("reach", "push"):
            self._places = bind("xpos")
        self._body = {self.model.body(i).name: i for i in range(self.model.nbody)}
        self._parts = parts = layout(robot, self.model) if robot.goal in ("run", "stand") else {}
        if not parts:
            self._flat = np.zeros((E, 10 if robot.goal == "reach" else 23))
            return []
        live = {"qpos": self._qpos[:, robot.hidden :], "qvel": self._qvel}
        for kind in ("cinert", "cvel", "qfrc_actuator"):
            if kind in parts:
                live[kind] = bind(kind).reshape(E, -1)
        live["cfrc_ext"] = self._force.reshape(E, -1)
        self._flat = np.zeros((E, max(part.stop for part in parts.values())))
        # Nobody sees the world's inertia nor the actuators' force on the free joint: parts begin behind them.
        return [(part, live[kind][:, part.start - part.stop :]) for kind, part in parts.items()]

    def _seed_streams(self, seed: int) -> None:
        children = np.random.SeedSequence(seed).spawn(self.num_envs)
        self._rngs = [np.random.Generator(np.random.PCG64(child)) for child in children]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes everywhere; without a seed the random streams go on. Obs and infos."""
        self._before_reset(seed, options)
        self._start(np.arange(self.num_envs, dtype=np.int32))
        self._started = True
        return self._observe(), self._infos()

    def step(self, actions: np.ndarray) -> Step:
        """Play actions float (E, N, num_actions) for `frame_skip` steps of physics.

        infos has the reward's terms as well, (E,) float32 each, by the names they have in gymnasium. An
        episode that ends healthy at the limit is truncated, one that ends unhealthy terminated, never both.
        ValueError, with nothing played, on a wrong shape or dtype or an action that is not finite or beyond
        `LARGEST`; BrokenEnvironment where the physics diverges, and then until `reset` or `set_state`.
        """
        joint = self._torques(actions)
        self._ctrl[:] = joint
        self._batch.step(nstep=self.robot.frame_skip)
        self._length += 1
        if self._diverged.any():  # MuJoCo has put such a robot back to its rest, whose numbers are all finite
            self._raise_diverged(
                int(self._diverged.any(axis=1).argmax()), "MuJoCo has had to reset the robot"
            )
        if self._touch:
            self._feel()
        before = self._x
        self._measure()
        healthy = self._healthy()
        terms = self._terms(np.square(joint).sum(axis=-1), (self._x - before) / self.dt, healthy)
        reward = sum(terms.values()) + (self.robot.goal == "stand")  # a constant that gymnasium does not list
        self._return += reward
        terminated = ~healthy
        truncated = (self._length >= self.episode_limit) & healthy
        if not np.isfinite(self._flat.sum() + np.sum(reward)):
            self._check_finite(np.asarray(reward))
        obs, infos = self._observe(), self._infos()
        infos |= {name: term.astype(np.float32) for name, term in terms.items()}
        done = terminated | truncated
        if done.any():
            infos["final_obs"][done], infos["final_alive"][done] = obs[done], True
            infos["final_action_mask"][done] = self._mask[done]
            infos["_final_obs"], infos["_episode"] = done, done.copy()
            infos["episode"]["r"][done] = self._return[done]
            infos["episode"]["l"][done] = self._length[done]
            self._start(np.flatnonzero(done).astype(np.int32))
            obs = self._observe()
        return obs, np.asarray(reward, dtype=np.float32), terminated, truncated, infos

    def _check_finite(self, reward: np.ndarray) -> None:
        """BrokenEnvironment if anything in the robots' observations or rewards (E,) is not finite."""
        wrong = ~(np.isfinite(self._flat).all(axis=-1) & np.isfinite(reward))
        if wrong.any():
            e = int(wrong.argmax())
            agents = [
                i
                for i, index in enumerate(self._index)
                if not np.isfinite(np.append(self._flat[e], 0.0)[index]).all()
            ]
            what = f"what agent {agents[0]} sees" if agents else "the reward of all agents"
            self._raise_diverged(e, f"{what} is not finite")

    def _raise_diverged(self, e: int, why: str) -> NoReturn:
        raise BrokenEnvironment(
            f"The physics of {self.env_id} has diverged: {why} (in environment {e}, step "
            f"{self._length[e]} of its episode)."
        )

    def _torques(self, actions: np.ndarray) -> np.ndarray:
        """Actions (E, N, num_actions), checked, as (E, actuators) float64."""
        self._check_started()
        actions = np.asarray(actions)
        shape = self.num_envs, self.num_agents, self.num_actions
        if actions.shape != shape or actions.dtype.kind not in "fiu":
            raise ValueError(
                f"actions must be numbers of shape {shape} (num_envs, num_agents, num_actions); "
                f"got {actions.dtype} of shape {actions.shape}."
            )
        joint = np.take(actions.reshape(self.num_envs, -1), self._joint, axis=1).astype(np.float64)
        sound = np.abs(joint) <= LARGEST  # of which NaN is none
        if not sound.all():
            e, actuator = np.argwhere(~sound)[0]
            agent, place = divmod(int(self._joint[actuator]), self.num_actions)
            raise ValueError(
                f"Actions must be finite and at most {LARGEST:g} in size: agent {agent} in environment {e} "
                f"gave {joint[e, actuator]:g} for {self.agent_joints[agent][place]}."
            )
        return joint

    def _start(self, ids: np.ndarray) -> None:
        """Begin episodes in environments `ids` int32, ascending, as gymnasium's reset does."""
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        for e in ids:
            self._qpos[e], self._qvel[e] = self._draw(self._rngs[e])
        self._batch.forward(ids)
        self._force[ids] = 0.0
        self._length[ids], self._return[ids] = 0, 0.0
        self._measure()

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Initial positions and velocities, drawn in gymnasium's order."""
        nq, nv, robot, noise = self.model.nq, self.model.nv, self.robot, self.robot.noise
        if robot.goal == "reach":
            qpos = rng.uniform(-0.1, 0.1, nq) + self._rest
            while np.linalg.norm(target := rng.uniform(-0.2, 0.2, 2)) >= 0.2:
                pass
            qpos[-2:] = target
            return qpos, np.append(rng.uniform(-noise, noise, nv)[:-2], (0.0, 0.0))
        if robot.goal == "push":
            qpos = self._rest.copy()
            while np.hypot(*(cylinder := (rng.uniform(-0.3, 0.0), rng.uniform(-0.2, 0.2)))) <= 0.17:
                pass
            qpos[-4:] = (*cylinder, 0.0, 0.0)
            return qpos, np.append(rng.uniform(-noise, noise, nv)[:-4], np.zeros(4))
        qpos = self._rest + rng.uniform(-noise, noise, nq)
        return qpos, noise * rng.standard_normal(nv) if robot.normal else rng.uniform(-noise, noise, nv)

    def _feel(self) -> None:
        """Contact forces on every body, after the last of MuJoCo's inner steps as gymnasium has them."""
        touching = self._contacts > 0
        self._force[~touching] = 0.0
        for e in np.flatnonzero(touching):
            self._batch.get_data(int(e), self._scratch)
            mujoco.mj_rnePostConstraint(self.model, self._scratch)
            self._force[e] = self._scratch.cfrc_ext

    def _measure(self) -> None:
        """Gymnasium's observation (E, state_dim), and the x whose change is rewarded, from the physics."""
        flat, robot = self._flat, self.robot
        for part, source in self._sources:
            flat[:, part] = source
        for kind, most in robot.clip.items():
            clipped = flat[:, self._parts[kind]]
            np.clip(clipped, -most, most, out=clipped)
        if robot.goal == "reach":
            flat[:, 0:2], flat[:, 2:4] = np.cos(self._qpos[:, :2]), np.sin(self._qpos[:, :2])
            flat[:, 4:6], flat[:, 6:8] = self._qpos[:, 2:], self._qvel[:, :2]
            flat[:, 8:10] = self._gap("fingertip", "target")[:, :2]
        elif robot.goal == "push":
            flat[:, 0:7], flat[:, 7:14] = self._qpos[:, :7], self._qvel[:, :7]
            for i, body in enumerate(("tips_arm", "object", "goal")):
                flat[:, 14 + 3 * i : 17 + 3 * i] = self._places[:, self._body[body]]
        if robot.tracks == "torso":
            self._x = self._places[:, 1, 0].copy()
        elif robot.tracks == "mass":
            mass = self.model.body_mass
            self._x = (self._centres[:, :, 0] * mass).sum(axis=-1) / mass.sum()
        else:
            self._x = self._qpos[:, 0].copy()

    def _gap(self, of: str, to: str) -> np.ndarray:
        """(E, 3) from one body to another."""
        return self._places[:, self._body[of]] - self._places[:, self._body[to]]

    def _healthy(self) -> np.ndarray:
        """(E,) bool: the episode goes on."""
        robot, qpos = self.robot, self._qpos
        z, tilt = qpos[:, robot.hidden], qpos[:, 2]  # height is the first position that is seen
        healthy = (z > robot.height[0]) & (z < robot.height[1])
        healthy &= (tilt > robot.tilt[0]) & (tilt < robot.tilt[1])
        if np.isfinite(robot.bound):
            for rest in (qpos[:, 2:], self._qvel):
                healthy &= (np.abs(rest) < robot.bound).all(axis=-1)
        return healthy

    def _terms(self, effort: np.ndarray, velocity: np.ndarray, healthy: np.ndarray) -> dict[str, np.ndarray]:
        """The reward's terms (E,), of the actions' sum of squares, the velocity along x and the health."""
        robot, control = self.robot, -self.robot.control * effort
        if robot.goal == "reach":
            return {
                "reward_dist": -np.linalg.norm(self._gap("fingertip", "target"), axis=-1),
                "reward_ctrl": control,
            }
        if robot.goal == "push":
            near = -0.5 * np.linalg.norm(self._gap("object", "tips_arm"), axis=-1)
            far = -np.linalg.norm(self._gap("object", "goal"), axis=-1)
            return {"reward_dist": far, "reward_ctrl": control, "reward_near": near}
        if robot.contact:
            part = self._flat[:, self._parts["cfrc_ext"]]
            contact = -np.minimum(robot.contact * np.square(part).sum(axis=-1), robot.contact_cap)
        if robot.goal == "stand":
            rise = self._qpos[:, 2] / self.model.opt.timestep
            return {"reward_linup": rise, "reward_quadctrl": control, "reward_impact": contact}
        terms = {"reward_forward": robot.forward * velocity, "reward_ctrl": control}
        if robot.contact:
            terms["reward_contact"] = contact
        if robot.alive:
            earned = healthy | robot.always_alive
            terms["reward_survive"] = robot.alive * earned.astype(np.float64)
        return terms

    def _observe(self) -> np.ndarray:
        """What each agent sees, (E, N, obs_dim) float32."""
        flat = np.zeros((self.num_envs, self.state_dim + 1), dtype=np.float32)
        flat[:, :-1] = self._flat
        return np.take(flat, self._index, axis=1)

    def _infos(self) -> dict[str, Any]:
        """The infos of a step on which no episode ended."""
        alive = np.ones((self.num_envs, self.num_agents), dtype=np.bool_)
        return self._no_ends(self._mask.copy(), alive)

    def state(self) -> np.ndarray:
        """Gymnasium's observation of every environment, (E, state_dim) float32."""
        return self._flat.astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """Which joints each agent moves, where the id only says that a user chose them."""
        custom = self.env_id.endswith("-custom")
        return {"partition": [list(joints) for joints in self.agent_joints]} if custom else {}

    def _get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides what follows, as copies; `set_state` continues exactly from it."""
        rng = np.empty((self.num_envs, 4), dtype=np.uint64)
        for e, generator in enumerate(self._rngs):
            now = generator.bit_generator.state["state"]
            rng[e] = (*divmod(now["state"], 2**64), *divmod(now["inc"], 2**64))
        return {
            "physics": self._physics.copy(),
            "rng": rng,
            "length": self._length.copy(),
            "return": self._return.copy(),
            "flat": self._flat.copy(),
            "x": self._x.copy(),
            "task": self._task.copy(),
        }

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `get_state()` of the same task and num_envs; ValueError if it is of another."""
        state = self._check_form(state)
        for key in self._get_state():
            if not np.isfinite(state[key]).all():
                raise ValueError(f"This state is damaged: {key!r} holds values that are not finite.")
        if np.min(state["length"]) < 0 or np.max(state["length"]) >= self.episode_limit:
            raise ValueError("This state is damaged: 'length' is outside an episode.")
        self._physics[:] = state["physics"]
        self._batch.warning[:] = 0
        for generator, words in zip(
            self._rngs, np.asarray(state["rng"], dtype=np.uint64).tolist(), strict=True
        ):
            generator.bit_generator.state = {
                "bit_generator": "PCG64",
                "state": {"state": words[0] << 64 | words[1], "inc": words[2] << 64 | words[3]},
                "has_uint32": 0,  # half a draw, which episodes never leave
                "uinteger": 0,
            }
        self._length = np.array(state["length"], dtype=np.int64)
        self._return = np.array(state["return"], dtype=np.float64)
        self._flat[:] = state["flat"]
        self._x = np.array(state["x"], dtype=np.float64)
        self._started = True

    def render(self, i: int = 0) -> np.ndarray:  # type: ignore[override]
        """Picture of environment i, (H, W, 3) uint8.

        ValueError unless made with render_mode="rgb_array", IndexError unless there is an environment i.
        """
        self._check_picture(i)
        if self._renderer is None:
            raise ValueError("Nothing can be rendered any more: this environment is closed, make another.")
        self._batch.get_data(i, self._scratch)
        mujoco.mj_forward(self.model, self._scratch)
        return self._renderer.draw(self._scratch)

    def close_extras(self, **kwargs: Any) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

"""The two sides of `peer_ippo.py`, each trained in a process of its own: `sides.py ours|peer|trace JOB`.

`ours` needs this project's Python, `peer` and `trace` one that has BenchMARL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"  # before NumPy and PyTorch read them

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

AGENTS, LENGTH, VARIANT = 5, 25, "mpe2"
WORLD: dict[str, Any] = {"num_agents": AGENTS, "episode_length": LENGTH, "variant": VARIANT}
WIDTH = 4 + 2 * AGENTS + 2 * (AGENTS - 1)  # of an observation: own velocity and position, landmarks, others
# Their norm is of all agents' gradients together, of a loss that is a mean over agents: for alike agents
# sqrt(N) times smaller than what ippo.py clips, whose clip of 10 is one of 4.5 here. Their default is 5.
PEER_CLIP = 5.0


def ippo() -> Any:
    """The script, as a module."""
    return importlib.import_module("ippo")


class Clock:
    """Wall-clock and processor seconds of training, by part, with a row for each evaluation that is due."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, list[dict[str, float]]()
        self.parts = {"collect": np.zeros(2), "update": np.zeros(2)}
        self.start()

    def start(self) -> None:
        """What passed since the last lap is nobody's."""
        self.since = np.array([time.perf_counter(), time.process_time()])

    def lap(self, part: str) -> None:
        """What passed since the last lap or start is this part's."""
        now = np.array([time.perf_counter(), time.process_time()])
        self.parts[part] += now - self.since
        self.since = now

    @contextlib.contextmanager
    def stopped(self, part: str) -> Iterator[None]:
        """Until here it was this part; what is inside counts nowhere."""
        self.lap(part)
        yield
        self.start()

    def save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """The policies after so many environment steps, and when they were reached."""
        wall, cpu = self.parts["collect"] + self.parts["update"]
        self.rows.append({"global_step": step, "seconds": float(wall), "cpu_seconds": float(cpu)})
        np.savez(self.folder / f"{step}.npz", allow_pickle=False, **arrays)

    def finish(self, **facts: Any) -> None:
        """Everything but the weights, in done.json."""
        parts = {name: values.tolist() for name, values in self.parts.items()}
        summary = {"rows": self.rows, "parts": parts, "load": os.getloadavg(), **facts}
        (self.folder / "done.json").write_text(json.dumps(summary, indent=1) + "\n")


def versions(*modules: Any) -> dict[str, str]:
    """Of Python and of imported modules."""
    return {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}


def train_ours(job: dict[str, Any]) -> None:
    """`ippo.py` itself, with the clock where it collects, updates, evaluates and checkpoints."""
    import torch

    script = ippo()
    clock = Clock(Path(job["folder"]))
    evaluate, save, gae, learn = script.evaluate, script.save, script.gae, script.Learner.learn
    obs = torch.ones(AGENTS, 1, WIDTH)

    @torch.no_grad()
    def timed_evaluate(agents, envs, episodes, seed, frames=None):
        if seed[-1] == 0:
            clock.start()  # making the environments and networks is no training
        with clock.stopped("collect"):
            if len(seed) == 3:  # not the last one, of the best parameters
                found = agents.actor.state_dict() | {"obs": obs, "logits": agents.actor(obs)}
                clock.save(seed[2], {name: x.numpy() for name, x in found.items()})
            return evaluate(agents, envs, episodes, seed, frames)

    def timed_save(*args):
        with clock.stopped("collect"):
            save(*args)

    def timed_gae(*args):
        clock.lap("collect")
        return gae(*args)

    def timed_learn(*args):
        stats = learn(*args)
        clock.lap("update")
        return stats

    script.evaluate = timed_evaluate
    script.save = timed_save
    script.gae = timed_gae
    script.Learner.learn = timed_learn
    sys.argv = ["ippo.py", "--env-id", "mpe/simple_spread", "--runs-dir", job["folder"]]
    sys.argv += ["--env-options", *(f"{name}={value}" for name, value in WORLD.items())]
    for name in ("seed", "total_timesteps", "eval_every"):
        sys.argv += [f"--{name.replace('_', '-')}", str(job[name])]
    script.main()
    clock.finish(versions=versions(torch, np))


def peer_env(seeds: Iterator[int], device: str) -> Any:
    """mpe2's environment as BenchMARL's PettingZoo task wraps it, without the channel nobody speaks on.

    BenchMARL gives every copy the same seed; here each takes its own, or 128 episodes would begin alike.
    """
    from gymnasium.spaces import Box
    from mpe2 import simple_spread_v3
    from pettingzoo.utils.wrappers import BaseParallelWrapper
    from torchrl.envs.libs.pettingzoo import PettingZooWrapper

    class Narrow(BaseParallelWrapper):
        def observation_space(self, agent):
            return Box(-np.inf, np.inf, (WIDTH,), np.float32)

        def reset(self, seed=None, options=None):
            obs, infos = super().reset(seed=seed, options=options)
            return {name: x[:WIDTH].astype(np.float32) for name, x in obs.items()}, infos

        def step(self, actions):
            obs, *rest = super().step(actions)
            return {name: x[:WIDTH].astype(np.float32) for name, x in obs.items()}, *rest

    env = Narrow(simple_spread_v3.parallel_env(N=AGENTS, local_ratio=0.0, max_cycles=LENGTH))
    return PettingZooWrapper(env=env, categorical_actions=True, seed=next(seeds), device=device)


def peer_experiment(job: dict[str, Any]) -> Any:
    """BenchMARL's experiment under the settings of `ippo.py`."""
    import torch
    from benchmarl.algorithms import IppoConfig
    from benchmarl.environments import PettingZooTask
    from benchmarl.environments.pettingzoo.common import PettingZooClass
    from benchmarl.experiment import Experiment, ExperimentConfig
    from benchmarl.models.mlp import MlpConfig

    seeds = itertools.count(1_000_000 * job["seed"])

    def get_env_fun(self, num_envs, continuous_actions, seed, device):
        return lambda: peer_env(seeds, device)

    PettingZooClass.get_env_fun = get_env_fun
    PettingZooClass.has_state = lambda self: False  # IPPO does not use it
    settings = job["settings"]
    rows = settings["num_envs"] * settings["num_steps"]
    wanted: dict[str, Any] = dict(share_policy_params=False, prefer_continuous_actions=False)
    wanted |= dict(clip_grad_val=PEER_CLIP, on_policy_n_envs_per_worker=settings["num_envs"])
    wanted |= dict(gamma=settings["gamma"], lr=settings["learning_rate"], adam_eps=1e-5)
    wanted |= dict(adam_extra_kwargs={"fused": True}, max_n_frames=job["total_timesteps"])
    wanted |= dict(on_policy_collected_frames_per_batch=rows, on_policy_minibatch_size=rows)
    wanted |= dict(on_policy_n_minibatch_iters=settings["update_epochs"])
    wanted |= dict(evaluation=False, loggers=[], create_json=False, save_folder=job["folder"])
    config = dataclasses.replace(ExperimentConfig.get_from_yaml(), **wanted)  # TypeError on another version's
    special = dict(share_param_critic=False, clip_epsilon=settings["clip_coef"], lmbda=settings["gae_lambda"])
    special |= dict(entropy_coef=settings["ent_coef"])
    algorithm = dataclasses.replace(IppoConfig.get_from_yaml(), **special)
    model = MlpConfig(num_cells=[128, 128], layer_class=torch.nn.Linear, activation_class=torch.nn.ReLU)
    task = PettingZooTask.SIMPLE_SPREAD.get_task({"N": AGENTS, "max_cycles": LENGTH, "local_ratio": 0.0})
    return Experiment(task, algorithm, model, job["seed"], config)


def train_peer(job: dict[str, Any]) -> None:
    """BenchMARL's experiment, with the clock in its callbacks."""
    import benchmarl
    import mpe2
    import pettingzoo
    import torch
    import torchrl
    from benchmarl.experiment import Callback
    from torchrl.modules import MultiAgentMLP

    torch.set_num_threads(1)
    clock, experiment = Clock(Path(job["folder"])), peer_experiment(job)
    (network,) = (m for m in experiment.policy.modules() if isinstance(m, MultiAgentMLP))
    ((group, agents),) = experiment.group_map.items()
    assert len(agents) == AGENTS

    def weights(obs: Any) -> dict[str, np.ndarray]:
        """The actors as ippo.py holds them, and what they answer to some observations (N, rows, dim)."""
        with torch.no_grad():
            found = {"obs": obs.transpose(0, 1), "logits": network(obs).transpose(0, 1)}
        for layer, name in enumerate(sorted({key[0] for key in network.params.keys(True, True)}, key=int)):
            found[f"weights.{layer}"] = network.params[name, "weight"].detach().mT
            found[f"biases.{layer}"] = network.params[name, "bias"].detach().unsqueeze(1)
        return {name: x.numpy() for name, x in found.items()}

    class Timer(Callback):
        def on_batch_collected(self, batch):
            clock.lap("collect")
            self.obs = batch[group, "observation"].flatten(0, 1)[:32]

        def on_train_end(self, training_td, group):
            clock.lap("update")
            if experiment.total_frames % job["eval_every"] == 0:
                with clock.stopped("update"):
                    clock.save(experiment.total_frames, weights(self.obs))

    timer = Timer()
    timer.experiment = experiment
    experiment.callbacks.append(timer)  # not given to Experiment(), which would pickle it
    reset = experiment.test_env.reset()[group, "observation"]
    clock.save(0, weights(reset.expand(32, *reset.shape)))
    clock.start()
    experiment.run()
    clock.finish(versions=versions(torch, np, benchmarl, torchrl, mpe2, pettingzoo))


def trace_peer(job: dict[str, Any]) -> None:
    """Two episodes of each copy of BenchMARL's environment: what they show and pay, in trace.npz."""
    import torch

    torch.set_num_threads(1)
    experiment = peer_experiment(job | {"total_timesteps": 3200})
    ((group, _),) = experiment.group_map.items()
    with torch.no_grad():  # by the untrained policies, that is nearly at random
        batch = experiment.env_func().rollout(2 * LENGTH, experiment.policy, break_when_any_done=False)
    names: dict[str, tuple[str, ...]] = {"obs": (group, "observation"), "actions": (group, "action")}
    names |= {"reward": ("next", group, "reward"), "next_obs": ("next", group, "observation")}
    names |= {name: ("next", name) for name in ("done", "terminated")}
    arrays = {name: batch[key].numpy() for name, key in names.items()}
    np.savez(Path(job["folder"]) / "trace.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    {"ours": train_ours, "peer": train_peer, "trace": trace_peer}[sys.argv[1]](json.loads(sys.argv[2]))

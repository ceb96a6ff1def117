"""BenchMARL's IPPO without shared parameters on VMAS' simple_spread, timed in the peer's Python by speed.py.

    python3 -m venv peer && peer/bin/pip install benchmarl vmas
    python benchmark/speed.py e2e mpe --names simple_spread --peer-python peer/bin/python

VMAS steps all worlds at once, as envs/mpe does. Its physics and rewards are its own, so only speed is
compared: 5 agents, 22 inputs, 5 actions, 25 steps an episode, and the settings of `ippo.py`, given as JSON.
Prints the medians over updates, as JSON: environment steps per second, share of the update.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"  # before NumPy and PyTorch read them

import numpy as np  # noqa: E402


def rates(settings: dict[str, Any], updates: int) -> dict[str, float]:
    """Medians from the fourth update on. settings: num_envs, num_steps, and what `ippo.Args` calls so."""
    import torch
    from benchmarl.algorithms import IppoConfig
    from benchmarl.environments import VmasTask
    from benchmarl.experiment import Callback, Experiment, ExperimentConfig
    from benchmarl.models.mlp import MlpConfig

    torch.set_num_threads(1)
    rows = settings["num_envs"] * settings["num_steps"]
    wanted: dict[str, Any] = dict(share_policy_params=False, prefer_continuous_actions=False)
    wanted |= dict(gamma=settings["gamma"], lr=settings["learning_rate"], adam_eps=1e-5)
    wanted |= dict(adam_extra_kwargs={"fused": True}, max_n_frames=updates * rows)
    wanted |= dict(on_policy_collected_frames_per_batch=rows, on_policy_minibatch_size=rows)
    wanted |= dict(on_policy_n_minibatch_iters=settings["update_epochs"])
    wanted |= dict(on_policy_n_envs_per_worker=settings["num_envs"])
    wanted |= dict(evaluation=False, loggers=[], create_json=False)
    special = dict(share_param_critic=False, clip_epsilon=settings["clip_coef"], lmbda=settings["gae_lambda"])
    special |= dict(entropy_coef=settings["ent_coef"])
    algorithm = dataclasses.replace(IppoConfig.get_from_yaml(), **special)
    model = MlpConfig(num_cells=[128, 128], layer_class=torch.nn.Linear, activation_class=torch.nn.ReLU)
    steps = settings["num_steps"]
    task = VmasTask.SIMPLE_SPREAD.get_task({"n_agents": 5, "max_steps": steps, "obs_agents": True})
    times: list[float] = []

    class Timer(Callback):
        def on_batch_collected(self, batch):
            times.append(time.perf_counter())
            width = batch["agents", "observation"].shape[-1]
            assert width == 22, f"Observations of {width} numbers are another task."

        def on_train_end(self, training_td, group):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        wanted["save_folder"] = folder
        config = dataclasses.replace(ExperimentConfig.get_from_yaml(), **wanted)
        experiment = Experiment(task, algorithm, model, 1, config)
        experiment.callbacks.append(timer := Timer())  # not given to Experiment(), which would pickle it
        timer.experiment = experiment
        experiment.run()
    collected, trained = np.array(times).reshape(-1, 2).T
    whole = np.diff(trained)[2:]
    update = (trained - collected)[3:]
    return {"charts/SPS": float(np.median(rows / whole)), "time/update": float(np.median(update / whole))}


if __name__ == "__main__":
    print(json.dumps(rates(json.loads(sys.argv[1]), 12)))

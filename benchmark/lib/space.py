"""What benchmark/tune.py searches: tasks, methods, and a space that gives both methods as many settings.

Four settings are shared, with the same ranges: learning rate, epochs, entropy bonus and size of a batch. Each
method has two more that are its own and bound how far an update goes. IPPO has no KL penalty, so its second
is the gradient clip, which DPO leaves at its default: where that is unequal, it favours IPPO.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from typing import Any

from benchmark.figures import BEST, CHEETAH, GAME, SPREAD, STALKERS, Method, Run, Task, make_run

TASKS = {task.env_id: task for task in (GAME, SPREAD, CHEETAH, STALKERS)}
METHODS = ("dpo", "ippo")
TUNING_SEED = 101  # of tuning runs the first seed; so many more may follow
SEEDS_PER_TRIAL = 100
FINAL_SEEDS = range(11, 21)  # of the runs that compare methods; what is known best was found with 1 to 5


@dataclass(frozen=True)
class Log:
    """Numbers between two, their logarithms equally likely at first; `whole`: integers only."""

    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True)
class Choice:
    """One of these."""

    values: tuple[int, ...]


Space = dict[str, Log | Choice]

# Around each family's default. Whole episodes in the game and the particle worlds, so environments vary.
BATCHES: dict[str, Space] = {
    "matrix": {"num_envs": Choice((8, 16, 32, 64))},
    "mpe": {"num_envs": Choice((32, 64, 128, 256))},
    "mamujoco": {"num_steps": Choice((32, 64, 128, 256))},
    "smac": {"num_envs": Choice((8, 16, 32, 64))},
}
D_TARGETS = {"matrix": 0.1, "mpe": 0.01, "mamujoco": 0.001, "smac": 0.02}  # the paper's


def shared_space(task: Task) -> Space:
    """The settings that both methods have."""
    return {
        "learning_rate": Log(1e-4, 2e-3),
        "update_epochs": Log(3, 30, whole=True),
        "ent_coef": Log(1e-4, 0.1),
        **BATCHES[task.family],
    }


def own_space(task: Task, method: str) -> Space:
    """The settings that a method has alone; of each method two."""
    if method == "dpo":
        d_target = D_TARGETS[task.family]
        return {"d_target": Log(d_target / 10, d_target * 10), "beta_min": Log(0.001, 0.5)}
    return {"clip_coef": Log(0.03, 0.5), "max_grad_norm": Log(0.5, 50.0)}


def space_of(task: Task, method: str) -> Space:
    """All settings that are tuned."""
    return shared_space(task) | own_space(task, method)


def as_json(space: Space) -> dict[str, Any]:
    """The space as it is published."""
    return {
        name: list(of.values) if isinstance(of, Choice) else {"log": [of.low, of.high], "whole": of.whole}
        for name, of in space.items()
    }


def known_trials(task: Task, method: str) -> list[tuple[str, dict[str, Any]]]:
    """The trials that are not sampled, with their origins: the paper's settings, and the best known ones.

    Of IPPO nothing better than the paper's is known (docs/tuning.md); it has one more sampled trial instead.
    """
    told = json.loads(make_run(task, Method(method, method), TUNING_SEED, "paper").settings)
    paper = {name: told[name] for name in space_of(task, method)}
    known = [("the paper's", paper)]
    if method == "dpo":
        known.append(("best known", paper | BEST[task.family][1]))
    return known


def rounded(params: dict[str, Any]) -> dict[str, Any]:
    """Sampled settings as they are run and published: to three digits, that a command may be typed."""
    return {name: float(f"{x:.3g}") if isinstance(x, float) else x for name, x in params.items()}


def within(settings: dict[str, Any], space: Space) -> dict[str, Any]:
    """Settings that are within their ranges."""
    return {
        name: settings[name] if isinstance(of, Choice) else min(max(settings[name], of.low), of.high)
        for name, of in space.items()
    }


def trial_runs(
    task: Task, method: str, number: int, settings: dict[str, Any], steps: int, seeds: int
) -> list[Run]:
    """The runs of a trial, one per tuning seed."""
    told = Method(f"trial-{number}", method, settings | {"total_timesteps": steps})
    runs = (make_run(task, told, TUNING_SEED + i, "paper") for i in range(seeds))
    return [replace(run, label=told.name, steps=steps) for run in runs]


def final_command(task: Task, method: str, settings: dict[str, Any]) -> str:
    """The shell's line for the runs that compare methods: fresh seeds, the budget of the task's figure."""
    told = make_run(task, Method(method, method, settings), FINAL_SEEDS[0], "paper")
    seeds = " ".join(map(str, FINAL_SEEDS))
    return f"for seed in {seeds}; do python {shlex.join([told.script, *told.flags])} --seed $seed; done"

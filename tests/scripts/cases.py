"""A tiny run of every script, some with another family of environments, whose state is saved otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from tests.scripts import running
from tests.scripts.running import Result


@dataclass(frozen=True)
class Case:
    """A tiny run. Steps are environment steps; a turn is once around the loop of `train`."""

    script: str
    name: str  # of the run directory, up to the script's
    flags: str
    other: str  # a flag that would make it a run in another environment
    num_envs: int
    num_steps: int  # in a turn, of each environment
    total: int
    eval_every: int
    checkpoint_every: int
    die_at: int  # step of the training environments before which a run is ended
    updates: list[int]  # at which rows of metrics.csv tell of learning
    constants: dict[str, int]  # of the script, changed for short runs

    @property
    def tiny(self) -> list[str]:
        flags = f"--num-envs={self.num_envs} --total-timesteps={self.total} --eval-every={self.eval_every}"
        return [*self.flags.split(), *flags.split(), f"--checkpoint-every={self.checkpoint_every}"]

    @property
    def exact(self) -> bool:
        return self.name == GAME_NAME and self.script != "iql"

    @property
    def turn(self) -> int:
        return self.num_envs * self.num_steps

    def run(self, *argv: object) -> Result:
        return running.run(self.script, *argv, **self.constants)

    def finished(self, *argv: object) -> str:
        return running.finished(self.script, *argv, **self.constants).out

    def refused(self, *argv: object) -> str:
        return running.refused(self.script, *argv, **self.constants)


def on_policy(script, name, flags, other, num_envs, num_steps) -> Case:
    """Eight updates; dies after the fifth, one past a checkpoint, the rows after which are written again."""
    turn = num_envs * num_steps
    flags += " --update-epochs=3" + f" --num-steps={num_steps}" * (script != "dpo_matrix")
    steps = dict(total=8 * turn, eval_every=4 * turn, checkpoint_every=2 * turn)
    steps |= dict(num_envs=num_envs, num_steps=num_steps, die_at=5 * num_steps + num_steps // 2)
    constants = {} if script == "dpo_matrix" else {"EVAL_EPISODES": 1 if "mamujoco" in name else 4}
    updates = list(range(turn, 8 * turn + 1, turn))
    return Case(script, name, flags, other, **steps, updates=updates, constants=constants)


def off_policy(script, name, flags, other, num_envs, updates) -> Case:
    """600 steps, more than the replay buffer holds; dies past a checkpoint at 240 and a row after it."""
    steps = dict(total=600, eval_every=200, checkpoint_every=120)
    steps |= dict(num_envs=num_envs, num_steps=1, die_at=320 // num_envs + 1)
    constants = {"LOG_EVERY": 100, "EVAL_EPISODES": 1 if "mamujoco" in name else 4}
    return Case(script, name, flags, other, **steps, updates=updates, constants=constants)


GAME = "--env-id=matrix/stochastic --env-options num_states=6 num_agents=3 num_actions=4"
GAME_NAME = "matrix-stochastic-6x3x4"
MARINES = "--env-id=smac/3m --env-options backend=embedded"
CASES = {
    "dpo_smac": on_policy(
        "dpo_smac", "smac-3m-embedded2", "--map=3m --backend=embedded", "--map=8m", num_envs=4, num_steps=16
    ),
    "dpo_mpe": on_policy(
        "dpo_mpe",
        "mpe-line_control-3",
        "--task=line_control --num-agents=3",
        "--task=simple_spread",
        num_envs=8,
        num_steps=10,
    ),
    "dpo_mamujoco": on_policy(
        "dpo_mamujoco",
        "mamujoco-Hopper-3x1",
        "--task=Hopper-3x1",
        "--task=Walker2d-3x2",
        num_envs=4,
        num_steps=16,
    ),
    "dpo_matrix": on_policy(
        "dpo_matrix",
        GAME_NAME,
        "--num-states=6 --num-agents=3 --num-actions=4",
        "--game-seed=1",
        num_envs=5,
        num_steps=6,
    ),
    "ippo": on_policy("ippo", GAME_NAME, GAME, "--env-id=smac/3m", num_envs=5, num_steps=6),
    "ippo-smac": on_policy(
        "ippo", "smac-3m-embedded2", MARINES, "--env-id=smac/8m", num_envs=4, num_steps=16
    ),
    "ippo-mamujoco": on_policy(
        "ippo",
        "mamujoco-Hopper-3x1",
        "--env-id=mamujoco/Hopper-3x1",
        "--env-id=mamujoco/Walker2d-3x2",
        num_envs=4,
        num_steps=16,
    ),
    "iql": off_policy(
        "iql",
        GAME_NAME,
        f"{GAME} --batch-episodes=8 --buffer-episodes=40 --target-every=20 --epsilon-steps=400",
        "--env-id=matrix/1",
        num_envs=5,
        updates=list(range(100, 601, 100)),
    ),
    "iddpg": off_policy(
        "iddpg",
        "mamujoco-Hopper-3x1",
        "--env-id=mamujoco/Hopper-3x1 --warmup-steps=100 --batch-size=16 --buffer-steps=200"
        " --updates-per-step=0.25",
        "--env-id=mamujoco/Walker2d-3x2",
        num_envs=4,
        updates=list(range(104, 600, 100)),  # the first after the warm-up
    ),
}

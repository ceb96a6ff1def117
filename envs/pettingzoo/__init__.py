"""PettingZoo's environments as ours (`ParallelVectorEnv`), and ours as PettingZoo's (`ParallelView`)."""

from envs.pettingzoo.from_parallel import ParallelVectorEnv
from envs.pettingzoo.to_parallel import AvailableActions, ParallelView

__all__ = ["AvailableActions", "ParallelVectorEnv", "ParallelView"]

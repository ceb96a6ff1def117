"""The multi-agent particle world, compiled: as an environment, and as pure functions of its states."""

from envs.mpe.env import (
    TASKS,
    VARIANTS,
    MpeVectorEnv,
    assign,
    num_landmarks,
    obs_dim,
    observe,
    step,
    targets,
)

__all__ = [
    "TASKS",
    "VARIANTS",
    "MpeVectorEnv",
    "assign",
    "num_landmarks",
    "obs_dim",
    "observe",
    "step",
    "targets",
]

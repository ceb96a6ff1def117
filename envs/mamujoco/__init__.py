"""Multi-agent MuJoCo: gymnasium's robots, divided among agents.

The environment is `envs.mamujoco.env.MaMujocoVectorEnv`. It is not imported here, so that robots can be
listed where MuJoCo cannot be loaded.
"""

from envs.mamujoco.robots import ROBOTS

__all__ = ["ROBOTS"]

"""The robots of multi-agent MuJoCo as data, and the k-hop observation as an index into gymnasium's.

A robot is a graph of joints. A partition gives each agent some of the joints; an agent sees its own joints in
full, the positions of joints up to k edges away, and the root of the body.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # ids and partitions are told without loading MuJoCo
    import mujoco

WIDTH = {"cinert": 10, "cvel": 6, "cfrc_ext": 6}
"""Numbers per body: inertia and velocity about the robot's centre of mass, and the force of contacts."""


@dataclass(frozen=True)
class Robot:
    """One of gymnasium's robots: what is rewarded, and how its joints are connected.

    joints: label -> bodies whose inertia, velocity and contact force its owner feels; in actuator order.
    edges: joints that are neighbours of each other. partitions: name -> joints of each agent, in the order of
    the agent's actions.
    own: what an agent sees of its own joints, which is also the layout of the observation.
    """

    xml: str
    frame_skip: int
    joints: dict[str, tuple[int, ...]]
    edges: tuple[tuple[str, ...], ...]
    partitions: dict[str, tuple[tuple[str, ...], ...]]
    own: tuple[str, ...] = ("qpos", "qvel")
    hidden: int = 1
    """leading positions that nobody sees: where the robot is on the ground"""
    clip: dict[str, float] = field(default_factory=dict)
    """part of the observation -> largest magnitude in it"""
    places: dict[str, dict[str, tuple[int, ...]]] | None = None
    """label -> kind -> places in the observation, where they do not follow from the model"""
    root: tuple[int, ...] = ()
    """with `places`: what every agent sees last"""
    goal: str = "run"
    """run: along x; stand: up; reach: fingertip to target; push: object to goal"""
    tracks: str = "root"
    """whose x runs: the root joint's, the torso's, or the centre of mass's"""
    limit: int = 1000
    noise: float = 5e-3
    normal: bool = False
    """noise of initial velocities: normal, not uniform"""
    forward: float = 1.0
    alive: float = 0.0
    control: float = 0.0
    contact: float = 0.0
    """weights of the reward's terms"""
    always_alive: bool = False
    """`alive` is earned on the step of a fall as well"""
    contact_cap: float = inf
    height: tuple[float, float] = (-inf, inf)
    tilt: tuple[float, float] = (-inf, inf)
    bound: float = inf
    """an episode ends when the root leaves height or tilt, or the rest of the state (-bound, bound)"""


def _split(text: str) -> tuple[tuple[str, ...], ...]:
    """ "a b | c" -> (("a", "b"), ("c",))"""
    return tuple(tuple(part.split()) for part in text.split("|"))


def _partitions(
    joints: Iterable[str], named: dict[str, str] | None = None
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The named partitions, and two that every robot has: one joint to each agent, all joints to one."""
    own = tuple((joint,) for joint in joints)
    every = tuple(joint for (joint,) in own)
    return {f"{len(own)}x1": own, f"1x{len(own)}": (every,)} | {
        k: _split(v) for k, v in (named or {}).items()
    }


_LEGS = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
_HOPPER = ("thigh_joint", "leg_joint", "foot_joint")
_WALKER = (*_HOPPER, "thigh_left_joint", "leg_left_joint", "foot_left_joint")
# Actuators 0 and 1 move the fourth leg. Bodies: 1 torso, then hip, upper and lower part of each leg.
_ANT = {
    "hip4": (1, 11),
    "ankle4": (11, 12, 13),
    "hip1": (1, 2),
    "ankle1": (2, 3, 4),
    "hip2": (1, 5),
    "ankle2": (5, 6, 7),
    "hip3": (1, 8),
    "ankle3": (8, 9, 10),
}
# Bodies: 1 torso, 2 waist, 3 pelvis, 4-6 right thigh, shin, foot, 7-9 left, 10 11 right arm, 12 13 left arm.
_HUMANOID = {
    **dict.fromkeys(("abdomen_y", "abdomen_z"), (1, 2, 3)),
    "abdomen_x": (3, 4, 7),
    **dict.fromkeys(("right_hip_x", "right_hip_z", "right_hip_y"), (4, 5)),
    "right_knee": (5, 6),
    **dict.fromkeys(("left_hip_x", "left_hip_z", "left_hip_y"), (7, 8)),
    "left_knee": (8, 9),
    **dict.fromkeys(("right_shoulder1", "right_shoulder2"), (1, 10, 11)),
    "right_elbow": (11,),
    **dict.fromkeys(("left_shoulder1", "left_shoulder2"), (1, 12, 13)),
    "left_elbow": (13,),
}
_ABDOMEN = "abdomen_x abdomen_y abdomen_z"
_HUMANOID_ROBOT = Robot(
    "humanoid.xml",
    5,
    _HUMANOID,
    _split(
        f"{_ABDOMEN} | left_elbow left_shoulder1 left_shoulder2 | right_elbow right_shoulder1 right_shoulder2"
        " | left_hip_x left_hip_y left_hip_z left_knee | right_hip_x right_hip_y right_hip_z right_knee"
        f" | left_shoulder1 left_shoulder2 {_ABDOMEN} | right_shoulder1 right_shoulder2 {_ABDOMEN}"
        f" | left_hip_x left_hip_y left_hip_z {_ABDOMEN} | right_hip_x right_hip_y right_hip_z {_ABDOMEN}"
    ),
    _partitions(
        _HUMANOID,
        {
            "9|8": f"{_ABDOMEN} right_shoulder1 right_shoulder2 right_elbow left_shoulder1 left_shoulder2"
            " left_elbow | right_hip_x right_hip_y right_hip_z right_knee left_hip_x left_hip_y left_hip_z"
            " left_knee",
            "17x1": "left_shoulder1 | left_shoulder2 | abdomen_x | abdomen_y | abdomen_z | right_shoulder1"
            " | right_shoulder2 | right_elbow | left_elbow | left_hip_x | left_hip_y | left_hip_z"
            " | right_hip_x | right_hip_y | right_hip_z | right_knee | left_knee",
        },
    ),
    own=("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
    hidden=2,
    tracks="mass",
    noise=1e-2,
    forward=1.25,
    alive=5.0,
    control=0.1,
    contact=5e-7,
    contact_cap=10.0,
    height=(1.0, 2.0),
)
_ARM = ("shoulder_pan", "shoulder_lift", "upper_arm_roll", "elbow_flex", "forearm_roll", "wrist_flex")
_PUSHER = tuple(f"r_{name}_joint" for name in (*_ARM, "wrist_roll"))


def _chain(*joints: str) -> tuple[tuple[str, ...], ...]:
    return tuple(itertools.pairwise(joints))


ROBOTS: dict[str, Robot] = {
    "Hopper": Robot(
        "hopper.xml",
        4,
        dict.fromkeys(_HOPPER, ()),
        _chain(*_HOPPER),
        _partitions(_HOPPER),
        clip={"qvel": 10.0},
        alive=1.0,
        control=1e-3,
        height=(0.7, inf),
        tilt=(-0.2, 0.2),
        bound=100.0,
    ),
    "HalfCheetah": Robot(
        "half_cheetah.xml",
        5,
        dict.fromkeys(_LEGS, ()),
        _chain("bfoot", "bshin", "bthigh", "fthigh", "fshin", "ffoot"),
        _partitions(
            _LEGS,
            {
                "2x3": "bthigh bshin bfoot | fthigh fshin ffoot",
                "3x2": "bfoot bshin | bthigh ffoot | fshin fthigh",
            },
        ),
        noise=0.1,
        normal=True,
        control=0.1,
    ),
    "Walker2d": Robot(
        "walker2d_v5.xml",
        4,
        dict.fromkeys(_WALKER, ()),
        _chain(
            "foot_joint", "leg_joint", "thigh_joint", "thigh_left_joint", "leg_left_joint", "foot_left_joint"
        ),
        _partitions(
            _WALKER,
            {
                "2x3": "foot_joint leg_joint thigh_joint | foot_left_joint leg_left_joint thigh_left_joint",
                "3x2": "foot_joint leg_joint | thigh_joint foot_left_joint | leg_left_joint thigh_left_joint",
            },
        ),
        clip={"qvel": 10.0},
        alive=1.0,
        control=1e-3,
        height=(0.8, 2.0),
        tilt=(-1.0, 1.0),
    ),
    "Ant": Robot(
        "ant.xml",
        5,
        _ANT,
        _split("ankle4 hip4 | ankle1 hip1 | ankle2 hip2 | ankle3 hip3 | hip1 hip2 hip3 hip4"),
        _partitions(
            _ANT,
            {
                "2x4": "hip1 ankle1 hip2 ankle2 | hip3 ankle3 hip4 ankle4",
                "2x4d": "hip1 ankle1 hip4 ankle4 | hip2 ankle2 hip3 ankle3",
                "4x2": "hip1 ankle1 | hip2 ankle2 | hip3 ankle3 | hip4 ankle4",
            },
        ),
        own=("qpos", "qvel", "cfrc_ext"),
        hidden=2,
        clip={"cfrc_ext": 1.0},
        tracks="torso",
        noise=0.1,
        normal=True,
        alive=1.0,
        control=0.5,
        contact=5e-4,
        height=(0.2, 1.0),
    ),
    "Humanoid": _HUMANOID_ROBOT,
    "HumanoidStandup": replace(
        _HUMANOID_ROBOT, xml="humanoidstandup.xml", goal="stand", tracks="root", height=(-inf, inf)
    ),
    # The velocities of the free root are split between the two joints, as gymnasium-robotics has it.
    "Swimmer": Robot(
        "swimmer.xml",
        4,
        {"rot2": (), "rot3": ()},
        (("rot2", "rot3"),),
        _partitions(("rot2", "rot3")),
        hidden=2,
        places={"rot2": {"qpos": (1,), "qvel": (3, 6)}, "rot3": {"qpos": (2,), "qvel": (4, 7)}},
        root=(0, 5),
        noise=0.1,
        control=1e-4,
    ),
    "Reacher": Robot(
        "reacher.xml",
        2,
        {"joint0": (), "joint1": ()},
        (("joint0", "joint1"),),
        _partitions(("joint0", "joint1")),
        own=("qpos", "qvel", "fingertip"),
        places={
            "joint0": {"qpos": (2, 0), "qvel": (6,), "fingertip": ()},
            "joint1": {"qpos": (3, 1), "qvel": (7,), "fingertip": (8, 9)},
        },
        root=(4, 5),
        goal="reach",
        limit=50,
        control=1.0,
    ),
    "Pusher": Robot(
        "pusher_v5.xml",
        5,
        dict.fromkeys(_PUSHER, ()),
        _chain(*_PUSHER),
        _partitions(_PUSHER, {"3p": " | ".join((" ".join(_PUSHER[:3]), _PUSHER[3], " ".join(_PUSHER[4:])))}),
        places={joint: {"qpos": (i,), "qvel": (7 + i,)} for i, joint in enumerate(_PUSHER)},
        root=tuple(range(14, 23)),
        goal="push",
        limit=100,
        control=0.1,
    ),
}


V4: dict[str, dict[str, Any]] = {
    "Hopper": {"always_alive": True},
    "HalfCheetah": {},
    "Walker2d": {"always_alive": True, "xml": "walker2d.xml"},
    "Ant": {"always_alive": True, "contact": 0.0, "own": ("qpos", "qvel"), "clip": {}},
    "Humanoid": {"always_alive": True, "contact": 0.0},
}
"""What gymnasium's v4 robots, the paper's v2 on today's MuJoCo, have otherwise than its v5.

Humanoid's observation is v5's, which leaves out what is always 0 in v4's.
"""


def get_robot(kind: str, version: str) -> Robot:
    """A robot of gymnasium's "v5" or "v4"; ValueError where there is no such version of it."""
    if version == "v5":
        return ROBOTS[kind]
    if version != "v4" or kind not in V4:
        known = f'"v5" or, of {", ".join(V4)}, "v4"'
        raise ValueError(f"version must be {known}; got {version!r} of {kind}.")
    return replace(ROBOTS[kind], **V4[kind])


def layout(robot: Robot, model: mujoco.MjModel) -> dict[str, slice]:
    """Where each kind of robot.own lies in the observation. For robots without `places`."""
    sizes = {
        "qpos": model.nq - robot.hidden,
        "qvel": model.nv,
        "qfrc_actuator": model.nv - 6,
        **{kind: width * (model.nbody - 1) for kind, width in WIDTH.items()},
    }
    parts, start = {}, 0
    for kind in robot.own:
        parts[kind] = slice(start, start + sizes[kind])
        start += sizes[kind]
    return parts


def hops(robot: Robot, joints: Sequence[str], k: int) -> list[list[str]]:
    """Joints first reached 0 to k edges away from any of `joints`, each hop sorted; none is empty."""
    reached = [sorted(joints)]
    known = set(joints)
    for _ in range(k):
        near = {joint for edge in robot.edges if known & set(edge) for joint in edge} - known
        if not near:
            break
        reached.append(sorted(near))
        known |= near
    return reached


def observation_index(robot: Robot, model: mujoco.MjModel, joints: Sequence[str], k: int) -> list[int]:
    """Places in gymnasium's observation of what the owner of `joints` sees, in the order it sees it."""
    places, root = robot.places, list(robot.root)
    if places is None:
        parts = layout(robot, model)
        moved = [int(model.actuator_trnid[actuator, 0]) for actuator in range(model.nu)]
        qpos = [int(model.jnt_qposadr[joint]) - robot.hidden for joint in moved]
        qvel = [int(model.jnt_dofadr[joint]) for joint in moved]
        offset = {"qpos": qpos, "qvel": qvel, "qfrc_actuator": [at - 6 for at in qvel]}
        places = {
            joint: {kind: (parts[kind].start + at[i],) for kind, at in offset.items() if kind in parts}
            for i, joint in enumerate(robot.joints)
        }
        root = [*range(min(qpos)), *range(parts["qvel"].start, parts["qvel"].start + min(qvel))]
        felt: set[tuple[str, int]] = set()
    seen: list[int] = []
    for hop, reached in enumerate(hops(robot, joints, k)):
        for joint in reached:
            for kind in robot.own if hop == 0 else ("qpos",):
                if kind not in WIDTH:
                    seen += places[joint][kind]
                    continue
                for body in robot.joints[joint]:
                    if (kind, body) not in felt:
                        felt.add((kind, body))
                        start = parts[kind].start + (body - 1) * WIDTH[kind]
                        seen += range(start, start + WIDTH[kind])
    return seen + root


def get_partition(
    name: str, joints: Sequence[Sequence[str]] | None
) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """The robot of a task "Robot-PARTITION", and the joints of each agent.

    joints: the partition itself, for a task that names a robot alone. ValueError if the task is unknown or
    the partition does not give every joint to exactly one agent.
    """
    kind, dash, partition = name.partition("-")
    if kind not in ROBOTS:
        raise ValueError(f"There is no robot {kind!r}; there are {', '.join(ROBOTS)}.")
    robot = ROBOTS[kind]
    if joints is None:
        if partition not in robot.partitions:
            known = ", ".join(f"{kind}-{known}" for known in robot.partitions)
            raise ValueError(
                f"There is no task {name!r}; there are {known}, and partition=... with {kind!r} alone."
            )
        return kind, robot.partitions[partition]
    if dash:
        raise ValueError(f"With partition=... the task is the robot alone: {kind!r}, not {name!r}.")
    agents = tuple(tuple(agent) for agent in joints)
    given = sorted(joint for agent in agents for joint in agent)
    if given != sorted(robot.joints) or not all(agents):
        raise ValueError(
            f"partition must give each joint of {kind} to exactly one agent, and every agent at least one: "
            f"{', '.join(robot.joints)}; got {agents}."
        )
    return kind, agents

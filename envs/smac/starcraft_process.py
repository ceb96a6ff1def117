"""StarCraft II on this machine: whether it can be played, and the process that plays its battles.

`require` checks SMAC, the game, its version and its maps without importing SMAC, whose import parses
command-line flags. `Worker` runs SMAC and its game in a session of their own, driven by commands over a pipe.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

BUILDS = {"4.10": 75689, "4.6.2": 69232}
"""Base build numbers (folder Versions/Base<build>) of the versions that SMAC results are published for."""
_NAMES = {build: version for version, build in BUILDS.items()}
INSTALL = "pip install git+https://github.com/oxwhirl/smac"
# Run with -c, so that a worker imports neither the training script nor any of `envs`; sys.path becomes the
# parent's.
_BOOT = "import json, sys; spec = json.loads(sys.argv[1]); sys.path[:] = spec['path']; "


class StarCraftError(RuntimeError):
    """The real game cannot be used, or kept failing; the message says what to do."""


def sc2_path() -> Path:
    """StarCraft II's folder: $SC2PATH, else ~/StarCraftII."""
    return Path(os.environ.get("SC2PATH") or "~/StarCraftII").expanduser()


def installed_builds() -> list[int]:
    """Build numbers of the game binaries under `sc2_path()`, ascending."""
    found = {p.parent.name.removeprefix("Base") for p in sc2_path().glob("Versions/Base*/SC2*")}
    return sorted(int(name) for name in found if name.isdigit())


def _smac_folder() -> Path | None:
    """Folder of the installed smac.env.starcraft2; None without any smac. Imports nothing."""
    spec = importlib.util.find_spec("smac")
    if spec is None:
        return None
    for place in spec.submodule_search_locations or ():
        if (Path(place) / "env" / "starcraft2").is_dir():
            return Path(place) / "env" / "starcraft2"
    if spec.origin is None:  # a bare folder that happens to be named smac
        return None
    raise StarCraftError(
        "The installed package `smac` is SMAC3 (hyper-parameter optimisation), not the StarCraft challenge: "
        f"pip uninstall smac, then {INSTALL}"
    )


@functools.cache
def _import_failure(folder: Path, protobuf: str | None) -> str:
    """What importing SMAC prints when it fails, else ""; in a process of its own, once per installation."""
    code = _BOOT + "from smac.env import StarCraft2Env"
    command = [sys.executable, "-c", code, json.dumps({"path": sys.path})]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


def build_of(game_version: str | None) -> int:
    """Build to play; game_version None is the newest installed."""
    if game_version is not None and game_version not in BUILDS:
        known = ", ".join(map(repr, BUILDS))
        raise ValueError(
            f"game_version must be {known} or None (the newest installed); got {game_version!r}."
        )
    root, builds = sc2_path(), installed_builds()
    if not root.is_dir():
        where = (
            f"SC2PATH={root} is not a folder" if os.environ.get("SC2PATH") else f"no SC2PATH and no {root}"
        )
        raise StarCraftError(
            f"StarCraft II was not found ({where}): set SC2PATH to the folder it is installed in."
        )
    if not builds:
        raise StarCraftError(
            f"There is no game binary under {root}/Versions/Base*: unpack StarCraft II 4.10 there, "
            "or set SC2PATH to the folder that holds Versions."
        )
    if game_version is None:
        return builds[-1]
    if BUILDS[game_version] not in builds:
        have = ", ".join(f"Base{b} ({_NAMES.get(b, 'another version')})" for b in builds)
        raise StarCraftError(
            f"StarCraft II {game_version} (Base{BUILDS[game_version]}) is not installed, {root}/Versions has "
            f"{have}: install it, or choose game_version (results of different versions are not comparable)."
        )
    return BUILDS[game_version]


def version_of(build: int) -> str:
    """The version's name, as "4.10", or "Base<build>" for one that is not in `BUILDS`."""
    return _NAMES.get(build, f"Base{build}")


def smac_version(build: int) -> str | None:
    """The build as SMAC's game_version: None for the newest installed, else three numbers, as in "4.10.0"."""
    name = version_of(build)
    return None if build == installed_builds()[-1] else name + ".0" * (name.count(".") == 1)


def require(map_name: str | None = None, game_version: str | None = "4.10") -> int:
    """Check that the real game can be played here (on that map, in that version); its build number.

    StarCraftError with one sentence that says what to do otherwise; ValueError for an unknown version.
    """
    if os.name != "posix":
        raise StarCraftError("The StarCraft II backend runs on Linux and macOS; use backend='embedded' here.")
    folder = _smac_folder()
    if folder is None:
        raise StarCraftError(f"SMAC is not installed: {INSTALL} (`smac` on PyPI is an unrelated package).")
    build = build_of(game_version)
    maps = sc2_path() / "Maps" / "SMAC_Maps"
    if not (maps / f"{map_name}.SC2Map").is_file() if map_name else not any(maps.glob("*.SC2Map")):
        which = f"map {map_name}" if map_name else "maps"
        raise StarCraftError(
            f"SMAC's {which} is missing in {maps}: "
            f"mkdir -p '{maps.parent}' && cp -r '{folder / 'maps' / 'SMAC_Maps'}' '{maps.parent}'"
        )
    failure = _import_failure(folder, os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"))
    if "Descriptors cannot" in failure:
        raise StarCraftError(
            "SMAC's messages do not load with the installed protobuf: pip install 'protobuf==3.20.*', "
            "or set PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python (slower)."
        )
    if failure:
        last = failure.splitlines()[-1]
        raise StarCraftError(f"SMAC is installed but does not import ({last}); reinstall it: {INSTALL}")
    return build


def available(map_name: str | None = None, game_version: str | None = "4.10") -> tuple[bool, str]:
    """Whether the real game can be played here, and one sentence: what will be played, or what is missing."""
    try:
        build = require(map_name, game_version)
    except StarCraftError as error:
        return False, str(error)
    return True, f"StarCraft II (Base{build}) at {sc2_path()}."


def _lose() -> NoReturn:
    """In place of SMAC's full_restart: a game that it launched would be ended at once, with this process."""
    raise ConnectionError(f"the game was lost: {sys.exc_info()[1]}")


class _Game:
    """SMAC and its game, inside the worker. Whatever raises here ends the worker, and another follows."""

    def __init__(self, reward_fix: bool, smac: dict[str, Any]) -> None:
        from smac.env import StarCraft2Env

        self.make = functools.partial(StarCraft2Env, **smac)
        self.env = self.make()
        self.reward_fix = reward_fix
        self.begun = False

    def sizes(self) -> dict[str, int]:
        return self.env.get_env_info()

    def reset(self, seed: int) -> tuple[Any, ...]:
        """Begin an episode; the first launches the game, with this seed."""
        if not self.begun:
            self.env = self.make(seed=seed)
            self.env.full_restart = _lose
        self.env.reset()
        about = None
        if not self.begun:
            # SMAC adds to max_reward whenever it looks for its units: a slow start counts some twice.
            units = sum(unit.health_max + unit.shield_max for unit in self.env.enemies.values())
            whole = self.env.reward_win + self.env.n_enemies * self.env.reward_death_value + units
            build = self.env._controller.ping().base_build
            about = {"found": self.env.max_reward, "max_reward": whole, "build": build}
            self.env.max_reward = whole
            self.begun = True
        return self._see(), about

    def step(self, actions: list[int]) -> tuple[Any, ...]:
        """Reward, whether the battle was decided, cut short, and won, what is seen, game loops so far."""
        reward, over, info = self.env.step(actions)
        truncated = bool(info.get("episode_limit", False))
        reward = max(0.0, reward) if self.reward_fix else reward
        won, loops = info.get("battle_won", False), self.env._obs.observation.game_loop
        return reward, over and not truncated, truncated, won, self._see(), loops

    def save_replay(self) -> None:
        self.env.save_replay()

    def _see(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        obs = np.asarray(self.env.get_obs(), dtype=np.float32)
        mask = np.asarray(self.env.get_avail_actions(), dtype=np.bool_)
        return obs, mask, np.asarray(self.env.get_state(), dtype=np.float32)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)  # the trainer was killed: its games must not outlive it


def serve(spec: dict[str, Any]) -> None:
    """Body of a worker: answers (command, *arguments) with ("ok", result) until hung up or anything fails."""
    threading.Thread(target=_follow, args=(spec["parent"],), daemon=True).start()
    connection, game = Connection(spec["fd"]), None
    try:
        try:
            game = _Game(**spec["game"])
        except Exception as error:
            connection.send(("unusable", f"{type(error).__name__}: {error}"))
            return
        while (message := connection.recv())[0] != "close":
            connection.send(("ok", getattr(game, message[0])(*message[1:])))
    except (EOFError, BrokenPipeError):
        pass
    except Exception as error:
        connection.send(("lost", f"{type(error).__name__}: {error}"))
    finally:
        if game is not None:
            game.env.close()


class Worker:
    """The trainer's end of one worker. It leads a session of its own, so that its game dies with it."""

    def __init__(self, game: dict[str, Any]) -> None:
        self.connection, theirs = mp.Pipe()
        with theirs:
            spec = dict(fd=theirs.fileno(), parent=os.getpid(), path=sys.path, file=__file__, game=game)
            code = _BOOT + "import runpy; runpy.run_path(spec['file'])['serve'](spec)"
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(spec)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the game chats there; failures go to stderr
                start_new_session=True,
            )

    def receive(self) -> Any:
        """The next reply; `Lost` if the worker has failed. StarCraftError if SMAC cannot be used at all."""
        try:
            kind, reply = self.connection.recv()
        except (EOFError, OSError):
            return Lost("its process ended")
        if kind == "unusable":
            raise StarCraftError(f"SMAC is installed but cannot be used ({reply}); reinstall it: {INSTALL}")
        return reply if kind == "ok" else Lost(reply)


def stop(workers: list[Worker | None], patience: float) -> None:
    """End these workers and their games, leaving None; all have `patience` seconds to close by themselves."""
    ending = [worker for worker in workers if worker is not None]
    workers[:] = [None] * len(workers)
    for worker in ending:
        with contextlib.suppress(OSError):
            worker.connection.send(("close",))
    deadline = time.monotonic() + patience
    for worker in ending:
        with contextlib.suppress(EOFError, OSError):
            while worker.connection.poll(max(0.0, deadline - time.monotonic())):
                worker.connection.recv()
        # Not waited for until now, so the process id is still its own.
        with contextlib.suppress(OSError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        worker.connection.close()


class Lost(str):
    """Why a game was lost, in place of its reply."""

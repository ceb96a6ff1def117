"""A machine with the stand-in for oxwhirl SMAC in tests/standin, and what goes on there."""

import json
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STANDIN = ROOT / "tests" / "standin"
QUICK = {"stagger": 0.0, "backoff": 0.0, "step_timeout": 20.0, "reset_timeout": 30.0}


class Machine:
    """A machine with a stand-in SMAC and an empty StarCraft II folder; reads what the stand-in has logged."""

    def __init__(self, folder, monkeypatch):
        self.sc2, self.log, self.monkeypatch = folder / "StarCraftII", folder / "log", monkeypatch
        self.add_build(75689)
        (self.sc2 / "Maps" / "SMAC_Maps").mkdir(parents=True)
        for name in ("3m", "2s3z", "corridor"):
            (self.sc2 / "Maps" / "SMAC_Maps" / f"{name}.SC2Map").touch()
        monkeypatch.setenv("SC2PATH", str(self.sc2))
        monkeypatch.setenv("STANDIN_LOG", str(self.log))
        monkeypatch.syspath_prepend(str(STANDIN))

    def add_build(self, build):
        (self.sc2 / "Versions" / f"Base{build}").mkdir(parents=True)
        (self.sc2 / "Versions" / f"Base{build}" / "SC2_x64").touch()

    def faults(self, *faults):
        self.monkeypatch.setenv("STANDIN_FAULTS", json.dumps(faults))

    def events(self, name=None):
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [line for line in lines if name in (None, line[1])]

    def processes(self):
        """Process ids of all workers that launched a game, and of their games."""
        own = str(os.getpid())  # the tests drive SMAC themselves, too
        return {int(pid) for who, _, game, _ in self.events("launch") if who != own for pid in (who, game)}

    def folders(self):
        """The temporary folders of all workers that launched a game."""
        own = str(os.getpid())
        return {Path(folder).parent for who, _, folder in self.events("folder") if who != own}


def running(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def assert_all_end(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < deadline, f"processes {left} are still running"
        time.sleep(0.05)


def assert_removed(folders, seconds=10.0):
    deadline = time.monotonic() + seconds
    while left := [folder for folder in folders if folder.exists()]:
        assert time.monotonic() < deadline, f"{left} are still there"
        time.sleep(0.05)


def attack(infos):
    """The last available action: attack if something is in reach, else walk."""
    mask = infos["action_mask"]
    return mask.shape[-1] - 1 - mask[..., ::-1].argmax(-1)


def play(env, infos, steps):
    """The results of `steps` steps of `attack`."""
    results = []
    for _ in range(steps):
        results.append(env.step(attack(infos)))
        infos = results[-1][-1]
    return results

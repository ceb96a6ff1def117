"""One thread per operator, whatever a machine or its variables offer: they would add up in another order."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from unittest import mock

import torch

import envs as environments
from tests.scripts.running import ROOT, SCRIPTS
from tests.scripts.test_decentralized import CASES, make_agents


class Reached(Exception):
    """`main` is about to make environments."""


def tell() -> None:
    """Prints for each script the threads of an operator in its learner's workers and in `main`."""
    for name, kind in {script: kind for script, kind, _ in CASES.values()}.items():
        script = importlib.import_module(name)
        torch.set_num_threads(4)
        loss_and_rows = () if name in ("iql", "iddpg") else (None, 10**6)
        learner = script.Learner(make_agents(script, kind), script.Args(), *loss_and_rows)
        of_workers = learner.pool.submit(torch.get_num_threads).result()
        sys.argv = [f"{name}.py"]
        with mock.patch.object(environments, "make", side_effect=Reached), contextlib.suppress(Reached):
            script.main()
        print(name, of_workers, torch.get_num_threads())


def test_operators_have_one_thread_whatever_the_variables_say():
    """The other tests set the variables to 1, and would not see that a script relies on them."""
    variables = os.environ | {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    command = [sys.executable, "-c", "from tests.scripts.test_threads import tell; tell()"]
    told = subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True, text=True).stdout
    assert sorted(told.splitlines()) == [f"{name} 1 1" for name in SCRIPTS]

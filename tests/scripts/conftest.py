"""One thread per operator, for which bit-identity is promised; and tiny runs to look at."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.scripts.cases import CASES, Case
from tests.scripts.running import only


@pytest.fixture(autouse=True)
def one_thread():
    """As the scripts set it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def reference(case, tmp_path_factory) -> Path:
    """The run directory of an uninterrupted tiny run; only to look at."""
    runs = tmp_path_factory.mktemp("runs")
    case.finished(*case.tiny, "--runs-dir", runs)
    return only(runs)


@pytest.fixture
def copied(reference, tmp_path) -> Path:
    """A copy of the reference, to change."""
    return shutil.copytree(reference, tmp_path / reference.name)

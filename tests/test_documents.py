"""The documents: a reader who follows a link must arrive."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += sorted((ROOT / "benchmark" / "results").rglob("*.md"))
DOCUMENTS += [ROOT / "benchmark" / "policies" / "README.md"]


def anchors(path):
    """The ids that a document's headings have on GitHub."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """Relative ones, to files of the repository and to headings in them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.is_relative_to(ROOT) and there.exists(), target
        assert not heading or heading in anchors(there), target


def commands(path):
    """The arguments of python in a page's blocks of commands, and where a line of text has some."""
    text = path.read_text()
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace("$seed; done", "1"), comments=True)
            if "python" in words:
                yield words[words.index("python") + 1 :]
    for inline in re.findall(r"`python\s+([\w/]+\.py[^`]*)`", text):
        yield shlex.split(inline)


FOR_EXAMPLE = {
    "SEED": "1",
    "N": "3",
    "A": "2",
    "TASK": "simple_spread",
}  # what a reader puts in the place of these


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_can_be_typed(path):
    """A flag that was renamed leaves a page that does not work."""
    for name, *given in commands(path):
        if name == "-m" and given[0] == "tests.storm":
            name, *given = "tests.storm.__main__", *given[1:]
        elif not name.endswith(".py"):
            continue
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        tyro.cli(module.Args, args=[FOR_EXAMPLE.get(word, word) for word in given])  # SystemExit otherwise


@pytest.mark.parametrize("page", ["README.md", "docs/envs.md", "benchmark/policies/README.md"])
def test_examples_run(page, tmp_path):
    """The Python on a page, from its first block to its last, as a reader who pastes them would run it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    given = "from mpe2.simple_spread_v3 import parallel_env as MyParallelEnv\n"  # a reader's own
    (tmp_path / "benchmark").symlink_to(ROOT / "benchmark")
    # No StarCraft, which the README's example would play where it is.
    variables = os.environ | {"PYTHONPATH": str(ROOT), "SC2PATH": str(tmp_path)}
    command = [sys.executable, "-c", given + "\n".join(blocks)]
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr

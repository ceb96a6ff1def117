"""Scripts share no code but `envs/`: what several of them hold is the same letter for letter, and says so."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if "class Args" in path.read_text())
MARK = re.compile(r"# --- same in: (.+) ---")


def blocks(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Top-level functions and classes by name: source with decorators, and the scripts its mark names."""
    text = path.read_text()
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            mark = MARK.fullmatch(lines[first - 2])
            source = "\n".join(lines[first - 1 : node.end_lineno])
            found[node.name] = source, mark.group(1).split(", ") if mark else []
    return found


ALL = {path.stem: blocks(path) for path in SCRIPTS}


def test_blocks_marked_as_shared_are_the_same_in_every_script_they_name():
    """A fix made in one script only would leave the others wrong."""
    marks = 0
    for script, own in ALL.items():
        for name, (source, others) in own.items():
            for other in others:
                marks += 1
                assert name in ALL[other], f"{script}.{name} says that {other} holds it, too"
                assert ALL[other][name] == (source, others), f"{name} differs: {script}, {other}"
    assert marks > 10


def test_blocks_that_are_the_same_are_marked():
    """An unmarked copy is one that the next fix forgets."""
    for name in {name for own in ALL.values() for name in own}:
        holders = [script for script, own in ALL.items() if name in own]
        for script in holders:
            source, mark = ALL[script][name]
            twins = sorted(other for other in holders if ALL[other][name][0] == source)
            assert mark == (twins if len(twins) > 1 else []), f"{script}.{name} is the same in: {twins}"

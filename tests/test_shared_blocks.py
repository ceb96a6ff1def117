"""Scripts share no code but `envs/`: what several of them hold is the same letter for letter, and says so.

Three kinds of regions: functions and classes above the plumbing, phases of `train`, and the plumbing, from a
line that says so to the end, which all scripts hold.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.envs.test_contract import imports

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {path.stem: path.read_text() for path in sorted(ROOT.glob("*.py"))}
DPO = ("dpo_mamujoco", "dpo_matrix", "dpo_mpe", "dpo_smac")
PLUMBING = "# ==== Plumbing, the same in all seven scripts"
BLOCK = re.compile(r"^# --- same in: (.+) ---$")
PHASE = re.compile(r"^ {4}(?: {4})?# --- ([^;]+?)(?:; same in: (.+))? ---$")

Regions = dict[str, tuple[str, list[str]]]  # by name: the text, and the scripts that its mark names


@pytest.mark.parametrize("script", TEXTS)
def test_scripts_import_nothing_of_ours_but_envs(script):
    """Who copies a script takes envs/ along, and nothing else."""
    assert {name.partition(".")[0] for name in imports(ROOT / f"{script}.py")} == {"envs"}


def named(mark: re.Match | None, group: int) -> list[str]:
    return mark[group].split(", ") if mark and mark[group] else []


def blocks(text: str) -> Regions:
    """Functions and classes of the top level, with their decorators."""
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            source = "\n".join(lines[first - 1 : node.end_lineno])
            found[node.name] = source, named(BLOCK.match(lines[first - 2]), 1)
    return found


def phases(text: str) -> Regions:
    """What stands in `train` from a phase's comment to the next one's, or to its end."""
    lines, found = text.splitlines(), {}
    [train] = [node for node in ast.parse(text).body if getattr(node, "name", "") == "train"]
    own = [i for i in range(train.lineno, train.end_lineno) if PHASE.match(lines[i])]
    for first, last in zip(own, [*own[1:], train.end_lineno], strict=True):
        mark = PHASE.match(lines[first])
        found[f"train: {mark[1]}"] = "\n".join(lines[first + 1 : last]).rstrip(), named(mark, 2)
    return found


def faults(texts: dict[str, str]) -> list[str]:
    """What is wrong with the marks of these scripts, a sentence each."""
    wrong, heads, plumbing = [], {}, {}
    for script, text in texts.items():
        heads[script], *rest = text.split(PLUMBING)
        plumbing[script] = rest
        wrong += [] if len(rest) == 1 else [f"{script} has {len(rest)} lines that begin the plumbing"]
    wrong += ["the plumbing is not the same everywhere"] * (len({str(x) for x in plumbing.values()}) > 1)
    regions = {script: blocks(head) | phases(head) for script, head in heads.items()}
    for script, own in regions.items():
        marks = sum(bool(mark) for _, mark in own.values())
        if marks != texts[script].count("same in: "):
            wrong.append(f"{script} has a mark at which no region begins")
        for name, (source, mark) in own.items():
            twins = sorted(other for other, theirs in regions.items() if theirs.get(name, [""])[0] == source)
            if mark != (twins if len(twins) > 1 else []):
                wrong.append(f"{script}, {name} is marked {mark}, but the same in {twins}")
    return wrong


def test_what_is_the_same_in_several_scripts_is_marked_and_what_is_marked_is_the_same():
    """A fix made in one script only leaves the others wrong, and an unmarked copy is one that it forgets."""
    assert len(TEXTS) == 7
    assert not faults(TEXTS)
    shared = [
        name for text in TEXTS.values() for name, (_, mark) in (blocks(text) | phases(text)).items() if mark
    ]
    assert len(shared) > 30 and sum(name.startswith("train: ") for name in shared) > 8


def test_all_dpo_scripts_state_the_same_algorithm():
    """It stands in their docstrings, which no mark covers; one that is corrected leaves the others wrong."""
    told = {
        text.partition("Each agent i maximises")[2].partition("eq. (21)")[0] for text in map(TEXTS.get, DPO)
    }
    [statement] = told
    assert "sqrt KL_s" in statement and "d_target / delta" in statement


def test_all_scripts_begin_by_leaving_quietly_on_a_signal():
    """Those lines stand before all that a mark can cover."""
    [beginning] = {
        text.partition("\nimport os\n")[2].partition("import contextlib\n")[0] for text in TEXTS.values()
    }
    assert "os._exit(75)" in beginning


def edited(script: str, before: str, after: str) -> dict[str, str]:
    assert before in TEXTS[script]
    return TEXTS | {script: TEXTS[script].replace(before, after, 1)}


BLOCK_MARK = next(line for line in TEXTS["dpo_mpe"].splitlines() if BLOCK.match(line))
PHASE_MARK = next(line for line in TEXTS["dpo_mpe"].splitlines() if named(PHASE.match(line), 2))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = x.relu_()", "x = x.relu()"),
        ("run.checkpoint(global_step, snapshot)", "run.checkpoint(global_step, snapshot())"),
        ("os.fsync(file.fileno())", "pass"),
        (BLOCK_MARK, BLOCK_MARK.replace(", dpo_smac", "")),
        (BLOCK_MARK, BLOCK_MARK.removesuffix(" ---") + ", another ---"),
        (BLOCK_MARK + "\n", ""),
        (BLOCK_MARK, BLOCK_MARK + "\n\n" + BLOCK_MARK),
        (PHASE_MARK, PHASE_MARK.partition(";")[0] + " ---"),
        (PHASE_MARK, PHASE_MARK.removesuffix(" ---") + ", another ---"),
        (PLUMBING, "# Plumbing"),
    ],
)
def test_a_difference_would_be_noticed(before, after):
    """Else the test above shows nothing."""
    assert faults(edited("dpo_mpe", before, after))

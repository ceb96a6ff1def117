"""What all seven scripts refuse: files that are no run of theirs, other runs, flags out of range."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path

import pytest
import torch

from tests.scripts.running import SCRIPTS, refused, rejected


class Payload:
    """A pickle that writes a file when it is loaded as pickles usually are."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


def broken(kind: str, good: Path, path: Path) -> None:
    """Writes to `path` what is no checkpoint of ours; `good` is one."""
    whole = good.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "foreign":
        torch.save({"model": torch.zeros(3)}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "other script":
        torch.save(torch.load(good) | {"script": "another"}, path)
    elif kind == "other version":
        state = torch.load(good)
        torch.save(state | {"args": {**state["args"], "retired_flag": 1}}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(path.with_name("executed"))))
    else:
        torch.save(torch.load(good) | {"agents": Payload(path.with_name("executed"))}, path)


KINDS = ["truncated", "empty", "text", "foreign", "tensor", "other script", "other version", "pickle", "code"]


@pytest.mark.filterwarnings("ignore:Using a non-tuple")  # PyTorch's, where a tensor is asked for its script
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_checkpoint_of_ours_is_refused_unexecuted_and_untouched(case, reference, tmp_path, kind):
    """A stranger's file must not run code here, and a damaged one must not begin a run that looks resumed."""
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    broken(kind, reference / "checkpoint.pt", path)
    before = path.read_bytes()
    for argv in (("--resume", path.parent), ("--eval-only", "--resume", path)):
        assert str(path) in case.refused(*argv)
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == before


def test_the_code_in_those_files_would_have_run(tmp_path):
    """Else the test above shows nothing."""
    (tmp_path / "pickle").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    pickle.loads((tmp_path / "pickle").read_bytes())
    assert (tmp_path / "executed").exists()


REFUSED = {
    "resume with other arguments": (
        ["--resume", "RUN", "--learning-rate=0.1234"],
        "--learning-rate is 0.1234",
    ),
    "resume with other environments": (["--resume", "RUN", "--num-envs=7"], "--num-envs is 7"),
    "resume on another task": (["--resume", "RUN", "OTHER"], "OTHER is"),
    "resume of nothing": (["--resume", "TMP/none"], "no checkpoint at TMP/none"),
    "evaluation of nothing": (["--eval-only", "--resume", "TMP/none"], "no checkpoint at TMP/none"),
    "evaluation without a run": (["--eval-only"], "--resume"),
    "evaluation on another task": (["--eval-only", "--resume", "RUN", "OTHER"], "OTHER is"),
    "evaluation of another learner": (["--eval-only", "--resume", "RUN", "--gamma=0.5"], "--gamma is 0.5"),
    "no GPU": (["--device", "cuda"], "--device cpu"),
    "runs directory in a file": (["TINY", "--runs-dir", "TMP/file/runs"], "TMP/file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_with_a_sentence_that_names_it(case, reference, tmp_path, what):
    """A traceback, or a run other than the one asked for, costs a user an hour."""
    if what == "no GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / "file").write_text("")
    argv, named = REFUSED[what]
    flag = case.other.partition("=")[0]
    before = {path: path.read_bytes() for path in reference.iterdir()}
    here = lambda x: x.replace("RUN", str(reference)).replace("TMP", str(tmp_path))  # noqa: E731
    words = itertools.chain.from_iterable(case.tiny if x == "TINY" else [x] for x in argv)
    given = [case.other if word == "OTHER" else here(word) for word in words]
    assert here(named).replace("OTHER", flag) in case.refused("--runs-dir", tmp_path / "runs", *given)
    assert {path: path.read_bytes() for path in reference.iterdir()} == before
    assert not (tmp_path / "runs").exists()


OUT_OF_RANGE = {
    "--gamma=5": "--gamma must be between 0 and 1, got 5.0",
    "--learning-rate=0": "--learning-rate must be between",
    "--learning-rate=nan": "got nan",
    "--learning-rate=1e30": "--learning-rate must be between 1e-12 and 1, got 1e+30",
    "--max-grad-norm=-1": "--max-grad-norm must be between",
    "--seed=-1": "--seed must be between 0 and",
    "--num-envs=0": "--num-envs must be between 1 and",
    "--num-envs=3000000": "--num-envs must be between 1 and 16384",
    "--eval-every=0": "--eval-every must be between 1 and",
    "--checkpoint-every=0": "--checkpoint-every must be between 1 and",
    "--total-timesteps=0": "--total-timesteps must be between 1 and",
    "--total-timesteps=-5": "--total-timesteps must be between 1 and",
    "--torch-threads=-1": "--torch-threads must be between 0 and",
    "--device=abacus": "Expected one of ('cpu', 'cuda')",
    "--device=cuda:1": "Expected one of ('cpu', 'cuda')",
}


OF_SOME = {
    "dpo_mpe dpo_smac dpo_mamujoco dpo_matrix": [
        "--beta-init=-1",
        "--d-target=inf",
        "--delta=inf",
        "--omega=1",
    ],
    "dpo_mpe dpo_smac dpo_mamujoco ippo": ["--num-steps=100000000", "--num-steps=0"],
    "iql iddpg": ["--memory-share=nan", "--memory-share=1e9", "--memory-share=0"],
    "iql": ["--updates-per-episode=0", "--epsilon-steps=-1", "--buffer-episodes=0"],
    "iddpg": ["--updates-per-step=0"],
    "dpo_mpe": ["--episode-length=200000"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_out_of_range_are_rejected_with_what_is_allowed(script, tmp_path):
    """Bad input costs a user one line to read, and makes no run directory."""
    wrong = dict(OUT_OF_RANGE)
    if script == "dpo_matrix":  # has no such flag
        del wrong["--max-grad-norm=-1"]
    for scripts, flags in OF_SOME.items():
        for flag in flags if script in scripts.split() else []:
            wrong[flag] = f"{flag.partition('=')[0]} must be between"
    for flag, sentence in wrong.items():
        assert sentence in rejected(script, flag, "--runs-dir", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


OF_ANOTHER_KIND = [
    ("dpo_matrix", ["--game=3", "--d-target=0.01"], "does not use --d-target; drop it"),
    ("dpo_matrix", ["--game=3", "--payoff", "1", "2", "3", "4"], "does not use --game; drop it"),
    ("dpo_matrix", ["--payoff", "1", "2", "3", "4", "--no-kl-term"], "does not use --kl-term; drop it"),
    ("dpo_smac", ["--map=pettingzoo:tests.standin.identity", "--backend=embedded"], "is of SMAC's maps"),
    ("ippo", ["--env-id=mpe/simple_spread", "--no-obs-norm"], "--no-obs-norm is for real actions; drop it"),
]


@pytest.mark.parametrize(("script", "argv", "sentence"), OF_ANOTHER_KIND)
def test_flags_that_would_do_nothing_are_refused(script, argv, sentence, tmp_path):
    """A user would take the result for one of the flag."""
    assert sentence in refused(script, *argv, f"--runs-dir={tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()


def test_damaged_args_json_is_not_blamed_on_the_checkpoint(case, copied):
    """Else a good checkpoint would be thrown away."""
    (copied / "args.json").write_text("{")
    sentence = case.refused("--resume", copied, "--total-timesteps", 2 * case.total)
    assert f"{copied / 'args.json'} cannot be read" in sentence and "checkpoint.pt" not in sentence


@pytest.mark.parametrize("words", [["--resume", ""], ["--resume="], ["--runs-dir="], ["--runs-dir", "a\nb"]])
def test_argument_that_is_empty_or_has_several_lines_is_refused(case, tmp_path, monkeypatch, words):
    """`--resume "$RUN"` with RUN unset would begin a run anew."""
    monkeypatch.chdir(tmp_path)
    assert "is empty (a variable not set?), has several lines" in case.refused(*case.tiny, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["missing", "shorter", "other"])
def test_run_whose_metrics_were_tampered_with_is_not_resumed(case, copied, change):
    """Going on would leave a curve with a hole that no one sees."""
    metrics = copied / "metrics.csv"
    if change == "missing":
        metrics.unlink()
    elif change == "shorter":
        os.truncate(metrics, metrics.stat().st_size - 1)
    else:
        text = metrics.read_text()
        metrics.write_text(
            text[:-2] + str((int(text[-2]) + 1) % 10) + "\n" if text[-2].isdigit() else text[::-1]
        )
    before = (copied / "checkpoint.pt").read_bytes()
    sentence = case.refused("--resume", copied, "--total-timesteps", 2 * case.total)
    assert str(metrics) in sentence and "restore it or start a new run" in sentence
    assert (copied / "checkpoint.pt").read_bytes() == before and metrics.exists() == (change != "missing")


def test_policy_alone_is_no_run_to_go_on_with(case, copied):
    """It has neither optimiser nor environments: going on from it would be another run."""
    (copied / "checkpoint.pt").unlink()
    for path in (copied, copied / "policy.pt"):
        sentence = case.refused("--resume", path, "--total-timesteps", 2 * case.total)
        assert str(path) in sentence and "add --eval-only" in sentence

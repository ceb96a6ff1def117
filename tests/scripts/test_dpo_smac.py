"""dpo_smac.py: evaluation, what is saved, whole runs, and battles that are won.

Its learner is tested in test_learner.py, test_advantages.py and test_kl.py.
"""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import imageio
import numpy as np
import pytest
import torch

import dpo_smac
import envs
from dpo_smac import Agents, Args, update
from tests.scripts.recording import recording
from tests.scripts.running import (
    evaluations,
    finished,
    load,
    only,
    refused,
    rejected,
    rows,
    same,
    undisturbed,
)

OWN_SIDES = (("allies", "marine", 12), ("enemies", "zergling", 18))

# Evaluated.


def test_evaluation_takes_equally_many_episodes_of_each_environment():
    """Counting the first to end would over-represent short battles, mostly lost ones."""
    vector_env, played = recording("battle"), [[] for _ in range(4)]
    step = vector_env.step

    def watched(actions):
        result = step(actions)
        for episode in result[4]["episodes"]:
            played[episode["env"]].append(episode)
        return result

    vector_env.step = watched
    result = dpo_smac.evaluate(Agents(3, vector_env.obs_dim, vector_env.num_actions), vector_env, 8, [1, 2])
    assert min(map(len, played)) == 2 < max(map(len, played))
    first = [episode for own in played for episode in own[:2]]
    for name in ("episodic_return", "episodic_length", "win_rate"):
        expected = float(np.mean([episode[name] for episode in first]))
        assert result[f"eval/{name}"] == pytest.approx(expected, rel=1e-6)
    of_all = [episode["episodic_return"] for own in played for episode in own]
    assert result["eval/episodic_return"] != pytest.approx(float(np.mean(of_all)))


def train(directory: Path, **args) -> tuple[dict, Agents]:
    """The last checkpoint of a training on a recording, and the agents as they are then."""
    agents, args = Agents(3, 6, 5), dict(num_envs=4, num_steps=16, runs_dir=str(directory)) | args
    with undisturbed(dpo_smac):
        where, best = dpo_smac.train(Args(**args), recording("battle"), recording("battle"), agents, {})
    saved = load(where)
    assert same(saved["best"], dict(best))
    return saved, agents


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The last epoch's step can break the critic while every logged number is still finite."""

    def poisoned(agents, *args, **options):
        stats = update(agents, *args, **options)
        agents.critic.biases[2].data[1] = torch.nan
        return stats

    monkeypatch.setattr(dpo_smac, "update", poisoned)
    with pytest.raises(SystemExit, match="not finite"):
        train(tmp_path, total_timesteps=256, checkpoint_every=64)
    assert all(x.isfinite().all() for x in load(only(tmp_path))["agents"].values())


@pytest.mark.parametrize(("returns", "kept"), [((1.0, 2.0, 2.0, 2.0), 3), ((1.0, 3.0, 2.0, 2.0), 1)])
def test_of_parameters_that_evaluate_alike_the_last_are_kept(tmp_path, monkeypatch, returns, kept):
    """The first 32 battles that are all won are luck; what was trained on since should not be thrown away."""
    seen, evaluations = [], iter(returns)

    def evaluate(agents, *args):
        seen.append(copy.deepcopy(agents.state_dict()))
        return {"eval/episodic_return": next(evaluations), "eval/win_rate": 1.0}

    monkeypatch.setattr(dpo_smac, "evaluate", evaluate)
    saved, agents = train(tmp_path, total_timesteps=192, eval_every=64)
    assert len(seen) == 4
    assert all(torch.equal(x, seen[kept][name]) for name, x in saved["best"].items())
    assert (kept == 3) == all(torch.equal(x, saved["best"][name]) for name, x in agents.state_dict().items())


# Whole runs; what holds for all scripts is in test_runs.py.


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--map=3x"], "did you mean '3m'"),
        (["--map=3m", "--env-options=reward"], "Options are name=value pairs"),
        (["--map=3m", "--env-options=rewardfix=1"], "did you mean 'reward_fix'"),
    ],
)
def test_what_cannot_be_played_is_refused_with_a_sentence(tmp_path, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    assert sentence in refused("dpo_smac", f"--runs-dir={tmp_path / 'runs'}", "--backend=embedded", *flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--backend=sc3"], "Expected one of ('auto', 'embedded', 'starcraft')"),
        (["--d-target=0"], "--d-target must be between"),
        (["--delta=1"], "--delta must be between 1.0001"),
        (["--omega=1"], "--omega must be between 1.0001"),
        (["--beta-min=2000"], "--beta-min must be at most --beta-max 1000.0, got 2000.0"),
        (["--num-steps=0"], "--num-steps must be between 1 and"),
        (["--gae-lambda=1.5"], "--gae-lambda must be between 0 and 1, got 1.5"),
    ],
)
def test_flags_of_its_own_are_rejected_where_they_make_no_sense(tmp_path, flags, sentence):
    """Training for hours with a trust region that cannot close is worse than not starting."""
    assert sentence in rejected("dpo_smac", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


def test_options_of_the_environment_win_over_flags(tmp_path):
    """They are the more particular word; silently ignored, they would have been another run."""
    tiny = ["--map=3m", "--num-envs=2", "--num-steps=8", "--total-timesteps=16", f"--runs-dir={tmp_path}"]
    options = ["--backend=starcraft", "--env-options", "backend=embedded", "last_action=true"]
    printed = finished("dpo_smac", *tiny, *options, EVAL_EPISODES=2).out
    assert (
        only(tmp_path).name.startswith("smac-3m-embedded2__") and "3 agents, 39 inputs, 9 actions" in printed
    )


def test_video_shows_a_battle(tmp_path):
    """A video of nothing, or one that no player opens, is found when it is to be shown."""
    tiny = ["--map=3m", "--backend=embedded", "--num-envs=2", "--num-steps=8", "--total-timesteps=16"]
    finished("dpo_smac", *tiny, f"--runs-dir={tmp_path}", "--update-epochs=1", EVAL_EPISODES=2)
    directory = only(tmp_path)
    assert not (directory / "video.mp4").exists()
    finished("dpo_smac", "--eval-only", "--capture-video", f"--resume={directory}", EVAL_EPISODES=2)
    frames = imageio.mimread(directory / "video.mp4", memtest=False)
    assert len(frames) > 20 and frames[0].ndim == 3 and frames[0].shape[2] == 3
    moved = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in itertools.pairwise(frames)]
    assert np.mean(np.array(moved) > 50) > 0.5


def random_play(episodes: int) -> tuple[float, float]:
    """Mean return and win rate of uniformly random available actions on 3m."""
    vector_env, rng = envs.make("smac/3m", 32, seed=7, backend="embedded"), np.random.default_rng(0)
    _, infos = vector_env.reset()
    found: list[tuple[float, bool]] = []
    while len(found) < episodes:
        mask = infos["action_mask"]
        infos = vector_env.step((rng.random(mask.shape) * mask).argmax(-1))[4]
        ended = infos["_episode"]
        found += zip(infos["episode"]["r"][ended], infos["battle_won"][ended], strict=True)
    mean_return, win_rate = np.mean(np.array(found, dtype=float), axis=0)
    return float(mean_return), float(win_rate)


def test_dpo_learns_to_win_battles(tmp_path):
    """All the equations right and nothing learnt is no DPO: three marines learn to beat three."""
    argv = "--map 3m --backend embedded --num-envs 16 --num-steps 64 --update-epochs 8 --learning-rate 1e-3"
    argv += " --d-target 0.05 --total-timesteps 24576 --eval-every 4096 --checkpoint-every 100000"
    finished("dpo_smac", *argv.split(), "--runs-dir", tmp_path)
    mean_return, win_rate = random_play(300)
    # The best of seven: greedy policies this young lose a battle they won 4,096 steps ago.
    assert max(evaluations(only(tmp_path), "eval/win_rate")) > win_rate + 0.05
    # To attack whom one can returns 8; the last three, or one that was lucky would do.
    assert np.mean(evaluations(only(tmp_path))[-3:]) > 4 * mean_return


def test_pettingzoo_is_played_too(tmp_path):
    """Any ParallelEnv with discrete actions and a shared reward is a --map, under its own name."""
    flags = ["--map=pettingzoo:mpe2.simple_spread_v3", "--env-options", "reward=mean", "--num-envs=2"]
    finished(
        "dpo_smac",
        *flags,
        "--num-steps=30",
        "--total-timesteps=120",
        f"--runs-dir={tmp_path}",
        EVAL_EPISODES=2,
    )
    assert only(tmp_path).name.startswith("pettingzoo-mpe2.simple_spread_v3__dpo_smac__1__")
    *_, last, evaluation = rows(only(tmp_path))
    assert evaluation["eval/episodic_return"]
    assert all(np.isfinite(float(x)) for name, x in last.items() if name.startswith(("losses/", "dpo/")))


def test_a_battle_of_ones_own_is_trained_resumed_and_its_changes_noticed(tmp_path):
    """Its runs would have no name of their own, or go on in another battle than they began in."""
    battle, runs = tmp_path / "my_battle.toml", tmp_path / "runs"
    sides = [f'[[{side}]]\nunit = "{u}"\ncount = 2\nat = [{x}, 16]' for side, u, x in OWN_SIDES]
    battle.write_text("\n".join(["limit = 20", *sides]))
    flags = [f"--map={battle}", "--num-envs=4", "--num-steps=16", "--update-epochs=1", f"--runs-dir={runs}"]
    finished("dpo_smac", *flags, "--total-timesteps=64", EVAL_EPISODES=2)
    assert only(runs).name.startswith("smac-my_battle.toml-embedded")
    about = json.loads((only(runs) / "args.json").read_text())
    assert about["battle"]["limit"] == 20 and about["battle_digest"]
    resume = [f"--resume={only(runs)}", "--total-timesteps=128"]
    finished("dpo_smac", *resume, EVAL_EPISODES=2)
    battle.write_text(battle.read_text().replace("limit = 20", "limit = 21"))
    told = refused("dpo_smac", f"--resume={only(runs)}", "--total-timesteps=192", EVAL_EPISODES=2)
    assert "my_battle.toml has changed since" in told
    battle.write_text(battle.read_text().replace("zergling", "zerglign"))
    assert "no unit 'zerglign', did you mean 'zergling'" in refused("dpo_smac", *flags)

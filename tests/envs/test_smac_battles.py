"""Battles of one's own, from TOML files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.smac import SmacVectorEnv
from envs.smac.battles import UNITS

BATTLE = """
limit = 60
ground = "corridor"

[[allies]]
unit = "marine"
count = 3
at = [19, 19]

[[allies]]
unit = "colossus"
count = 1
at = [20, 20]

[[enemies]]
unit = "zergling"
count = 5
at = [27.5, 27]
"""
GROUP = '[[{side}]]\nunit = "{unit}"\ncount = {count}\nat = [{x}, 16]\n'


def written(path, text=BATTLE):
    path.write_text(text)
    return str(path)


def simple(limit="60", allies="marine", enemies="marine", count="2", x="9", more=""):
    return (
        f"limit = {limit}\n{more}\n"
        + GROUP.format(side="allies", unit=allies, count=count, x=x)
        + GROUP.format(side="enemies", unit=enemies, count=2, x=23)
    )


def test_a_file_is_a_map(tmp_path):
    """Users would have to edit the package for a battle of their own."""
    path = written(tmp_path / "my_battle.toml")
    env = envs.make(f"smac/{path}", 4, seed=1)
    assert envs.env_name(env).startswith("smac-my_battle.toml-embedded")
    assert (env.num_agents, env.num_actions, env.episode_limit) == (4, 6 + 5, 60)
    # Numbered by type, as SMAC's agents are; the types of both sides in one order.
    assert [kind.name for kind in env.map.ally_types] == ["colossus", "marine", "marine", "marine"]
    assert env.map.ally_bits == env.map.enemy_bits == ("colossus", "marine", "zergling")
    obs, infos = env.reset()
    assert env.observation_space.contains(obs) and obs.shape == (4, 4, env.obs_dim)
    ended = 0
    for _ in range(70):
        obs, _, _, _, infos = env.step(env.sample_actions())
        assert env.observation_space.contains(obs) and env.state().shape == (4, env.state_dim)
        ended += infos["_episode"].sum()
    assert ended
    about = envs.describe(env)
    assert about["battle"]["enemies"][0]["count"] == 5 and len(about["battle_digest"]) == 16


@pytest.mark.parametrize("unit", list(UNITS))
def test_every_unit_fights_on_either_side(tmp_path, unit):
    """A unit that no map of SMAC has there could break the battle."""
    fighter = "marine" if unit == "medivac" else unit
    text = simple(more="ground = '3s_vs_3z'")
    text += GROUP.format(side="allies", unit=unit, count=3, x=12)
    text += GROUP.format(side="enemies", unit=unit, count=1, x=20)
    text += GROUP.format(side="enemies", unit=fighter, count=1, x=20)
    env = SmacVectorEnv(written(tmp_path / "mine.toml", text), 8, seed=1)
    env.reset()
    for step in range(80):
        *_, infos = env.step(env.sample_actions()) if step % 2 else env.step_scripted()
        assert infos["action_mask"].any(-1).all()
    assert np.isfinite(env.get_state()["units"]).all()


def test_healers_may_outnumber_the_enemy(tmp_path):
    """Healing ally 4 would be an action beyond those of one enemy."""
    text = simple(count="5") + GROUP.format(side="allies", unit="medivac", count=1, x=9)
    env = SmacVectorEnv(written(tmp_path / "mine.toml", text), 2)
    _, infos = env.reset()
    assert env.num_actions == 6 + 6 and infos["action_mask"][0, 5, 6:11].all()


def test_a_ground_may_be_drawn(tmp_path):
    """Only SMAC's grounds could be fought on."""
    picture = "\n".join(["#" * 16] * 4 + ["#" + "." * 14 + "#"] * 8 + ["#" * 16] * 4)
    env = SmacVectorEnv(written(tmp_path / "mine.toml", simple(more=f'ground = """\n{picture}"""')), 1)
    assert env.map.pathing_grid.sum() == 28 * 16


def test_a_crowd_starts_where_the_battle_is_fought(tmp_path):
    """Who starts behind a wall could not be reached, and no battle would end."""
    text = simple(allies="stalker", count="60", more="ground = '6h_vs_8z'")
    text = text.replace("[9, 16]", "[14.6, 9.5]").replace("[23, 16]", "[14.4, 16.8]")
    battle = SmacVectorEnv(written(tmp_path / "mine.toml", text), 1).map
    x, y = np.floor(battle.starts).astype(int)
    assert battle.reachable[x, y].all() and not battle.reachable[battle.pathing_grid].all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (simple(allies="marin"), "no unit 'marin', did you mean 'marine'"),
        (simple(allies="probe"), "no unit 'probe'; there are baneling, "),
        (simple(count="0"), "count in allies must be a whole number from 1 to 100, got 0"),
        (simple(count="2.5"), "count in allies must be a whole number .* got 2.5"),
        (simple(count="true"), "count in allies must be a whole number .* got True"),
        (simple(count="60") + GROUP.format(side="allies", unit="zealot", count=60, x=9), "more than 100"),
        (simple(limit="0"), "limit must be a whole number from 1 to 10000, got 0"),
        (simple(limit='"long"'), "limit must be a whole number .* got 'long'"),
        (simple(x="40"), r"at in allies must be \[x, y\], two numbers from 0 to less than 32"),
        (simple(x='"a"'), r"at in allies must be \[x, y\]"),
        (simple(more="ground = 'corridor'"), r"allies at \[9, 16\] is not on walkable ground"),
        (simple(more="goal = [16, 3]"), r"goal at \[16, 3\] is not on walkable ground"),
        (simple(more="ground = '8n'"), "ground '8n' is no map; did you mean '8m'"),
        (simple(more="ground = '##\\n##'"), "ground '##.*' is no map"),
        (simple(more='ground = "##\\n.."'), "16 rows of 16 characters"),
        (simple(more="hunt = 1"), "hunt must be true or false, got 1"),
        (simple(more="limits = 3"), "no field 'limits', did you mean 'limit'"),
        (simple(allies="medivac"), "allies have nobody who fights"),
        (simple(allies="spine_crawler", count="100"), "of 100 units of one side only [0-9]+ fit"),
        ("limit = 10\nenemies = []\nallies = []", r"allies must be tables, \[\[allies\]\], at least one"),
        ("limit = 10\nallies = 3\nenemies = 3", "allies must be tables"),
        ("limit = 10", "allies is missing"),
        (simple().replace("count = 2\n", "", 1), "count is missing in allies"),
        ("limit = = 3", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_in_a_sentence(tmp_path, text, sentence):
    """A typing error would end in a traceback, or in a battle that nobody meant."""
    path = written(tmp_path / "mine.toml", text)
    with pytest.raises(ValueError, match=sentence) as error:
        SmacVectorEnv(path)
    assert str(error.value).startswith(f"The battle {path} ") and str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_the_documented_battle_can_be_played(tmp_path):
    """The first thing a reader copies would be refused."""
    text = (Path(envs.__file__).parents[1] / "docs" / "envs.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    env = SmacVectorEnv(written(tmp_path / "mine.toml", example), 2)
    assert env.map.num_agents == 3 and env.map.num_enemies == 10 and env.map.ways[1].size


def test_files_that_cannot_be_read_are_told(tmp_path):
    """Else a wrong path ends in a traceback."""
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        envs.make("smac/none.toml", 1)
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        (tmp_path / "folder.toml").mkdir()
        SmacVectorEnv(str(tmp_path / "folder.toml"))
    (tmp_path / "image.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        SmacVectorEnv(str(tmp_path / "image.toml"))
    with pytest.raises(ValueError, match="names runs"):
        SmacVectorEnv(written(tmp_path / "my battle.toml"))
    with pytest.raises(ValueError, match=r'use backend="embedded"'):
        envs.make(f"smac/{written(tmp_path / 'mine.toml')}", 1, backend="starcraft")


def test_a_file_that_has_changed_is_noticed(tmp_path):
    """A resumed run would go on in another battle."""
    path = written(tmp_path / "mine.toml")
    env = SmacVectorEnv(path, 2)
    env.reset()
    state = env.get_state()
    written(tmp_path / "mine.toml", "# a remark\n" + BATTLE)
    SmacVectorEnv(path, 2).set_state(state)
    written(tmp_path / "mine.toml", BATTLE.replace("limit = 60", "limit = 61"))
    with pytest.raises(ValueError, match=r"another battle: mine\.toml has changed since"):
        SmacVectorEnv(path, 2).set_state(state)

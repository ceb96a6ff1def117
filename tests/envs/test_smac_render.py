"""Pictures of battles, without a display."""

from unittest import mock

import numpy as np
import pytest

import envs
from envs.smac.render import draw


def battle(name, steps):
    env = envs.make(f"smac/{name}", 2, seed=1, backend="embedded", render_mode="rgb_array")
    env.reset()
    for _ in range(steps):
        env.step_scripted()
    return env


NAMES = ["3m", "2s3z", "27m_vs_30m", "MMM2", "1c3s5z", "2s_vs_1sc", "bane_vs_bane", "2c_vs_64zg"]


@pytest.mark.parametrize("name", NAMES)
def test_battles_are_drawn_as_they_go_on(name):
    """Else --capture-video writes a still, or frames no codec takes."""
    env = battle(name, 8)
    first, other = env.render(), env.render(1)
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    assert first.shape[0] % 16 == 0 and first.shape[1] % 16 == 0
    env.step_scripted()
    later = env.render()
    assert first.shape == later.shape and (first != later).any() and (first != other).any()


def test_rendering_must_be_asked_for():
    """Else a user gets an empty picture and no reason."""
    env = envs.make("smac/3m", 1, backend="embedded")
    env.reset()
    with pytest.raises(ValueError, match="render_mode"):
        env.render()


def test_sides_health_and_death_are_visible():
    """Else the picture does not tell who is winning."""
    units = np.zeros((2, 8))
    units[:, 0], units[:, 1] = (10, 20), 16
    units[:, 2] = units[:, 3] = 45
    picture = draw_two(units)
    assert (picture == (0, 114, 178)).all(-1).any() and (picture == (213, 94, 0)).all(-1).any()
    hurt = units.copy()
    hurt[0, 2] = 10
    assert (draw_two(hurt) != picture).any()
    dead = units.copy()
    dead[1, 2] = 0
    enemy = (draw_two(dead)[26:] == (213, 94, 0)).all(-1)
    assert not enemy.any(), "a dead enemy is still drawn as a body"


def draw_two(units):
    return draw(units, ["marine", "marine"], 1, np.array([-1, -1]))


def test_draw_refuses_shapes_that_do_not_fit():
    """Else a wrong array becomes a wrong picture."""
    with pytest.raises(ValueError, match=r"\(3, 8\)"):
        draw(np.zeros((2, 8)), ["marine"] * 3, 1, np.zeros(3, dtype=int))


ORANGE = (230, 159, 0)


def test_walls_blasts_and_beams_are_visible():
    """Else nobody sees why units go round, or what killed six at once."""
    units = np.zeros((2, 8))
    units[:, 0], units[:, 1], units[:, 2:4] = (10, 20), 16, 45
    names, targets = ["colossus", "baneling"], np.array([-1, -1])
    ground = np.ones((32, 32), dtype=bool)
    plain = draw(units, names, 1, targets, walkable=ground)
    ground[14:16, 10:20] = False
    walled = draw(units, names, 1, targets, walkable=ground)
    differs = (plain != walled).any(-1)
    # 20 pixels a cell, below the caption, y upwards.
    assert differs[26 + 12 * 20 : 26 + 22 * 20, 280:320].all() and differs.mean() < 0.1
    blast = draw(units, names, 1, targets, walkable=ground, blasts=np.array([[5.0, 5.0, 2.2]]))
    beam = draw(units, names, 1, targets, walkable=ground, beams=np.array([[5.0, 5.0, 7.5, 5.0]]))
    for picture in (blast, beam):
        assert (picture == ORANGE).all(-1).any() and not (walled == ORANGE).all(-1).any()
    assert (blast != walled).any(-1).sum() > (beam != walled).any(-1).sum()


def test_what_blew_up_or_swept_is_shown_in_its_step_alone():
    """Else pictures fill with rings of the past, or show none."""
    for name, what in (("bane_vs_bane", "_blasts"), ("2c_vs_64zg", "_beams")):
        env, shown = battle(name, 0), []
        for _ in range(40):
            over = env.step_scripted()[2]
            if over[0]:
                break
            found = getattr(env, what)(0)
            assert np.isfinite(found).all()
            shown.append(len(found))
        assert max(shown) > 0 and min(shown) == 0


def test_ranges_are_each_agents_own():
    """SMACv2's agents see as far as their type does; where they look one way only, no disc is true."""
    units = np.zeros((2, 8))
    units[:, 0], units[:, 1], units[:, 2:4] = (8, 24), 16, 45
    still = np.array([-1, -1])
    plain, near, far = (
        draw(units, ["zealot", "marine"], 2, still, ranges=ranges)
        for ranges in (None, np.array([[4.0, 4.0], [2.0, 2.0]]), np.array([[4.0, 8.0], [2.0, 6.0]]))
    )
    tinted = [(picture != plain).any(-1).sum(0) for picture in (near, far)]  # by column
    half = plain.shape[1] // 2
    assert tinted[0][:half].sum() == pytest.approx(tinted[1][:half].sum(), rel=0.02)
    assert tinted[1][half:].sum() > 2.5 * tinted[0][half:].sum() > 0
    for cone, discs in ((False, True), (True, False)):
        env = envs.make("smac/10gen_zerg_5_vs_5", 1, render_mode="rgb_array", conic_view=cone)
        env.reset(seed=1)
        with mock.patch("envs.smac.render.draw") as drawn:
            env.render()
        ranges = drawn.call_args.kwargs["ranges"]
        assert (ranges is not None) == discs
        if discs:
            assert ranges.shape == (2, 5) and len(set(ranges[1])) > 1

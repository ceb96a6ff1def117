"""Pictures of the particle world, drawn with Pillow and numpy: no display, no window.

Agents are numbered discs, landmarks dark crosses, and targets hollow rings in the colour of the agent that
the best assignment sends there, tied to it by a thin line. A faint circle of that colour is what it sees.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233),
)  # fmt: skip
"""Okabe and Ito's, by agent, then from the start again; the numbers tell apart what colours do not."""
GROUND, GRID, INK = (250, 249, 246), (232, 229, 221), (40, 42, 46)
SIDE, CAPTION = 480, 32  # pixels
SAMPLES = 3  # drawn this many times larger and averaged down, which smooths edges and slow motion
SMALLEST = 7.0  # pixels: an agent is drawn at least this large, so that its number can be read


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _pale(colour: tuple[int, ...], share: float) -> tuple[int, ...]:
    """`share` of the colour on the ground."""
    return tuple(round(share * c + (1 - share) * g) for c, g in zip(colour, GROUND, strict=True))


def _half_width(points: np.ndarray) -> float:
    """Half the width of a square that shows all points: 1.25, or more in steps, so that it seldom jumps."""
    steps = np.log(max(1.0, np.abs(points).max() / 1.2)) / np.log(1.25)
    return 1.25 * 1.25 ** int(np.ceil(steps))


def draw(
    agents: np.ndarray, landmarks: np.ndarray, targets: np.ndarray, size: float, vision: float, title: str
) -> np.ndarray:
    """One moment of one world, (512, 480, 3) uint8; both sides are multiples of 16, for video codecs.

    agents (N, 2) and their targets (N, 2), landmarks (L, 2): positions, y upwards. size: radius of an agent;
    vision: how far it sees, infinite if unlimited. title: caption; the mean distance stands beside it.
    """
    half = _half_width(np.concatenate([agents, landmarks, targets]))
    scale = SAMPLES * SIDE / (2 * half)
    picture = Image.new("RGB", (SAMPLES * SIDE, SAMPLES * SIDE), GROUND)
    pen = ImageDraw.Draw(picture)

    def spot(point: np.ndarray) -> tuple[float, float]:
        return float((point[0] + half) * scale), float((half - point[1]) * scale)

    def circle(point: np.ndarray, radius: float, **style: object) -> None:
        (x, y), r = spot(point), radius
        pen.ellipse((x - r, y - r, x + r, y + r), **style)  # type: ignore[arg-type]

    edge = min(half, 1.0)
    pen.rectangle(
        (*spot(np.array([-edge, edge])), *spot(np.array([edge, -edge]))), outline=GRID, width=SAMPLES
    )
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(agents))]
    body = max(size * scale, SMALLEST * SAMPLES)
    if np.isfinite(vision):
        for agent, colour in zip(agents, colours, strict=True):
            circle(agent, vision * scale, outline=_pale(colour, 0.25), width=SAMPLES)
    for agent, target, colour in zip(agents, targets, colours, strict=True):
        pen.line((*spot(agent), *spot(target)), fill=_pale(colour, 0.35), width=SAMPLES)
    for target, colour in zip(targets, colours, strict=True):
        circle(target, body + 2 * SAMPLES, outline=colour, width=2 * SAMPLES)
    for landmark in landmarks:
        (x, y), arm = spot(landmark), 4 * SAMPLES
        for sign in (-1, 1):
            pen.line((x - arm, y - sign * arm, x + arm, y + sign * arm), fill=INK, width=2 * SAMPLES)
    for i, (agent, colour) in enumerate(zip(agents, colours, strict=True)):
        circle(agent, body, fill=colour, outline=GROUND, width=SAMPLES)
        pen.text(spot(agent), str(i), GROUND, _font(10 * SAMPLES), anchor="mm")

    frame = Image.new("RGB", (SIDE, SIDE + CAPTION), (255, 255, 255))
    frame.paste(picture.reduce(SAMPLES), (0, CAPTION))
    pen = ImageDraw.Draw(frame)
    pen.line((0, CAPTION - 1, SIDE, CAPTION - 1), fill=GRID)
    pen.text((10, CAPTION / 2), title, INK, _font(15), anchor="lm")
    mean = np.linalg.norm(agents - targets, axis=1).mean()
    pen.text((SIDE - 10, CAPTION / 2), f"mean distance {mean:.2f}", INK, _font(15), anchor="rm")
    return np.array(frame)

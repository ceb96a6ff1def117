"""Pictures of a SMAC battle, drawn with Pillow and numpy: no display, no window, no game client.

Colours are Okabe and Ito's, which stay apart under every common kind of colour blindness, and the two sides
differ in shape as well: allies are discs, enemies are rounded squares.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

# name: (letter, body radius in map units)
BODIES: dict[str, tuple[str, float]] = {
    "baneling": ("B", 0.375),
    "colossus": ("C", 1.0),
    "hydralisk": ("H", 0.625),
    "marauder": ("R", 0.5625),
    "marine": ("M", 0.375),
    "medivac": ("+", 0.75),
    "spine_crawler": ("P", 0.875),
    "stalker": ("S", 0.625),
    "zealot": ("Z", 0.5),
    "zergling": ("L", 0.375),
}

ALLY, ENEMY, HEAL, BLAST = (0, 114, 178), (213, 94, 0), (0, 158, 115), (230, 159, 0)
HEALTH, SHIELD, ENERGY, EMPTY = (0, 158, 115), (86, 180, 233), (204, 121, 167), (70, 70, 74)
GROUND, CLIFF, EDGE, INK, PANEL = (
    (243, 240, 232),
    (206, 202, 192),
    (160, 156, 146),
    (28, 30, 34),
    (255, 255, 255),
)
SAMPLES = 2  # drawn this many times larger and averaged down, which smooths edges and slow motion
CAPTION = 26  # height of the caption in pixels
ABOVE = (BODIES["colossus"], BODIES["medivac"])
CROWD = 40  # with more units than this, only the hurt have bars

Box = tuple[float, float, float, float]


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=256)
def _body(letter: str, radius: int, enemy: bool) -> Image.Image:
    """(2·radius + 3) square RGBA picture of one unit."""
    side = 2 * radius + 3
    sprite = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen = ImageDraw.Draw(sprite)
    box = (1, 1, side - 2, side - 2)
    if enemy:
        pen.rounded_rectangle(box, radius * 0.45, fill=ENEMY, outline=INK, width=max(1, radius // 8))
    else:
        pen.ellipse(box, fill=ALLY, outline=INK, width=max(1, radius // 8))
    pen.text((side / 2, side / 2), letter, (255, 255, 255), _font(max(8, int(radius * 1.35))), anchor="mm")
    return sprite


@lru_cache(maxsize=8)
def _ground(size: tuple[int, int], view: Box, cells: bytes, columns: int, scale: float) -> Image.Image:
    """The walkable cells, `columns` of them in x, and a line where they end."""
    picture = Image.new("RGB", size, CLIFF)
    pen = ImageDraw.Draw(picture)
    walkable = np.pad(np.frombuffer(cells, dtype=np.bool_).reshape(columns, -1), 1)
    free = np.argwhere(walkable)

    def corner(x: float, y: float) -> tuple[float, float]:
        return (x - view[0]) * scale, (view[3] - y) * scale

    for x, y in free - 1:
        pen.rectangle((*corner(x, y + 1), *corner(x + 1, y)), fill=GROUND)
    for x, y in free - 1:
        sides = {(-1, 0): (0, 0, 0, 1), (1, 0): (1, 0, 1, 1), (0, -1): (0, 0, 1, 0), (0, 1): (0, 1, 1, 1)}
        for (dx, dy), (x0, y0, x1, y1) in sides.items():
            if not walkable[x + dx + 1, y + dy + 1]:
                pen.line((*corner(x + x0, y + y0), *corner(x + x1, y + y1)), fill=EDGE, width=2)
    return picture


def _union_of_discs(size: tuple[int, int], centres: np.ndarray, radii: np.ndarray, level: int) -> Image.Image:
    """Mask at a quarter of the size: overlapping ranges are tinted once, so that 27 of them stay readable."""
    mask = Image.new("L", (size[0] // 4, size[1] // 4), 0)
    pen = ImageDraw.Draw(mask)
    for (x, y), radius in zip(centres / 4, radii / 4, strict=True):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=level)
    return mask


def _bars(
    pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, unit: np.ndarray, healer: bool
) -> None:
    """Health, then shield (or a medivac's energy), stacked above the body; y is the body's centre."""
    half, height = max(radius, 6.0 * SAMPLES), 3 * SAMPLES
    rows = [(unit[2] / max(unit[3], 1e-9), HEALTH)]
    if unit[5] > 0:
        rows.append((unit[4] / unit[5], SHIELD))
    elif healer:
        rows.append((unit[6] / 200.0, ENERGY))
    top = y - radius - 2 * SAMPLES
    for fraction, colour in rows:
        top -= height
        pen.rectangle((x - half, top, x + half, top + height - 1), fill=EMPTY)
        filled = 2 * half * min(max(float(fraction), 0.0), 1.0)
        if filled >= 1:
            pen.rectangle((x - half, top, x - half + filled, top + height - 1), fill=colour)
        top -= 1


def _caption(picture: Image.Image, title: str, alive: np.ndarray, num_allies: int) -> None:
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, picture.width, CAPTION - 1), fill=PANEL)
    pen.line((0, CAPTION - 1, picture.width, CAPTION - 1), fill=EDGE)
    middle, font = CAPTION / 2, _font(14)
    x = float(picture.width - 8)
    for enemy, living, total in (
        (True, int(alive[num_allies:].sum()), len(alive) - num_allies),
        (False, int(alive[:num_allies].sum()), num_allies),
    ):
        text = f"{living}/{total}"
        pen.text((x, middle), text, INK, font, anchor="rm")
        x -= pen.textlength("00/00", font) + 20
        picture.paste(sprite := _body("", 7, enemy), (int(x), int(middle) - 8), sprite)
        x -= 14
    pen.text((8, middle), title, INK, font, anchor="lm")


def draw(
    units: np.ndarray,
    type_names: Sequence[str],
    num_allies: int,
    targets: np.ndarray,
    title: str = "",
    walkable: np.ndarray | None = None,
    width: int = 640,
    ranges: np.ndarray | None = None,
    blasts: np.ndarray | None = None,
    beams: np.ndarray | None = None,
) -> np.ndarray:
    """Draws one moment of a battle.

    Args:
        units: (U, 8) float, allies first; columns x, y (map units, y grows upwards), health, health_max,
            shield, shield_max, energy (of 200), weapon_cooldown (its sign is used). Health 0 is dead.
        type_names: U names such as "marine"; names that BODIES lacks are drawn with their first letter at
            radius 0.5.
        num_allies: how many of the first rows are the learning side.
        targets: (U,) int, index of the unit each one attacks or heals, -1 for none. A line is bold while the
            weapon cools down (it has fired) and thin while the unit still walks into range.
        title: caption, e.g. map and step; the counts of the living stand beside it.
        walkable: (columns, rows) bool, indexed [x, y], the cells units can reach (None: all of 32 by 32);
            the picture is cropped to them.
        width: pixels.
        ranges: (2, num_allies), how far each of the first rows sees and shoots, map units; None: not drawn.
        blasts: (n, 3), x, y and radius of what has just exploded.
        beams: (n, 4), x and y of both ends of what a beam has just swept.

    Returns:
        (H, W, 3) uint8, H as the map has it; both are rounded up to multiples of 16, for video codecs.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    units, targets = np.asarray(units, dtype=np.float64), np.asarray(targets)
    count = len(type_names)
    if units.shape != (count, 8) or targets.shape != (count,) or not 0 <= num_allies <= count:
        raise ValueError(
            f"For {count} type names draw() needs units of shape ({count}, 8), targets of shape ({count},) "
            f"and 0 to {count} allies; got {units.shape}, {targets.shape} and {num_allies}."
        )
    cells = np.ones((32, 32), dtype=np.bool_) if walkable is None else np.asarray(walkable, dtype=np.bool_)
    (left, bottom), (right, top) = np.argwhere(cells).min(0), np.argwhere(cells).max(0) + 1
    view = (
        max(left - 0.5, 0.0), min(right + 0.5, float(cells.shape[0])),
        max(bottom - 1.0, 0.0), min(top + 1.5, float(cells.shape[1])),
    )  # fmt: skip
    width = -(-width // 16) * 16
    scale = SAMPLES * width / (view[1] - view[0])  # drawn pixels per map unit
    height = -(-int((view[3] - view[2]) * scale / SAMPLES + CAPTION) // 16) * 16
    size = (SAMPLES * width, SAMPLES * (height - CAPTION))

    centres = np.stack([(units[:, 0] - view[0]) * scale, (view[3] - units[:, 1]) * scale], axis=1)
    drawable = np.isfinite(centres[:, 0]) & np.isfinite(centres[:, 1])
    alive = (units[:, 2] > 0) & drawable
    bodies = [BODIES.get(name, (name[:1].upper(), 0.5)) for name in type_names]

    picture = _ground(size, view, cells.tobytes(), cells.shape[0], scale).copy()
    if ranges is not None:
        living = alive[:num_allies]
        sight, shoot = (
            _union_of_discs(size, centres[:num_allies][living], own[living] * scale, level)
            for own, level in zip(ranges, (18, 22), strict=True)
        )
        tint = ImageChops.add(sight, shoot)
        picture.paste(ALLY, (0, 0), tint.resize(size, Image.Resampling.BILINEAR))

    pen = ImageDraw.Draw(picture)
    for x, y in centres[drawable & ~alive]:
        arm = 0.25 * scale
        for sign in (-1, 1):
            pen.line((x - arm, y - sign * arm, x + arm, y + sign * arm), fill=EDGE, width=SAMPLES)
    for i in np.flatnonzero(alive & (targets >= 0) & (targets < count)):
        j = int(targets[i])
        if not drawable[j]:
            continue
        side = ALLY if i < num_allies else ENEMY
        colour = HEAL if (i < num_allies) == (j < num_allies) else side
        fired = units[i, 7] > 0
        pale = colour if fired else tuple((c + g) // 2 for c, g in zip(colour, GROUND, strict=True))
        pen.line((*centres[i], *centres[j]), fill=pale, width=(2 if fired else 1) * SAMPLES)
    for x, y, reach in () if blasts is None else blasts:
        middle, radius = ((x - view[0]) * scale, (view[3] - y) * scale), reach * scale
        box = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
        glow = Image.new("L", size, 0)
        ImageDraw.Draw(glow).ellipse(box, fill=90)
        picture.paste(BLAST, (0, 0), glow)
        pen.ellipse(box, outline=BLAST, width=2 * SAMPLES)
    # From far to near: a unit lower in the picture covers those behind it, one above the others all of them.
    for i in sorted(np.flatnonzero(alive), key=lambda k: (bodies[k] in ABOVE, centres[k, 1])):
        letter, radius = bodies[i]
        sprite = _body(letter, max(round(radius * scale), 4 * SAMPLES), bool(i >= num_allies))
        corner = (round(centres[i, 0] - sprite.width / 2), round(centres[i, 1] - sprite.height / 2))
        picture.paste(sprite, corner, sprite)
    for x0, y0, x1, y1 in () if beams is None else beams:
        ends = (
            (x0 - view[0]) * scale,
            (view[3] - y0) * scale,
            (x1 - view[0]) * scale,
            (view[3] - y1) * scale,
        )
        pen.line(ends, fill=BLAST, width=4 * SAMPLES)
    for k, name in enumerate(type_names):
        if alive[k] and (count <= CROWD or units[k, 2] + units[k, 4] < units[k, 3] + units[k, 5]):
            x, y = centres[k]
            _bars(pen, x, y, bodies[k][1] * scale, units[k], healer=name == "medivac")

    frame = Image.new("RGB", (width, height), CLIFF)
    frame.paste(picture.reduce(SAMPLES), (0, CAPTION))
    _caption(frame, title, alive, num_allies)
    return np.array(frame)

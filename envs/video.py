"""A video of what an environment draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio
import numpy as np


def save_video(directory: Path, env: Any, frames: list[np.ndarray]) -> None:
    """video.mp4 of frames (H, W, 3) uint8; robots, which have more frames a second, in slow motion."""
    fps = min(20, env.metadata["render_fps"])
    odd = [(0, frames[0].shape[0] % 2), (0, frames[0].shape[1] % 2), (0, 0)]  # the codec takes even sizes
    writer: Any = imageio.get_writer(directory / "video.mp4", fps=fps, macro_block_size=1)
    with writer as video:
        for frame in frames:  # padded one at a time: a robot's take gigabytes
            video.append_data(np.pad(frame, odd, mode="edge"))

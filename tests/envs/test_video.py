"""Videos of what environments draw."""

from types import SimpleNamespace

import imageio
import numpy as np

from envs.video import save_video


def test_a_video_has_every_frame_in_even_sizes(tmp_path):
    """Else a picture of odd height ends in an error of the codec, after the run."""
    frames = [np.full((33, 47, 3), shade, np.uint8) for shade in (0, 90, 180, 250)]
    save_video(tmp_path, SimpleNamespace(metadata={"render_fps": 125}), frames)
    with imageio.get_reader(tmp_path / "video.mp4") as video:
        about = video.get_meta_data()
        shown = [np.asarray(frame) for frame in video]
    assert about["fps"] == 20 and [frame.shape for frame in shown] == [(34, 48, 3)] * len(frames)
    for frame, given in zip(shown, frames, strict=True):
        assert abs(frame.mean() - given.mean()) < 8 and np.ptp(frame) < 16  # the edge is drawn on

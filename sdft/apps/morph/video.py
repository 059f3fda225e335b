"""Export frames as PNG files, GIF (Pillow) or H.264 (PyAV, if installed)."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from sdft.runs.files import atomic_write

MIN_VIDEO_SIDE = 256  # pixels on the short side of a video; smaller frames are enlarged
HOLD_FRAMES = 6  # repeats of the first and last frame
PYAV_HINT = 'morph.mp4 needs PyAV: pip install -e ".[video]"'


def prepare_video_frames(frames: list[Image.Image]) -> list[Image.Image]:
    """Enlarge small frames, make both sides even, as H.264 requires, and repeat the first and last frame."""
    width, height = frames[0].size
    factor = max(1, MIN_VIDEO_SIDE // min(width, height))
    size = tuple(side * factor // 2 * 2 for side in (width, height))
    resized = [frame.resize(size, Image.Resampling.LANCZOS) if frame.size != size else frame for frame in frames]
    return [resized[0]] * HOLD_FRAMES + resized[1:-1] + [resized[-1]] * HOLD_FRAMES


def write_gif(frames: list[Image.Image], file: Path, fps: int) -> None:
    """Write an infinite loop, forward and backward."""
    video = prepare_video_frames(frames)
    video += video[-HOLD_FRAMES - 1 : HOLD_FRAMES - 1 : -1]
    with atomic_write(file) as partial:
        video[0].save(partial, format="GIF", save_all=True, append_images=video[1:], duration=round(1000 / fps), loop=0)


def can_write_mp4() -> bool:
    return find_spec("av") is not None


def write_mp4(frames: list[Image.Image], file: Path, fps: int) -> None:
    import av

    video = prepare_video_frames(frames)
    with atomic_write(file) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = video[0].size
        stream.pix_fmt = "yuv420p"  # supported by every player
        stream.options = {"crf": "16"}
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame.convert("RGB")), format="rgb24")))
        container.mux(stream.encode())


def write_frames(frames: list[Image.Image], folder: Path) -> None:
    digits = len(str(len(frames) - 1))
    for number, frame in enumerate(frames):
        with atomic_write(folder / f"{number:0{digits}}.png") as partial:
            frame.save(partial, format="PNG")

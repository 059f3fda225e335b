"""A film: frames, how smoothly they follow each other, and files of them: GIF by Pillow, H.264 by PyAV where it is installed."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sdft.evaluation.plots.image_grid import build_labeled_grid
from sdft.runs.files import atomic_write

MIN_VIDEO_SIDE = 256  # pixels of a film's short side; smaller frames are enlarged
HOLD_FRAMES = 6  # frames that a film stands still at its ends
PYAV_HINT = 'morph.mp4 needs PyAV: pip install -e ".[video]"'

TILE_SIZE = 128  # pixels of a frame in the strip

DistanceFunction = Callable[[list[Image.Image], list[Image.Image]], Tensor]  # of pairs `[pairs]`


@dataclass
class FrameSequence:
    """Frames between two given pictures, with their alphas of the way, and how far each is from the next to the eye.

    `distances` are those of neighbouring frames, `endpoint_distances` those of the ends to the pictures that they stand for; both are
    empty where nothing judges.
    """

    given: list[Image.Image]
    alphas: list[float]
    frames: list[Image.Image]
    distances: list[float]
    endpoint_distances: list[float]

    def compute_scores(self) -> dict[str, float]:
        """PSNR of both ends in dB; PPL, the sum of the distances all the way from one given picture to the other, so that ends
        which miss them count as the jumps that they are; PDV, the variance of those of neighbouring frames; and their deviation
        over their mean, which does not depend on how far apart the pictures are."""
        found = {"PSNR first": psnr(self.frames[0], self.given[0]), "PSNR last": psnr(self.frames[-1], self.given[1])}
        if self.distances:
            steps = np.asarray(self.distances)
            found |= {"PPL": float(steps.sum() + sum(self.endpoint_distances)), "PDV": float(steps.var())}
            found["unevenness"] = float(steps.std() / max(steps.mean(), 1e-12))
        return found


def compute_neighbour_distances(frames: list[Image.Image], distances: DistanceFunction) -> list[float]:
    """The perceptual distance of each frame to the next."""
    return distances(frames[:-1], frames[1:]).tolist()


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures in dB, at most 100."""
    error = np.mean((np.asarray(one, dtype=float) - np.asarray(other, dtype=float)) ** 2)
    return min(100.0, float(10 * np.log10(255**2 / error))) if error else 100.0


def draw_comparison_strip(films: dict[str, FrameSequence]) -> Image.Image:
    """A row of each film, between the pictures that were given."""
    rows = [
        (name, [shrink_to_tile(p) for p in (film.given[0], *film.frames, film.given[1])])
        for name, film in films.items()
    ]
    count = len(next(iter(films.values())).frames)
    return build_labeled_grid(
        rows, ["given", *[f"frame {number}" for number in range(1, count + 1)], "given"], tile=TILE_SIZE
    )


def shrink_to_tile(picture: Image.Image) -> Image.Image:
    if max(picture.size) <= TILE_SIZE:
        return picture
    shrunk = picture.copy()
    shrunk.thumbnail((TILE_SIZE, TILE_SIZE), Image.Resampling.LANCZOS)
    return shrunk


def prepare_video_frames(frames: list[Image.Image]) -> list[Image.Image]:
    """Large enough to watch, of even sides, which H.264 wants, standing still at both ends."""
    width, height = frames[0].size
    factor = max(1, MIN_VIDEO_SIDE // min(width, height))
    size = tuple(side * factor // 2 * 2 for side in (width, height))
    large = [frame.resize(size, Image.Resampling.LANCZOS) if frame.size != size else frame for frame in frames]
    return [large[0]] * HOLD_FRAMES + large[1:-1] + [large[-1]] * HOLD_FRAMES


def write_gif(frames: list[Image.Image], file: Path, fps: int) -> None:
    """There and back, for ever."""
    film = prepare_video_frames(frames)
    film += film[-HOLD_FRAMES - 1 : HOLD_FRAMES - 1 : -1]
    with atomic_write(file) as partial:
        film[0].save(partial, format="GIF", save_all=True, append_images=film[1:], duration=round(1000 / fps), loop=0)


def can_write_mp4() -> bool:
    return find_spec("av") is not None


def write_mp4(frames: list[Image.Image], file: Path, fps: int) -> None:
    import av

    film = prepare_video_frames(frames)
    with atomic_write(file) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = film[0].size
        stream.pix_fmt = "yuv420p"  # which every player shows
        stream.options = {"crf": "16"}
        for frame in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame.convert("RGB")), format="rgb24")))
        container.mux(stream.encode())


def write_frames(frames: list[Image.Image], folder: Path) -> None:
    digits = len(str(len(frames) - 1))
    for number, frame in enumerate(frames):
        with atomic_write(folder / f"{number:0{digits}}.png") as partial:
            frame.save(partial, format="PNG")

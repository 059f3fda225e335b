"""A film: frames, how smoothly they follow each other, and files of them: GIF by Pillow, H.264 by PyAV where it is installed."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sdft.evaluation.plots.image_grid import labelled
from sdft.runs.files import whole

LEAST = 256  # pixels of a film's short side; smaller frames are enlarged
HOLD = 6  # frames that a film stands still at its ends
HINT = 'morph.mp4 needs PyAV: pip install -e ".[video]"'

TILE = 128  # pixels of a frame in the strip

Distances = Callable[[list[Image.Image], list[Image.Image]], Tensor]  # of pairs `[pairs]`


@dataclass
class Film:
    """Frames between two given pictures, with their shares of the way, and how far each is from the next to the eye.

    `distances` are those of neighbouring frames, `misses` those of the ends to the pictures that they stand for; both are
    empty where nothing judges.
    """

    given: list[Image.Image]
    shares: list[float]
    frames: list[Image.Image]
    distances: list[float]
    misses: list[float]

    def scores(self) -> dict[str, float]:
        """PSNR of both ends in dB; PPL, the sum of the distances all the way from one given picture to the other, so that ends
        which miss them count as the jumps that they are; PDV, the variance of those of neighbouring frames; and their deviation
        over their mean, which does not depend on how far apart the pictures are."""
        found = {"PSNR first": psnr(self.frames[0], self.given[0]), "PSNR last": psnr(self.frames[-1], self.given[1])}
        if self.distances:
            steps = np.asarray(self.distances)
            found |= {"PPL": float(steps.sum() + sum(self.misses)), "PDV": float(steps.var())}
            found["unevenness"] = float(steps.std() / max(steps.mean(), 1e-12))
        return found


def between(frames: list[Image.Image], distances: Distances) -> list[float]:
    """The perceptual distance of each frame to the next."""
    return distances(frames[:-1], frames[1:]).tolist()


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures in dB, at most 100."""
    error = np.mean((np.asarray(one, dtype=float) - np.asarray(other, dtype=float)) ** 2)
    return min(100.0, float(10 * np.log10(255**2 / error))) if error else 100.0


def strip(films: dict[str, Film]) -> Image.Image:
    """A row of each film, between the pictures that were given."""
    rows = [(name, [small(p) for p in (film.given[0], *film.frames, film.given[1])]) for name, film in films.items()]
    count = len(next(iter(films.values())).frames)
    return labelled(rows, ["given", *[f"frame {number}" for number in range(1, count + 1)], "given"], tile=TILE)


def small(picture: Image.Image) -> Image.Image:
    if max(picture.size) <= TILE:
        return picture
    shrunk = picture.copy()
    shrunk.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return shrunk


def shown(frames: list[Image.Image]) -> list[Image.Image]:
    """Large enough to watch, of even sides, which H.264 wants, standing still at both ends."""
    width, height = frames[0].size
    factor = max(1, LEAST // min(width, height))
    size = tuple(side * factor // 2 * 2 for side in (width, height))
    large = [frame.resize(size, Image.Resampling.LANCZOS) if frame.size != size else frame for frame in frames]
    return [large[0]] * HOLD + large[1:-1] + [large[-1]] * HOLD


def write_gif(frames: list[Image.Image], file: Path, fps: int) -> None:
    """There and back, for ever."""
    film = shown(frames)
    film += film[-HOLD - 1 : HOLD - 1 : -1]
    with whole(file) as partial:
        film[0].save(partial, format="GIF", save_all=True, append_images=film[1:], duration=round(1000 / fps), loop=0)


def can_write_mp4() -> bool:
    return find_spec("av") is not None


def write_mp4(frames: list[Image.Image], file: Path, fps: int) -> None:
    import av

    film = shown(frames)
    with whole(file) as partial, av.open(str(partial), "w", format="mp4") as container:
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
        with whole(folder / f"{number:0{digits}}.png") as partial:
            frame.save(partial, format="PNG")

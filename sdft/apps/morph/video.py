"""Frame sequence: smoothness scores, and export as GIF (Pillow) or H.264 (PyAV, if installed)."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sdft.evaluation.plots.image_grid import build_labeled_grid
from sdft.runs.files import atomic_write

MIN_VIDEO_SIDE = 256  # pixels on the short side of a video; smaller frames are enlarged
HOLD_FRAMES = 6  # repeats of the first and last frame
PYAV_HINT = 'morph.mp4 needs PyAV: pip install -e ".[video]"'

TILE_SIZE = 128  # pixels per side in the strip

DistanceFunction = Callable[[list[Image.Image], list[Image.Image]], Tensor]  # of pairs `[pairs]`


@dataclass
class FrameSequence:
    """Frames between two original images, at the interpolation weights `alphas`.

    `distances` are perceptual distances of neighbouring frames, `endpoint_distances` those of the first and last frame to the
    originals; both are empty without a perceptual metric.
    """

    originals: list[Image.Image]
    alphas: list[float]
    frames: list[Image.Image]
    distances: list[float]
    endpoint_distances: list[float]

    def compute_scores(self) -> dict[str, float]:
        """PSNR of the first and last frame in dB; PPL, the sum of distances from one original to the other, with the endpoint
        distances; PDV, the variance of the distances of neighbouring frames; unevenness, their relative standard deviation."""
        scores = {
            "PSNR first": psnr(self.frames[0], self.originals[0]),
            "PSNR last": psnr(self.frames[-1], self.originals[1]),
        }
        if self.distances:
            steps = np.asarray(self.distances)
            scores |= {"PPL": float(steps.sum() + sum(self.endpoint_distances)), "PDV": float(steps.var())}
            scores["unevenness"] = float(steps.std() / max(steps.mean(), 1e-12))
        return scores


def compute_neighbour_distances(frames: list[Image.Image], distances: DistanceFunction) -> list[float]:
    """The perceptual distance of each frame to the next."""
    return distances(frames[:-1], frames[1:]).tolist()


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB images in dB, at most 100."""
    error = np.mean((np.asarray(one, dtype=float) - np.asarray(other, dtype=float)) ** 2)
    return min(100.0, float(10 * np.log10(255**2 / error))) if error else 100.0


def draw_comparison_strip(sequences: dict[str, FrameSequence]) -> Image.Image:
    """One row per sequence, between the original images."""
    rows = [
        (name, [shrink_to_tile(p) for p in (sequence.originals[0], *sequence.frames, sequence.originals[1])])
        for name, sequence in sequences.items()
    ]
    count = len(next(iter(sequences.values())).frames)
    return build_labeled_grid(
        rows, ["original", *[f"frame {number}" for number in range(1, count + 1)], "original"], tile=TILE_SIZE
    )


def shrink_to_tile(image: Image.Image) -> Image.Image:
    if max(image.size) <= TILE_SIZE:
        return image
    shrunk = image.copy()
    shrunk.thumbnail((TILE_SIZE, TILE_SIZE), Image.Resampling.LANCZOS)
    return shrunk


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

"""The labelled sheets of what was generated: `grid.png`, or one a prompt."""

from pathlib import Path

from PIL import Image

from sdft.apps.generate.axes import Axis
from sdft.apps.generate.grid import Generation
from sdft.apps.generate.png_metadata import named, shown_path
from sdft.evaluation.plots.image_grid import Labels, sheet
from sdft.runs.files import whole


def sheets(made: Generation, folder: Path) -> list[Path]:
    """Write them; their names."""
    files = []
    for number, page in enumerate(made.pages):
        pictures = [[[Image.open(made.files[cell]).convert("RGB") for cell in cells] for cells in row] for row in page]
        prompt = "" if made.axis("prompt") else page[0][0][0].prompt
        drawn = sheet(prompt, settings(made), labels(made.y), labels(made.x), pictures)
        files.append(folder / (f"grid-{number + 1}.png" if len(made.pages) > 1 else "grid.png"))
        with whole(files[-1]) as file:
            drawn.save(file, format="PNG")
    return files


def labels(axis: Axis | None) -> Labels:
    return Labels(axis.title, axis.labels) if axis else Labels("", [""])


def settings(made: Generation) -> str:
    """What all pictures share, in a line."""
    one, told = made.one, made.last
    on_axes = {axis.word for axis in (made.x, made.y) if axis}
    seeds = f"seeds {one.seed} to {one.seed + made.images - 1}" if made.images > 1 else f"seed {one.seed}"
    parts = {
        "model": Path(told["model"]["name"]).name,
        "run": shown_path(one.run) if one.run else "",
        "checkpoint": f"checkpoint {one.checkpoint}" if one.checkpoint else "",
        "adapters": ", ".join(named(Path(str(file))) for file in made.asked.get("adapters") or []),
        "strength": f"strength {one.strength:g}" if one.strength != 1 else "",
        "steps": f"{one.steps} steps",
        "guidance_scale": f"guidance {one.guidance_scale:g}",
        "scheduler": one.scheduler or "",
        "seed": seeds,
        "negative_prompt": f"away from “{made.sampling.negative_prompt}”" if made.sampling.negative_prompt else "",
    }
    return " · ".join(part for word, part in parts.items() if part and word not in on_axes)

"""The labelled sheets of what was generated: `grid.png`, or one a prompt."""

from pathlib import Path

from PIL import Image

from sdft.apps.generate.axes import Axis
from sdft.apps.generate.grid import ImageGrid
from sdft.apps.generate.png_metadata import get_adapter_name, shorten_path
from sdft.evaluation.plots.image_grid import AxisLabels, build_labeled_sheet
from sdft.runs.files import atomic_write


def write_contact_sheets(made: ImageGrid, folder: Path) -> list[Path]:
    """Write them; their names."""
    files = []
    for number, page in enumerate(made.pages):
        pictures = [[[Image.open(made.files[cell]).convert("RGB") for cell in cells] for cells in row] for row in page]
        prompt = "" if made.axis("prompt") else page[0][0][0].prompt
        drawn = build_labeled_sheet(
            prompt, format_shared_settings(made), get_axis_labels(made.y), get_axis_labels(made.x), pictures
        )
        files.append(folder / (f"grid-{number + 1}.png" if len(made.pages) > 1 else "grid.png"))
        with atomic_write(files[-1]) as file:
            drawn.save(file, format="PNG")
    return files


def get_axis_labels(axis: Axis | None) -> AxisLabels:
    return AxisLabels(axis.title, axis.labels) if axis else AxisLabels("", [""])


def format_shared_settings(made: ImageGrid) -> str:
    """What all pictures share, in a line."""
    one, image_metadata = made.base_cell, made.last_metadata
    on_axes = {axis.option for axis in (made.x, made.y) if axis}
    seeds = f"seeds {one.seed} to {one.seed + made.images - 1}" if made.images > 1 else f"seed {one.seed}"
    parts = {
        "model": Path(image_metadata["model"]["name"]).name,
        "run": shorten_path(one.run) if one.run else "",
        "checkpoint": f"checkpoint {one.checkpoint}" if one.checkpoint else "",
        "adapters": ", ".join(get_adapter_name(Path(str(file))) for file in made.request.get("adapters") or []),
        "strength": f"strength {one.strength:g}" if one.strength != 1 else "",
        "steps": f"{one.steps} steps",
        "guidance_scale": f"guidance {one.guidance_scale:g}",
        "scheduler": one.scheduler or "",
        "seed": seeds,
        "negative_prompt": f"away from “{made.sampling.negative_prompt}”" if made.sampling.negative_prompt else "",
    }
    return " · ".join(part for option, part in parts.items() if part and option not in on_axes)

"""Labelled contact sheets of an image grid: `grid.png`, or one per prompt."""

from pathlib import Path

from PIL import Image

from sdft.apps.generate.axes import Axis
from sdft.apps.generate.grid import ImageGrid
from sdft.apps.generate.png_metadata import get_adapter_name, shorten_path
from sdft.evaluation.plots.image_grid import AxisLabels, build_labeled_sheet
from sdft.runs.files import atomic_write


def write_contact_sheets(grid: ImageGrid, folder: Path) -> list[Path]:
    """Write all sheets and return their files."""
    files = []
    for number, page in enumerate(grid.pages):
        images = [[[Image.open(grid.files[cell]).convert("RGB") for cell in cells] for cells in row] for row in page]
        prompt = "" if grid.find_axis("prompt") else page[0][0][0].prompt
        sheet = build_labeled_sheet(
            prompt, format_shared_settings(grid), get_axis_labels(grid.y), get_axis_labels(grid.x), images
        )
        files.append(folder / (f"grid-{number + 1}.png" if len(grid.pages) > 1 else "grid.png"))
        with atomic_write(files[-1]) as file:
            sheet.save(file, format="PNG")
    return files


def get_axis_labels(axis: Axis | None) -> AxisLabels:
    return AxisLabels(axis.title, axis.labels) if axis else AxisLabels("", [""])


def format_shared_settings(grid: ImageGrid) -> str:
    """One line with the settings that all images share."""
    cell, image_metadata = grid.base_cell, grid.last_metadata
    on_axes = {axis.option for axis in (grid.x, grid.y) if axis}
    seeds = f"seeds {cell.seed} to {cell.seed + grid.images - 1}" if grid.images > 1 else f"seed {cell.seed}"
    negative_prompt = grid.sampling.negative_prompt
    parts = {
        "model": Path(image_metadata["model"]["name"]).name,
        "run": shorten_path(cell.run) if cell.run else "",
        "checkpoint": f"checkpoint {cell.checkpoint}" if cell.checkpoint else "",
        "adapters": ", ".join(get_adapter_name(Path(str(file))) for file in grid.request.get("adapters") or []),
        "strength": f"strength {cell.strength:g}" if cell.strength != 1 else "",
        "steps": f"{cell.steps} steps",
        "guidance_scale": f"guidance {cell.guidance_scale:g}",
        "scheduler": cell.scheduler or "",
        "seed": seeds,
        "negative_prompt": f"negative prompt “{negative_prompt}”" if negative_prompt else "",
    }
    return " · ".join(part for option, part in parts.items() if part and option not in on_axes)

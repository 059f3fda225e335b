"""Evaluations during training: scores by step in `timeline.json`, and their images, in the run folder."""

import json
import shutil
from pathlib import Path

from PIL import Image

from sdft.runs.files import atomic_write, read_json

HISTORY_FILE, STEPS_FOLDER = "timeline.json", "steps"
ENTRY_STRUCTURE = {
    "step": int,
    "images": int,
    "groups": {"*": [str]},
    "scores": {"*": {"*": {"value": (int, float, type(None))}}},
}


class EvaluationHistory:
    """`folder` is the run's `evaluation/`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read_entries(self) -> list[dict]:
        """One entry per evaluated step, in order."""
        return read_json(self.folder / HISTORY_FILE, [ENTRY_STRUCTURE])

    def write_entry(self, entry: dict) -> None:
        """Append an entry; entries of the same or later steps, which a resumed run repeats, are dropped."""
        entries = [earlier for earlier in self.read_entries() if earlier["step"] < entry["step"]] + [entry]
        with atomic_write(self.folder / HISTORY_FILE) as file:
            file.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")

    def get_step_folder(self, step: int) -> Path:
        return self.folder / STEPS_FOLDER / f"step-{step:06d}"

    def save_images(self, images_by_group: dict[str, list[Image.Image]], step: int) -> None:
        for group, images in images_by_group.items():
            (self.get_step_folder(step) / group).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                image.save(self.get_step_folder(step) / group / f"{number:04d}.png")

    def list_image_files(self, step: int) -> dict[str, list[Path]]:
        """Image files of each prompt group, in order."""
        step_folder = self.get_step_folder(step)
        return (
            {group.name: sorted(group.glob("*.png")) for group in sorted(step_folder.iterdir())}
            if step_folder.is_dir()
            else {}
        )

    def load_images(self, step: int) -> dict[str, list[Image.Image]]:
        return {
            group: [Image.open(file).convert("RGB") for file in files]
            for group, files in self.list_image_files(step).items()
        }

    def copy_from(self, other: "EvaluationHistory") -> None:
        """Copy all entries and images of another run."""
        shutil.copytree(other.folder / STEPS_FOLDER, self.folder / STEPS_FOLDER, dirs_exist_ok=True)
        shutil.copy(other.folder / HISTORY_FILE, self.folder / HISTORY_FILE)

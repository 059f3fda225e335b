"""What training evaluated on the way, in the run's folder: scores by step in `timeline.json`, and the pictures behind them."""

import json
import shutil
from pathlib import Path

from PIL import Image

from sdft.runs.files import atomic_write

HISTORY_FILE, STEPS_FOLDER = "timeline.json", "steps"


class EvaluationHistory:
    """`folder` is the run's `evaluation/`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def entries(self) -> list[dict]:
        """One a step, in order."""
        file = self.folder / HISTORY_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    def write(self, entry: dict) -> None:
        """In its step_folder; a resumed run replaces what it does again."""
        entries = [earlier for earlier in self.entries() if earlier["step"] < entry["step"]] + [entry]
        with atomic_write(self.folder / HISTORY_FILE) as file:
            file.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")

    def step_folder(self, step: int) -> Path:
        return self.folder / STEPS_FOLDER / f"step-{step:06d}"

    def save_images(self, pictures: dict[str, list[Image.Image]], step: int) -> None:
        """The pictures of every group."""
        for group, made in pictures.items():
            (self.step_folder(step) / group).mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(made):
                picture.save(self.step_folder(step) / group / f"{number:04d}.png")

    def image_files(self, step: int) -> dict[str, list[Path]]:
        """Those of every group, in order."""
        step_folder = self.step_folder(step)
        return (
            {group.name: sorted(group.glob("*.png")) for group in sorted(step_folder.iterdir())}
            if step_folder.is_dir()
            else {}
        )

    def load_images(self, step: int) -> dict[str, list[Image.Image]]:
        return {
            group: [Image.open(file).convert("RGB") for file in files]
            for group, files in self.image_files(step).items()
        }

    def copy_from(self, before: "EvaluationHistory") -> None:
        """All that the run before has."""
        shutil.copytree(before.folder / STEPS_FOLDER, self.folder / STEPS_FOLDER, dirs_exist_ok=True)
        shutil.copy(before.folder / HISTORY_FILE, self.folder / HISTORY_FILE)

"""What training evaluated on the way, in the run's folder: scores by step in `timeline.json`, and the pictures behind them."""

import json
import shutil
from pathlib import Path

from PIL import Image

from sdft.runs.files import whole

FILE, STEPS = "timeline.json", "steps"


class Timeline:
    """`folder` is the run's `evaluation/`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def entries(self) -> list[dict]:
        """One a step, in order."""
        file = self.folder / FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    def write(self, entry: dict) -> None:
        """In its place; a resumed run replaces what it does again."""
        entries = [earlier for earlier in self.entries() if earlier["step"] < entry["step"]] + [entry]
        with whole(self.folder / FILE) as file:
            file.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")

    def place(self, step: int) -> Path:
        return self.folder / STEPS / f"step-{step:06d}"

    def keep(self, pictures: dict[str, list[Image.Image]], step: int) -> None:
        """The pictures of every group."""
        for group, made in pictures.items():
            (self.place(step) / group).mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(made):
                picture.save(self.place(step) / group / f"{number:04d}.png")

    def files(self, step: int) -> dict[str, list[Path]]:
        """Those of every group, in order."""
        place = self.place(step)
        return {group.name: sorted(group.glob("*.png")) for group in sorted(place.iterdir())} if place.is_dir() else {}

    def kept(self, step: int) -> dict[str, list[Image.Image]]:
        return {group: [Image.open(file).convert("RGB") for file in files] for group, files in self.files(step).items()}

    def take_over(self, before: "Timeline") -> None:
        """All that the run before has."""
        shutil.copytree(before.folder / STEPS, self.folder / STEPS, dirs_exist_ok=True)
        shutil.copy(before.folder / FILE, self.folder / FILE)

"""Readers of the sample images in a run folder."""

import json
from pathlib import Path


def find_last_samples(run: Path) -> Path | None:
    """Folder of the last step whose samples are complete; None if there is none."""
    return max((file.parent for file in (run / "samples").glob("step-*/samples.json")), default=None)


def read_sample_prompts(run: Path) -> list[str]:
    """Prompts of the last complete samples, one per image."""
    if not (folder := find_last_samples(run)):
        return []
    return [str(entry["prompt"]) for entry in json.loads((folder / "samples.json").read_text(encoding="utf-8"))]

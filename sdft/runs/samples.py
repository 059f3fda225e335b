"""The samples that training has left in a run's folder."""

import json
from pathlib import Path


def find_last_samples(run: Path) -> Path | None:
    """The folder of the last step that was drawn to the end; None where there is none."""
    return max((file.parent for file in (run / "samples").glob("step-*/samples.json")), default=None)


def read_sample_prompts(run: Path) -> list[str]:
    """Of the pictures of that step, in their order."""
    if not (place := find_last_samples(run)):
        return []
    return [str(fact["prompt"]) for fact in json.loads((place / "samples.json").read_text(encoding="utf-8"))]

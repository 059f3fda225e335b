"""Readers of the sample images in a run folder."""

from pathlib import Path

from sdft.runs.files import read_json

SAMPLE_STRUCTURE = [{"file": str, "prompt": str, "seed": (int, str)}]


def find_last_samples(run: Path) -> Path | None:
    """Folder of the last step whose samples are complete; None if there is none."""
    return max((file.parent for file in (run / "samples").glob("step-*/samples.json")), default=None)


def read_sample_prompts(run: Path) -> list[str]:
    """Prompts of the last complete samples, one per image."""
    if not (folder := find_last_samples(run)):
        return []
    return [entry["prompt"] for entry in read_samples(folder)]


def read_samples(step_folder: Path) -> list[dict]:
    """File name, prompt and seed of each sample image of a step, whose files lie in the folder."""
    samples = read_json(step_folder / "samples.json", SAMPLE_STRUCTURE)
    if outside := [entry["file"] for entry in samples if Path(entry["file"]).name != entry["file"]]:
        raise ValueError(f"{step_folder / 'samples.json'}: {outside[0][:60]} is not a file name; the file was edited")
    return samples

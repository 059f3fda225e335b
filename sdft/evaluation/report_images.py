"""What a page shows: pictures of every state, training pictures, the nearest of both, and frames of a run to scrub through."""

import base64
import io
from pathlib import Path

from PIL import Image

from sdft.evaluation.evaluator import Exam
from sdft.evaluation.metrics.memorization import Nearest
from sdft.evaluation.protocol import PROMPTS
from sdft.evaluation.statistics import key, shown
from sdft.runs.evaluation_history import Timeline

LARGEST = 224  # pixels of a picture in the file
IMAGES, TRAINING, PAIRS, FRAMES = 4, 24, 8, 40  # shown at most
TITLES = {PROMPTS: "What was taught", "class": "Its class", "controls": "What must stay as it was"}

Files = dict[str, dict[str, list[Path]]]  # by state and group


def group_of_pictures(report: dict, group: str, files: Files) -> dict:
    count = report["images"]
    prompts = [
        {
            "text": text,
            "states": [
                {
                    "label": label,
                    "images": [source_of(path) for path in drawn[group][n * count :][: min(IMAGES, count)]],
                }
                for label, drawn in files.items()
            ],
        }
        for n, text in enumerate(report["groups"][group])
    ]
    return {"title": f"{TITLES[group]} ({group})", "prompts": prompts}


def training(exam: Exam) -> dict:
    step = max(1, -(-len(exam.taught) // TRAINING))
    some = exam.taught[::step]
    return {
        "note": f"{len(some)} of the {len(exam.taught)} that scores compare with.",
        "images": [(source_of(picture.image), picture.caption) for picture in some],
    }


def nearest_pairs(report: dict, exam: Exam, files: Files) -> list[dict]:
    """The last state's pictures that are nearest to a training picture, nearest first, one of each training picture."""
    metric = exam.metrics[PROMPTS].get("nearest")
    if not isinstance(metric, Nearest):
        return []
    paths = files[report["states"][-1]["label"]][PROMPTS]
    cosines, which = metric.cosines([Image.open(path).convert("RGB") for path in paths]).max(1)
    found, taken = [], set()
    for index in cosines.argsort(descending=True).tolist():
        real = int(which[index])
        if real not in taken and len(found) < PAIRS:
            taken.add(real)
            text = f"cosine {float(cosines[index]):.3f}"
            found.append({"made": source_of(paths[index]), "real": source_of(exam.taught[real].image), "text": text})
    return found


def on_the_way(folder: Path, report: dict, files: Files) -> tuple[list[dict], list[dict]]:
    """Frames to scrub through, and the scores behind them: of checkpoints asked for, else of what training evaluated."""
    steps = [state for state in report["states"] if state["step"] is not None]
    if steps:
        entries = [{"step": 0, **state} if state["step"] is None else state for state in (report["states"][0], *steps)]
        entries = [{**entry, "step": entry["step"] or 0, "groups": report["groups"]} for entry in entries]
        drawn = [files[label] for label in (report["states"][0]["label"], *[state["label"] for state in steps])]
        images = report["images"]
    else:
        timeline = Timeline(folder)
        entries = timeline.entries()
        drawn = [timeline.files(entry["step"]) for entry in entries]
        images = entries[0]["images"] if entries else 1
    if len(entries) < 2:
        return [], []
    every = max(1, -(-len(entries) // FRAMES))
    frames = [frame(report, entry, made, images) for entry, made in list(zip(entries, drawn, strict=True))[::every]]
    return frames, entries


def frame(report: dict, entry: dict, made: dict[str, list[Path]], images: int) -> dict:
    """The first picture of every prompt at one step, and its scores."""
    pictures = [
        (source_of(path), text)
        for group, texts in entry["groups"].items()
        for path, text in zip(made.get(group, [])[::images], texts, strict=False)
    ]
    chips = [
        f"{key(group, name)} {shown(score['value'], report['metrics'][group][name]['form'])}"
        for group, row in entry["scores"].items()
        for name, score in row.items()
        if name in report["metrics"].get(group, {})
    ]
    return {"step": entry["step"], "images": pictures, "chips": chips}


def source_of(picture: Path | Image.Image, largest: int = LARGEST) -> str:
    """A picture inside the page: as it is when its sides are at most `largest`, else a smaller JPEG."""
    image = Image.open(picture) if isinstance(picture, Path) else picture
    data, form = io.BytesIO(), "png"
    if max(image.size) > largest:
        image, form = image.convert("RGB"), "jpeg"
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    image.save(data, format=form, quality=88)
    return f"data:image/{form};base64,{base64.b64encode(data.getvalue()).decode()}"

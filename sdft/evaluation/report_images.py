"""What a page shows: pictures of every state, training pictures, the nearest of both, and frames of a run to scrub through."""

import base64
import io
from pathlib import Path

from PIL import Image

from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.metrics.memorization import NearestTrainingImage
from sdft.evaluation.protocol import PROMPTS_GROUP
from sdft.evaluation.statistics import format_score, format_score_name
from sdft.runs.evaluation_history import EvaluationHistory

MAX_EMBEDDED_SIZE = 224  # pixels of a picture in the file
MAX_IMAGES_PER_PROMPT, MAX_TRAINING_IMAGES, MAX_PAIRS, MAX_FRAMES = 4, 24, 8, 40  # shown at most
GROUP_TITLES = {PROMPTS_GROUP: "What was taught", "class": "Its class", "controls": "What must stay as it was"}

ImageFiles = dict[str, dict[str, list[Path]]]  # by state and group


def build_image_group(report: dict, group: str, files: ImageFiles) -> dict:
    count = report["images"]
    prompts = [
        {
            "text": text,
            "states": [
                {
                    "label": label,
                    "images": [
                        encode_data_uri(path) for path in drawn[group][n * count :][: min(MAX_IMAGES_PER_PROMPT, count)]
                    ],
                }
                for label, drawn in files.items()
            ],
        }
        for n, text in enumerate(report["groups"][group])
    ]
    return {"title": f"{GROUP_TITLES[group]} ({group})", "prompts": prompts}


def build_training_section(exam: Evaluator) -> dict:
    step = max(1, -(-len(exam.training_images) // MAX_TRAINING_IMAGES))
    some = exam.training_images[::step]
    return {
        "note": f"{len(some)} of the {len(exam.training_images)} that scores compare with.",
        "images": [(encode_data_uri(picture.image), picture.caption) for picture in some],
    }


def find_nearest_pairs(report: dict, exam: Evaluator, files: ImageFiles) -> list[dict]:
    """The last state's pictures that are nearest to a training picture, nearest first, one of each training picture."""
    metric = exam.metrics[PROMPTS_GROUP].get("nearest")
    if not isinstance(metric, NearestTrainingImage):
        return []
    paths = files[report["states"][-1]["label"]][PROMPTS_GROUP]
    cosines, which = metric.cosines([Image.open(path).convert("RGB") for path in paths]).max(1)
    found, taken = [], set()
    for index in cosines.argsort(descending=True).tolist():
        real = int(which[index])
        if real not in taken and len(found) < MAX_PAIRS:
            taken.add(real)
            text = f"cosine {float(cosines[index]):.3f}"
            found.append(
                {
                    "generated": encode_data_uri(paths[index]),
                    "real": encode_data_uri(exam.training_images[real].image),
                    "text": text,
                }
            )
    return found


def build_timeline(folder: Path, report: dict, files: ImageFiles) -> tuple[list[dict], list[dict]]:
    """Frames to scrub through, and the scores behind them: of checkpoints asked for, else of what training evaluated."""
    steps = [state for state in report["states"] if state["step"] is not None]
    if steps:
        entries = [{"step": 0, **state} if state["step"] is None else state for state in (report["states"][0], *steps)]
        entries = [{**entry, "step": entry["step"] or 0, "groups": report["groups"]} for entry in entries]
        drawn = [files[label] for label in (report["states"][0]["label"], *[state["label"] for state in steps])]
        images = report["images"]
    else:
        timeline = EvaluationHistory(folder)
        entries = timeline.entries()
        drawn = [timeline.image_files(entry["step"]) for entry in entries]
        images = entries[0]["images"] if entries else 1
    if len(entries) < 2:
        return [], []
    every = max(1, -(-len(entries) // MAX_FRAMES))
    frames = [
        build_frame(report, entry, generated, images)
        for entry, generated in list(zip(entries, drawn, strict=True))[::every]
    ]
    return frames, entries


def build_frame(report: dict, entry: dict, generated: dict[str, list[Path]], images: int) -> dict:
    """The first picture of every prompt at one step, and its scores."""
    pictures = [
        (encode_data_uri(path), text)
        for group, texts in entry["groups"].items()
        for path, text in zip(generated.get(group, [])[::images], texts, strict=False)
    ]
    chips = [
        f"{format_score_name(group, name)} {format_score(score['value'], report['metrics'][group][name]['number_format'])}"
        for group, row in entry["scores"].items()
        for name, score in row.items()
        if name in report["metrics"].get(group, {})
    ]
    return {"step": entry["step"], "images": pictures, "chips": chips}


def encode_data_uri(picture: Path | Image.Image, largest: int = MAX_EMBEDDED_SIZE) -> str:
    """A picture inside the page: as it is when its sides are at most `largest`, else a smaller JPEG."""
    image = Image.open(picture) if isinstance(picture, Path) else picture
    data, number_format = io.BytesIO(), "png"
    if max(image.size) > largest:
        image, number_format = image.convert("RGB"), "jpeg"
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    image.save(data, format=number_format, quality=88)
    return f"data:image/{number_format};base64,{base64.b64encode(data.getvalue()).decode()}"

"""Images of the HTML report: every state's samples, training images, nearest pairs, and timeline frames."""

import base64
import io
from pathlib import Path

from PIL import Image

from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.metrics.memorization import NearestTrainingImage
from sdft.evaluation.plots.image_grid import build_labeled_grid
from sdft.evaluation.protocol import PROMPTS_GROUP, PromptGroup
from sdft.evaluation.statistics import format_score, format_score_name
from sdft.models.sampling import Sampling
from sdft.runs.evaluation_history import EvaluationHistory

MAX_EMBEDDED_SIZE = 224  # pixels of an image embedded in the page
MAX_IMAGES_PER_PROMPT, MAX_TRAINING_IMAGES, MAX_PAIRS, MAX_FRAMES = 4, 24, 8, 40  # in the page
GROUP_TITLES = {PROMPTS_GROUP: "Training concept", "class": "Class", "controls": "Control prompts"}

ImageFiles = dict[str, dict[str, list[Path]]]  # by state and group


def build_image_group(report: dict, group: str, files: ImageFiles) -> dict:
    """Title of a group, and for each of its prompts the first images of every state."""
    count = report["images"]
    limit = min(MAX_IMAGES_PER_PROMPT, count)
    prompts = [
        {
            "text": text,
            "states": [
                {"label": label, "images": [encode_data_uri(path) for path in state_files[group][n * count :][:limit]]}
                for label, state_files in files.items()
            ],
        }
        for n, text in enumerate(report["groups"][group])
    ]
    return {"title": f"{GROUP_TITLES[group]} ({group})", "prompts": prompts}


def build_training_section(evaluator: Evaluator) -> dict:
    """An evenly spaced selection of the training images, with captions."""
    step = max(1, -(-len(evaluator.training_images) // MAX_TRAINING_IMAGES))
    selected = evaluator.training_images[::step]
    return {
        "note": f"{len(selected)} of the {len(evaluator.training_images)} reference images.",
        "images": [(encode_data_uri(sample.image), sample.caption) for sample in selected],
    }


def find_nearest_pairs(report: dict, evaluator: Evaluator, files: ImageFiles) -> list[dict]:
    """Images of the last state with their nearest training image, most similar first, one pair per training image."""
    metric = evaluator.metrics[PROMPTS_GROUP].get("nearest")
    if not isinstance(metric, NearestTrainingImage):
        return []
    paths = files[report["states"][-1]["label"]][PROMPTS_GROUP]
    cosines, nearest = metric.compute_cosines([Image.open(path).convert("RGB") for path in paths]).max(1)
    pairs, used = [], set()
    for index in cosines.argsort(descending=True).tolist():
        training_index = int(nearest[index])
        if training_index not in used and len(pairs) < MAX_PAIRS:
            used.add(training_index)
            pairs.append(
                {
                    "generated": encode_data_uri(paths[index]),
                    "real": encode_data_uri(evaluator.training_images[training_index].image),
                    "text": f"cosine {float(cosines[index]):.3f}",
                }
            )
    return pairs


def build_timeline(folder: Path, report: dict, files: ImageFiles) -> tuple[list[dict], list[dict]]:
    """Timeline frames and the entries behind them: the evaluated checkpoints, else the evaluations during training."""
    steps = [state for state in report["states"] if state["step"] is not None]
    if steps:
        entries = [{"step": 0, **state} if state["step"] is None else state for state in (report["states"][0], *steps)]
        entries = [{**entry, "step": entry["step"] or 0, "groups": report["groups"]} for entry in entries]
        files_by_entry = [files[label] for label in (report["states"][0]["label"], *[s["label"] for s in steps])]
        images = report["images"]
    else:
        history = EvaluationHistory(folder)
        entries = history.read_entries()
        files_by_entry = [history.list_image_files(entry["step"]) for entry in entries]
        images = entries[0]["images"] if entries else 1
    if len(entries) < 2:
        return [], []
    stride = max(1, -(-len(entries) // MAX_FRAMES))
    frames = [
        build_frame(report, entry, entry_files, images)
        for entry, entry_files in list(zip(entries, files_by_entry, strict=True))[::stride]
    ]
    return frames, entries


def build_frame(report: dict, entry: dict, files: dict[str, list[Path]], images: int) -> dict:
    """The first image of every prompt at one step, and its scores."""
    captioned = [
        (encode_data_uri(path), text)
        for group, texts in entry["groups"].items()
        for path, text in zip(files.get(group, [])[::images], texts, strict=False)
    ]
    chips = [
        f"{format_score_name(group, name)} {format_score(score['value'], report['metrics'][group][name]['number_format'])}"
        for group, row in entry["scores"].items()
        for name, score in row.items()
        if name in report["metrics"].get(group, {})
    ]
    return {"step": entry["step"], "images": captioned, "chips": chips}


def build_comparison_image(
    files: dict[str, dict[str, list[Path]]], group: PromptGroup, sampling: Sampling, most: int = 4
) -> Image.Image:
    """One column per prompt (at most ten), one row per state and image (at most `most`), the base first."""
    count = min(most, sampling.images)
    rows = [
        (
            f"{label} {i + 1}" if count > 1 else label,
            [Image.open(path) for path in state_files[group.name][i :: sampling.images][:10]],
        )
        for label, state_files in files.items()
        for i in range(count)
    ]
    return build_labeled_grid(rows, group.prompts[:10], tile=96)


def encode_data_uri(source: Path | Image.Image, largest: int = MAX_EMBEDDED_SIZE) -> str:
    """Encode an image as a data URI: PNG up to `largest` pixels per side, else a downscaled JPEG."""
    image = Image.open(source) if isinstance(source, Path) else source
    data, image_format = io.BytesIO(), "png"
    if max(image.size) > largest:
        image, image_format = image.convert("RGB"), "jpeg"
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    image.save(data, format=image_format, quality=88)
    return f"data:image/{image_format};base64,{base64.b64encode(data.getvalue()).decode()}"

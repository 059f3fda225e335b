"""What real photographs score against each other: the ceiling that generated ones are read beside."""

import json
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.config import check_config
from sdft.data.image_folder import ImageFolder
from sdft.data.images import IMAGE_SUFFIXES
from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.clip_i import ReferenceSimilarity
from sdft.runs.files import atomic_write
from sdft.training.strategy import select_device

BASELINE_PATH = Path("outputs/evaluation/real.json")


def score_real_images(cfg: DictConfig) -> dict[str, dict[str, float]]:
    """CLIP-I and DINO of every subject, each a folder in `data.path` (or that folder itself), and their means, under `mean`.

    Pairs of a photograph with itself do not count. Prints the table and writes `outputs/evaluation/real.json`.
    """
    check_config(cfg)
    place = Path(cfg.data.path).expanduser()
    subjects = {
        folder.name: folder for folder in sorted(place.glob("*")) if folder.is_dir() and count_images(folder) > 1
    }
    if not subjects and count_images(place) > 1:
        subjects = {place.name: place}
    if not subjects:
        raise ValueError(f"data.path={cfg.data.path}: no folder with two or more pictures of a subject in it")
    if not cfg.get("metrics"):
        raise ValueError("metrics=null: choose metrics=paper, or metrics=clip")
    judges = instantiate(cfg.metrics).load_scorers(select_device(cfg.accelerator))
    rows = {}
    for name, folder in subjects.items():
        source = ImageFolder(str(folder), caption=name)
        pictures = [source[index].image for index in range(len(source))]
        asked = {"CLIP-I": judges.clip, "DINO": judges.dino}
        metrics: dict[str, ImageMetric] = {key: ReferenceSimilarity(j, pictures) for key, j in asked.items() if j}
        rows[name] = {key: metric.compute_reference() for key, metric in metrics.items()}
    rows["mean"] = {key: sum(row[key] for row in rows.values()) / len(subjects) for key in rows[next(iter(rows))]}
    with atomic_write(BASELINE_PATH) as file:
        file.write_text(
            json.dumps({"judges": judges.get_model_names(), "scores": rows}, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
    print(f"{'real photographs':<30}" + "".join(f"{key:>10}" for key in rows["mean"]))
    for name, row in rows.items():
        print(f"{name:<30}" + "".join(f"{value:>10.3f}" for value in row.values()))
    for name, why in judges.missing.items():
        print(f"{name:<30}not measured: {why}")
    return rows


def count_images(folder: Path) -> int:
    return sum(file.suffix.lower() in IMAGE_SUFFIXES and ".mask." not in file.name for file in folder.iterdir())

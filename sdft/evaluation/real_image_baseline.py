"""Scores of real photographs against each other: the ceiling for generated images."""

import json
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.config import check_config
from sdft.data.image_folder import ImageFolder
from sdft.data.image_formats import IMAGE_SUFFIXES
from sdft.distributed import select_device
from sdft.evaluation.metrics.base import EvaluationData
from sdft.evaluation.metrics.clip_i import ReferenceSimilarity
from sdft.runs.files import atomic_write
from sdft.runs.terminal import print_text

BASELINE_PATH = Path("outputs/evaluation/real.json")


def score_real_images(cfg: DictConfig) -> dict[str, dict[str, float]]:
    """CLIP-I and DINO of every subject, each a folder in `data.path` (or that folder itself), and the average as `mean`.

    Self-pairs are excluded. Prints the table and writes `outputs/evaluation/real.json`.
    """
    check_config(cfg)
    subjects = find_subject_folders(cfg.data.path)
    if not cfg.get("metrics"):
        raise ValueError("metrics=null: choose metrics=paper, or metrics=clip")
    scorers = instantiate(cfg.metrics).load_scorers(select_device(cfg.accelerator))
    rows = {}
    for name, folder in subjects.items():
        source = ImageFolder(str(folder), caption=name)
        data = EvaluationData(training_images=[source[index] for index in range(len(source))])
        rows[name] = {}
        for key, extractor in {"CLIP-I": scorers.clip, "DINO": scorers.dino}.items():
            if extractor:
                rows[name][key] = ReferenceSimilarity().build(key, extractor, data)[key].compute_reference()
    rows["mean"] = {key: sum(row[key] for row in rows.values()) / len(subjects) for key in rows[next(iter(rows))]}
    with atomic_write(BASELINE_PATH) as file:
        file.write_text(
            json.dumps({"scorers": scorers.get_model_names(), "scores": rows}, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
    print_text(f"{'real photographs':<30}" + "".join(f"{key:>10}" for key in rows["mean"]))
    for name, row in rows.items():
        print_text(f"{name:<30}" + "".join(f"{value:>10.3f}" for value in row.values()))
    for name, reason in scorers.missing.items():
        print_text(f"{name:<30}not measured: {reason}")
    return rows


def find_subject_folders(path: str) -> dict[str, Path]:
    """Subfolders of `path` with two or more images by name, else `path` itself; `ValueError` if it has too few as well."""
    parent = Path(path).expanduser()
    subjects = {
        folder.name: folder for folder in sorted(parent.glob("*")) if folder.is_dir() and count_images(folder) > 1
    }
    if not subjects and count_images(parent) > 1:
        subjects = {parent.name: parent}
    if not subjects:
        raise ValueError(f"data.path={path}: no subfolder with two or more images of a subject")
    return subjects


def count_images(folder: Path) -> int:
    return sum(file.suffix.lower() in IMAGE_SUFFIXES and ".mask." not in file.name for file in folder.iterdir())

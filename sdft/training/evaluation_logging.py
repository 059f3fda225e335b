"""An evaluation on the dashboards of its run: a table, the pictures, and every score in the summary."""

from pathlib import Path

from PIL import Image

from sdft.evaluation.statistics import flatten_scores, get_result_state
from sdft.runs.files import read_json
from sdft.training.callbacks.sample_images import log_image_sheet


def build_score_table(report: dict) -> tuple[list[str], list[list]]:
    """Heads, and a row a score: group, name, every state's value, the last one's interval, real pictures."""
    states = report["states"]
    heads = ["group", "score", *[state["label"] for state in states], "low", "high", "real"]
    rows = []
    for group, metrics in report["metrics"].items():
        for name in metrics:
            scores = [state["scores"][group][name] for state in states]
            last, real = scores[-1], report["reference"][group].get(name)
            rows.append([group, name, *[s["value"] for s in scores], last.get("low"), last.get("high"), real])
    return heads, rows


def flatten_result_scores(report: dict) -> dict[str, float]:
    """The result's scores as flat columns, which runs are sorted by."""
    return {
        f"evaluation/{name}": score["value"]
        for name, score in flatten_scores(get_result_state(report)["scores"]).items()
    }


def log_evaluation(logger, report: dict, pictures: Path) -> None:
    heads, rows = build_score_table(report)
    if hasattr(logger, "log_table"):  # W&B
        logger.log_table("evaluation", heads, rows)
        logger.log_summary({name: value for name, value in flatten_result_scores(report).items() if value is not None})
        logger.log_image("evaluation_images", [Image.open(pictures)])
    elif hasattr(logger.experiment, "add_text"):  # TensorBoard
        lines = [heads, ["---"] * len(heads), *rows]
        logger.experiment.add_text("evaluation", "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
        log_image_sheet(logger, "evaluation_images", Image.open(pictures), 0)


def add_to_wandb_run(folder: Path, report: dict) -> None:
    """The same, later: on the W&B run that the evaluated run's `run.json` names."""
    record = read_json(folder.parent / "run.json")
    if not (home := record.get("wandb")):
        raise ValueError(f"wandb=true: {folder.parent} was not logged to W&B, or is no run folder")
    from sdft.training.loggers import build_wandb_logger
    from sdft.training.wandb_logger import finish_wandb_run

    words = record.get("options", {})
    about = {"group": words.get("sweep"), "tags": words.get("tags", []), "id": home["id"]}
    logger = build_wandb_logger(str(folder.parent), home["name"], home["project"], **about)
    log_evaluation(logger, report, folder / "images.png")
    finish_wandb_run()

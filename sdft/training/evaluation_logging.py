"""Log an evaluation to the run's loggers: a table, the images, and every score in the summary."""

from pathlib import Path

from PIL import Image

from sdft.evaluation.statistics import flatten_scores, get_result_state
from sdft.runs.metadata import RECORD_FILE, read_record
from sdft.training.callbacks.sample_images import log_image_sheet


def build_score_table(report: dict) -> tuple[list[str], list[list]]:
    """Column names and one row per score: group, name, values by state, the result's interval, and real images."""
    states = report["states"]
    columns = ["group", "score", *[state["label"] for state in states], "low", "high", "real"]
    rows = []
    for group, metrics in report["metrics"].items():
        for name in metrics:
            scores = [state["scores"][group][name] for state in states]
            last, real = scores[-1], report["reference"][group].get(name)
            rows.append([group, name, *[s["value"] for s in scores], last.get("low"), last.get("high"), real])
    return columns, rows


def flatten_result_scores(report: dict) -> dict[str, float]:
    """The result's scores as flat summary columns, named after the folder of the evaluation."""
    scores = flatten_scores(get_result_state(report)["scores"])
    return {f"{report['folder']}/{name}": score["value"] for name, score in scores.items()}


def log_evaluation(logger, report: dict, run: Path) -> None:
    """Log under the name of the evaluation's folder in `run`, so that another evaluation replaces no scores."""
    columns, rows = build_score_table(report)
    name, image_file = report["folder"], run / report["folder"] / "images.png"
    if hasattr(logger, "log_table"):  # W&B
        logger.log_table(name, columns, rows)
        logger.log_summary({key: value for key, value in flatten_result_scores(report).items() if value is not None})
        logger.log_image(f"{name}_images", [Image.open(image_file)])
    elif hasattr(logger.experiment, "add_text"):  # TensorBoard
        lines = [columns, ["---"] * len(columns), *rows]
        logger.experiment.add_text(name, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
        log_image_sheet(logger, f"{name}_images", Image.open(image_file), 0)


def add_to_wandb_run(run: Path, report: dict) -> None:
    """Log a later evaluation to the W&B run that the `run.json` of `run` names."""
    record = read_record(run) if (run / RECORD_FILE).is_file() else {}
    if not (wandb_run := record.get("wandb")):
        raise ValueError(f"wandb=true: {run} was not logged to W&B, or is not a run folder")
    from sdft.training.loggers import build_wandb_logger
    from sdft.training.wandb_logger import finish_wandb_run

    options = record.get("options", {})
    logger = build_wandb_logger(
        str(run),
        wandb_run["name"],
        wandb_run["project"],
        group=options.get("sweep"),
        tags=options.get("tags", []),
        id=wandb_run["id"],
    )
    log_evaluation(logger, report, run)
    finish_wandb_run()

"""Create a view and a report of a W&B project, of all runs or of one sweep: sdft wandb_report project=sdft"""

import os
from importlib.util import find_spec

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text


@hydra_main("wandb_report")
def main(cfg):
    from sdft.training.loggers import is_logged_in

    option = f"project={cfg.project}"
    if find_spec("wandb_workspaces") is None:
        raise ValueError(f"{option}: wandb-workspaces is not installed; pip install wandb-workspaces")
    if not is_logged_in():
        raise ValueError(f"{option}: not logged in to W&B; run wandb login")
    os.environ["WANDB_SILENT"] = "true"  # avoids printing the URLs twice
    import wandb

    from sdft.apps.wandb_report.panels import build_report, build_workspace

    try:
        entity = cfg.entity or wandb.Api().default_entity
        for name, build in (("report", build_report), ("view", build_workspace)):
            print_text(f"{name:<8} {build(entity, cfg.project, cfg.group, cfg.metric).save().url}")
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"{option}: {error}") from None


if __name__ == "__main__":
    main()

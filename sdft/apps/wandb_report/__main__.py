"""A view and a report of a W&B project, for all its runs or one sweep's: sdft dashboard project=sdft"""

import os
from importlib.util import find_spec

from sdft.cli.entry_point import hydra_main


@hydra_main("dashboard")
def main(cfg):
    from sdft.training.loggers import is_logged_in

    told = f"project={cfg.project}"
    if find_spec("wandb_workspaces") is None:
        raise ValueError(f"{told}: wandb-workspaces is not installed; pip install wandb-workspaces")
    if not is_logged_in():
        raise ValueError(f"{told}: not logged in to W&B; run wandb login")
    os.environ["WANDB_SILENT"] = "true"  # it would tell the addresses a second time
    import wandb

    from sdft.apps.wandb_report.panels import build_report, build_workspace

    try:
        entity = cfg.entity or wandb.Api().default_entity
        for name, build in (("report", build_report), ("view", build_workspace)):
            print(f"{name:<8} {build(entity, cfg.project, cfg.group, cfg.metric).save().url}")
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"{told}: {error}") from None


if __name__ == "__main__":
    main()

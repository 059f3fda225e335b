"""Build a saved view of a W&B project and a report that explains its panels; the caller saves them."""

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

STEP_METRIC = "trainer/global_step"
OPTION_COLUMNS = ("method", "rank", "alpha", "lr")  # in the table of runs
QUARTERS = range(1, 5)

REPORT_TEXT = """Every line is a run. A sweep is a group: its jobs, and one run of type `sweep` with its tables and its page.

- **Which setting**: each line of the parallel coordinates is a run; trace the best *{metric}* back to its options. In the
  scatter plots the cheapest setting is where a higher rank, or more trainable parameters, no longer increases *{metric}*. First
  check the spread of runs that differ only by seed: smaller differences may be noise. The sweep's page gives the cheapest
  setting with its 95 % lower bound.
- **Losses by step** fluctuate because timesteps and noise are random. Loss magnitudes differ between the quarters of the
  timesteps (from the least noise to the most), so compare within one. If `train/grad_norm` keeps growing, the learning rate is
  too high.
- **Validation** is the loss at fixed noise, so small changes are meaningful. With `validation_split=0.1` it is measured on
  held-out images; if it rises while the training loss falls, the run is overfitting.
- **Scores during training** (`evaluate_every=10`) measure the generated images, which the loss does not: the best step is often
  not the last one. `scores/controls/drift` is the change of control images, which should not change.
- **Samples** (`sample_every=10`) use the same prompts and seeds at every step, so changes between steps come from training.
"""


def build_workspace(entity: str, project: str, group: str | None, metric: str) -> ws.Workspace:
    """The saved view: the runs of the sweep with stamp `group`, or all runs, grouped by sweep."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sdft {group}" if group else "sdft",
        sections=[
            ws.Section(name=name, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(3, 1))
            for name, panels in build_sections(metric).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP_METRIC, max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=group_filter(group),
            groupby=[] if group else [expr.Metric("Group")],
            pinned_columns=list_pinned_columns(metric),
        ),
    )


def build_report(entity: str, project: str, group: str | None, metric: str) -> wr.Report:
    """The same panels with an explanation; the report loads the runs when it is opened."""
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Fine-tuning: sweep {group}" if group else "Fine-tuning: how to read the runs",
        description=f"Runs of {project}, ranked by {metric}",
        width="fluid",
        blocks=[
            wr.MarkdownBlock(REPORT_TEXT.format(metric=metric)),
            *[
                block
                for name, panels in build_sections(metric).items()
                for block in (
                    wr.H2(name),
                    wr.PanelGrid(runsets=[build_runset(entity, project, group, metric)], panels=panels),
                )
            ],
        ],
    )


def build_runset(entity: str, project: str, group: str | None, metric: str) -> wr.Runset:
    return wr.Runset(
        entity=entity,
        project=project,
        name=f"sweep {group}" if group else "runs",
        filters=group_filter(group),
        groupby=[] if group else ["Group"],
        pinned_columns=list_pinned_columns(metric),
    )


def group_filter(group: str | None):
    return expr.And(expr.Metric("Group") == group) if group else ""


def list_pinned_columns(metric: str) -> list[str]:
    return ["run:displayName", *[f"config:{option}.value" for option in OPTION_COLUMNS], f"summary:evaluation/{metric}"]


def build_sections(metric: str) -> dict[str, list]:
    """Panels by section; the panel of a metric that no run has logged stays empty."""
    return {
        "Which setting": build_setting_panels(f"evaluation/{metric}"),
        "Losses by step": [
            build_line_plot(
                "Training loss", "train/loss", smoothing_type="exponentialTimeWeighted", smoothing_factor=0.6
            ),
            *[build_line_plot(f"Training loss, timestep quarter {q}", f"train/loss_quarter_{q}") for q in QUARTERS],
            build_line_plot("Gradient norm", "train/grad_norm"),
            wr.LinePlot(title="Learning rates", x=STEP_METRIC, metric_regex="train/lr_.*"),
        ],
        "Validation": [
            build_line_plot("Loss at fixed noise", "validation/loss"),
            *[
                build_line_plot(f"Loss at fixed noise, timestep quarter {q}", f"validation/loss_quarter_{q}")
                for q in QUARTERS
            ],
        ],
        "Scores during training": [
            build_line_plot(f"{metric} during training", f"scores/{metric}"),
            wr.LinePlot(title="All scores", x=STEP_METRIC, metric_regex="scores/.*"),
        ],
        "Samples": [
            wr.MediaBrowser(title=title, media_keys=[key], gallery_axis=axis)
            for title, key, axis in (
                ("Samples", "samples", "step"),
                ("All steps", "sheet", "run"),
                ("Evaluation", "evaluation_images", "run"),
                ("Training images", "data", "run"),
            )
        ],
    }


def build_setting_panels(quality: str) -> list:
    """Plots of a score by options and trainable parameters, and the sweep's page and table."""
    score = wr.SummaryMetric(quality)
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(option)) for option in ("method", "rank", "alpha")]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.Config("lr"), log=True))
    columns.append(wr.ParallelCoordinatesPlotColumn(score))
    return [
        wr.ParallelCoordinatesPlot(title=f"Options and {quality}", columns=columns),
        wr.ScatterPlot(title=f"{quality} by rank", x=wr.Config("rank"), y=score, log_x=True),
        wr.ScatterPlot(title=f"{quality} by trainable parameters", x=wr.Config("trainable"), y=score, log_x=True),
        wr.MediaBrowser(title="The sweep's page", media_keys=["compare"], gallery_axis="run"),
        wr.WeavePanelSummaryTable(table_name="settings"),
    ]


def build_line_plot(title: str, name: str, **style) -> wr.LinePlot:
    return wr.LinePlot(title=title, x=STEP_METRIC, y=[name], **style)

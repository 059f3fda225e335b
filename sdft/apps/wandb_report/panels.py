"""What a W&B project shows: a saved view of its runs, and a report that says how to read them. Nothing is sent from here."""

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

STEP_METRIC = "trainer/global_step"
OPTION_COLUMNS = ("method", "rank", "alpha", "lr")  # columns of the table of runs
QUARTERS = range(1, 5)

REPORT_TEXT = """Every line is a run; a sweep is a group of runs and one more, of the job type `sweep`, with its tables and its page.

- **Which setting?** Each line of the parallel coordinates is a run: follow the best of *{metric}* back to its words. In the
  scatters a setting is cheapest where more rank, or more learned parameters, no longer bring more *{metric}*. Look first at how
  far runs with the same words lie apart: less than that may be chance. The sweep's page says what is surely cheapest.
- **Losses by step** are of random timesteps and noise, so they jump; each quarter of the timesteps, from the least noise to the
  most, has a size of its own, so compare within one. Where `train/grad_norm` grows without end, the rate is too high.
- **Validation** is the loss at the same noise every time: small changes count. With `validation_split=0.1` it is of pictures that are
  not trained on; where it then rises while the training loss falls, the run trainable its pictures by heart.
- **Scores on the way** (`evaluate_every=10`) judge what is drawn, which the loss does not: the best step is often not the last
  one. `scores/controls/drift` is how far pictures moved that should have stayed as they were.
- **Samples** (`sample_every=10`) have the same prompts and seeds at every step, so what changes is what was learned.
"""


def build_workspace(entity: str, project: str, group: str | None, metric: str) -> ws.Workspace:
    """The saved view; of one sweep's runs apart when `group` is its stamp, else of all, by group."""
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
    """The same panels with the text; it takes the runs in when it is opened."""
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Fine-tuning: sweep {group}" if group else "Fine-tuning: how to read the runs",
        description=f"Runs of {project}, judged by {metric}",
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
    return ["run:displayName", *[f"config:{word}.value" for word in OPTION_COLUMNS], f"summary:evaluation/{metric}"]


def build_sections(metric: str) -> dict[str, list]:
    """Panels by the name of their section; a metric that a run has not logged leaves its panel empty."""
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
            *[build_line_plot(f"The same, timestep quarter {q}", f"validation/loss_quarter_{q}") for q in QUARTERS],
        ],
        "Scores on the way": [
            build_line_plot(f"{metric} on the way", f"scores/{metric}"),
            wr.LinePlot(title="All scores", x=STEP_METRIC, metric_regex="scores/.*"),
        ],
        "Samples": [
            wr.MediaBrowser(title=title, media_keys=[key], gallery_axis=axis)
            for title, key, axis in (
                ("Samples", "samples", "step"),
                ("All steps", "sheet", "run"),
                ("Evaluation", "evaluation_images", "run"),
                ("Trained on", "data", "run"),
            )
        ],
    }


def build_setting_panels(quality: str) -> list:
    """Words against what they bring, and what a sweep says of itself."""
    told = wr.SummaryMetric(quality)
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(word)) for word in ("method", "rank", "alpha")]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.Config("lr"), log=True))
    columns.append(wr.ParallelCoordinatesPlotColumn(told))
    return [
        wr.ParallelCoordinatesPlot(title=f"Words and {quality}", columns=columns),
        wr.ScatterPlot(title=f"{quality} by rank", x=wr.Config("rank"), y=told, log_x=True),
        wr.ScatterPlot(title=f"{quality} by learned parameters", x=wr.Config("trainable"), y=told, log_x=True),
        wr.MediaBrowser(title="The sweep's page", media_keys=["compare"], gallery_axis="run"),
        wr.WeavePanelSummaryTable(table_name="settings"),
    ]


def build_line_plot(title: str, name: str, **looks) -> wr.LinePlot:
    return wr.LinePlot(title=title, x=STEP_METRIC, y=[name], **looks)

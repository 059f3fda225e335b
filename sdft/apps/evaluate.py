"""Score: python evaluate.py run=outputs/NAME/STAMP, or sdft evaluate …   (--help lists all options)."""

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text


@hydra_main("evaluate")
def main(cfg):
    import sdft.distributed as processes
    from sdft.evaluation.evaluate import evaluate, format_runs_table
    from sdft.evaluation.jobs import build_evaluation_jobs
    from sdft.evaluation.real_image_baseline import score_real_images
    from sdft.training.evaluation_logging import add_to_wandb_run

    if cfg.get("model") == "none":
        if not processes.get_process_info().rank:
            score_real_images(cfg)
        return
    processes.init_process_group(cfg.accelerator == "cpu")
    reports = {}
    for job in build_evaluation_jobs(cfg):
        if processes.rank() == 0:
            print_text(f"sdft · {job.folder}", flush=True)
        reports[job.folder] = evaluate(job.folder, job.cfg, job.states)
        if cfg.wandb and processes.rank() == 0:
            add_to_wandb_run(job.folder.parent, reports[job.folder])
    if len(reports) > 1 and processes.rank() == 0:
        print_text(*format_runs_table(reports))
    processes.destroy_process_group()


if __name__ == "__main__":
    main()

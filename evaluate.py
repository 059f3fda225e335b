"""Score: python evaluate.py run=outputs/NAME/STAMP   (--help lists every word)."""

from sdft.cli.entry_point import command


@command("evaluate")
def main(cfg):
    import sdft.distributed as processes
    from sdft.evaluation.evaluate import evaluate, summary
    from sdft.evaluation.real_image_baseline import calibrate
    from sdft.evaluation.request import jobs
    from sdft.training.evaluation_logging import add_to_run

    if cfg.get("model") == "none":
        if not processes.place().number:
            calibrate(cfg)
        return
    processes.meet(cfg.accelerator == "cpu")
    reports = {}
    for job in jobs(cfg):
        if processes.rank() == 0:
            print(f"sdft · {job.folder}", flush=True)
        reports[job.folder] = evaluate(job.folder, job.cfg, job.states)
        if cfg.wandb and processes.rank() == 0:
            add_to_run(job.folder, reports[job.folder])
    if len(reports) > 1 and processes.rank() == 0:
        print(summary(reports))
    processes.part()


if __name__ == "__main__":
    main()

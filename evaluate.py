"""Score: python evaluate.py run=outputs/NAME/STAMP   (--help lists every word)."""

from sdft.command import command


@command("evaluate")
def main(cfg):
    from sdft.asked import jobs
    from sdft.calibration import calibrate
    from sdft.dashboard import add_to_run
    from sdft.evaluation import evaluate, summary

    if cfg.get("model") == "none":
        calibrate(cfg)
        return
    reports = {}
    for job in jobs(cfg):
        print(f"sdft · {job.folder}", flush=True)
        reports[job.folder] = evaluate(job.folder, job.cfg, job.states)
        if cfg.wandb:
            add_to_run(job.folder, reports[job.folder])
    if len(reports) > 1:
        print(summary(reports))


if __name__ == "__main__":
    main()

"""Run sweeps: one fresh process per combination of options, then a comparison of the finished runs.

`python train.py -m rank=4,8` is equivalent to a file in `sweeps/`, which has the format of `wandb sweep`, so that W&B agents
on many machines can share it. Hydra's multirun is not used: it runs all jobs in one process, and a second rank started there
by Lightning would run the entire sweep again.
"""

import hashlib
import json
import time
from importlib.util import find_spec
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from sdft.config import CONF
from sdft.options.composition import check_composition
from sdft.options.quoting import format_override
from sdft.runs.files import atomic_write, read_json, read_yaml
from sdft.runs.lock import Lock
from sdft.sweeps.grid import (
    build_search_space,
    expand_grid,
    is_range_override,
    parameter_values,
    search_space_corners,
    varying_overrides,
)
from sdft.sweeps.jobs import (
    PROGRAM,
    Job,
    JobList,
    JobSource,
    Launcher,
    print_failed_jobs,
    print_finished_jobs,
    run_jobs,
)
from sdft.sweeps.results import COST_FORMATS

SWEEPS_FOLDER = (
    CONF / "sweeps" if (CONF / "sweeps").is_dir() else CONF.parent / "sweeps"
)  # in the wheel, in the checkout
STATE_FILE = "sweep.json"
SLURM_KEY_PREFIX = "launcher.slurm."  # any option of sbatch
DEFAULT_TRIALS = 20
OPTION_TYPES = {"n_jobs": int | None, "trials": int | None, "sampler": str, "prune": bool}
SAMPLER_BY_METHOD = {"grid": None, "bayes": "tpe", "random": "random"}  # method of `wandb sweep` -> Optuna sampler


def run_sweep(name: str | None, overrides: list[str], program: tuple[str, ...] = PROGRAM) -> int:
    """Run the jobs of `sweeps/NAME.yaml` (if given), whose parameters `overrides` replace and extend, each by `program`.

    Returns the exit code.

    Jobs write to `multirun/NAME/STAMP/0`, `1` and so on. A failed job does not stop the others. The same command resumes the
    sweep: only missing and failed jobs run.
    """
    options, overrides = split_sweep_overrides(overrides)
    file = read_sweep_file(name) if name else {}
    parameters = file.get("parameters", {})
    is_search = SAMPLER_BY_METHOD[file.get("method", "grid")] or any(is_range_override(text) for text in overrides)
    run = run_search if is_search else run_grid
    return run(name, file, parameters, overrides, options, program)


def run_grid(name: str | None, file: dict, parameters: dict, overrides: list[str], options: DictConfig, program) -> int:
    """Run every combination of the values."""
    if unused := [key for key in ("trials", "objectives") if options[key] is not None]:
        value = options[unused[0]]
        raise ValueError(f"{unused[0]}={value}: only for a search; give a range, such as lr=interval(1e-5,1e-3)")
    combinations = expand_grid(parameter_values(parameters), overrides)
    configs = compose_job_configs(combinations)
    name = name or (configs[0].name if len({cfg.name for cfg in configs}) == 1 else "sweep")
    launcher: Launcher = instantiate(options.launcher)
    state = {"sweep": name, "jobs": combinations, "configs": hash_configs(configs)}
    folder, lock = prepare_sweep(state, launcher, configs)
    labels = [" ".join(varying_overrides(combinations, number)) for number in range(len(combinations))]
    jobs = [
        Job(folder / str(number), [*job_overrides, f"sweep={folder.name}"], label)
        for number, (job_overrides, label) in enumerate(zip(combinations, labels, strict=True))
    ]
    done = [job for job in jobs if job.is_finished()]
    print_finished_jobs(len(done), len(jobs), folder)
    source = JobList([job for job in jobs if job not in done], len(jobs))
    run_jobs(source, launcher, program)
    finished = [job.folder for job in jobs if job.is_finished()]
    return finish_sweep(folder, name, finished, target_metric(file), source, lock)


def run_search(
    name: str | None, file: dict, parameters: dict, overrides: list[str], options: DictConfig, program
) -> int:
    """Run `trials` jobs with values that Optuna samples."""
    if find_spec("optuna") is None:
        raise ValueError('a range of values: needs optuna, which is not installed; pip install "sdft[sweeps]"')
    from sdft.sweeps.optuna_search import OptunaSearch, objective_directions

    if options.trials is not None and options.trials < 1:
        raise ValueError(f"trials={options.trials}: choose 1 or more")
    space, fixed = build_search_space(parameters, overrides)
    corners = [[*fixed, *map(format_override, space, corner)] for corner in search_space_corners(space)]
    configs = compose_job_configs(corners)
    trials, name = options.trials or file.get("run_cap") or DEFAULT_TRIALS, name or configs[0].name
    goal = {target_metric(file): file["metric"]["goal"]} if target_metric(file) else {}
    names = [options.objectives] if isinstance(options.objectives, str) else options.objectives
    objectives = objective_directions(list(names or list(goal) or ["validation/loss"]), goal)
    if (scores := [name for name in objectives if name not in COST_FORMATS]) and not configs[0].metrics:
        raise ValueError(f"objectives={scores[0]}: needs metrics; choose metrics=clip, or metrics=digits for digits")
    launcher: Launcher = instantiate(options.launcher)
    sampler = SAMPLER_BY_METHOD[file.get("method", "grid")] or options.sampler
    state = {"sweep": name, "fixed": fixed, "space": {key: repr(values) for key, values in space.items()}}
    state |= {"objectives": objectives, "configs": hash_configs(configs)}
    folder, lock = prepare_sweep(state, launcher, configs)
    fixed = [*fixed, f"sweep={folder.name}"]
    source = OptunaSearch(folder, space, fixed, objectives, trials, sampler, options.prune, configs[0].seed)
    print_finished_jobs(source.completed, trials, folder)
    run_jobs(source, launcher, program)
    source.print_summary()
    return finish_sweep(folder, name, source.finished_folders(), next(iter(objectives)), source, lock)


def prepare_sweep(state: dict, launcher: Launcher, configs: list[DictConfig]) -> tuple[Path, Lock]:
    """Return the sweep's folder (an existing one with the same jobs, else a new one) and its lock."""
    folder = find_existing_sweep(state) or Path("multirun") / state["sweep"] / time.strftime("%Y-%m-%d_%H-%M-%S")
    launcher.prepare(folder, configs)
    lock = Lock(folder, "the same sweep")
    if read_json(folder / STATE_FILE) not in ({}, state):
        lock.release()
        raise ValueError(f"{folder}: another sweep started in the same second; start this one again")
    with atomic_write(folder / STATE_FILE) as partial:
        partial.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder, lock


def finish_sweep(
    folder: Path, name: str, finished: list[Path], metric: str | None, source: JobSource, lock: Lock
) -> int:
    """Compare the finished jobs, on the terminal and on W&B, and list the failed ones; returns the exit code."""
    from sdft.sweeps.compare import compare_runs
    from sdft.sweeps.wandb_summary import log_sweep_summary

    compare_runs(finished, folder, preferred=metric)
    log_sweep_summary(finished, source.total, folder, name, metric)
    print_failed_jobs(source)
    lock.release()
    return int(bool(source.failed))


def split_sweep_overrides(overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """Split overrides into the composed config of the sweep's options (`conf/sweep.yaml`) and the jobs' overrides."""
    from hydra import compose, initialize_config_dir

    from sdft.config import check_config, check_option_types
    from sdft.sweeps.optuna_search import SAMPLERS

    with initialize_config_dir(str(CONF), version_base="1.3"):
        keys = {*compose("sweep"), "launcher"}
        sweep_overrides = [text for text in overrides if text.split("=", 1)[0].split(".")[0].lstrip("+") in keys]
        cfg = compose("sweep", [f"++{text}" if text.startswith(SLURM_KEY_PREFIX) else text for text in sweep_overrides])
    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    if cfg.sampler not in SAMPLERS:
        raise ValueError(f"sampler={cfg.sampler}: choose one of {', '.join(SAMPLERS)}")
    names = [cfg.objectives] if isinstance(cfg.objectives, str) else cfg.objectives
    if names is not None and not (OmegaConf.is_list(names) or isinstance(names, list)):
        raise ValueError(f"objectives={names}: give a score, or a list of scores such as [CLIP-I,controls/drift]")
    if names is not None and (not names or not all(isinstance(name, str) and name for name in names)):
        raise ValueError(f"objectives={names}: give one or more names of scores")
    return cfg, [text for text in overrides if text not in sweep_overrides]


def hash_configs(configs: list[DictConfig]) -> str:
    return hashlib.sha256(repr(configs).encode()).hexdigest()


def read_sweep_file(name: str) -> dict:
    """Read `sweeps/NAME.yaml`; raises `ValueError` if there is none."""
    names = sorted(path.stem for path in SWEEPS_FOLDER.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"sweeps={name}: choose one of {', '.join(names)}")
    return read_yaml(SWEEPS_FOLDER / f"{name}.yaml")


def target_metric(file: dict) -> str | None:
    """The score that the sweep optimizes; in W&B it is logged as `evaluation/NAME`."""
    return file.get("metric", {}).get("name", "").removeprefix("evaluation/") or None


def compose_job_configs(combinations: list[list[str]]) -> list[DictConfig]:
    """Compose and check every job's config, so that an invalid one is rejected before any job runs."""
    from hydra import compose, initialize_config_dir

    from sdft.config import check_config
    from sdft.training.loggers import check_names

    configs = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for combination in combinations:
            overrides = [text for text in combination if not text.startswith("-")]
            cfg = compose("train", [*overrides, "hydra.runtime.output_dir=here"], return_hydra_config=True)
            with open_dict(cfg):
                hydra_config = cfg.pop("hydra")
            check_composition("train", cfg, hydra_config, is_job=True)
            check_config(cfg)
            check_names(cfg)
            configs.append(cfg)
    return configs


def find_existing_sweep(state: dict) -> Path | None:
    """The newest folder of a sweep with the same jobs and configs."""
    for file in sorted(Path("multirun", state["sweep"]).glob(f"*/{STATE_FILE}"), reverse=True):
        if read_json(file) == state:
            return file.parent
    return None

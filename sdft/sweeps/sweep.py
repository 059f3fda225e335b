"""A sweep is words to try: every job runs in a fresh process of its own, and a page compares them.

`python train.py -m rank=4,8` and files in `sweeps/` are the same thing; the files are those of `wandb sweep`, so agents on
many machines can share one. Hydra's own multirun is not used: it runs all jobs in one process, and a second rank that
Lightning starts there would run the whole sweep again.
"""

import hashlib
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from sdft.config import CONF
from sdft.runs.files import atomic_write, read_json
from sdft.runs.lock import Lock
from sdft.sweeps.grid import (
    build_search_space,
    expand_grid,
    format_override_value,
    is_range_override,
    parameter_values,
    search_space_corners,
    varying_overrides,
)
from sdft.sweeps.jobs import Job, JobList, JobSource, Launcher, run_jobs
from sdft.sweeps.results import COST_FORMATS

SWEEPS_FOLDER = (
    CONF / "sweeps" if (CONF / "sweeps").is_dir() else CONF.parent / "sweeps"
)  # in the wheel, in the checkout
STATE_FILE = "sweep.json"
SLURM_KEY_PREFIX = "launcher.slurm."  # whatever sbatch takes
DEFAULT_TRIALS = 20  # of a search that is not told how many
OPTION_TYPES = {"n_jobs": int | None, "trials": int | None, "sampler": str, "prune": bool}
SAMPLER_BY_METHOD = {
    "grid": None,
    "bayes": "tpe",
    "random": "random",
}  # of `wandb sweep`, and who proposes the words here


def run_sweep(name: str | None, words: list[str]) -> int:
    """Run the jobs of `sweeps/NAME.yaml`, or of `words` alone, which replace and add to the file's; returns the exit code.

    Jobs write to `multirun/NAME/STAMP/0`, `1` and so on. One that fails does not stop the others. Asked again with the same
    words, a sweep goes on: only what is missing or failed runs.
    """
    own, words = split_sweep_overrides(words)
    file = read_sweep_file(name) if name else {}
    parameters = file.get("parameters", {})
    looking = SAMPLER_BY_METHOD[file.get("method", "grid")] or any(is_range_override(word) for word in words)
    plan = run_search if looking else run_grid
    return plan(name, file, parameters, words, own)


def run_grid(name: str | None, file: dict, parameters: dict, words: list[str], own: DictConfig) -> int:
    """Every combination of the values."""
    if given := [key for key in ("trials", "objectives") if own[key] is not None]:
        raise ValueError(
            f"{given[0]}={own[given[0]]}: of a search, and no word here has a range, such as lr=interval(1e-5,1e-3)"
        )
    combinations = expand_grid(parameter_values(parameters), words)
    configs = compose_job_configs(combinations)
    name = name or (configs[0].name if len({cfg.name for cfg in configs}) == 1 else "sweep")
    launcher: Launcher = instantiate(own.launcher)
    state = {"sweep": name, "jobs": combinations, "configs": hash_configs(configs)}
    folder, alone = prepare_sweep(state, launcher, configs)
    labels = [" ".join(varying_overrides(combinations, number)) for number in range(len(combinations))]
    todo = [
        Job(folder / str(number), [*words_of_job, f"sweep={folder.name}"], label)
        for number, (words_of_job, label) in enumerate(zip(combinations, labels, strict=True))
    ]
    done = [job for job in todo if job.is_finished()]
    print_finished_jobs(len(done), len(todo), folder)
    feed = JobList([job for job in todo if job not in done], len(todo))
    run_jobs(feed, launcher)
    return finish_sweep(
        folder, name, [job.folder for job in todo if job.is_finished()], target_metric(file), feed, alone
    )


def run_search(name: str | None, file: dict, parameters: dict, words: list[str], own: DictConfig) -> int:
    """As many jobs as `trials` says, with words that Optuna picks."""
    if find_spec("optuna") is None:
        raise ValueError('a range of values: needs optuna, which is not installed; pip install "sdft[sweeps]"')
    from sdft.sweeps.optuna_search import OptunaSearch, objective_directions

    if own.trials is not None and own.trials < 1:
        raise ValueError(f"trials={own.trials}: choose 1 or more")
    space, fixed = build_search_space(parameters, words)
    ends = [
        [*fixed, *(f"{key}={format_override_value(end)}" for key, end in zip(space, picked, strict=True))]
        for picked in search_space_corners(space)
    ]
    configs = compose_job_configs(ends)
    trials, name = own.trials or file.get("run_cap") or DEFAULT_TRIALS, name or configs[0].name
    goal = {target_metric(file): file["metric"]["goal"]} if target_metric(file) else {}
    named = [own.objectives] if isinstance(own.objectives, str) else own.objectives or list(goal) or ["validation/loss"]
    objectives = objective_directions(list(named), goal)
    if (asked := [name for name in objectives if name not in COST_FORMATS]) and not configs[0].metrics:
        raise ValueError(f"objectives={asked[0]}: no judge; choose metrics=clip, or metrics=digits for digits")
    launcher: Launcher = instantiate(own.launcher)
    sampler = SAMPLER_BY_METHOD[file.get("method", "grid")] or own.sampler
    state = {"sweep": name, "fixed": fixed, "space": {key: repr(values) for key, values in space.items()}}
    folder, alone = prepare_sweep(
        state | {"objectives": objectives, "configs": hash_configs(configs)}, launcher, configs
    )
    fixed = [*fixed, f"sweep={folder.name}"]
    feed = OptunaSearch(folder, space, fixed, objectives, trials, sampler, own.prune, configs[0].seed)
    print_finished_jobs(feed.done, trials, folder)
    run_jobs(feed, launcher)
    print("\n".join(feed.summary_lines()))
    return finish_sweep(folder, name, feed.finished_folders(), next(iter(objectives)), feed, alone)


def prepare_sweep(state: dict, launcher: Launcher, configs: list[DictConfig]) -> tuple[Path, object]:
    """The sweep's folder, an earlier one of the same jobs or a new one, and its lock."""
    folder = find_existing_sweep(state) or Path("multirun") / state["sweep"] / time.strftime("%Y-%m-%d_%H-%M-%S")
    launcher.prepare(folder, configs)
    with atomic_write(folder / STATE_FILE) as partial:
        partial.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder, Lock(folder, "the same sweep")


def print_finished_jobs(done: int, total: int, folder: Path) -> None:
    if done:
        print(f"sweep    {done} of {total} jobs are finished in {folder}/; delete it to run them again", flush=True)


def finish_sweep(folder: Path, name: str, finished: list[Path], metric: str | None, feed: JobSource, alone) -> int:
    """Compare what finished, here and on W&B, name what failed; the exit code."""
    from sdft.sweeps.compare import compare_runs
    from sdft.sweeps.wandb_summary import log_sweep_summary

    compare_runs(finished, folder, preferred=metric)
    log_sweep_summary(finished, feed.total, folder, name, metric)
    if feed.failed:
        labels = "; ".join(job.label for job in feed.failed)
        print(f"error: {len(feed.failed)} of {feed.total} jobs failed: {labels}", file=sys.stderr)
    alone.release()
    return int(bool(feed.failed))


def split_sweep_overrides(words: list[str]) -> tuple[DictConfig, list[str]]:
    """What `conf/sweep.yaml` makes of the words that are the sweep's own, and the others."""
    from hydra import compose, initialize_config_dir

    from sdft.config import check_config, check_option_types
    from sdft.sweeps.optuna_search import SAMPLERS

    with initialize_config_dir(str(SWEEPS_FOLDER.parent / "conf"), version_base="1.3"):
        known = {*compose("sweep"), "launcher"}
        mine = [word for word in words if word.split("=", 1)[0].split(".")[0].lstrip("+") in known]
        cfg = compose("sweep", [f"++{word}" if word.startswith(SLURM_KEY_PREFIX) else word for word in mine])
    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    if cfg.sampler not in SAMPLERS:
        raise ValueError(f"sampler={cfg.sampler}: choose one of {', '.join(SAMPLERS)}")
    names = [cfg.objectives] if isinstance(cfg.objectives, str) else cfg.objectives
    if names is not None and not (OmegaConf.is_list(names) or isinstance(names, list)):
        raise ValueError(f"objectives={names}: give a score, or a list of them as [CLIP-I,controls/drift]")
    if names is not None and (not names or not all(isinstance(name, str) and name for name in names)):
        raise ValueError(f"objectives={names}: give one score or more by name")
    return cfg, [word for word in words if word not in mine]


def hash_configs(configs: list[DictConfig]) -> str:
    return hashlib.sha256(repr(configs).encode()).hexdigest()


def read_sweep_file(name: str) -> dict:
    """A file in `sweeps/`."""
    file = SWEEPS_FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(
            f"sweeps={name}: choose one of {', '.join(sorted(p.stem for p in SWEEPS_FOLDER.glob('*.yaml')))}"
        )
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def target_metric(file: dict) -> str | None:
    """The score that the sweep is about, which W&B knows as `evaluation/NAME`."""
    return file.get("metric", {}).get("name", "").removeprefix("evaluation/") or None


def compose_job_configs(combinations: list[list[str]]) -> list[DictConfig]:
    """The config of every job as its process will compose it, so that none is refused after others have run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from sdft.config import check_config

    configs = []
    with initialize_config_dir(str(SWEEPS_FOLDER.parent / "conf"), version_base="1.3"):
        for words in combinations:
            plain = [word for word in words if not word.startswith("-")]
            cfg = compose("train", [*plain, "hydra.runtime.output_dir=here"], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                cfg.pop("hydra")
            check_config(cfg)
            configs.append(cfg)
    return configs


def find_existing_sweep(state: dict) -> Path | None:
    """The newest folder of the same jobs, with the same configs."""
    for file in sorted(Path("multirun", state["sweep"]).glob(f"*/{STATE_FILE}"), reverse=True):
        if read_json(file) == state:
            return file.parent
    return None

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
from sdft.runs.files import read_json, whole
from sdft.runs.lock import Lock
from sdft.sweeps.grid import changing, corners, jobs, space_of, spread_out, text, values_of
from sdft.sweeps.jobs import Feed, Job, Launcher, Listed, run_all
from sdft.sweeps.results import COSTS

FOLDER = CONF / "sweeps" if (CONF / "sweeps").is_dir() else CONF.parent / "sweeps"  # in the wheel, in the checkout
STATE = "sweep.json"
OPEN = "launcher.slurm."  # whatever sbatch takes
TRIALS = 20  # of a search that is not told how many
WORDS = {"n_jobs": int | None, "trials": int | None, "sampler": str, "prune": bool}
METHODS = {"grid": None, "bayes": "tpe", "random": "random"}  # of `wandb sweep`, and who proposes the words here


def sweep(name: str | None, words: list[str]) -> int:
    """Run the jobs of `sweeps/NAME.yaml`, or of `words` alone, which replace and add to the file's; returns the exit code.

    Jobs write to `multirun/NAME/STAMP/0`, `1` and so on. One that fails does not stop the others. Asked again with the same
    words, a sweep goes on: only what is missing or failed runs.
    """
    own, words = told_to_the_sweep(words)
    file = read(name) if name else {}
    parameters = file.get("parameters", {})
    looking = METHODS[file.get("method", "grid")] or any(spread_out(word) for word in words)
    plan = searched if looking else listed
    return plan(name, file, parameters, words, own)


def listed(name: str | None, file: dict, parameters: dict, words: list[str], own: DictConfig) -> int:
    """Every combination of the values."""
    if given := [key for key in ("trials", "objectives") if own[key] is not None]:
        raise ValueError(
            f"{given[0]}={own[given[0]]}: of a search, and no word here has a range, such as lr=interval(1e-5,1e-3)"
        )
    combinations = jobs(values_of(parameters), words)
    configs = checked(combinations)
    name = name or (configs[0].name if len({cfg.name for cfg in configs}) == 1 else "sweep")
    launcher: Launcher = instantiate(own.launcher)
    state = {"sweep": name, "jobs": combinations, "configs": digest(configs)}
    folder, alone = begun(state, launcher, configs)
    labels = [" ".join(changing(combinations, number)) for number in range(len(combinations))]
    todo = [
        Job(folder / str(number), [*words_of_job, f"sweep={folder.name}"], label)
        for number, (words_of_job, label) in enumerate(zip(combinations, labels, strict=True))
    ]
    done = [job for job in todo if job.finished()]
    tell_done(len(done), len(todo), folder)
    feed = Listed([job for job in todo if job not in done], len(todo))
    run_all(feed, launcher)
    return closed(folder, name, [job.folder for job in todo if job.finished()], metric_of(file), feed, alone)


def searched(name: str | None, file: dict, parameters: dict, words: list[str], own: DictConfig) -> int:
    """As many jobs as `trials` says, with words that Optuna picks."""
    if find_spec("optuna") is None:
        raise ValueError('a range of values: needs optuna, which is not installed; pip install "sdft[sweeps]"')
    from sdft.sweeps.optuna_search import Search, objectives_of

    if own.trials is not None and own.trials < 1:
        raise ValueError(f"trials={own.trials}: choose 1 or more")
    space, fixed = space_of(parameters, words)
    ends = [
        [*fixed, *(f"{key}={text(end)}" for key, end in zip(space, picked, strict=True))] for picked in corners(space)
    ]
    configs = checked(ends)
    trials, name = own.trials or file.get("run_cap") or TRIALS, name or configs[0].name
    goal = {metric_of(file): file["metric"]["goal"]} if metric_of(file) else {}
    named = [own.objectives] if isinstance(own.objectives, str) else own.objectives or list(goal) or ["validation/loss"]
    objectives = objectives_of(list(named), goal)
    if (asked := [name for name in objectives if name not in COSTS]) and not configs[0].metrics:
        raise ValueError(f"objectives={asked[0]}: no judge; choose metrics=clip, or metrics=digits for digits")
    launcher: Launcher = instantiate(own.launcher)
    sampler = METHODS[file.get("method", "grid")] or own.sampler
    state = {"sweep": name, "fixed": fixed, "space": {key: repr(values) for key, values in space.items()}}
    folder, alone = begun(state | {"objectives": objectives, "configs": digest(configs)}, launcher, configs)
    fixed = [*fixed, f"sweep={folder.name}"]
    feed = Search(folder, space, fixed, objectives, trials, sampler, own.prune, configs[0].seed)
    tell_done(feed.done, trials, folder)
    run_all(feed, launcher)
    print("\n".join(feed.verdict()))
    return closed(folder, name, feed.finished(), next(iter(objectives)), feed, alone)


def begun(state: dict, launcher: Launcher, configs: list[DictConfig]) -> tuple[Path, object]:
    """The sweep's folder, an earlier one of the same jobs or a new one, and its lock."""
    folder = earlier(state) or Path("multirun") / state["sweep"] / time.strftime("%Y-%m-%d_%H-%M-%S")
    launcher.prepare(folder, configs)
    with whole(folder / STATE) as partial:
        partial.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder, Lock(folder, "the same sweep")


def tell_done(done: int, total: int, folder: Path) -> None:
    if done:
        print(f"sweep    {done} of {total} jobs are finished in {folder}/; delete it to run them again", flush=True)


def closed(folder: Path, name: str, finished: list[Path], metric: str | None, feed: Feed, alone) -> int:
    """Compare what finished, here and on W&B, name what failed; the exit code."""
    from sdft.sweeps.compare import compare
    from sdft.sweeps.wandb_summary import overview

    compare(finished, folder, preferred=metric)
    overview(finished, feed.total, folder, name, metric)
    if feed.failed:
        labels = "; ".join(job.label for job in feed.failed)
        print(f"error: {len(feed.failed)} of {feed.total} jobs failed: {labels}", file=sys.stderr)
    alone.release()
    return int(bool(feed.failed))


def told_to_the_sweep(words: list[str]) -> tuple[DictConfig, list[str]]:
    """What `conf/sweep.yaml` makes of the words that are the sweep's own, and the others."""
    from hydra import compose, initialize_config_dir

    from sdft.config import check, typed
    from sdft.sweeps.optuna_search import SAMPLERS

    with initialize_config_dir(str(FOLDER.parent / "conf"), version_base="1.3"):
        known = {*compose("sweep"), "launcher"}
        mine = [word for word in words if word.split("=", 1)[0].split(".")[0].lstrip("+") in known]
        cfg = compose("sweep", [f"++{word}" if word.startswith(OPEN) else word for word in mine])
    check(cfg)
    typed(cfg, WORDS)
    if cfg.sampler not in SAMPLERS:
        raise ValueError(f"sampler={cfg.sampler}: choose one of {', '.join(SAMPLERS)}")
    names = [cfg.objectives] if isinstance(cfg.objectives, str) else cfg.objectives
    if names is not None and not (OmegaConf.is_list(names) or isinstance(names, list)):
        raise ValueError(f"objectives={names}: give a score, or a list of them as [CLIP-I,controls/drift]")
    if names is not None and (not names or not all(isinstance(name, str) and name for name in names)):
        raise ValueError(f"objectives={names}: give one score or more by name")
    return cfg, [word for word in words if word not in mine]


def digest(configs: list[DictConfig]) -> str:
    return hashlib.sha256(repr(configs).encode()).hexdigest()


def read(name: str) -> dict:
    """A file in `sweeps/`."""
    file = FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"sweeps={name}: choose one of {', '.join(sorted(p.stem for p in FOLDER.glob('*.yaml')))}")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def metric_of(file: dict) -> str | None:
    """The score that the sweep is about, which W&B knows as `evaluation/NAME`."""
    return file.get("metric", {}).get("name", "").removeprefix("evaluation/") or None


def checked(combinations: list[list[str]]) -> list[DictConfig]:
    """The config of every job as its process will compose it, so that none is refused after others have run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from sdft.config import check

    configs = []
    with initialize_config_dir(str(FOLDER.parent / "conf"), version_base="1.3"):
        for words in combinations:
            plain = [word for word in words if not word.startswith("-")]
            cfg = compose("train", [*plain, "hydra.runtime.output_dir=here"], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                cfg.pop("hydra")
            check(cfg)
            configs.append(cfg)
    return configs


def earlier(state: dict) -> Path | None:
    """The newest folder of the same jobs, with the same configs."""
    for file in sorted(Path("multirun", state["sweep"]).glob(f"*/{STATE}"), reverse=True):
        if read_json(file) == state:
            return file.parent
    return None

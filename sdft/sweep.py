"""A sweep is a list of words to try: every combination runs in a fresh process of its own, and a page compares them.

`python train.py -m rank=4,8` and files in `sweeps/` are the same thing; the files are those of `wandb sweep` with
`method: grid`, so agents on many machines can share one. Hydra's own multirun is not used: it runs all jobs in one process,
and a second rank that Lightning starts there would run the whole sweep again.
"""

import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import yaml
from omegaconf import DictConfig, open_dict

from sdft.files import whole
from sdft.jobs import Job, run_all, usable

FOLDER = Path(__file__).parent.parent / "sweeps"
OWN = ("n_jobs",)  # words of the sweep, not of its jobs
STATE = "sweep.json"


def sweep(name: str | None, words: list[str]) -> int:
    """Run all jobs of `sweeps/NAME.yaml`, or of `words` alone, which replace and add to the file's; returns the exit code.

    Jobs write to `multirun/NAME/STAMP/0`, `1` and so on. One that fails does not stop the others. Asked again with the same
    words, a sweep goes on: only what is missing or failed runs.
    """
    from sdft.compare import compare

    own = {key: value for key, value in (word.split("=", 1) for word in words if "=" in word) if key in OWN}
    words = [word for word in words if word.split("=", 1)[0] not in OWN]
    file = read(name) if name else {}
    combinations = jobs(values_of(file), words)
    configs = checked(combinations)
    name = name or (configs[0].name if len({cfg.name for cfg in configs}) == 1 else "sweep")
    places = usable(own.get("n_jobs"), [(cfg.devices, cfg.accelerator) for cfg in configs])
    state = {"sweep": name, "jobs": combinations, "configs": hashlib.sha256(repr(configs).encode()).hexdigest()}
    folder = earlier(state) or Path("multirun") / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    with whole(folder / STATE) as partial:
        partial.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n")
    alone = held(folder)
    labels = [" ".join(changing(combinations, number)) for number in range(len(combinations))]
    todo = [
        Job(folder / str(number), [*words_of_job, f"sweep={folder.name}"], label)
        for number, (words_of_job, label) in enumerate(zip(combinations, labels, strict=True))
    ]
    done = [job for job in todo if job.finished()]
    if done:
        print(
            f"sweep    {len(done)} of {len(todo)} jobs are finished in {folder}/; delete it to run them again",
            flush=True,
        )
    failed = run_all([job for job in todo if job not in done], len(todo), places)
    compare([job.folder for job in todo if job.finished()], folder, preferred=metric_of(file))
    if failed:
        print(f"error: {len(failed)} of {len(todo)} jobs failed: {'; '.join(j.label for j in failed)}", file=sys.stderr)
    alone.close()
    return int(bool(failed))


def read(name: str) -> dict:
    """A file in `sweeps/`."""
    file = FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"sweeps={name}: choose one of {', '.join(sorted(p.stem for p in FOLDER.glob('*.yaml')))}")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def values_of(file: dict) -> dict[str, list]:
    """The values that each word is to take."""
    return {
        key: told["values"] if "values" in told else [told["value"]] for key, told in file.get("parameters", {}).items()
    }


def metric_of(file: dict) -> str | None:
    """The score that the sweep is about, which W&B knows as `evaluation/NAME`."""
    return file.get("metric", {}).get("name", "").removeprefix("evaluation/") or None


def jobs(values: dict[str, list], words: list[str]) -> list[list[str]]:
    """The words of every job: all combinations, the last word changing fastest. `words` replace and add to `values`.

    A word with several values, as Hydra writes them (`rank=4,8`, `seed=range(3)`), is tried with each.
    """
    given = [tried(word) for word in words]
    named = {word.split("=", 1)[0].lstrip("+") for word in words if "=" in word}
    own = [[f"{key}={text(value)}" for value in tries] for key, tries in values.items() if key not in named]
    return [list(chosen) for chosen in itertools.product(*own, *given)]


def tried(word: str) -> list[str]:
    """All single words that one with several values stands for."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if word.startswith("-"):
        return [word]
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return [word]
    if not override.is_discrete_sweep():
        raise ValueError(f"{word}: only a list of values can be tried one by one, such as {word.split('=')[0]}=1,2")
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def text(value) -> str:
    """As a command line says it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def changing(combinations: list[list[str]], number: int) -> list[str]:
    """The words of one job that differ between jobs."""
    return [word for word in combinations[number] if any(word not in other for other in combinations)] or ["all"]


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
        if json.loads(file.read_text(encoding="utf-8")) == state:
            return file.parent
    return None


def held(folder: Path):
    """The folder's lock, which is let go when the sweep ends, however it ends; `ValueError` when another one has it."""
    file = open(folder / "lock", "w")  # noqa: SIM115
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # not on Windows
        pass
    except OSError:
        file.close()
        raise ValueError(f"{folder}: the same sweep is running there; wait for it, or change a word") from None
    return file

# ruff: noqa: E501, SIM117
"""Fuzz the command line with random arguments: never a traceback, always one line that names an invalid argument.

`python tests/cli/test_fuzz.py 17 23` prints cases 17 to 22 with the program's answers.
"""

import contextlib
import io
import os
import random
import re
import shlex
import sys
from copy import deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_training
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from test_entry_point import run_forked_program

from sdft.options.composition import check_composition

INVALID_VALUES = [  # wrong types, out of range, or malformed
    "nan", "-nan", ".nan", "inf", "-inf", ".inf", "1e400", "-1e400", "1e999999", "-1", "-5", "0", "-0.0", "-1e-9", "0.5",
    "2", "1.0000001", "3.7", "1e-400", "1e300", "99999999999999999999", "1" + "0" * 400, "0x10", "1_000", "1e", "+5", "٣",
    "", "''", '""', "' '", "null", "none", "None", "NULL", "true", "False", "yes", "~", "???", "abc", "cpu", "auto",
    "[]", "[1]", "[nan,inf]", "[0.9]", "[0.9,1.5]", "[-1,2]", "[1,[2,[3]]]", "[,]", "[a b,c]", "['',null]", "[true,{}]",
    "{}", "{a:1}", "{a:{b:[1,2]}}", "{_target_:os.getcwd}", "{_target_:nope.nope}", "{_target_:''}", "{1:2}", "{a:1,a:2}",
    "[", "]", "{", "}", "(", ")", "[1", "1]", "{a:", "'", '"', "'a", 'a"', "\\", "a\\", "\\'", "a:b:c", "a,b", "1,2", ",",
    "${nope}", "${lr}", "${rank}", "${name}", "${oc.env:NOPE}", "${oc.env:HOME}", "${seed", "${", "$", "${}", "${.}",
    "${..}", "${a.b.c}", "${nope:1}", "${oc.decode:x}", "${oc.decode:'{'}", "${hydra:runtime.nope}", "${now:%Y}",
    "${oc.select:nope}", "${training}", "${training.lr}", "${dataset}", "${name}${name}", "[${rank}]", "{a:${lr}}", "${eval:1}",
    "é", "日本語", "🙂", "‮abc", "\u200b", "\ufeff", "a\u0301", "\udcff", "a\udc80b", "\x01", "\x1b[31m", "\x7f", "a\tb",
    "a\nb", "a\r\nb", " a", "a b", "../..", "a/b", "/nowhere/at/all", "~nobody/x", ".", "..", "-", "--", "-rf", "<b>", "%s",
    "{0}", "#", "a#b", "!!python/object:os.system", "&a", "*a", "choice(1,2)", "range(3)", "interval(1,2)", "glob(*)",
    "shuffle(1,2)", "sort(1)", "tag(a,1)", "int(x)", "float(nan)", "str(1)", "extend_list(1)", "a=b", "=", "==", "x" * 5000,
]  # fmt: skip
INVALID_ARGUMENTS = [  # malformed, or with unknown keys
    "word", "rank", "=", "=1", "==", "+", "~", "++", "+=", "~=", "", " ", "''", "rank 4", "rank:4", "rank==4", "rank=", "+rank",
    "+new=1", "++x.y=1", "+a.b.c=[1]", "nope=1", "nope.nope=1", "method.nope=1", "training.nope=1", "+training.nope=1", "rank.x=1",
    "~rank", "~seed", "~deleted", "~training", "~training.lr", "~method", "~data", "~optimizer", "~schedule", "~model", "~dataset",
    "~name", "~sampling", "~lr", "~hydra", "~prior", "~training.lr=5", "~metrics", "+method=sft", "++method=sft", "method=", "method=nope",
    "method=[lora,sft]", "method={}", "method=null", "data=null", "data=nope", "model=null", "model=nope", "optimizer=nope",
    "optimizer=null", "schedule=null", "strategy=null", "training=null", "training=1", "dataset=[]", "sampling=null", "sampling=7",
    "objective=null", "precision=null", "metrics=null", "logger=nope", "experiment=nope", "method@x=lora", "method/lora=1",
    "data@=folder", "+data@extra=folder", "@", "/", "//", ".", "..", ".x=1", "x.=1", "a..b=1", "lr=1=2", "LR=1", "Lr=1", "lr =1",
    "method.text_encoder.x=1", "method._target_=nope", "method._target_=os.system", "method._target_=sdft.nope.X", "training._target_=",
    "optimizer._target_=torch.optim.Nope", "optimizer._target_=torch.optim.SGD", "optimizer._target_=nope.nope",
    "optimizer._target_=torch.nope", "optimizer._partial_=false", "schedule._partial_=true", "+training._recursive_=x",
    "+training._convert_=nope", "+training._args_=[1]", "data._target_=torch.nope.nope", "model._target_=1", "model._target_=null",
    "hydra=null", "hydra.nope=1", "+hydra.nope=1", "hydra.run=1", "hydra.run.dir=null", "hydra.job.name=[]", "hydra.verbose=x",
    "hydra/launcher=nope", "hydra/sweeper=nope", "hydra.sweep.dir=1", "hydra/job_logging=nope", "~hydra.run", "hydra.mode=x",
    "rank=1,2", "seed=range(3)", "lr=interval(1,2)", "method=lora,sft", "hydra.mode=MULTIRUN", "hydra.searchpath=[nope]",
    "hydra.searchpath=[file:///nowhere]", "hydra.output_subdir=a/b", "hydra.job.env_set={A:1}", "hydra.job.config=1",
    "-x", "--nope", "--cfg", "--cfg=nope", "-c", "--info=nope", "--package=nope", "--config-name=nope", "--config-dir=nope",
    "--resolve", "--run", "--experimental-rerun=nope", "--config-path=nope", "-r", "--", "--help=1", "—rank=4", "--rank=4", "-rank=4",
    "\udcff=1", "é=1", "日本=語", "rank=4", "$lr=1", "${lr}=1", "'lr'=1", '"lr"=1', "lr='1'", "[a]=1", "{a}=1", "a,b=1",
]  # fmt: skip
VALID_OVERRIDES = {
    "train": ["seed=1", "steps=3", "flip=true", "cache=ram", "precision=bf16", "schedule=cosine", "name=fine"],
    "evaluate": ["images=1", "wandb=false", "accelerator=cpu", "adapter_scales=[0.5]"],
}
BASE_OVERRIDES = [
    [], [], [], [], ["method=sft"], ["method=textual_inversion"], ["method=pretrain"], ["data=folder", "data.path=photos"],
    ["method=dreambooth_lora", "data.path=photos", "instance_prompt=a sks thing", "class_prompt=a thing"],
    ["optimizer=prodigy"], ["optimizer=adafactor"], ["schedule=polynomial"], ["metrics=clip"], ["data=inked_digits"],
]  # fmt: skip
GROUPS = tuple(f"{path.name}=" for path in (ROOT / "conf").iterdir() if path.is_dir())  # they add and remove options


class Accepted(BaseException):
    """The arguments are valid: the program would load weights now."""


@cache
def list_keys(config: str) -> list[str]:
    """All keys of the config, top-level options three times as often."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        options = OmegaConf.to_container(compose(config))
    leaves = [path for path, _ in iterate_leaves(options)]
    return [*leaves, *[key for key in options for _ in range(2)], *(["hydra.run.dir", "hydra.job.name"])]


def iterate_leaves(node, path: str = ""):
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from iterate_leaves(child, f"{path}.{key}" if path else key)
    else:
        yield path, node


def generate_case(number: int) -> tuple[str, list[str], list[str]]:
    """Case `number`: the program, its arguments, and those of them that may be named in the error."""
    rng = random.Random(number)
    config = rng.choices(["train", "evaluate"], [4, 1])[0]
    invalid = []
    for _ in range(rng.choices([1, 2, 3], [6, 2, 1])[0]):
        if rng.random() < 0.3:
            invalid.append(rng.choice(INVALID_ARGUMENTS))
        else:
            sign = rng.choices(["", "+", "++", "~"], [12, 1, 1, 1])[0]
            invalid.append(f"{sign}{rng.choice(list_keys(config))}={rng.choice(INVALID_VALUES)}")
    invalid += [invalid[0]] if rng.random() < 0.05 else []
    arguments = [*invalid, *rng.sample(VALID_OVERRIDES[config], rng.randrange(3))]
    rng.shuffle(arguments)
    base = rng.choice(BASE_OVERRIDES) if config == "train" else ["metrics=digits"]
    has_flag = any(argument.startswith("-") for argument in invalid)
    has_group = any(argument.lstrip("+~").startswith(GROUPS) for argument in invalid)
    return config, [*base, *arguments], [*invalid, *base, *arguments] if has_flag or has_group else invalid


def names_argument(invalid: list[str], line: str) -> bool:
    """Whether the line has the key or the value of an invalid argument."""
    if "~method" in invalid and "name=…" in line:  # the method sets the name
        return True
    for argument in invalid:
        key, _, value = argument.lstrip("+~-").partition("=")
        parts = [
            key,
            *key.split("@"),
            key.rpartition(".")[2],
            key.partition(".")[0],
            value.strip(),
            value.strip("'\" "),
            argument,
        ]
        if repr(argument) in line or any(
            part and re.search(rf"(?<!\w){re.escape(part[:60])}", " ".join(line.split())) for part in parts
        ):
            return True
    return False


@pytest.fixture(scope="module")
def run_program(tmp_path_factory):
    """A function that runs a program with arguments: None when it would load weights, else what it prints on stderr."""
    home = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(home):
        yield patch_programs(home, patch)


def patch_programs(home: Path, patch: pytest.MonkeyPatch):
    """Patch the programs to stop before they load weights; returns the function of the fixture `run_program`."""
    import sdft.cli.errors
    import sdft.cli.overrides
    import sdft.evaluation.evaluate
    import sdft.models.embedded
    import sdft.models.loading
    import sdft.training.inputs
    import sdft.training.run_folder
    from sdft.runs.invocation import Invocation

    def accept(*_, **__):
        raise Accepted

    run_training(home, "steps=1", "sample_every=0", "prompts=[a]", name="outputs/lora/run")
    real, tiny = sdft.models.loading.load_pretrained, str(sdft.models.embedded.ASSETS_FOLDER / "tiny-sd")
    model = real(tiny)
    patch.setattr(
        sdft.models.loading,
        "load_pretrained",
        lambda name, *options: deepcopy(model) if name == tiny else real(name, *options),
    )
    patch.setattr(sdft.training.inputs, "check_steps_left", accept)
    patch.setattr(sdft.training.run_folder, "launch_processes", accept)
    patch.setattr(sdft.evaluation.evaluate, "select_device", accept)
    patch.setattr(yaml, "load", cache_yaml_load(yaml.load))
    patch.setattr(sys, "argv", sys.argv)
    tasks = {name: import_module(f"sdft.apps.{name}").main.__wrapped__ for name in ("train", "evaluate")}
    (home / "photos").mkdir()
    write_image(home / "photos" / "a.png")

    def run_program(config: str, arguments: list[str]) -> str | None:
        sys.argv = [f"{config}.py", *arguments]
        errors, environment = io.StringIO(), dict(os.environ)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
                with sdft.cli.errors.report_errors_in_one_line(False):
                    _, overrides = sdft.cli.overrides.split_arguments(sys.argv[1:])
                    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                        cfg = compose(
                            config, [*overrides, f"hydra.runtime.output_dir={home}"], return_hydra_config=True
                        )
                        invocation = Invocation(home, choices=dict(cfg.hydra.runtime.choices))
                        with open_dict(cfg):
                            hydra_config = cfg.pop("hydra")
                        check_composition(config, cfg, hydra_config)
                    tasks[config](cfg, *([invocation] if config == "train" else []))
        except Accepted:
            return None
        except SystemExit as end:
            assert end.code != 0 or not errors.getvalue().startswith("error: ")
        finally:
            os.environ.clear()
            os.environ.update(environment)
        return errors.getvalue()

    return run_program


def cache_yaml_load(load):
    """Parse each YAML text once: saves a fifth of the time to compose."""
    cached = {}

    def load_cached(text, Loader):
        text = text if isinstance(text, str) else text.read()
        if text not in cached:
            cached[text] = load(text, Loader)
        return deepcopy(cached[text])

    return load_cached


def write_image(file: Path) -> None:
    from PIL import Image

    Image.effect_noise((40, 32), 60).convert("RGB").save(file)
    file.with_suffix(".txt").write_text("a thing")


def find_fault(number: int, run_program) -> str | None:
    """Describe a wrong answer to case `number`; None if the answer is right."""
    config, arguments, invalid = generate_case(number)
    try:
        message = run_program(config, arguments)
    except Exception as error:
        return f"{number} {arguments}: {type(error).__name__}: {error}"
    if message is None or message.startswith(("sdft", "ask")):
        return None
    if not message.startswith("error: ") or len(message.splitlines()) != 1:
        return f"{number} {arguments}: printed {message!r}"
    return None if names_argument(invalid, message) else f"{number} {arguments}: not named in: {message!r}"


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_invalid_arguments_are_named_in_one_line(run_program, first):
    assert not [fault for number in range(first, first + 20) if (fault := find_fault(number, run_program))]


FUZZ_CASES = [
    pytest.param(60, marks=pytest.mark.slow),
    *(pytest.param(n, marks=pytest.mark.soak) for n in range(250, 2000, 250)),
]


@pytest.mark.parametrize("first", FUZZ_CASES)
def test_two_thousand_cases_are_named_in_one_line(run_program, first):
    last = first // 250 * 250 + 250
    assert not [fault for number in range(first, last) if (fault := find_fault(number, run_program))]


INVALID_OVERRIDES = [
    "lr=nan",
    "lr=inf",
    "lr=-1e-4",
    "lr=1e400",
    "text_encoder_lr=nan",
    "steps=1e400",
    "steps=0",
    "steps=-5",
    "steps=1.5",
    "epochs=0",
    "batch_size=0",
    "batch_size=1000000000",
    "gradient_accumulation_steps=0",
    "gradient_accumulation_steps=1000000000",
    "max_grad_norm=-1",
    "max_grad_norm=nan",
    "ema=1",
    "ema=-0.1",
    "ema=nan",
    "workers=-1",
    "workers=100000",
    "log_every=0",
    "checkpoints_total_limit=0",
    "seed=-1",
    "seed=99999999999999999999",
    "warmup=-1",
    "warmup=nan",
    "resolution=0",
    "resolution=-64",
    "resolution=30",
    "resolution=1000000000",
    "resolution=64.5",
    "extra_resolutions=[0]",
    "extra_resolutions=[48,30]",
    "max_upscale=0.5",
    "max_upscale=nan",
    "caption_dropout=2",
    "caption_dropout=-0.1",
    "keep_tags=-1",
    "pyramid_noise=1",
    "noise_offset=-1",
    "noise_offset=nan",
    "input_perturbation=-1",
    "unmasked_weight=2",
    "snr_gamma=-1",
    "snr_gamma=nan",
    "rank=0",
    "rank=-8",
    "rank=1000000000",
    "alpha=0",
    "alpha=-1",
    "alpha=nan",
    "method.dropout=2",
    "method.dropout=1",
    "method.loraplus_lr_ratio=0",
    "validation_split=-1",
    "validation_split=nan",
    "validation_split=50",
    "devices=-5",
    "devices=0",
    "devices=two",
    "devices=1000000",
    "num_nodes=0",
    "accelerator=tpu",
    "crop=none",
    "cache=yes",
    "loss=l3",
    "weighting=snr",
    "sampling.guidance_scale=-1",
    "sampling.guidance_scale=nan",
    "sampling.steps=0",
    "sampling.steps=1001",
    "sampling.seed=-1",
    "sampling.images=0",
    "sampling.batch_size=0",
    "optimizer.betas=[0.9]",
    "optimizer.betas=[0.9,1.5]",
    "optimizer.betas=[]",
    "optimizer.eps=-1",
    "optimizer.weight_decay=-1",
    "timestep_sampling.range=[]",
    "timestep_sampling.range=[1,0]",
    "timestep_sampling.range=[0.5,0.5]",
    "timestep_sampling.range=[0,1e-9]",
    "timestep_sampling.range=[nan,1]",
    "objective.huber_delta=0",
    "schedule.min_lr_ratio=2",
    "schedule.min_lr_ratio=-1",
    "schedule.num_cycles=0",
    "name=",
    "name=a/b",
    "name=..",
    "name=[a]",
    "name={}",
    "tags=x",
    "tags={}",
    "caption_template={nope}",
    "prompts=5",
    "prompts={}",
    "sweep=[]",
    "prompt_chunks=0",
    "method.unet_targets=['']",
    "evaluate_every=-1",
    "evaluate_images=0",
    "patience=3",
    "checkpoint_metric=CLIP-I",
    "on_nan=ignore",
    "save_every=-1",
    "data.per_digit=0",
    "data.digits=[]",
    "data.digits=[11]",
    "data.style=nope",
    "protocol.images=0",
]
INVALID_METHOD_OVERRIDES = [
    "method=textual_inversion num_vectors=0", "method=textual_inversion num_vectors=1000000000", "method=textual_inversion placeholder_token=",
    "method=textual_inversion 'placeholder_token=a b'", "method=textual_inversion initializer_token=", "lr=0 text_encoder_lr=0",
]  # fmt: skip


def find_accepted(cases: list[list[str]], run_program) -> list[str]:
    """The cases that are not rejected in one line with the key of the last override."""
    accepted = []
    for overrides in cases:
        message = run_program("train", overrides) or ""
        is_named = overrides[-1].partition("=")[0].rpartition(".")[2] in message
        is_rejected = message.startswith("error: ") and len(message.splitlines()) == 1 and is_named
        accepted += [] if is_rejected else [f"{overrides}: {message}"]
    return accepted


CASES = [[override] for override in INVALID_OVERRIDES] + [shlex.split(line) for line in INVALID_METHOD_OVERRIDES]


def test_harmful_values_are_rejected(run_program):
    assert not find_accepted(CASES[::9], run_program)


@pytest.mark.slow
def test_all_harmful_values_are_rejected(run_program):
    assert not find_accepted([case for i, case in enumerate(CASES) if i % 9], run_program)


SHELL_CASES = [  # in a process, with flags
    ("train.py", ["--nope"], "--nope"),
    ("train.py", ["--resolve"], "--resolve"),
    ("train.py", ["--cfg", "everything"], "everything"),
    ("train.py", ["--experimental-rerun=x.pickle"], "x.pickle"),
    ("train.py", ["--config-name=nope"], "nope"),
    ("train.py", ["hydra.mode=MULTIRUN", "rank=1,2"], "hydra.mode"),
    ("train.py", ["lr=[1", "rank=4"], "lr=[1"),
    ("train.py", ["name=\udcff", "steps=x"], "name="),
    ("evaluate.py", ["-m", "run=a,b"], "-m"),
    ("evaluate.py", ["images=two"], "images=two"),
]


@pytest.mark.parametrize(("name", "arguments", "part"), SHELL_CASES[::3], ids=str)
def test_a_process_prints_one_error_line(tmp_path, name, arguments, part):
    assert_one_error_line(tmp_path, name, arguments, part)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments", "part"), [case for i, case in enumerate(SHELL_CASES) if i % 3], ids=str)
def test_a_process_prints_one_error_line_in_other_cases(tmp_path, name, arguments, part):
    assert_one_error_line(tmp_path, name, arguments, part)


def assert_one_error_line(home: Path, name: str, arguments: list, part: str) -> None:
    done = run_forked_program(*arguments, cwd=home, name=name)
    lines = done.stderr.strip().splitlines()
    assert done.returncode and len(lines) == 1 and lines[0].startswith("error: ") and part in lines[0], done.stderr
    assert not list(home.iterdir())


SWEEP_CASES = [
    (["rank=1,2", "trials=x"], "trials=x"), (["rank=1,2", "n_jobs=-1"], "n_jobs=-1"), (["rank=1,2", "n_jobs=nan"], "n_jobs=nan"),
    (["rank=1,2", "launcher=nope"], "nope"), (["rank=1,2", "launcher=null"], "launcher=null"), (["lr=interval(2,1)"], "lr"),
    (["lr=interval(1e-3,1e-2)", "trials=0"], "trials=0"), (["lr=interval(1e-3,1e-2)", "trials=-4"], "trials=-4"),
    (["lr=interval(1e-3,1e-2)", "sampler=magic"], "sampler=magic"), (["lr=interval(1e-3,1e-2)", "objectives=5"], "objectives"),
    (["lr=interval(1e-3,1e-2)", "objectives=[]"], "objectives"), (["lr=interval(a,b)"], "lr=interval(a,b)"),
    (["lr=tag(log,interval(-1,1))"], "lr"), (["lr=tag(log,interval(0,1))"], "lr"), (["rank=range(0)"], "rank"),
    (["rank=range(1,2,0)"], "rank"), (["rank=choice()"], "rank"), (["rank=1,many"], "rank=many"), (["rank=1,nan"], "nan"),
    (["rank=1,2", "nope=1"], "nope"), (["rank=1,2", "sweep=x,y", "launcher.nope=1"], "nope"), (["rank=1,2", "rank"], "rank"),
    (["prune=maybe", "lr=interval(1e-3,1e-2)"], "prune=maybe"), (["rank=range(1,1000000000)"], "rank"), (["rank=1,2", "=1"], "=1"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "part"), SWEEP_CASES, ids=str)
def test_invalid_sweeps_are_rejected_before_any_job_runs(fake_train_script, tmp_path, capsys, overrides, part):
    from sdft.cli.errors import report_errors_in_one_line
    from sdft.cli.overrides import split_arguments
    from sdft.sweeps.sweep import run_sweep

    with pytest.raises(SystemExit), report_errors_in_one_line(False):
        run_sweep(None, split_arguments(overrides)[1])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and part in lines[0]
    assert not (tmp_path / "ran.txt").exists() and not (tmp_path / "multirun").exists()


if __name__ == "__main__":
    import tempfile

    first, last = (int(argument) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch, contextlib.chdir(home):
        run_program = patch_programs(Path(home), patch)
        for number in range(first, last):
            config, arguments, invalid = generate_case(number)
            try:
                message = run_program(config, arguments)
            except Exception as error:
                import traceback

                frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-3:]]
                message = f"TRACEBACK {type(error).__name__}: {error} {frames}"
            is_wrong = message is not None and (
                not message.startswith("error: ")
                or not names_argument(invalid, message)
                or len(message.splitlines()) != 1
            )
            print(
                "BAD" if is_wrong else "ok ",
                number,
                config,
                [argument[:60] for argument in arguments],
                "->",
                message and message[:300].strip(),
                flush=True,
            )

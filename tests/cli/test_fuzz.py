# ruff: noqa: E501, SIM117
"""Random words, as nobody would type them: never a traceback, always one line that names the culprit.

`python tests/test_fuzz.py 17 23` shows what lists 17 and 23 are, and what is said to them.
"""

import contextlib
import io
import os
import random
import re
import runpy
import shlex
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, trained
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from test_entry_point import quick_program

ODD = [  # values of wrong types, of no sense, or not values at all
    "nan", "-nan", ".nan", "inf", "-inf", ".inf", "1e400", "-1e400", "1e999999", "-1", "-5", "0", "-0.0", "-1e-9", "0.5",
    "2", "1.0000001", "3.7", "1e-400", "1e300", "99999999999999999999", "1" + "0" * 400, "0x10", "1_000", "1e", "+5", "٣",
    "", "''", '""', "' '", "null", "none", "None", "NULL", "true", "False", "yes", "~", "???", "abc", "cpu", "auto",
    "[]", "[1]", "[nan,inf]", "[0.9]", "[0.9,1.5]", "[-1,2]", "[1,[2,[3]]]", "[,]", "[a b,c]", "['',null]", "[true,{}]",
    "{}", "{a:1}", "{a:{b:[1,2]}}", "{_target_:os.getcwd}", "{_target_:nope.nope}", "{_target_:''}", "{1:2}", "{a:1,a:2}",
    "[", "]", "{", "}", "(", ")", "[1", "1]", "{a:", "'", '"', "'a", 'a"', "\\", "a\\", "\\'", "a:b:c", "a,b", "1,2", ",",
    "${nope}", "${lr}", "${rank}", "${name}", "${oc.env:NOPE}", "${oc.env:HOME}", "${seed", "${", "$", "${}", "${.}",
    "${..}", "${a.b.c}", "${nope:1}", "${oc.decode:x}", "${oc.decode:'{'}", "${hydra:runtime.nope}", "${now:%Y}",
    "${oc.select:nope}", "${loop}", "${loop.lr}", "${stream}", "${name}${name}", "[${rank}]", "{a:${lr}}", "${eval:1}",
    "é", "日本語", "🙂", "‮abc", "\u200b", "\ufeff", "a\u0301", "\udcff", "a\udc80b", "\x01", "\x1b[31m", "\x7f", "a\tb",
    "a\nb", "a\r\nb", " a", "a b", "../..", "a/b", "/nowhere/at/all", "~nobody/x", ".", "..", "-", "--", "-rf", "<b>", "%s",
    "{0}", "#", "a#b", "!!python/object:os.system", "&a", "*a", "choice(1,2)", "range(3)", "interval(1,2)", "glob(*)",
    "shuffle(1,2)", "sort(1)", "tag(a,1)", "int(x)", "float(nan)", "str(1)", "extend_list(1)", "a=b", "=", "==", "x" * 5000,
]  # fmt: skip
LOOSE = [  # words that are not WORD=VALUE of anything
    "word", "rank", "=", "=1", "==", "+", "~", "++", "+=", "~=", "", " ", "''", "rank 4", "rank:4", "rank==4", "rank=", "+rank",
    "+new=1", "++x.y=1", "+a.b.c=[1]", "nope=1", "nope.nope=1", "method.nope=1", "training.nope=1", "+training.nope=1", "rank.x=1",
    "~rank", "~seed", "~deleted", "~training", "~training.lr", "~method", "~data", "~optimizer", "~schedule", "~model", "~dataset",
    "~name", "~sampling", "~lr", "~hydra", "~prior", "~training.lr=5", "~metrics", "+method=sft", "++method=sft", "method=", "method=nope",
    "method=[lora,sft]", "method={}", "method=null", "data=null", "data=nope", "model=null", "model=nope", "optimizer=nope",
    "optimizer=null", "schedule=null", "strategy=null", "loop=null", "loop=1", "stream=[]", "sampling=null", "sampling=7",
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
FINE = {
    "train": ["seed=1", "steps=3", "flip=true", "cache=ram", "precision=bf16", "schedule=cosine", "name=fine"],
    "evaluate": ["images=1", "wandb=false", "accelerator=cpu", "adapter_scales=[0.5]"],
}
OPENERS = [
    [], [], [], [], ["method=sft"], ["method=textual_inversion"], ["method=pretrain"], ["data=folder", "data.path=photos"],
    ["method=dreambooth_lora", "data.path=photos", "instance_prompt=a sks thing", "class_prompt=a thing"],
    ["optimizer=prodigy"], ["optimizer=adafactor"], ["schedule=polynomial"], ["metrics=clip"], ["data=inked_digits"],
]  # fmt: skip
GROUPS = tuple(f"{place.name}=" for place in (ROOT / "conf").iterdir() if place.is_dir())  # they bring and take words


class Reached(BaseException):
    """The words were accepted: weights would be loaded now."""


@cache
def keys(config: str) -> list[str]:
    """Every word and every leaf of the config; the words that people turn three times as often."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = OmegaConf.to_container(compose(config))
    leaves = [path for path, _ in leaves_of(plain)]
    return [*leaves, *[key for key in plain for _ in range(2)], *(["hydra.run.dir", "hydra.job.name"])]


def leaves_of(node, path: str = ""):
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from leaves_of(child, f"{path}.{key}" if path else key)
    else:
        yield path, node


def listed(number: int) -> tuple[str, list[str], list[str]]:
    """List `number`: the program, its words, and those of them that are odd."""
    chance = random.Random(number)
    config = chance.choices(["train", "evaluate"], [4, 1])[0]
    odd = []
    for _ in range(chance.choices([1, 2, 3], [6, 2, 1])[0]):
        if chance.random() < 0.3:
            odd.append(chance.choice(LOOSE))
        else:
            sign = chance.choices(["", "+", "++", "~"], [12, 1, 1, 1])[0]
            odd.append(f"{sign}{chance.choice(keys(config))}={chance.choice(ODD)}")
    odd += [odd[0]] if chance.random() < 0.05 else []
    words = [*odd, *chance.sample(FINE[config], chance.randrange(3))]
    chance.shuffle(words)
    opener = chance.choice(OPENERS) if config == "train" else ["metrics=digits"]
    meets = any(word.startswith("-") for word in odd) or any(word.lstrip("+~").startswith(GROUPS) for word in odd)
    return config, [*opener, *words], [*odd, *opener, *words] if meets else odd


def names_one_of(odd: list[str], line: str) -> bool:
    """Whether the line has the key or the value of an odd word."""
    if "~method" in odd and "please set name=" in line:  # which the method brings
        return True
    for word in odd:
        key, _, value = word.lstrip("+~-").partition("=")
        told = [
            key,
            *key.split("@"),
            key.rpartition(".")[2],
            key.partition(".")[0],
            value.strip(),
            value.strip("'\" "),
            word,
        ]
        if repr(word) in line or any(
            part and re.search(rf"(?<!\w){re.escape(part[:60])}", " ".join(line.split())) for part in told
        ):
            return True
    return False


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """A function that says what the programs answer to words: None when they go on to load weights, else what they print."""
    home = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(home):
        yield answers(home, patch)


def answers(home: Path, patch: pytest.MonkeyPatch):
    import sdft.cli.entry_point
    import sdft.evaluation.evaluate
    import sdft.models.loading
    import sdft.training.training_run

    def reached(*_, **__):
        raise Reached

    trained(home, "steps=1", "sample_every=0", "prompts=[a]", name="outputs/lora/run")
    real, tiny = sdft.models.loading.load_pretrained, str(sdft.models.loading.FOLDER / "tiny-sd")
    model = real(tiny)
    patch.setattr(
        sdft.models.loading,
        "load_pretrained",
        lambda name, *rest: deepcopy(model) if name == tiny else real(name, *rest),
    )
    patch.setattr(sdft.training.training_run, "load_resume_step", reached)
    patch.setattr(sdft.training.training_run.processes, "launch_processes", reached)
    patch.setattr(sdft.evaluation.evaluate, "select_device", reached)
    patch.setattr(sdft.cli.entry_point, "hydra_main", lambda config: lambda task: task)
    patch.setattr(yaml, "load", remembered(yaml.load))
    patch.setattr(sys, "argv", sys.argv)
    tasks = {name: runpy.run_path(str(ROOT / f"{name}.py"))["main"] for name in ("train", "evaluate")}
    (home / "photos").mkdir()
    picture(home / "photos" / "a.png")

    def said(config: str, words: list[str]) -> str | None:
        sys.argv = [f"{config}.py", *words]
        out, before = io.StringIO(), dict(os.environ)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(out):
                with sdft.cli.entry_point.one_line_errors(False):
                    overrides = sdft.cli.entry_point.parse_overrides(sys.argv[1:])
                    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                        cfg = compose(
                            config, [*overrides, f"hydra.runtime.output_dir={home}"], return_hydra_config=True
                        )
                        HydraConfig.instance().set_config(cfg)
                    with open_dict(cfg):
                        cfg.pop("hydra")
                    tasks[config](cfg)
        except Reached:
            return None
        except SystemExit as end:
            assert end.code != 0 or not out.getvalue().startswith("error: ")
        finally:
            os.environ.clear()
            os.environ.update(before)
        return out.getvalue()

    return said


def remembered(load):
    """Reading YAML once: a fifth of what composing takes."""
    memory = {}

    def loaded(text, Loader):
        text = text if isinstance(text, str) else text.read()
        if text not in memory:
            memory[text] = load(text, Loader)
        return deepcopy(memory[text])

    return loaded


def picture(file: Path) -> None:
    from PIL import Image

    Image.effect_noise((40, 32), 60).convert("RGB").save(file)
    file.with_suffix(".txt").write_text("a thing")


def fault(number: int, said) -> str | None:
    """What is wrong with the answer to list `number`."""
    config, words, odd = listed(number)
    try:
        told = said(config, words)
    except Exception as error:
        return f"{number} {words}: {type(error).__name__}: {error}"
    if told is None or told.startswith(("sdft", "ask")):
        return None
    if not told.startswith("error: ") or len(told.splitlines()) != 1:
        return f"{number} {words}: said {told!r}"
    return None if names_one_of(odd, told) else f"{number} {words}: does not name it: {told!r}"


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_odd_words_are_refused_in_one_line_that_names_them(said, first):
    assert not [told for number in range(first, first + 20) if (told := fault(number, said))]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_two_thousand_lists_of_odd_words_are_refused_in_one_line_that_names_them(said, first):
    assert not [told for number in range(first, first + 250) if (told := fault(number, said))]


RUINOUS = [
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
    "clip=nan",
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
    "dataset.timestep_range=[]",
    "dataset.timestep_range=[1,0]",
    "dataset.timestep_range=[0.5,0.5]",
    "dataset.timestep_range=[0,1e-9]",
    "dataset.timestep_range=[nan,1]",
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
OF_METHODS = [
    "method=textual_inversion num_vectors=0", "method=textual_inversion num_vectors=1000000000", "method=textual_inversion placeholder_token=",
    "method=textual_inversion 'placeholder_token=a b'", "method=textual_inversion initializer_token=", "lr=0 text_encoder_lr=0",
]  # fmt: skip


def accepted(lists: list[list[str]], said) -> list[str]:
    """Those that were not refused in one line that names them."""
    bad = []
    for words in lists:
        told = said("train", words) or ""
        named = words[-1].partition("=")[0].rpartition(".")[2] in told
        bad += [] if told.startswith("error: ") and len(told.splitlines()) == 1 and named else [f"{words}: {told}"]
    return bad


LISTS = [[word] for word in RUINOUS] + [shlex.split(words) for words in OF_METHODS]


def test_what_would_ruin_a_run_is_refused(said):
    assert not accepted(LISTS[::9], said)


@pytest.mark.slow
def test_all_that_would_ruin_a_run_is_refused(said):
    assert not accepted(LISTS, said)


TYPED = [  # as a shell hands them over, flags too
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


@pytest.mark.parametrize(("name", "words", "told"), TYPED[::3], ids=str)
def test_the_program_itself_says_one_line(tmp_path, name, words, told):
    assert_one_line(tmp_path, name, words, told)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words", "told"), TYPED, ids=str)
def test_the_program_itself_says_one_line_of_every_kind(tmp_path, name, words, told):
    assert_one_line(tmp_path, name, words, told)


def assert_one_line(home: Path, name: str, words: list, told: str) -> None:
    done = quick_program(*words, cwd=home, name=name)
    lines = done.stderr.strip().splitlines()
    assert done.returncode and len(lines) == 1 and lines[0].startswith("error: ") and told in lines[0], done.stderr
    assert not list(home.iterdir())


SWEEPS = [
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


@pytest.mark.parametrize(("words", "told"), SWEEPS, ids=str)
def test_odd_words_of_a_sweep_are_refused_before_any_job_runs(fake_train_script, tmp_path, capsys, words, told):
    from sdft.cli.entry_point import one_line_errors, parse_overrides
    from sdft.sweeps.sweep import run_sweep

    with pytest.raises(SystemExit), one_line_errors(False):
        run_sweep(None, parse_overrides(words))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and told in lines[0]
    assert not (tmp_path / "ran.txt").exists() and not (tmp_path / "multirun").exists()


if __name__ == "__main__":
    import tempfile

    first, last = (int(word) for word in sys.argv[1:])
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch, contextlib.chdir(home):
        said = answers(Path(home), patch)
        for number in range(first, last):
            config, words, odd = listed(number)
            try:
                told = said(config, words)
            except Exception as error:
                import traceback

                where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-3:]]
                told = f"TRACEBACK {type(error).__name__}: {error} {where}"
            bad = told is not None and (
                not told.startswith("error: ") or not names_one_of(odd, told) or len(told.splitlines()) != 1
            )
            print(
                "BAD" if bad else "ok ",
                number,
                config,
                [w[:60] for w in words],
                "->",
                told and told[:300].strip(),
                flush=True,
            )

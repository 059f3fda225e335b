"""Every key of a composed config is read by something, and the user's choices win over the values of a recipe."""

import importlib

import pytest
from conftest import ROOT, compose_config
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

from sdft.__main__ import PROGRAMS as APPS
from sdft.config import check_config
from sdft.options.composition import check_composition, explain_unknown_override
from sdft.options.foreign_names import EQUIVALENTS, OPTION_BY_NAME, REASON_BY_NAME
from sdft.options.suggestions import flatten_config, list_choices

PROGRAMS = sorted(file.stem for file in (ROOT / "conf").glob("*.yaml") if file.stem != "sweep")


def compose_and_check(*overrides: str, config: str = "train"):
    """The config of a command line after all checks of the command line."""
    try:
        cfg = compose_config(*overrides, "hydra.runtime.output_dir=here", config=config)
    except HydraException as error:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            raise ValueError(explain_unknown_override(error, config, list(overrides)) or str(error)) from None
    with open_dict(cfg):
        hydra_config = cfg.pop("hydra")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        print(*check_composition(config, cfg, hydra_config))
    return cfg


@pytest.mark.parametrize("config", PROGRAMS)
def test_a_key_that_nothing_reads_is_refused_by_every_program(config):
    for key in ("unread=1", "+unread=1", *(["++un.read.key=1"] if config == "train" else [])):
        with pytest.raises(ValueError, match=rf"^{key.lstrip('+')}: unknown option; "):
            compose_and_check(key, config=config)


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["learning_rate=5e-3"], "use lr=5e-3"),
        (["+learning_rate=5e-3"], "use lr=5e-3"),
        (["unet_lr=1e-4"], "use lr=1e-4"),
        (["+max_train_steps=2"], "use steps=2"),
        (["train_batch_size=4"], "use batch_size=4"),
        (["mixed_precision=fp16"], "use precision=fp16"),
        (["mixed_precision=no"], "use precision=fp32"),
        (["lr_scheduler=constant_with_warmup"], "use schedule=constant"),
        (["optimizer_type=AdamW8bit"], "use optimizer=adamw8bit"),
        (["train_data_dir=photos"], "use data=folder data.path=photos"),
        (["data=folder", "data.path=a", "train_data_dir=photos"], "use data.path=photos"),
        (["output_dir=x"], "use hydra.run.dir=x"),
        (["network_dim=4"], "use rank=4"),
        (["method=sft", "network_dim=4"], "use rank=4, an option of .*method=lora"),
        (["method=sft", "rank=4"], "belongs to .*method=lora"),
        (["+method.network_dim=4"], "use rank=4"),
        (["+data.repeats=10"], "increase epochs"),
        (["tokenizer_name=x"], "no equivalent"),
        (["clip_skip=2"], "use model.clip_skip=2"),
        (["save_every_n_epochs=1"], "use save_every=…"),
        (["resolutoin=64"], r"did you mean resolution\?"),
        (["modle=sd15"], r"did you mean model\?"),
        (["weight_decay=0.1"], r"did you mean optimizer.weight_decay\?"),
        (["+method.rnak=4"], r"did you mean rank\?|did you mean method.rank\?"),
        (["n_jobs=2"], "option of a sweep; add -m"),
        (["+launcher=ray"], "option of a sweep; add -m"),
        (["metrics=none", "+metrics.clip=ViT-B-32"], "choose metrics=NAME"),
        (["logger=none", "+logger.project=x"], "choose logger=NAME"),
    ],
    ids=" ".join,
)
def test_an_unknown_option_is_refused_with_the_one_that_was_meant(overrides, advice):
    with pytest.raises(ValueError, match=f": unknown option; .*{advice}"):
        compose_and_check(*overrides)


@pytest.mark.parametrize(
    ("config", "override", "advice"),
    [
        ("generate", "num_inference_steps=4", "use steps=4"),
        ("evaluate", "num_inference_steps=4", "use sampling.steps=4"),
        ("generate", "output_dir=x", "use folder=x"),
        ("merge", "output=x", "use to=x"),
        ("generate", "+sampling.steps=4", "did you mean steps"),
        ("generate", "prompt=a", "use prompts=a"),
        ("stylize", "image=a.png", "use images=a.png"),
        ("generate", "lora=x", "use adapters=x"),
        ("convert", "lora=x", "use adapter=x"),
        ("resize", "new_rank=4", "use rank=4"),
        ("inspect", "data.pat=x", r"did you mean data.path\?"),
        ("evaluate", "data.path=x", "choose data=NAME"),
        ("evaluate", "learning_rate=1", "lr is an option of train"),
    ],
)
def test_other_programs_name_their_own_options(config, override, advice):
    with pytest.raises(ValueError, match=f": unknown option; .*{advice}"):
        compose_and_check(override, config=config)


def test_every_equivalent_is_an_option_of_some_program():
    known: set[str] = set()
    selections = [("train", choice) for choice in ("data=hub", "schedule=polynomial", "method=lcm_lora")]
    for config, *overrides in [*((config,) for config in (*PROGRAMS, "sweep")), *selections]:
        options = OmegaConf.to_container(compose_config(*overrides, config=config), resolve=False)
        known |= {*options, *flatten_config(options)}
    groups = {f"{file.parent.name}={file.stem}" for file in (ROOT / "conf").glob("*/*.yaml")}
    every_group = OmegaConf.create({choice.partition("=")[0]: None for choice in groups})
    for part in (
        " ".join(name for name in EQUIVALENTS if not name.startswith("sdft")).replace("|", " ").replace("'", "").split()
    ):
        key, _, value = part.partition("=")
        is_option = key in known or list_choices(key, every_group) or key in ("hydra.run.dir", "optimizer.OPTION")
        assert part in groups if value and key in every_group else is_option, part


def test_no_name_of_another_tool_is_an_option_of_training():
    assert not set(OPTION_BY_NAME) & set(REASON_BY_NAME)
    assert not {*OPTION_BY_NAME, *REASON_BY_NAME} & set(compose_config())


def test_what_an_interpolation_or_an_object_reads_is_accepted():
    cfg = compose_and_check("data=dreambooth", "data.path=x", "+instance_prompt=a sks dog")
    assert cfg.data.caption == "a sks dog"
    assert compose_and_check("+base=2", "lr=${base}").lr == 2
    callback = ["+callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.mine.monitor=loss"]
    compose_and_check(*callback, "+trainer.benchmark=true", "++rank=4", "+optimizer.amsgrad=true")
    compose_and_check("data._target_=my.Dataset", "++model.name=x")
    assert compose_and_check("name=mine", "logger=none").name == "mine"  # names folders and files


def test_every_program_is_started_by_the_function_that_checks():
    modules = {name: importlib.import_module(module) for name, module in APPS.items() if name != "compare"}
    assert not [name for name, module in modules.items() if not hasattr(module.main, "__wrapped__")]


def test_an_option_that_the_choices_do_not_read_is_refused():
    with pytest.raises(ValueError, match="noise_offset=0.1: .*objective=denoising"):
        compose_and_check("method=lcm_lora", "noise_offset=0.1")
    with pytest.raises(ValueError, match="snr_gamma=1: replaced by objective.snr_gamma=2"):
        compose_and_check("snr_gamma=1", "objective.snr_gamma=2")
    assert compose_and_check("method=lcm_lora").noise_offset == 0.1  # of the dataset, not of the user


def test_the_users_model_wins_over_the_recipes():
    cfg = compose_and_check("experiment=homework_faces", "data.path=x", "model=tiny")
    assert (cfg.model.name, cfg.resolution, cfg.sampling.steps) == ("tiny-sd", 32, 20)
    cfg = compose_and_check("experiment=dog_lora", "data.path=x", "model=tiny")
    assert (cfg.resolution, cfg.rank, cfg.steps) == (32, 4, None)
    cfg = compose_and_check("experiment=dog_lora", "data.path=x", "model=tiny", "resolution=64")
    assert cfg.resolution == 64
    assert compose_and_check("experiment=dog_lora", "data.path=x").resolution == 256


def test_the_users_method_data_and_schedule_win_over_the_recipes(capsys):
    cfg = compose_and_check("experiment=captions_lora", "data.path=x", "method=sft")
    assert "rank" not in cfg and cfg.method._target_.endswith("FullFineTuning")
    assert "rank=4" in capsys.readouterr().out
    check_config(cfg)
    cfg = compose_and_check("experiment=digits_lora", "data=folder", "data.path=photos")
    assert "style" not in cfg.data and cfg.rank == 8
    check_config(cfg)
    assert compose_and_check("experiment=homework_faces", "data.path=x", "schedule=constant").schedule.num_cycles == 1
    with pytest.raises(ValueError, match="rank=8: "):
        compose_and_check("experiment=captions_lora", "data.path=x", "method=sft", "rank=8")


def test_epochs_of_the_user_win_over_steps_of_the_recipe():
    cfg = compose_and_check("experiment=homework_faces", "data.path=x", "epochs=3")
    assert (cfg.steps, cfg.epochs) == (None, 3)
    assert compose_and_check("experiment=homework_faces", "data.path=x", "epochs=3", "steps=9").steps == 9


@pytest.mark.parametrize("recipe", sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_key_of_a_recipe_is_read(recipe):
    before = OmegaConf.to_container(compose_config(f"experiment={recipe}"), resolve=False)
    cfg = OmegaConf.to_container(compose_and_check(f"experiment={recipe}"), resolve=False)
    assert cfg == {key: value for key, value in before.items() if key != "hydra"}


def test_recipes_and_objects_of_the_users_own_folder(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /method: lora\n  - override /callbacks: mine\nrank: 4\nlr: 2e-4\n"
    )
    (tmp_path / "experiment" / "wrong.yaml").write_text("# @package _global_\nlearning_rate: 2e-4\n")
    (tmp_path / "callbacks" / "mine.yaml").write_text("mine: {_target_: my.Callback, every: 3}\n")
    folder = f"hydra.searchpath=[file://{tmp_path}]"
    cfg = compose_and_check(folder, "experiment=mine")
    assert (cfg.rank, cfg.lr, cfg.callbacks.mine.every) == (4, 2e-4, 3)
    assert "rank" not in compose_and_check(folder, "experiment=mine", "method=sft")
    with pytest.raises(ValueError, match="^experiment=wrong: learning_rate=0.0002: unknown option; use lr=0.0002"):
        compose_and_check(folder, "experiment=wrong", "logger=none")

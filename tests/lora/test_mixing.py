"""Mixed, resized, merged, extracted and converted: the changes of the weights are what the words say, to rounding."""

import json

import pytest
import test_export
import torch
from conftest import ROOT
from diffusers import StableDiffusionPipeline
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file

from sdft.lora.architecture import list_architectures, read_architecture
from sdft.lora.file import read_lora_file
from sdft.lora.formats import load_lora, save_lora, to_diffusers_format, to_kohya_format, write_safetensors
from sdft.lora.low_rank import build_low_rank_layer, compute_energy, compute_squared_distance
from sdft.lora.merging import extract_lora, merge_lora_files
from sdft.lora.mixing import mix_lora_files, normalize_weights, resize_lora_file
from sdft.lora.scaling import load_adapters
from sdft.lora.single_file import save_pipeline_folder, save_single_file, to_original_layout
from sdft.lora.state_dict import build_adapter_state
from sdft.methods.lora import LoRA
from sdft.models.loading import load_stable_diffusion

TINY = list_architectures("tiny-sd")
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Folders of adapters by what they are."""
    kinds = {
        "a": {"rank": 4, "alpha": 6.0},
        "b": {"rank": 2, "alpha": 2.0, "unet_targets": ["to_q", "conv1", "proj_in"], "text_encoder": False},
        "c": {"rank": 4, "alpha": 3.0, "use_rslora": True},
        "use_dora": {"rank": 4, "alpha": 6.0, "use_dora": True, "unet_targets": ["to_q", "conv1"]},
        "loha": {"rank": 2, "alpha": 1.0, "adapter_type": "loha"},
    }
    made = {}
    for seed, (name, words) in enumerate(kinds.items()):
        made[name], model, method = tmp_path_factory.mktemp(name), tiny(), LoRA(**words)
        method.prepare(model)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.03 * torch.randn_like(parameter)
        method.save(model, made[name], "mine")
    return made


def output(model) -> torch.Tensor:
    """In fp64: what is left are differences of the weights, not of the order in which fp32 sums are taken."""
    return test_export.output(model.double())


def saved(parts, folder):
    save_lora({part: build_adapter_state(part, layers) for part, layers in parts.items()}, folder, "out")
    return folder


def worn(tiny, paths, weights=None) -> torch.Tensor:
    model = tiny()
    load_adapters(model, paths, weights)
    return output(model)


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def both(folder) -> list:
    return [folder / FILE, folder / "out-kohya.safetensors"]


def test_a_mix_of_one_at_weight_one_is_the_file(tiny, files, tmp_path):
    expected = worn(tiny, [files["a"]])
    for how in ("concat", "svd", "linear"):
        made = mix_lora_files([read_lora_file(files["a"], TINY)], [1.0], how)
        for path in both(saved(made.parts, tmp_path / how)):
            assert off(worn(tiny, [path]), expected) < 1e-6
    assert off(expected, output(tiny())) > 1e-3


def test_a_mix_is_the_files_worn_together(tiny, files, tmp_path):
    given, weights = [files["a"], files["b"], files["c"]], [0.7, -0.4, 0.5]
    made = mix_lora_files([read_lora_file(folder, TINY) for folder in given], weights)
    assert made.lost_energy == 0 and made.ranks == [2, 8, 10]  # alone, of two, of all
    for path in both(saved(made.parts, tmp_path)):
        assert off(worn(tiny, [path]), worn(tiny, given, weights)) < 1e-6


def test_svd_is_the_nearest_mix_of_its_rank_and_says_what_it_keeps(files):
    given = [read_lora_file(files["a"], TINY), read_lora_file(files["c"], TINY)]
    exact, made = mix_lora_files(given, [0.5, 0.5]), mix_lora_files(given, [0.5, 0.5], "svd", 3)
    whole = missing = 0.0
    for part, layers in made.parts.items():
        for name, one in layers.items():
            change = exact.parts[part][name].compute_delta().flatten(1)
            values = torch.linalg.svdvals(change)
            rest = float((change - one.compute_delta().flatten(1)).square().sum())
            assert rest == pytest.approx(float(values[3:].square().sum()), rel=1e-4) and one.rank == 3
            whole, missing = whole + float(values.square().sum()), missing + rest
    assert made.energy_fraction == pytest.approx(1 - missing / whole, rel=1e-6) and 0.5 < made.energy_fraction < 1
    linear = mix_lora_files(given, [0.5, 0.5], "linear")
    assert linear.lost_energy > made.lost_energy and linear.ranks == [4]  # factors added up are not the sum of products


def test_weights_are_one_for_each_and_sum_to_one_unless_asked_otherwise():
    assert normalize_weights(None, 4, "one") == [0.25] * 4
    assert normalize_weights([1.0, 3.0], 2, "normalize") == [0.25, 0.75] and normalize_weights(
        [1.0, 3.0], 2, "any"
    ) == [1.0, 3.0]
    for weights, count, sums, told in [
        ([0.5], 2, "one", "1 for 2 adapters"),
        ([0.7, 0.5], 2, "one", "they sum to 1.2, not 1; give weight_sum=any"),
        ([1.0, -1.0], 2, "normalize", "sum to 0"),
        ([1.0], 1, "two", "choose one of one, any, normalize"),
    ]:
        with pytest.raises(ValueError, match=told):
            normalize_weights(weights, count, sums)


def test_what_cannot_be_mixed_is_named(files):
    a, b, dora = (read_lora_file(files[name], TINY) for name in ("a", "b", "use_dora"))
    for given, words, told in [
        ([a, dora], {}, "a DoRA, whose change depends"),
        ([a, b], {"merge_method": "linear"}, r"ranks \[2, 4\]"),
        ([a, b], {"merge_method": "svd", "rank": 7}, "rank=7: choose 1 to 6"),
        ([a, b], {"rank": 3}, "goes with merge_method=svd"),
        ([a, b], {"merge_method": "add"}, "choose one of concat"),
    ]:
        with pytest.raises(ValueError, match=told):
            mix_lora_files(given, [0.5, 0.5], **words)
    other = read_lora_file(files["b"], TINY)
    key = next(iter(other.parts["unet"]))
    other.parts["unet"][key] = build_low_rank_layer((torch.randn(7, 2), torch.randn(2, 9)), (7, 9))
    with pytest.raises(ValueError, match="of another architecture than"):
        mix_lora_files([b, other], [0.5, 0.5])


@pytest.mark.parametrize("kind", ["a", "b", "c", "use_dora", "loha"])
def test_resized_to_the_rank_that_it_has_a_file_is_as_it_was(tiny, files, tmp_path, kind):
    file = read_lora_file(files[kind], TINY)
    made = resize_lora_file(file, max(one.rank for one in file.layers.values()), None)
    assert made.energy_fraction == pytest.approx(1, abs=1e-12)
    for path in both(saved(made.parts, tmp_path)):
        assert off(worn(tiny, [path]), worn(tiny, [files[kind]])) < 1e-6


def test_a_threshold_gives_each_layer_the_rank_that_it_needs(tiny, files, tmp_path):
    file = read_lora_file(files["a"], TINY)
    made = resize_lora_file(file, None, 0.8)
    assert len(made.ranks) > 1 and made.ranks[-1] <= 4 and 0.8 <= made.energy_fraction < 1
    expected = None
    for path in both(saved(made.parts, tmp_path)):  # ranks that differ survive both, in plain diffusers, too
        back = read_lora_file(path, TINY)
        assert {k: v.rank for k, v in back.layers.items()} == {
            (p, n): v.rank for p, d in made.parts.items() for n, v in d.items()
        }
        model = tiny()
        pipeline = model.build_pipeline()
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
        model.eval()
        expected = output(model) if expected is None else expected
        assert off(output(model), expected) < 1e-6 and off(worn(tiny, [path]), expected) < 1e-6
    for words, told in [
        ((9, None), "rank=9: .* has rank 4"),
        ((None, 1.5), "energy=1.5"),
        ((None, None), "give one"),
        ((0, None), "rank=0"),
    ]:
        with pytest.raises(ValueError, match=told):
            resize_lora_file(file, *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((9, None), "rank=9: .* has rank 4"),
        ((0, None), "rank=0"),
        ((None, 1.5), "energy=1.5"),
        ((None, None), "give one"),
    ],
)
def test_ranks_and_shares_that_there_are_not_are_refused(files, words, told):
    with pytest.raises(ValueError, match=told):
        resize_lora_file(read_lora_file(files["a"], TINY), *words)


@pytest.mark.parametrize("kind", ["a", "b", "c", "use_dora"])
def test_there_and_back_every_bit_is_the_same(files, tmp_path, kind):
    given = load_file(files[kind] / FILE)
    parts = {
        part: build_adapter_state(part, layers) for part, layers in read_lora_file(files[kind], TINY).parts.items()
    }
    write_safetensors(tmp_path / "k.safetensors", *to_kohya_format(parts, "k"))
    parts = {
        part: build_adapter_state(part, layers)
        for part, layers in read_lora_file(tmp_path / "k.safetensors", TINY).parts.items()
    }
    tensors, metadata = to_diffusers_format(parts)
    assert tensors.keys() == given.keys() and all(torch.equal(tensors[key], given[key]) for key in given)
    alpha = json.loads(metadata["lora_adapter_metadata"])["unet.lora_alpha"]
    assert alpha == pytest.approx(3.0 * 4**0.5 if kind == "c" else {"a": 6.0, "b": 2.0, "use_dora": 6.0}[kind])


@pytest.mark.parametrize(
    ("kinds", "weights"),
    [("a", [1.0]), ("ab", [0.7, 0.5]), (["use_dora"], [1.0]), (["use_dora"], [0.6]), (["loha"], [1.0])],
)
def test_merged_is_applied(tiny, files, kinds, weights):
    paths = [files[kind] for kind in kinds]
    model = tiny()
    merge_lora_files(model, [read_lora_file(path, TINY) for path in paths], weights)
    assert off(output(model), worn(tiny, paths, weights)) < 1e-6
    with pytest.raises(ValueError, match="give one for each"):
        merge_lora_files(model, [read_lora_file(path, TINY) for path in paths], [*weights, 1.0])


def test_a_merged_pipeline_and_its_single_file_open_in_plain_diffusers(tiny, files, tmp_path):
    model = tiny()
    expected = worn(tiny, [files["a"]])
    merge_lora_files(model, [read_lora_file(files["a"], TINY)], [1.0])
    save_pipeline_folder(model, tmp_path / "folder", torch.float32, {"sdft": "{}"})
    save_single_file(model, tmp_path / "one.safetensors", torch.float32, {})
    opened = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", safety_checker=None)
    single = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "one.safetensors"), config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    picture = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    for pipeline in (opened, single):
        fresh = tiny(seed=9)
        fresh.unet, fresh.text_encoder, fresh.vae = (
            pipeline.unet.eval(),
            pipeline.text_encoder.eval(),
            pipeline.vae.eval(),
        )
        assert torch.equal(fresh.moments(picture)[0], model.moments(picture)[0])
        assert off(output(fresh), expected) < 1e-6


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Folders with the real configurations, all layers there, but narrow."""
    folders = {}
    for name in ("sd15", "sd21"):
        folders[name] = tmp_path_factory.mktemp(name)
        for file in (ROOT / "sdft" / "assets" / name).rglob("*.json"):
            told = json.loads(file.read_text())
            if file.parent.name in ("unet", "vae"):
                told["block_out_channels"] = [32, 64, 64, 64]
                told |= {"attention_head_dim": 8} if file.parent.name == "unet" else {}
            if file.parent.name == "text_encoder":
                told |= {"num_hidden_layers": 3, "vocab_size": 50, "intermediate_size": 64}
            (folders[name] / file.parent.name).mkdir(exist_ok=True)
            (folders[name] / file.parent.name / file.name).write_text(json.dumps(told))
    return folders


@pytest.mark.parametrize("name", ["sd15", "sd21", "tiny-sd"])
def test_the_original_layout_is_what_diffusers_own_conversion_reads(reduced, name):
    torch.manual_seed(0)
    model = load_stable_diffusion(str(reduced.get(name, name)), architecture="tiny-sd", weights="random")
    weights = {key: weight.clone() for key, weight in to_original_layout(model).items()}
    text = (
        theirs.convert_open_clip_checkpoint(model.text_encoder, dict(weights))
        if name == "sd21"
        else theirs.convert_ldm_clip_checkpoint(dict(weights))
    )
    for module, found in [
        (model.unet, theirs.convert_ldm_unet_checkpoint(dict(weights), model.unet.config)),
        (model.vae, theirs.convert_ldm_vae_checkpoint(dict(weights), model.vae.config)),
        (model.text_encoder, {key.removeprefix("text_model."): weight for key, weight in text.items()}),
    ]:
        own = module.state_dict()
        assert found.keys() == own.keys() and all(torch.equal(found[key], own[key]) for key in own)
    assert theirs.infer_diffusers_model_type(weights) == ("v2" if name == "sd21" else "v1")


def test_extracted_is_what_was_merged(tiny, files, tmp_path):
    tuned = tiny()
    merge_lora_files(tuned, [read_lora_file(files["a"], TINY)], [1.0])
    made, share = extract_lora(tiny(), tuned, 4)
    assert (
        made.ranks == [4] and made.energy_fraction == pytest.approx(1, abs=1e-6) and share == pytest.approx(1, abs=1e-6)
    )
    assert {(p, n) for p, d in made.parts.items() for n in d} == set(read_lora_file(files["a"], TINY).layers)
    for path in both(saved(made.parts, tmp_path)):
        assert off(worn(tiny, [path]), output(tuned)) < 1e-6
    assert extract_lora(tiny(), tuned, None, 0.9)[0].energy_fraction > 0.9
    part, share = extract_lora(tiny(), tuned, 2, None, {"unet": ["to_q"], "text_encoder": []})
    assert all(name.endswith("to_q") for name in part.parts["unet"]) and "text_encoder" not in part.parts
    assert 0 < share < 0.5 and part.energy_fraction < 1


def test_what_cannot_be_extracted_is_named(tiny, reduced):
    model = tiny()
    for words, told in [
        ((None,), "give one of them"),
        ((9999,), "rank=9999: choose 1 to"),
        ((4,), "no layer that is asked for differs"),
    ]:
        with pytest.raises(ValueError, match=told):
            extract_lora(model, tiny(), *words)
    with pytest.raises(ValueError, match="not of the architecture of base"):
        extract_lora(model, load_stable_diffusion(str(reduced["sd15"]), weights="random"), 4)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Attention of the whole Stable Diffusion 1.5, random, as shapes say it; only weights are compared."""
    (sd15,) = list_architectures("sd15")
    folder = tmp_path_factory.mktemp("real")
    torch.manual_seed(0)
    shapes = {
        n: s
        for n, s in sd15.shapes["unet"].items()
        if n.rsplit(".", 1)[-1] in ("to_q", "to_k", "to_v") or n.endswith("to_out.0")
    }
    layers = {
        n: build_low_rank_layer((0.1 * torch.randn(s[0], 8), 0.1 * torch.randn(8, s[1])), s) for n, s in shapes.items()
    }
    for one in layers.values():
        one.alpha = 4.0
    save_lora({"unet": build_adapter_state("unet", layers)}, folder, "real")
    return folder


def test_the_real_architecture_goes_round_to_rounding(real, tmp_path):
    file = read_lora_file(real)
    assert file.architecture == "sd15" and len(file.layers) == 128
    assert read_lora_file(real / "real-kohya.safetensors").layers.keys() == file.layers.keys()
    for made in (
        mix_lora_files([file], [1.0], "svd"),
        resize_lora_file(file, 8, None),
        mix_lora_files([file, file], [0.5, 0.5], "svd", 8),
    ):
        for (part, name), one in file.layers.items():
            product = one.to_low_rank()
            assert compute_squared_distance(made.parts[part][name].to_low_rank(), product) < 1e-12 * compute_energy(
                product
            )


def test_a_lora_of_another_architecture_is_refused(tiny, real):
    with pytest.raises(ValueError, match="not the shape of its layer|fits no layer"):
        load_lora(tiny(), real)
    assert read_architecture(ROOT / "sdft" / "assets" / "sd15", "sd15").name == "sd15"

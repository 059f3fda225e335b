"""Mixing, resizing, merging, extracting and converting give the weight changes that the options define, up to rounding."""

import gc

import pytest
import test_export
import torch
from conftest import ROOT
from diffusers import StableDiffusionPipeline
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file
from small_models import write_narrow_model

from sdft.lora.architecture import list_architectures, read_architecture
from sdft.lora.file import read_lora_file
from sdft.lora.formats import load_lora, save_lora, to_diffusers_format, to_kohya_format, write_safetensors
from sdft.lora.low_rank import LowRankLayer, build_low_rank_layer, compute_energy, compute_squared_distance
from sdft.lora.merging import extract_lora, merge_lora_files
from sdft.lora.mixing import mix_lora_files, normalize_weights
from sdft.lora.resizing import resize_lora_file
from sdft.lora.scaling import load_adapters
from sdft.lora.state_dict import build_adapter_state
from sdft.methods.lora import LoRA
from sdft.models.loading import load_stable_diffusion
from sdft.models.precision import set_precision
from sdft.models.saving import save_pipeline_folder
from sdft.models.single_file import save_single_file, to_original_layout

TINY = list_architectures("tiny-sd")
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Adapter folders by kind."""
    kinds = {
        "a": {"rank": 4, "alpha": 6.0},
        "b": {"rank": 2, "alpha": 2.0, "unet_targets": ["to_q", "conv1", "proj_in"], "text_encoder": False},
        "c": {"rank": 4, "alpha": 3.0, "use_rslora": True},
        "use_dora": {"rank": 4, "alpha": 6.0, "use_dora": True, "unet_targets": ["to_q", "conv1"]},
        "loha": {"rank": 2, "alpha": 1.0, "adapter_type": "loha"},
    }
    folders = {}
    for seed, (name, options) in enumerate(kinds.items()):
        folders[name], model, method = tmp_path_factory.mktemp(name), tiny(), LoRA(**options)
        method.prepare(model)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.03 * torch.randn_like(parameter)
        method.save(model, folders[name], "mine")
    return folders


def predict(model) -> torch.Tensor:
    """In fp64, so that differences are those of the weights, not of the order of fp32 sums."""
    set_precision(model, torch.float64)
    return test_export.compute_output(model.double())


def save_parts(parts, folder):
    save_lora({part: build_adapter_state(part, layers) for part, layers in parts.items()}, folder, "out", TINY[0])
    return folder


def predict_with_adapters(tiny, paths, weights=None) -> torch.Tensor:
    model = tiny()
    load_adapters(model, paths, weights)
    return predict(model)


def max_difference(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).abs().max())


def list_formats(folder) -> list:
    return [folder / FILE, folder / "out-kohya.safetensors"]


def test_a_mix_of_one_file_at_weight_one_is_the_file(tiny, files, tmp_path):
    expected = predict_with_adapters(tiny, [files["a"]])
    for merge_method in ("concat", "svd", "linear"):
        result = mix_lora_files([read_lora_file(files["a"], TINY)], [1.0], merge_method)
        for path in list_formats(save_parts(result.parts, tmp_path / merge_method)):
            assert max_difference(predict_with_adapters(tiny, [path]), expected) < 1e-6
    assert max_difference(expected, predict(tiny())) > 1e-3


def test_a_mix_equals_loading_the_files_together(tiny, files, tmp_path):
    folders, weights = [files["a"], files["b"], files["c"]], [0.7, -0.4, 0.5]
    result = mix_lora_files([read_lora_file(folder, TINY) for folder in folders], weights)
    assert result.lost_energy == 0 and result.ranks == [2, 8, 10]  # layers in one, two and three files
    for path in list_formats(save_parts(result.parts, tmp_path)):
        assert max_difference(predict_with_adapters(tiny, [path]), predict_with_adapters(tiny, folders, weights)) < 1e-6


def test_svd_is_the_best_approximation_and_reports_its_energy(files):
    sources = [read_lora_file(files["a"], TINY), read_lora_file(files["c"], TINY)]
    exact, result = mix_lora_files(sources, [0.5, 0.5]), mix_lora_files(sources, [0.5, 0.5], "svd", 3)
    total = lost = 0.0
    for part, layers in result.parts.items():
        for name, layer in layers.items():
            change = exact.parts[part][name].compute_delta().flatten(1)
            values = torch.linalg.svdvals(change)
            error = float((change - layer.compute_delta().flatten(1)).square().sum())
            assert error == pytest.approx(float(values[3:].square().sum()), rel=1e-4) and layer.rank == 3
            total, lost = total + float(values.square().sum()), lost + error
    assert result.energy_fraction == pytest.approx(1 - lost / total, rel=1e-6) and 0.5 < result.energy_fraction < 1
    linear = mix_lora_files(sources, [0.5, 0.5], "linear")
    assert linear.lost_energy > result.lost_energy and linear.ranks == [4]  # a sum of factors is not a sum of products


def test_weights_must_match_the_files_and_sum_to_one_by_default():
    assert normalize_weights(None, 4, "one") == [0.25] * 4
    assert normalize_weights([1.0, 3.0], 2, "normalize") == [0.25, 0.75] and normalize_weights(
        [1.0, 3.0], 2, "any"
    ) == [1.0, 3.0]
    for weights, count, weight_sum, message in [
        ([0.5], 2, "one", r"weights=\[0.5\]: 1 for 2 "),
        ([0.7, 0.5], 2, "one", r"weights=\[0.7, 0.5\]: .* 1.2, not 1; .*weight_sum=any"),
        ([1.0, -1.0], 2, "normalize", r"weights=\[1.0, -1.0\]: .* 0 "),
        ([1.0], 1, "two", "weight_sum=two: choose one of one, any, normalize"),
    ]:
        with pytest.raises(ValueError, match=message):
            normalize_weights(weights, count, weight_sum)


def test_invalid_mixes_raise(files):
    a, b, dora = (read_lora_file(files[name], TINY) for name in ("a", "b", "use_dora"))
    for sources, options, message in [
        ([a, dora], {}, f"adapter={dora.path}: DoRA"),
        ([a, b], {"merge_method": "linear"}, r"merge_method=linear: .*\[2, 4\]"),
        ([a, b], {"merge_method": "svd", "rank": 7}, "rank=7: choose 1 to 6"),
        ([a, b], {"rank": 3}, "rank=3: .*merge_method=svd"),
        ([a, b], {"merge_method": "add"}, "merge_method=add: choose one of concat"),
    ]:
        with pytest.raises(ValueError, match=message):
            mix_lora_files(sources, [0.5, 0.5], **options)
    other = read_lora_file(files["b"], TINY)
    (other.architecture,) = list_architectures("sdxl")
    with pytest.raises(ValueError, match=f"adapter={other.path}: architecture.*Stable Diffusion XL.*tiny-sd"):
        mix_lora_files([b, other], [0.5, 0.5])


@pytest.mark.parametrize("kind", ["a", "b", "c", "use_dora", "loha"])
def test_resizing_to_the_same_rank_changes_nothing(tiny, files, tmp_path, kind):
    file = read_lora_file(files[kind], TINY)
    result = resize_lora_file(file, max(layer.rank for layer in file.layers.values()), None)
    assert result.energy_fraction == pytest.approx(1, abs=1e-12)
    for path in list_formats(save_parts(result.parts, tmp_path)):
        assert max_difference(predict_with_adapters(tiny, [path]), predict_with_adapters(tiny, [files[kind]])) < 1e-6


def test_an_energy_gives_each_layer_its_lowest_rank(tiny, files, tmp_path):
    file = read_lora_file(files["a"], TINY)
    result = resize_lora_file(file, None, 0.8)
    assert len(result.ranks) > 1 and result.ranks[-1] <= 4 and 0.8 <= result.energy_fraction < 1
    expected = None
    for path in list_formats(
        save_parts(result.parts, tmp_path)
    ):  # different ranks survive both formats, also in plain diffusers
        back = read_lora_file(path, TINY)
        assert {k: v.rank for k, v in back.layers.items()} == {
            (p, n): max(o.rank for o in d.values()) if path.name == FILE else v.rank
            for p, d in result.parts.items()
            for n, v in d.items()
        }
        model = tiny()
        pipeline = model.build_pipeline()
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
        model.eval()
        expected = predict(model) if expected is None else expected
        assert max_difference(predict(model), expected) < 1e-6
        assert max_difference(predict_with_adapters(tiny, [path]), expected) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((9, None), "rank=9: choose 1 to 4"),
        ((0, None), "rank=0: choose 1 to 4"),
        ((None, 1.5), "energy=1.5: "),
        ((None, None), "rank=null energy=null: "),
    ],
)
def test_an_invalid_rank_or_energy_raises(files, options, message):
    with pytest.raises(ValueError, match=message):
        resize_lora_file(read_lora_file(files["a"], TINY), *options)


@pytest.mark.parametrize("kind", ["a", "b", "c", "use_dora"])
def test_converting_to_kohya_and_back_is_bit_exact(files, tmp_path, kind):
    original = load_file(files[kind] / FILE)
    parts = {
        part: build_adapter_state(part, layers) for part, layers in read_lora_file(files[kind], TINY).parts.items()
    }
    write_safetensors(tmp_path / "k.safetensors", *to_kohya_format(parts, "k", TINY[0]))
    parts = {
        part: build_adapter_state(part, layers)
        for part, layers in read_lora_file(tmp_path / "k.safetensors", TINY).parts.items()
    }
    tensors = to_diffusers_format(parts)
    assert tensors.keys() == original.keys() and all(torch.equal(tensors[key], original[key]) for key in original)


@pytest.mark.parametrize(
    ("kinds", "weights"),
    [("a", [1.0]), ("ab", [0.7, 0.5]), (["use_dora"], [1.0]), (["use_dora"], [0.6]), (["loha"], [1.0])],
)
def test_merging_equals_loading(tiny, files, kinds, weights):
    paths = [files[kind] for kind in kinds]
    model = tiny()
    merge_lora_files(model, [read_lora_file(path, TINY) for path in paths], weights)
    assert max_difference(predict(model), predict_with_adapters(tiny, paths, weights)) < 1e-6
    with pytest.raises(ValueError, match=r"weights=\[.*\]: "):
        merge_lora_files(model, [read_lora_file(path, TINY) for path in paths], [*weights, 1.0])


@pytest.mark.parametrize("kind", ["a", "use_dora"])
def test_merging_at_strength_0_is_exactly_the_base(tiny, files, kind):
    model, base = tiny(), tiny()
    merge_lora_files(model, [read_lora_file(files[kind], TINY)], [0.0])
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), base.parameters(), strict=True))


def test_merging_holds_the_change_of_one_weight_at_a_time(tiny, files, monkeypatch):
    layers, sizes, apply_to = read_lora_file(files["a"], TINY).layers, [], LowRankLayer.apply_to

    def spy(self, weight, strength):
        adapted = apply_to(self, weight, strength)
        sizes.append(weight.numel())
        if len(sizes) == 2 * len(layers):  # at the last layer
            tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.dtype == torch.float64]
            assert sum(tensor.numel() for tensor in tensors) <= 4 * max(sizes)
        return adapted

    gc.collect()
    monkeypatch.setattr(LowRankLayer, "apply_to", spy)
    merge_lora_files(tiny(), [read_lora_file(files["a"], TINY)] * 2, [1.0, 0.5])
    assert len(sizes) == 2 * len(layers)


def test_a_merged_pipeline_and_its_single_file_open_in_plain_diffusers(tiny, files, tmp_path):
    model = tiny()
    expected = predict_with_adapters(tiny, [files["a"]])
    merge_lora_files(model, [read_lora_file(files["a"], TINY)], [1.0])
    save_pipeline_folder(model, tmp_path / "folder", torch.float32, {"sdft": "{}"})
    save_single_file(model, tmp_path / "one.safetensors", torch.float32, {})
    diffusers_pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", safety_checker=None)
    single = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "one.safetensors"), config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    for pipeline in (diffusers_pipeline, single):
        fresh = tiny(seed=9)
        fresh.unet, fresh.clip_l, fresh.vae = (
            pipeline.unet.eval(),
            pipeline.text_encoder.eval(),
            pipeline.vae.eval(),
        )
        assert torch.equal(fresh.moments(image)[0], model.moments(image)[0])
        assert max_difference(predict(fresh), expected) < 1e-6


@pytest.fixture(scope="module")
def narrow_configs(tmp_path_factory):
    """Folders with the real configs and all layers, but narrow ones."""
    widths = {"block_out_channels": [32, 64, 64, 64]}
    text = {"num_hidden_layers": 3, "vocab_size": 50, "intermediate_size": 64}
    home = tmp_path_factory.mktemp("narrow")
    return {name: write_narrow_model(name, home / name, widths, text) for name in ("sd15", "sd21")}


@pytest.mark.parametrize("name", ["sd15", "sd21", "tiny-sd"])
def test_diffusers_converts_the_original_layout_back(narrow_configs, name):
    torch.manual_seed(0)
    model = load_stable_diffusion(str(narrow_configs.get(name, name)), architecture="tiny-sd", weights="random")
    weights = {key: weight.clone() for key, weight in to_original_layout(model).items()}
    text = (
        theirs.convert_open_clip_checkpoint(model.clip_l, dict(weights))
        if name == "sd21"
        else theirs.convert_ldm_clip_checkpoint(dict(weights))
    )
    for module, converted in [
        (model.unet, theirs.convert_ldm_unet_checkpoint(dict(weights), model.unet.config)),
        (model.vae, theirs.convert_ldm_vae_checkpoint(dict(weights), model.vae.config)),
        (model.clip_l, {key.removeprefix("text_model."): weight for key, weight in text.items()}),
    ]:
        expected = module.state_dict()
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[key], expected[key]) for key in expected)
    assert theirs.infer_diffusers_model_type(weights) == ("v2" if name == "sd21" else "v1")


def test_extracting_returns_the_merged_lora(tiny, files, tmp_path):
    tuned = tiny()
    merge_lora_files(tuned, [read_lora_file(files["a"], TINY)], [1.0])
    result, fraction = extract_lora(tiny(), tuned, 4)
    assert result.ranks == [4]
    assert result.energy_fraction == pytest.approx(1, abs=1e-6) and fraction == pytest.approx(1, abs=1e-6)
    assert {(p, n) for p, d in result.parts.items() for n in d} == set(read_lora_file(files["a"], TINY).layers)
    for path in list_formats(save_parts(result.parts, tmp_path)):
        assert max_difference(predict_with_adapters(tiny, [path]), predict(tuned)) < 1e-6
    assert extract_lora(tiny(), tuned, None, 0.9)[0].energy_fraction > 0.9
    partial, fraction = extract_lora(tiny(), tuned, 2, None, {"unet": ["to_q"], "text_encoder": []})
    assert all(name.endswith("to_q") for name in partial.parts["unet"]) and "text_encoder" not in partial.parts
    assert 0 < fraction < 0.5 and partial.energy_fraction < 1


def test_invalid_extractions_raise(tiny, narrow_configs):
    model = tiny()
    for options, message in [
        ((None,), "rank=null energy=null: "),
        ((9999,), "rank=9999: choose 1 to"),
        ((4,), "tuned=.*: no selected layer"),
    ]:
        with pytest.raises(ValueError, match=message):
            extract_lora(model, tiny(), *options)
    with pytest.raises(ValueError, match="tuned=.*: architecture"):
        extract_lora(model, load_stable_diffusion(str(narrow_configs["sd15"]), weights="random"), 4)


@pytest.fixture(scope="module")
def sd15_lora(tmp_path_factory):
    """A random LoRA of the attention of Stable Diffusion 1.5; only weights are compared."""
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
    for layer in layers.values():
        layer.alpha = 4.0
    save_lora({"unet": build_adapter_state("unet", layers)}, folder, "real", sd15)
    return folder


def test_mixing_and_resizing_preserve_the_real_architecture(sd15_lora, tmp_path):
    file = read_lora_file(sd15_lora)
    assert file.architecture.name == "sd15" and len(file.layers) == 128
    assert read_lora_file(sd15_lora / "real-kohya.safetensors").layers.keys() == file.layers.keys()
    for result in (
        mix_lora_files([file], [1.0], "svd"),
        resize_lora_file(file, 8, None),
        mix_lora_files([file, file], [0.5, 0.5], "svd", 8),
    ):
        for (part, name), layer in file.layers.items():
            product = layer.to_low_rank()
            assert compute_squared_distance(result.parts[part][name].to_low_rank(), product) < 1e-12 * compute_energy(
                product
            )


def test_a_lora_of_another_architecture_raises(tiny, sd15_lora):
    with pytest.raises(ValueError, match=f"adapter={sd15_lora}/.*{TINY[0].name}"):
        load_lora(tiny(), sd15_lora)
    assert read_architecture(ROOT / "sdft" / "assets" / "sd15", "sd15").name == "sd15"

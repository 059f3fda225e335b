"""Morphing: endpoints match the images, each part of the method has its effect, and errors are one line."""

import json
import signal
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdft.apps.morph.__main__ import main
from sdft.apps.morph.ddim_inversion import DDIM
from sdft.apps.morph.diffmorpher import DiffMorpher, MorphSettings
from sdft.apps.morph.frame_sequence import FrameSequence
from sdft.apps.morph.image_pair import read_image_pair, resize_to_common_size
from sdft.apps.morph.single_image_lora import SingleImageTrainer
from sdft.apps.morph.video import can_write_mp4, write_gif, write_mp4
from sdft.cli.signals import SignalListener
from sdft.data.dataset import CaptionedImage
from sdft.data.digits import Digits
from sdft.runs.hashing import hash_weights
from sdft.training.precision import Precision

FAST = ["ddim_steps=4", "frames=3", "attention=0.5", "accelerator=cpu", "model.weights=random"]
PROMPTS = "prompts=[a handwritten three in neon light,a handwritten three as a blueprint]"


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A folder with two digits."""
    folder = tmp_path_factory.mktemp("images")
    for style in ("neon", "blueprint"):
        Digits(style, [3], 1)[0].image.save(folder / f"{style}.png")
    return folder


@pytest.fixture
def app(image_folder, monkeypatch, capsys):
    """Function that runs the app in the folder; returns stdout, or stderr if it fails."""
    monkeypatch.chdir(image_folder)

    def start(*options: str, images: str = "images=[neon.png,blueprint.png]") -> str:
        monkeypatch.setattr(sys, "argv", ["morph", images, *options])
        try:
            main()
        except SystemExit:
            return capsys.readouterr().err
        return capsys.readouterr().out

    return start


@pytest.mark.slow
def test_outputs_are_written_and_adapters_are_trained_once(app, image_folder):
    out = app(PROMPTS, "steps=2", *FAST, "compare=true", "folder=first")
    assert out.count("(trained in ") == 2 and "images     first/morph.gif, first/strip.png" in out
    assert sorted(file.name for file in (image_folder / "first" / "frames").iterdir()) == ["0.png", "1.png", "2.png"]
    scores = json.loads((image_folder / "first" / "scores.json").read_text())
    assert list(scores["scores"]) == ["all parts", "no LoRA", "no AdaIN", "no attention", "no even spacing"]
    assert scores["perceptual"] == "LPIPS (tiny-clip)" and len(scores["distances"]) == 2
    assert scores["scores"]["all parts"]["PPL"] == pytest.approx(
        sum(scores["distances"] + scores["endpoint_distances"])
    )
    assert scores["alphas"][0] == 0 and scores["alphas"][-1] == 1
    strip = Image.open(image_folder / "first" / "strip.png")
    assert strip.width > 5 * 128 and 5 * 128 < strip.height < 6 * 128 + 60
    before = {file: file.stat().st_mtime_ns for file in (image_folder / "outputs").rglob("*.safetensors")}
    assert len(before) == 4
    out = app(PROMPTS, "steps=2", *FAST, "folder=second")
    assert out.count("(cached)") == 2 and "trained in" not in out
    assert before == {file: file.stat().st_mtime_ns for file in (image_folder / "outputs").rglob("*.safetensors")}
    for number in range(3):
        first, second = (
            (image_folder / folder / "frames" / f"{number}.png").read_bytes() for folder in ("first", "second")
        )
        assert first == second
    files = "adapters=[" + ",".join(str(file.parent) for file in sorted(before) if "kohya" not in file.name) + "]"
    out = app(PROMPTS, *FAST, files, "folder=third", "lora=factors", "model.prediction_type=v_prediction")
    assert "adapter" not in out and "images     third/morph.gif" in out


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ("images=[neon.png,none.png]", [PROMPTS], "images=none.png: "),
        ("images=[neon.png]", [PROMPTS], "images=['neon.png']: "),
        ("images=neon.png", [PROMPTS], "images=neon.png: "),
        ("images=[neon.png,text.png]", [PROMPTS], "text.png: "),
        ("images=[neon.png,blueprint.png]", ["prompts=[a,b,c]"], "prompts=['a', 'b', 'c']: "),
        ("images=[neon.png,blueprint.png]", [], "prompts=…"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "frames=1"], "frames=1: "),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "lora=both"], "lora=both: choose one of dw, factors, none"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "perceptual=none"], "perceptual=none frame_spacing=even: "),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "perceptual=other"], "perceptual=other: choose one of alex"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "adapters=[a,b]"], "adapter=a: "),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "resolution=20"], "resolution=20: "),
    ],
)
def test_invalid_options_give_one_line_errors(app, image_folder, images, options, message):
    (image_folder / "text.png").write_text("not an image")
    err = app(*options, "folder=invalid", images=images)
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (image_folder / "invalid").exists()


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (MorphSettings, {"adain": "yes"}, "adain=yes: .*noise, result, none"),
        (MorphSettings, {"attention": 2.0}, "attention=2.0: "),
        (MorphSettings, {"frame_spacing": "odd"}, "frame_spacing=odd: .*even, uniform"),
        (MorphSettings, {"spacing_iterations": 0}, "spacing_iterations=0: .*1 to 4"),
        (SingleImageTrainer, {"rank": 0}, "rank=0: "),
        (SingleImageTrainer, {"lr": 0.0}, "lr=0.0: "),
    ],
)
def test_settings_out_of_range_raise_value_error(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_an_adapter_of_another_model_gives_a_one_line_error(app, image_folder, tiny, tmp_path):
    folder = (
        SingleImageTrainer(steps=1)
        .load_or_train(tiny(), Digits("neon", [3], 1)[0], Precision(), "cpu", tmp_path)
        .folder
    )
    file = folder / "pytorch_lora_weights.safetensors"
    wide = {key: torch.randn(*weight.shape[:-1], 7) for key, weight in load_file(file).items()}
    save_file(wide, image_folder / "wide.safetensors")
    err = app(PROMPTS, *FAST, f"adapters=[{file},wide.safetensors]")
    assert "wide.safetensors: " in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_common_aspect_ratio_is_preserved_and_different_ones_become_squares(tiny, tmp_path):
    model = tiny()
    for name, size in {"wide": (90, 60), "wider": (93, 60), "tall": (60, 90), "small": (12, 12)}.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")

    def resize(*names: str):
        images, lines = resize_to_common_size(
            read_image_pair([tmp_path / f"{name}.png" for name in names], ["a cat"]), model, 32
        )
        return [image.image.size for image in images], lines

    sizes, lines = resize("wide", "wider")
    assert sizes[0] == sizes[1] and sizes[0][0] > sizes[0][1] and all("center crop" in line for line in lines)
    sizes, lines = resize("wide", "tall")
    assert sizes == [(32, 32)] * 2 and "90x60 resized to 32x32 (aspect ratios differ" in lines[0]
    assert "enlarged 2.7 times" in resize("small", "tall")[1][-1]


def test_an_image_of_the_right_size_is_unchanged(tiny, image_folder):
    images, lines = resize_to_common_size(
        read_image_pair([image_folder / "neon.png", image_folder / "blueprint.png"], ["a", "b"]), tiny(), 32
    )
    assert not lines and images[0].image.tobytes() == Image.open(image_folder / "neon.png").tobytes()
    assert [image.caption for image in images] == ["a", "b"]


def test_the_adapter_cache_key_is_image_caption_base_and_settings(tiny):
    base, image = tiny(), Digits("neon", [3], 1)[0]

    def name(arguments, *inputs):
        return SingleImageTrainer.format_name(SingleImageTrainer(**arguments).collect_settings(*inputs, Precision()))

    same = name({}, base, image)
    assert same == name({}, tiny(), Digits("neon", [3], 1)[0])
    others = [
        name({"lr": 1e-3}, base, image),
        name({"steps": 3}, base, image),
        name({}, tiny(seed=1), image),
        name({}, base, CaptionedImage(image.image, "another", image.name)),
        name({}, base, Digits("neon", [3], 1, skip=1)[0]),
    ]
    assert len({same, *others}) == 6


def test_training_an_adapter_leaves_the_base_unchanged_and_an_incomplete_one_is_retrained(tiny, tmp_path):
    base, image, trainer = tiny(), Digits("neon", [3], 1)[0], SingleImageTrainer(steps=1)
    before = hash_weights(base)
    adapter = trainer.load_or_train(base, image, Precision(), "cpu", tmp_path)
    assert hash_weights(base) == before and adapter.seconds
    assert not trainer.load_or_train(base, image, Precision(), "cpu", tmp_path).seconds
    (adapter.folder / "adapter.json").unlink()
    assert trainer.load_or_train(base, image, Precision(), "cpu", tmp_path).seconds


@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_the_training_of_an_adapter_with_its_own_status(number, end, tiny, tmp_path, monkeypatch):
    name = "sdft.training.callbacks.metrics.TrainingMetrics.on_train_batch_start"
    monkeypatch.setattr(name, lambda *_: signal.raise_signal(number), raising=False)
    previous = signal.getsignal(number)
    with pytest.raises(end) as ended, SignalListener():
        SingleImageTrainer(steps=1).load_or_train(tiny(), Digits("neon", [3], 1)[0], Precision(), "cpu", tmp_path)
    assert end is KeyboardInterrupt or ended.value.code == 128 + number
    assert signal.getsignal(number) == previous


def gray_image(level: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (level,) * 3)


def squared_brightness_distance(ones, others) -> torch.Tensor:
    """Squared difference of brightness, like the squared feature differences of LPIPS."""
    level = lambda image: image.getpixel((0, 0))[0] / 255  # noqa: E731
    return torch.tensor([(level(a) - level(b)) ** 2 for a, b in zip(ones, others, strict=True)])


class LateMorpher(DiffMorpher):
    """Frames change late in the sequence."""

    def __init__(self):
        self.images = [CaptionedImage(gray_image(level), "", "") for level in (0, 255)]

    def generate_frames(self, alphas, settings):
        return [gray_image(round(255 * alpha**3)) for alpha in alphas]


def test_even_spacing_lowers_the_distance_variance_with_each_iteration():
    variants = [MorphSettings(frame_spacing="uniform"), MorphSettings(), MorphSettings(spacing_iterations=3)]
    sequences = [LateMorpher().generate_sequence(settings, 11, squared_brightness_distance) for settings in variants]
    uniform, once, thrice = (sequence.compute_scores() for sequence in sequences)
    assert uniform["PDV"] > 10 * once["PDV"] > 10 * thrice["PDV"]
    assert uniform["PPL"] > once["PPL"] >= 0.1 - 1e-3
    assert sequences[1].alphas[0] == 0 and sequences[1].alphas[-1] == 1


def test_ppl_includes_the_distances_of_the_endpoints_to_the_originals():
    originals, frames = [gray_image(0), gray_image(255)], [gray_image(51), gray_image(102), gray_image(255)]
    distances = squared_brightness_distance(frames[:-1], frames[1:]).tolist()
    endpoint_distances = squared_brightness_distance(originals, frames[::2]).tolist()
    scores = FrameSequence(originals, [0, 0.5, 1], frames, distances, endpoint_distances).compute_scores()
    assert scores["PPL"] == pytest.approx(2 * 0.2**2 + 0.6**2) and scores["PSNR last"] == 100
    assert scores["PSNR first"] == pytest.approx(13.98, abs=0.01)


def test_a_gif_is_enlarged_and_loops(tmp_path):
    write_gif([gray_image(level) for level in (0, 100, 200)], tmp_path / "morph.gif", 10)
    gif = Image.open(tmp_path / "morph.gif")
    assert gif.size == (256, 256) and gif.info["duration"] >= 100 and gif.info["loop"] == 0


@pytest.mark.skipif(not can_write_mp4(), reason="PyAV is not installed")
def test_an_mp4_contains_every_frame(tmp_path):
    import av

    write_mp4([Image.new("RGB", (33, 51), color) for color in ("red", "green", "blue")], tmp_path / "morph.mp4", 10)
    with av.open(str(tmp_path / "morph.mp4")) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) == 13 and frames[0].width % 2 == frames[0].height % 2 == 0
    assert frames[0].getpixel((9, 9))[0] > 200 and frames[-1].getpixel((9, 9))[2] > 200


def test_frames_at_the_endpoints_equal_plain_inversion_and_sampling(tiny):
    """Interpolation at 0 and 1 is the identity."""
    model = tiny()
    pair = [Digits(style, [3], 1)[0] for style in ("neon", "candy")]
    morpher = DiffMorpher(model, DDIM.from_model(model, 3), pair, None)
    settings = MorphSettings(lora="none", attention=1.0)
    frames, endpoints = morpher.generate_latents([0.0, 1.0], settings), morpher.get_endpoints(False)
    for frame, noise, conditioning in zip(frames, endpoints.noise, endpoints.conditionings, strict=True):
        with torch.no_grad():
            expected = morpher.ddim.sample(lambda x, t, c=conditioning: morpher.predict(x, t, c), noise)
        torch.testing.assert_close(frame, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_each_part_has_its_effect_on_the_embedded_digits(image_folder, app):
    """In a style that the base was not trained on, so that only an adapter can reproduce it."""
    for digit in (3, 8):
        Digits("candy", [digit], 1)[0].image.save(image_folder / f"candy{digit}.png")
    options = ["lr=2e-3", "ddim_steps=16", "frames=9", "accelerator=cpu", "compare=true", "folder=real"]
    prompts = "prompts=[a handwritten three in candy stripes,a handwritten eight in candy stripes]"
    out = app(prompts, *options, images="images=[candy3.png,candy8.png]")
    report = json.loads((image_folder / "real" / "scores.json").read_text())
    scores, limit = report["scores"], report["autoencoder"]
    for end in ("PSNR first", "PSNR last"):
        assert scores["all parts"][end] > scores["no LoRA"][end] + 3, out
        assert scores["all parts"][end] > limit[end] - 3, out
    assert scores["all parts"]["PPL"] < scores["no LoRA"]["PPL"], out
    assert scores["all parts"]["PDV"] < scores["no even spacing"]["PDV"], out

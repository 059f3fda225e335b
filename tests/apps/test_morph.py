"""From one picture to another: the ends are the pictures, each part does its work, and what cannot be is told in a line."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdft.apps.morph.__main__ import main
from sdft.apps.morph.ddim_inversion import DDIM
from sdft.apps.morph.diffmorpher import DiffMorpher, MorphSettings
from sdft.apps.morph.image_pair import read_image_pair, resize_to_common_size
from sdft.apps.morph.single_image_lora import SingleImageTrainer
from sdft.apps.morph.video import FrameSequence, can_write_mp4, write_gif, write_mp4
from sdft.data.dataset import CaptionedImage
from sdft.data.digits import Digits
from sdft.runs.hashing import hash_weights
from sdft.training.precision import Precision

FAST = ["steps=2", "ddim_steps=4", "frames=3", "attention=0.5", "accelerator=cpu", "model.weights=random"]
PROMPTS = "prompts=[a handwritten three in neon light,a handwritten three as a blueprint]"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with two digits in it."""
    folder = tmp_path_factory.mktemp("home")
    for style in ("neon", "blueprint"):
        Digits(style, [3], 1)[0].image.save(folder / f"{style}.png")
    return folder


@pytest.fixture
def app(home, monkeypatch, capsys):
    """A function that runs the program there and returns what it says, of a refusal the one line."""
    monkeypatch.chdir(home)

    def start(*words: str, images: str = "images=[neon.png,blueprint.png]") -> str:
        monkeypatch.setattr(sys, "argv", ["morph", images, *words])
        try:
            main()
        except SystemExit:
            return capsys.readouterr().err
        return capsys.readouterr().out

    return start


def test_a_film_its_strip_and_its_scores_and_adapters_that_are_learned_once(app, home):
    told = app(PROMPTS, *FAST, "compare=true", "folder=first")
    assert told.count("(learned in ") == 2 and "look     first/morph.gif, first/strip.png" in told
    assert sorted(file.name for file in (home / "first" / "frames").iterdir()) == ["0.png", "1.png", "2.png"]
    scores = json.loads((home / "first" / "scores.json").read_text())
    assert list(scores["scores"]) == ["all parts", "no LoRA", "no AdaIN", "no attention", "no pacing"]
    assert scores["perceptual"] == "LPIPS (tiny-clip)" and len(scores["distances"]) == 2
    assert scores["scores"]["all parts"]["PPL"] == pytest.approx(
        sum(scores["distances"] + scores["endpoint_distances"])
    )
    assert scores["alphas"][0] == 0 and scores["alphas"][-1] == 1
    strip = Image.open(home / "first" / "strip.png")
    assert strip.width > 5 * 128 and 5 * 128 < strip.height < 6 * 128 + 60
    before = {file: file.stat().st_mtime_ns for file in (home / "outputs").rglob("*.safetensors")}
    assert len(before) == 4
    again = app(PROMPTS, *FAST, "folder=second")
    assert again.count("(learned before)") == 2 and "learned in" not in again
    assert before == {file: file.stat().st_mtime_ns for file in (home / "outputs").rglob("*.safetensors")}
    for number in range(3):
        first, second = ((home / folder / "frames" / f"{number}.png").read_bytes() for folder in ("first", "second"))
        assert first == second
    files = "adapters=[" + ",".join(str(file.parent) for file in sorted(before) if "kohya" not in file.name) + "]"
    given = app(PROMPTS, *FAST, files, "folder=third", "lora=factors", "model.prediction_type=v_prediction")
    assert "adapter" not in given and "look     third/morph.gif" in given


@pytest.mark.parametrize(
    ("images", "words", "told"),
    [
        ("images=[neon.png,none.png]", [PROMPTS], "images=none.png: no such picture"),
        ("images=[neon.png]", [PROMPTS], "1 given; give two, as 'images=[a.jpg,b.jpg]'"),
        ("images=neon.png", [PROMPTS], "images=neon.png: a list of text"),
        ("images=[neon.png,text.png]", [PROMPTS], "text.png: not a readable picture"),
        ("images=[neon.png,blueprint.png]", ["prompts=[a,b,c]"], "3 given; give one for both pictures, or one each"),
        ("images=[neon.png,blueprint.png]", [], "please set prompts=…"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "frames=1"], "frames=1: choose from 2 to 1000"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "lora=both"], "lora=both: choose one of dw, factors, none"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "perceptual=none"], "needs an eye; choose frame_spacing=uniform"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "perceptual=eyes"], "perceptual=eyes: choose one of alex"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "adapters=[a,b]"], "adapter=a: no such LoRA file"),
        ("images=[neon.png,blueprint.png]", [PROMPTS, "resolution=20"], "resolution=20: "),
    ],
)
def test_what_cannot_be_is_one_line(app, home, images, words, told):
    (home / "text.png").write_text("no picture")
    said = app(*words, "folder=refused", images=images)
    assert told in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (home / "refused").exists()


@pytest.mark.parametrize(
    ("build", "words", "told"),
    [
        (MorphSettings, {"adain": "yes"}, "adain=yes: choose one of noise, result, none"),
        (MorphSettings, {"attention": 2.0}, "attention=2.0: choose the share of steps"),
        (MorphSettings, {"frame_spacing": "odd"}, "frame_spacing=odd: choose one of even, uniform"),
        (MorphSettings, {"spacing_iterations": 0}, "spacing_iterations=0: choose from 1 to 4"),
        (SingleImageTrainer, {"rank": 0}, "rank=0: choose 1 or more"),
        (SingleImageTrainer, {"lr": 0.0}, "lr=0.0: choose more than 0"),
    ],
)
def test_words_out_of_range_are_refused(build, words, told):
    with pytest.raises(ValueError, match=told):
        build(**words)


def test_an_adapter_of_another_model_is_one_line(app, home, tiny, tmp_path):
    learned = (
        SingleImageTrainer(steps=1)
        .load_or_train(tiny(), Digits("neon", [3], 1)[0], Precision(), "cpu", tmp_path)
        .folder
    )
    kept = learned / "pytorch_lora_weights.safetensors"
    wide = {key: torch.randn(*weight.shape[:-1], 7) for key, weight in load_file(kept).items()}
    save_file(wide, home / "wide.safetensors")
    said = app(PROMPTS, *FAST, f"adapters=[{kept},wide.safetensors]")
    assert "wide.safetensors: does not fit" in said and said.startswith("error: ") and said.count("\n") == 1


def test_pictures_of_one_shape_keep_it_and_of_two_become_squares(tiny, tmp_path):
    model = tiny()
    for name, size in {"wide": (90, 60), "wider": (93, 60), "tall": (60, 90), "small": (12, 12)}.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")

    def brought(*names: str):
        pictures, lines = resize_to_common_size(
            read_image_pair([tmp_path / f"{name}.png" for name in names], ["a cat"]), model, 32
        )
        return [picture.image.size for picture in pictures], lines

    sizes, lines = brought("wide", "wider")
    assert sizes[0] == sizes[1] and sizes[0][0] > sizes[0][1] and all("cropped in the middle" in line for line in lines)
    sizes, lines = brought("wide", "tall")
    assert sizes == [(32, 32)] * 2 and "90x60 brought to 32x32 (their shapes differ" in lines[0]
    assert "enlarged 2.7 times" in brought("small", "tall")[1][-1]


def test_a_picture_of_the_right_size_stays_as_it_is(tiny, home):
    pictures, lines = resize_to_common_size(
        read_image_pair([home / "neon.png", home / "blueprint.png"], ["a", "b"]), tiny(), 32
    )
    assert not lines and pictures[0].image.tobytes() == Image.open(home / "neon.png").tobytes()
    assert [picture.caption for picture in pictures] == ["a", "b"]


def test_a_portrait_is_found_by_picture_words_base_and_settings(tiny):
    base, picture = tiny(), Digits("neon", [3], 1)[0]
    name = lambda words, *about: SingleImageTrainer.name(SingleImageTrainer(**words).settings(*about, Precision()))  # noqa: E731
    same = name({}, base, picture)
    assert same == name({}, tiny(), Digits("neon", [3], 1)[0])
    others = [
        name({"lr": 1e-3}, base, picture),
        name({"steps": 3}, base, picture),
        name({}, tiny(seed=1), picture),
        name({}, base, CaptionedImage(picture.image, "another", picture.name)),
        name({}, base, Digits("neon", [3], 1, skip=1)[0]),
    ]
    assert len({same, *others}) == 6


def test_learning_a_portrait_leaves_the_base_as_it_was_and_half_a_portrait_is_none(tiny, tmp_path):
    base, picture, portrait = tiny(), Digits("neon", [3], 1)[0], SingleImageTrainer(steps=1)
    before = hash_weights(base)
    kept = portrait.load_or_train(base, picture, Precision(), "cpu", tmp_path)
    assert hash_weights(base) == before and kept.seconds
    assert not portrait.load_or_train(base, picture, Precision(), "cpu", tmp_path).seconds
    (kept.folder / "learned.json").unlink()
    assert portrait.load_or_train(base, picture, Precision(), "cpu", tmp_path).seconds


def flat(level: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (level,) * 3)


def ruler(ones, others) -> torch.Tensor:
    """Squared difference of brightness, as LPIPS squares features."""
    level = lambda picture: picture.getpixel((0, 0))[0] / 255  # noqa: E731
    return torch.tensor([(level(a) - level(b)) ** 2 for a, b in zip(ones, others, strict=True)])


class Rushing(DiffMorpher):
    """Frames that change late."""

    def __init__(self):
        self.pictures = [CaptionedImage(flat(level), "", "") for level in (0, 255)]

    def frames(self, alphas, recipe):
        return [flat(round(255 * share**3)) for share in alphas]


def test_even_pacing_lowers_the_variance_of_steps_and_each_round_more():
    recipes = [MorphSettings(frame_spacing="uniform"), MorphSettings(), MorphSettings(spacing_iterations=3)]
    films = [Rushing().film(recipe, 11, ruler) for recipe in recipes]
    uniform, once, thrice = (film.compute_scores() for film in films)
    assert uniform["PDV"] > 10 * once["PDV"] > 10 * thrice["PDV"]
    assert uniform["PPL"] > once["PPL"] >= 0.1 - 1e-3
    assert films[1].alphas[0] == 0 and films[1].alphas[-1] == 1


def test_ends_that_miss_their_pictures_count_as_jumps():
    given, frames = [flat(0), flat(255)], [flat(51), flat(102), flat(255)]
    film = FrameSequence(
        given, [0, 0.5, 1], frames, ruler(frames[:-1], frames[1:]).tolist(), ruler(given, frames[::2]).tolist()
    )
    scores = film.compute_scores()
    assert scores["PPL"] == pytest.approx(2 * 0.2**2 + 0.6**2) and scores["PSNR last"] == 100
    assert scores["PSNR first"] == pytest.approx(13.98, abs=0.01)


def test_a_film_goes_there_and_back(tmp_path):
    write_gif([flat(level) for level in (0, 100, 200)], tmp_path / "film.gif", 10)
    film = Image.open(tmp_path / "film.gif")
    assert film.size == (256, 256) and film.info["duration"] >= 100 and film.info["loop"] == 0


@pytest.mark.skipif(not can_write_mp4(), reason="PyAV is not installed")
def test_an_mp4_holds_every_frame(tmp_path):
    import av

    write_mp4([Image.new("RGB", (33, 51), color) for color in ("red", "green", "blue")], tmp_path / "film.mp4", 10)
    with av.open(str(tmp_path / "film.mp4")) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) == 13 and frames[0].width % 2 == frames[0].height % 2 == 0
    assert frames[0].getpixel((9, 9))[0] > 200 and frames[-1].getpixel((9, 9))[2] > 200


def test_frames_at_the_ends_are_what_inversion_and_sampling_give(tiny):
    """Whatever is interpolated, at 0 and 1 it is the end's own."""
    model = tiny()
    pair = [Digits(style, [3], 1)[0] for style in ("neon", "candy")]
    morph = DiffMorpher(model, DDIM.from_model(model, 3), pair, None)
    recipe = MorphSettings(lora="none", attention=1.0)
    frames, ends = morph.latents([0.0, 1.0], recipe), morph.ends(False)
    for frame, noise, context in zip(frames, ends.noise, ends.contexts, strict=True):
        with torch.no_grad():
            alone = morph.ddim.sample(lambda x, t, c=context: morph.predict(x, t, c), noise)
        torch.testing.assert_close(frame, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_on_the_embedded_digits_each_part_does_its_work(home, app):
    """In a style that the base has never seen and cannot give back, so that only an adapter can know it."""
    for digit in (3, 8):
        Digits("candy", [digit], 1)[0].image.save(home / f"candy{digit}.png")
    words = ["lr=2e-3", "ddim_steps=16", "frames=9", "accelerator=cpu", "compare=true", "folder=real"]
    prompts = "prompts=[a handwritten three in candy stripes,a handwritten eight in candy stripes]"
    told = app(prompts, *words, images="images=[candy3.png,candy8.png]")
    report = json.loads((home / "real" / "scores.json").read_text())
    scores, limit = report["scores"], report["autoencoder"]
    for end in ("PSNR first", "PSNR last"):
        assert scores["all parts"][end] > scores["no LoRA"][end] + 3, told
        assert scores["all parts"][end] > limit[end] - 3, told
    assert scores["all parts"]["PPL"] < scores["no LoRA"]["PPL"], told
    assert scores["all parts"]["PDV"] < scores["no pacing"]["PDV"], told

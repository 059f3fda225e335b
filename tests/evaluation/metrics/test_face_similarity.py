"""Face metrics on real portraits: a cascade detects faces, a small ONNX network stands in for the embedder."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("cv2")
from onnx import TensorProto, helper, numpy_helper, save_model

from sdft.data.dataset import CaptionedImage
from sdft.data.digits import Digits
from sdft.evaluation.metrics.base import EvaluationData
from sdft.evaluation.metrics.face_embedding import DetectedFace, FaceEmbedder, load_cascade_detector
from sdft.evaluation.metrics.face_similarity import (
    FaceDetectionRate,
    FaceDistance,
    FaceSimilarity,
    FaceVerificationRate,
)
from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """Means over an 8 by 8 grid, mixed by a random matrix: `[1, 3, 112, 112]` to `[1, 16]`."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 3 * 8 * 8)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["input"], ["grid"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Flatten", ["grid"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["output"], transB=1),
    ]
    shapes = {"input": [1, 3, 112, 112], "output": [1, 16]}
    inputs, outputs = (helper.make_tensor_value_info(k, TensorProto.FLOAT, shapes[k]) for k in ("input", "output"))
    graph = helper.make_graph(nodes, "g", [inputs], [outputs], [numpy_helper.from_array(weight, "weight")])
    file = tmp_path_factory.mktemp("onnx") / "small.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return file, weight


@pytest.fixture(scope="module")
def people(photographs):
    """A portrait, mirrored and darkened copies, and images without a face."""
    portrait = Image.open(photographs / "astronaut.jpg").convert("RGB")
    faces = [portrait, portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT), portrait.point(lambda v: v * 0.7)]
    return faces, [Image.open(photographs / "coffee.jpg"), Digits()[0].image]


def set_up(metric, scorer, training_images):
    metric.setup(scorer, EvaluationData(training_images=[CaptionedImage(image, "", "") for image in training_images]))
    return metric


def test_cascade_detects_the_face(people):
    (face,) = load_cascade_detector()(np.asarray(people[0][0]))[:1]
    left, top, width, height = face.box
    assert left < 224 < left + width and top < 110 < top + height  # between the eyes


def test_embedding_uses_the_face_box(embedder, people):
    file, weight = embedder
    scorer = FaceEmbedder(str(file), threshold=0.5)
    (face,) = scorer.embed_faces(people[0][:1])
    rgb = np.asarray(people[0][0])
    best = max(scorer.detect(rgb), key=lambda f: f.box[2])
    crop = (scorer.align_face(rgb, best).astype(np.float32) - 127.5) / 127.5
    expected = crop.reshape(8, 14, 8, 14, 3).mean((1, 3)).transpose(2, 0, 1).reshape(-1) @ weight.T
    assert np.allclose(face.numpy(), expected / np.linalg.norm(expected), atol=1e-4)


def test_largest_and_most_confident_face_is_embedded(embedder, monkeypatch):
    scorer = FaceEmbedder(str(embedder[0]), threshold=0.5)
    image = Image.effect_noise((200, 200), 80).convert("RGB")
    small, large, doubtful = (
        DetectedFace((0, 0, 30, 30), 1.0),
        DetectedFace((40, 40, 80, 80), 0.9),
        DetectedFace((0, 100, 90, 90), 0.3),
    )
    monkeypatch.setattr(scorer, "detect", lambda rgb: [small, large, doubtful])
    aligned = []
    monkeypatch.setattr(scorer, "align_face", lambda rgb, face: aligned.append(face) or rgb[:112, :112])
    scorer.embed_faces([image])
    assert aligned == [large]


def test_landmarks_are_aligned_to_the_template(embedder):
    from sdft.evaluation.metrics.face_embedding import ARCFACE_TEMPLATE

    scorer = FaceEmbedder(str(embedder[0]), threshold=0.5)
    rgb = np.zeros((400, 400, 3), np.uint8)
    landmarks = ARCFACE_TEMPLATE * 2 + 60
    for x, y in landmarks.astype(int):
        rgb[y - 3 : y + 4, x - 3 : x + 4] = 255
    face = scorer.align_face(rgb, DetectedFace((60, 60, 224, 224), 1.0, landmarks))
    assert all(face[round(y), round(x)].min() > 128 for x, y in ARCFACE_TEMPLATE)


def test_scores_are_means_over_pairs_and_images_without_a_face_count(embedder, people):
    scorer = FaceEmbedder(str(embedder[0]), threshold=0.9)
    faces, faceless = people
    generated, real = [faces[1], *faceless, faces[2]], faces
    a = torch.stack([scorer.embed_faces([p])[0] for p in (faces[1], faces[2])]).numpy()
    b = torch.stack([scorer.embed_faces([p])[0] for p in real]).numpy()
    cosines, metrics = a @ b.T, {}
    for kind in (FaceDetectionRate, FaceSimilarity, FaceDistance, FaceVerificationRate):
        metric = set_up(kind(), scorer, real)
        metric.update(generated, [""] * 4)
        metrics[kind] = metric
    value = {kind: metric.compute().item() for kind, metric in metrics.items()}
    assert value[FaceDetectionRate] == 0.5
    assert value[FaceSimilarity] == pytest.approx(cosines.mean(), abs=1e-5)
    assert value[FaceDistance] == pytest.approx(np.sqrt(np.maximum(0, 2 - 2 * cosines)).mean(), abs=1e-4)  # S0-41
    assert value[FaceVerificationRate] == pytest.approx((cosines >= 0.9).mean(1).sum() / 4, abs=1e-5)
    similarities = metrics[FaceSimilarity].collect()
    assert similarities.isfinite().sum() == 2 and len(similarities) == 4
    table = b @ b.T
    off = ~np.eye(3, dtype=bool)
    assert metrics[FaceSimilarity].compute_reference() == pytest.approx(table[off].mean(), abs=1e-5)
    assert metrics[FaceDistance].compute_reference() == pytest.approx(
        np.sqrt(np.maximum(0, 2 - 2 * table[off])).mean(), abs=1e-4
    )
    assert metrics[FaceVerificationRate].compute_reference() == pytest.approx((table[off] >= 0.9).mean(), abs=1e-5)
    assert metrics[FaceDetectionRate].compute_reference() == 1


def test_images_without_any_face_count_but_have_no_similarity(embedder, people):
    scorer = FaceEmbedder(str(embedder[0]), threshold=0.9)
    digits = [Digits()[i].image.resize((128, 128)) for i in range(4)]
    metrics = {
        kind: set_up(kind(), scorer, people[0]) for kind in (FaceDetectionRate, FaceSimilarity, FaceVerificationRate)
    }
    for metric in metrics.values():
        metric.update(digits, [""] * 4)
    assert metrics[FaceDetectionRate].compute() == 0 and metrics[FaceVerificationRate].compute() == 0
    assert metrics[FaceSimilarity].compute().isnan()
    for kind in (FaceSimilarity, FaceVerificationRate):
        with pytest.raises(ScorerUnavailableError, match="no face .* 4 training images") as error:
            set_up(kind(), scorer, digits)
        assert error.value.name == "face scores"
    with pytest.raises(ScorerUnavailableError, match="small; set metrics.face_threshold"):
        set_up(FaceVerificationRate(), FaceEmbedder(str(embedder[0])), people[0])


def test_missing_files_are_reported_and_sface_has_a_threshold(embedder, tmp_path):
    with pytest.raises(ScorerUnavailableError, match=r"metrics.faces=nowhere.onnx: .*face_recognition_sface"):
        FaceEmbedder("nowhere.onnx")
    with pytest.raises(ScorerUnavailableError, match="metrics.detector=yunet.onnx: "):
        FaceEmbedder(str(embedder[0]), detector="yunet.onnx")
    assert FaceEmbedder(str(embedder[0])).threshold is None
    (tmp_path / "face_recognition_sface_2021dec.onnx").write_bytes(embedder[0].read_bytes())
    assert FaceEmbedder(str(tmp_path / "face_recognition_sface_2021dec.onnx")).threshold == 0.363

"""Face embeddings: a detector finds faces, an ONNX network identifies them. `pip install -e ".[faces]"`"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError, hash_image

FACE_SIZE = 112  # input size of the embedder, in pixels
# positions of eyes, nose and mouth corners in the aligned face, from ArcFace (Deng et al., 2019)
ARCFACE_TEMPLATE = np.float32(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SFACE_THRESHOLD = 0.363  # minimum cosine for the same person, from OpenCV's SFace
MODEL_SOURCES = "opencv/face_detection_yunet and opencv/face_recognition_sface on the hub"


@dataclass
class DetectedFace:
    box: tuple[float, float, float, float]  # left, top, width, height
    confidence: float
    landmarks: np.ndarray | None = None  # [5, 2]


class FaceEmbedder:
    """`embedder` is an ONNX file for 112 px faces: OpenCV's SFace, or one with ArcFace's conventions (RGB, -1..1).

    `detector` is cascade (from scikit-image, without a file, frontal faces only) or YuNet's ONNX file.
    `threshold` is the minimum cosine for the same person; SFace has a default.
    """

    def __init__(self, embedder: str, detector: str = "cascade", threshold: float | None = None):
        try:
            import cv2
        except ImportError:
            raise ScorerUnavailableError('metrics.faces: requires OpenCV; pip install -e ".[faces]"') from None
        self.embedder, self.sface = resolve_onnx_file("metrics.faces", embedder), "sface" in Path(embedder).name.lower()
        self.cv2, self.network, self.feature_cache = cv2, cv2.dnn.readNetFromONNX(str(self.embedder)), {}
        self.detect = (
            load_cascade_detector()
            if detector == "cascade"
            else load_yunet_detector(cv2, resolve_onnx_file("metrics.detector", detector))
        )
        self.threshold = SFACE_THRESHOLD if threshold is None and self.sface else threshold
        self.name = self.embedder.stem

    def embed_faces(self, images: list[Image.Image]) -> list[Tensor | None]:
        """Unit features of the largest and most confident face of each image; None without a face."""
        keys = [hash_image(image) for image in images]
        for key, image in zip(keys, images, strict=True):
            if key not in self.feature_cache:
                self.feature_cache[key] = self.embed_main_face(np.asarray(image.convert("RGB")))
        return [self.feature_cache[key] for key in keys]

    def embed_main_face(self, rgb: np.ndarray) -> Tensor | None:
        candidates = self.detect(rgb)
        if not candidates:
            return None
        best = max(candidates, key=lambda face: face.box[2] * face.box[3] * face.confidence)
        scale = 1.0 if self.sface else 1 / 127.5  # SFace normalises internally
        mean = 0.0 if self.sface else 127.5
        blob = self.cv2.dnn.blobFromImage(
            self.align_face(rgb, best), scale, (FACE_SIZE, FACE_SIZE), (mean, mean, mean), swapRB=False
        )
        self.network.setInput(blob)
        return F.normalize(torch.from_numpy(self.network.forward().copy()).reshape(-1).float(), dim=0)

    def align_face(self, rgb: np.ndarray, face: DetectedFace) -> np.ndarray:
        """The face aligned to the template, `[112, 112, 3]`; without landmarks, its resized box."""
        if face.landmarks is not None:
            transform, _ = self.cv2.estimateAffinePartial2D(
                face.landmarks.astype(np.float32), ARCFACE_TEMPLATE, method=self.cv2.LMEDS
            )
            return self.cv2.warpAffine(rgb, transform, (FACE_SIZE, FACE_SIZE))
        left, top, width, height = (round(value) for value in face.box)
        box = rgb[max(0, top) : top + height, max(0, left) : left + width]
        return self.cv2.resize(box, (FACE_SIZE, FACE_SIZE), interpolation=self.cv2.INTER_AREA)


def resolve_onnx_file(key: str, name: str) -> Path:
    file = Path(name).expanduser()
    if not file.is_file():
        raise ScorerUnavailableError(f"{key}={name}: no such ONNX file; download from {MODEL_SOURCES}")
    return file


def load_cascade_detector():
    """Viola-Jones with local binary patterns: a function from RGB pixels to frontal faces."""
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError:
        raise ScorerUnavailableError(
            'metrics.detector=cascade: requires scikit-image; pip install -e ".[faces]"'
        ) from None
    detector = Cascade(lbp_frontal_face_cascade_filename())

    def detect(rgb: np.ndarray) -> list[DetectedFace]:
        side = min(rgb.shape[:2])
        if side < 48:
            return []
        min_size = max(24, side // 10)
        boxes = detector.detect_multi_scale(
            rgb, scale_factor=1.2, step_ratio=1, min_size=(min_size, min_size), max_size=(side, side)
        )
        return [DetectedFace((b["c"], b["r"], b["width"], b["height"]), 1.0) for b in boxes]

    return detect


def load_yunet_detector(cv2, file: Path, min_confidence: float = 0.6):
    """YuNet (Wu et al., 2023): a function from RGB pixels to faces with landmarks."""
    detector = cv2.FaceDetectorYN.create(str(file), "", (320, 320), min_confidence)

    def detect(rgb: np.ndarray) -> list[DetectedFace]:
        detector.setInputSize((rgb.shape[1], rgb.shape[0]))
        _, rows = detector.detect(np.ascontiguousarray(rgb[:, :, ::-1]))
        if rows is None:
            return []
        return [DetectedFace(tuple(map(float, row[:4])), float(row[14]), row[4:14].reshape(5, 2)) for row in rows]

    return detect

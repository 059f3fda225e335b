"""The judge of faces: a detector finds them, an ONNX network tells whose they are. `pip install -e ".[faces]"`"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError, hash_image

FACE_SIZE = 112  # of a face as its embedder sees it
# where eyes, nose and corners of the mouth lie then: the template of ArcFace (Deng et al., 2019)
ARCFACE_TEMPLATE = np.float32(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SFACE_THRESHOLD = 0.363  # the cosine from which OpenCV's SFace says that two faces are one person's
MODEL_SOURCES = "opencv/face_detection_yunet and opencv/face_recognition_sface on the hub"


@dataclass
class DetectedFace:
    box: tuple[float, float, float, float]  # left, top, width, height
    confidence: float
    landmarks: np.ndarray | None = None  # [5, 2]


class FaceEmbedder:
    """`embedder` is an ONNX file that takes faces of 112 px: OpenCV's SFace, or one with ArcFace's conventions (RGB, -1..1).

    `detector` is cascade (scikit-image's, needs no file, frontal faces only) or the ONNX file of YuNet.
    `threshold` is the cosine from which two faces are one person's; known for SFace.
    """

    def __init__(self, embedder: str, detector: str = "cascade", threshold: float | None = None):
        try:
            import cv2
        except ImportError:
            raise ScorerUnavailableError('metrics.faces: needs OpenCV; pip install -e ".[faces]"') from None
        self.embedder, self.sface = resolve_onnx_file("metrics.faces", embedder), "sface" in Path(embedder).name.lower()
        self.cv2, self.network, self.feature_cache = cv2, cv2.dnn.readNetFromONNX(str(self.embedder)), {}
        self.detect = (
            load_cascade_detector()
            if detector == "cascade"
            else load_yunet_detector(cv2, resolve_onnx_file("metrics.detector", detector))
        )
        self.threshold = SFACE_THRESHOLD if threshold is None and self.sface else threshold
        self.name = self.embedder.stem

    def embed_faces(self, pictures: list[Image.Image]) -> list[Tensor | None]:
        """Unit features of the face in each picture, the largest and most confident one; None where there is none."""
        keys = [hash_image(picture) for picture in pictures]
        for key, picture in zip(keys, pictures, strict=True):
            if key not in self.feature_cache:
                self.feature_cache[key] = self.face(np.asarray(picture.convert("RGB")))
        return [self.feature_cache[key] for key in keys]

    def face(self, rgb: np.ndarray) -> Tensor | None:
        candidates = self.detect(rgb)
        if not candidates:
            return None
        best = max(candidates, key=lambda face: face.box[2] * face.box[3] * face.confidence)
        scale = 1.0 if self.sface else 1 / 127.5  # SFace scales by itself
        mean = 0.0 if self.sface else 127.5
        blob = self.cv2.dnn.blobFromImage(
            self.align_face(rgb, best), scale, (FACE_SIZE, FACE_SIZE), (mean, mean, mean), swapRB=False
        )
        self.network.setInput(blob)
        return F.normalize(torch.from_numpy(self.network.forward().copy()).reshape(-1).float(), dim=0)

    def align_face(self, rgb: np.ndarray, face: DetectedFace) -> np.ndarray:
        """The face at its place in `[112, 112, 3]`; without landmarks, its box."""
        if face.landmarks is not None:
            move, _ = self.cv2.estimateAffinePartial2D(
                face.landmarks.astype(np.float32), ARCFACE_TEMPLATE, method=self.cv2.LMEDS
            )
            return self.cv2.warpAffine(rgb, move, (FACE_SIZE, FACE_SIZE))
        left, top, width, height = (round(value) for value in face.box)
        box = rgb[max(0, top) : top + height, max(0, left) : left + width]
        return self.cv2.resize(box, (FACE_SIZE, FACE_SIZE), interpolation=self.cv2.INTER_AREA)


def resolve_onnx_file(key: str, name: str) -> Path:
    file = Path(name).expanduser()
    if not file.is_file():
        raise ScorerUnavailableError(f"{key}={name}: no such ONNX file; {MODEL_SOURCES} hold them")
    return file


def load_cascade_detector():
    """Viola and Jones, with local binary patterns: a function from a picture to its frontal faces."""
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError:
        raise ScorerUnavailableError(
            'metrics.detector=cascade: needs scikit-image; pip install -e ".[faces]"'
        ) from None
    detector = Cascade(lbp_frontal_face_cascade_filename())

    def detect(rgb: np.ndarray) -> list[DetectedFace]:
        side = min(rgb.shape[:2])
        if side < 48:
            return []
        smallest = max(24, side // 10)
        boxes = detector.detect_multi_scale(
            rgb, scale_factor=1.2, step_ratio=1, min_size=(smallest, smallest), max_size=(side, side)
        )
        return [DetectedFace((b["c"], b["r"], b["width"], b["height"]), 1.0) for b in boxes]

    return detect


def load_yunet_detector(cv2, file: Path, least: float = 0.6):
    """YuNet (Wu et al., 2023): a function from a picture to its faces with landmarks."""
    detector = cv2.FaceDetectorYN.create(str(file), "", (320, 320), least)

    def detect(rgb: np.ndarray) -> list[DetectedFace]:
        detector.setInputSize((rgb.shape[1], rgb.shape[0]))
        _, rows = detector.detect(np.ascontiguousarray(rgb[:, :, ::-1]))
        if rows is None:
            return []
        return [DetectedFace(tuple(map(float, row[:4])), float(row[14]), row[4:14].reshape(5, 2)) for row in rows]

    return detect

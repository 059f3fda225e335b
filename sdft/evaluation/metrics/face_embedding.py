"""The judge of faces: a detector finds them, an ONNX network tells whose they are. `pip install -e ".[faces]"`"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdft.evaluation.metrics.feature_extractor import Missing, content

SIDE = 112  # of a face as its embedder sees it
# where eyes, nose and corners of the mouth lie then: the template of ArcFace (Deng et al., 2019)
TEMPLATE = np.float32(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SFACE = 0.363  # the cosine from which OpenCV's SFace says that two faces are one person's
ZOO = "opencv/face_detection_yunet and opencv/face_recognition_sface on the hub"


@dataclass
class Face:
    box: tuple[float, float, float, float]  # left, top, width, height
    confidence: float
    landmarks: np.ndarray | None = None  # [5, 2]


class Faces:
    """`embedder` is an ONNX file that takes faces of 112 px: OpenCV's SFace, or one with ArcFace's conventions (RGB, -1..1).

    `detector` is cascade (scikit-image's, needs no file, frontal faces only) or the ONNX file of YuNet.
    `threshold` is the cosine from which two faces are one person's; known for SFace.
    """

    def __init__(self, embedder: str, detector: str = "cascade", threshold: float | None = None):
        try:
            import cv2
        except ImportError:
            raise Missing('metrics.faces: needs OpenCV; pip install -e ".[faces]"') from None
        self.embedder, self.sface = found("metrics.faces", embedder), "sface" in Path(embedder).name.lower()
        self.cv2, self.network, self.memory = cv2, cv2.dnn.readNetFromONNX(str(self.embedder)), {}
        self.detect = cascade() if detector == "cascade" else yunet(cv2, found("metrics.detector", detector))
        self.threshold = SFACE if threshold is None and self.sface else threshold
        self.name = self.embedder.stem

    def faces(self, pictures: list[Image.Image]) -> list[Tensor | None]:
        """Unit features of the face in each picture, the largest and most confident one; None where there is none."""
        keys = [content(picture) for picture in pictures]
        for key, picture in zip(keys, pictures, strict=True):
            if key not in self.memory:
                self.memory[key] = self.face(np.asarray(picture.convert("RGB")))
        return [self.memory[key] for key in keys]

    def face(self, rgb: np.ndarray) -> Tensor | None:
        candidates = self.detect(rgb)
        if not candidates:
            return None
        best = max(candidates, key=lambda face: face.box[2] * face.box[3] * face.confidence)
        scale = 1.0 if self.sface else 1 / 127.5  # SFace scales by itself
        mean = 0.0 if self.sface else 127.5
        blob = self.cv2.dnn.blobFromImage(
            self.aligned(rgb, best), scale, (SIDE, SIDE), (mean, mean, mean), swapRB=False
        )
        self.network.setInput(blob)
        return F.normalize(torch.from_numpy(self.network.forward().copy()).reshape(-1).float(), dim=0)

    def aligned(self, rgb: np.ndarray, face: Face) -> np.ndarray:
        """The face at its place in `[112, 112, 3]`; without landmarks, its box."""
        if face.landmarks is not None:
            move, _ = self.cv2.estimateAffinePartial2D(
                face.landmarks.astype(np.float32), TEMPLATE, method=self.cv2.LMEDS
            )
            return self.cv2.warpAffine(rgb, move, (SIDE, SIDE))
        left, top, width, height = (round(value) for value in face.box)
        box = rgb[max(0, top) : top + height, max(0, left) : left + width]
        return self.cv2.resize(box, (SIDE, SIDE), interpolation=self.cv2.INTER_AREA)


def found(key: str, name: str) -> Path:
    file = Path(name).expanduser()
    if not file.is_file():
        raise Missing(f"{key}={name}: no such ONNX file; {ZOO} hold them")
    return file


def cascade():
    """Viola and Jones, with local binary patterns: a function from a picture to its frontal faces."""
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError:
        raise Missing('metrics.detector=cascade: needs scikit-image; pip install -e ".[faces]"') from None
    detector = Cascade(lbp_frontal_face_cascade_filename())

    def detect(rgb: np.ndarray) -> list[Face]:
        side = min(rgb.shape[:2])
        if side < 48:
            return []
        smallest = max(24, side // 10)
        boxes = detector.detect_multi_scale(
            rgb, scale_factor=1.2, step_ratio=1, min_size=(smallest, smallest), max_size=(side, side)
        )
        return [Face((b["c"], b["r"], b["width"], b["height"]), 1.0) for b in boxes]

    return detect


def yunet(cv2, file: Path, least: float = 0.6):
    """YuNet (Wu et al., 2023): a function from a picture to its faces with landmarks."""
    detector = cv2.FaceDetectorYN.create(str(file), "", (320, 320), least)

    def detect(rgb: np.ndarray) -> list[Face]:
        detector.setInputSize((rgb.shape[1], rgb.shape[0]))
        _, rows = detector.detect(np.ascontiguousarray(rgb[:, :, ::-1]))
        if rows is None:
            return []
        return [Face(tuple(map(float, row[:4])), float(row[14]), row[4:14].reshape(5, 2)) for row in rows]

    return detect

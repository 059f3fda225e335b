"""Which metrics are asked of which prompts, and the judges they ask; what is not on this machine is told and left out."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from PIL import Image
from torchmetrics import Metric

from sdft.data.dataset import Picture, Questions, Source
from sdft.evaluation.metrics.base import PictureMetric
from sdft.evaluation.metrics.clip import Clip
from sdft.evaluation.metrics.clip_i import Leak, SubjectScore
from sdft.evaluation.metrics.clip_t import PromptScore
from sdft.evaluation.metrics.dino import Dino
from sdft.evaluation.metrics.diversity import Diversity
from sdft.evaluation.metrics.drift import Drift, SetDrift
from sdft.evaluation.metrics.face_embedding import Faces
from sdft.evaluation.metrics.face_similarity import FaceDistance, FaceFound, FaceSimilarity, FaceVerified
from sdft.evaluation.metrics.feature_extractor import Judge, Missing
from sdft.evaluation.metrics.fid_kid_cmmd import CMMD, FID, KID
from sdft.evaluation.metrics.lpips import ClipLayers, Lpips
from sdft.evaluation.metrics.memorization import Nearest
from sdft.evaluation.metrics.zero_shot import ZeroShot
from sdft.evaluation.protocol import PROMPTS, Group, Protocol
from sdft.evaluation.statistics import told

DISTANCES = {"CMMD": CMMD, "FID": FID, "KID": KID}
COMPARED = 64  # real pictures of which all pairs are compared
SHORT = 512  # pixels


class Judges:
    """The judges of a `sdft.evaluation.metrics_config.Suite`, by name; `missing` tells of each that is not there what to fetch.

    They are opened at once, so that this is told before anything is trained; embedded ones, which are always there, when asked.
    """

    def __init__(self, suite, device: str = "cpu"):
        self.suite, self.device, self.missing = suite, device, {}
        if not suite.embedded:
            self.names()

    @cached_property
    def clip(self) -> Clip | None:
        return self.tried("CLIP", lambda: Clip(self.suite.clip, self.suite.pretrained, self.device))

    @cached_property
    def dino(self) -> Dino | None:
        return self.tried("DINO", lambda: Dino(self.suite.dino, self.device)) if self.suite.dino else None

    @cached_property
    def faces(self) -> Faces | None:
        if not (asked := self.suite).faces:
            return None
        return self.tried("faces", lambda: Faces(asked.faces, asked.detector, asked.face_threshold))

    @cached_property
    def perceptual(self) -> Lpips | ClipLayers | None:
        if self.suite.perceptual == "clip":
            return self.clip and ClipLayers(self.clip)
        net = self.suite.perceptual
        return self.tried("LPIPS", lambda: Lpips(net, self.device)) if net else None

    @property
    def subject(self) -> Dino | Clip | None:
        """The better judge of things."""
        return self.dino or self.clip

    def rest(self) -> None:
        """Until they are asked again, nothing of them lies on the device."""
        for judge in vars(self).values():
            if isinstance(judge, Judge):
                judge.rest()

    def tried(self, name: str, build: Callable):
        try:
            return build()
        except Missing as error:
            self.missing[name] = str(error)
            return None

    def names(self) -> dict[str, str]:
        """What each judge is."""
        there = {"clip": self.clip, "dino": self.dino, "perceptual": self.perceptual, "faces": self.faces}
        return {key: judge.name for key, judge in there.items() if judge}


class Exam:
    """All metrics of a run's groups of prompts, once the base's pictures are known."""

    def __init__(
        self, judges: Judges, protocol: Protocol, groups: list[Group], taught: Source, questions: Questions | None
    ):
        self.judges, self.protocol, self.groups, self.questions = judges, protocol, groups, questions
        self.images = protocol.images
        step = max(1, -(-len(taught) // judges.suite.max_reference_images))
        self.taught = [smaller(taught[index]) for index in range(0, len(taught), step)]
        self.real = [questions.real[i] for i in range(len(questions.real))] if questions and questions.real else None

    def meant(self, group: Group) -> list[str]:
        """What each picture of a group is asked about."""
        return [text for text in group.meant for _ in range(self.images)]

    def begin(self, base: dict[str, list[Image.Image]]) -> None:
        """`base` are the base model's pictures of every group."""
        self.metrics = {
            group.name: dict(self.of_prompts() if group.name == PROMPTS else self.of_controls(base[group.name]))
            for group in self.groups
        }
        self.judges.rest()

    def of_prompts(self):
        """What tells whether it was learned: names and metrics."""
        judges, real = self.judges, [picture.image for picture in self.taught]
        if judges.clip and self.questions:
            axes = list(next(iter(self.questions.answers.values())))
            for axis in axes:
                yield axis, ZeroShot(judges.clip, self.questions.answers, axis)
            if len(axes) > 1:
                yield " and ".join(axes), ZeroShot(judges.clip, self.questions.answers)
        if judges.clip:
            yield "CLIP-T", PromptScore(judges.clip)
            yield "CLIP-I", SubjectScore(judges.clip, real)
        if judges.dino:
            yield "DINO", SubjectScore(judges.dino, real)
        if judges.faces:
            yield from self.of_faces(real)
        if judges.perceptual:
            yield "DIV", Diversity(judges.perceptual, self.images, (self.real or self.taught)[:COMPARED])
        if judges.subject:
            yield "nearest", Nearest(judges.subject, real)
        features = judges.dino if judges.suite.feature_extractor == "dino" else judges.clip
        if features:
            against = [picture.image for picture in self.real] if self.real else real
            yield from ((name, DISTANCES[name](features, against)) for name in judges.suite.distribution_metrics)

    def of_faces(self, real: list[Image.Image]):
        faces = self.judges.faces
        yield "faces", FaceFound(faces, real)
        if not any(face is not None for face in faces.faces(real)):
            self.judges.missing["face scores"] = f"no face was found in the {len(real)} training pictures"
            return
        yield "face cosine", FaceSimilarity(faces, real)
        yield "face L2", FaceDistance(faces, real)
        if faces.threshold is None:
            self.judges.missing["verified"] = f"{faces.name}'s threshold is not known here; give metrics.face_threshold"
        else:
            yield "verified", FaceVerified(faces, real)

    def of_controls(self, base: list[Image.Image]):
        """What tells whether it was forgotten."""
        judges, real = self.judges, [picture.image for picture in self.taught]
        if judges.clip:
            yield "CLIP-T", PromptScore(judges.clip)
        if judges.subject:
            yield "PRES", Leak(judges.subject, real)
        if judges.perceptual:
            yield "DIV", Diversity(judges.perceptual, self.images)
        if judges.clip:
            yield "drift", Drift(judges.clip, base, self.images)
            yield "drift CMMD", SetDrift(judges.clip, base)
        if judges.perceptual:
            yield "drift LPIPS", Drift(judges.perceptual, base, self.images)

    def measure(self, pictures: dict[str, list[Image.Image]]) -> dict[str, dict[str, Metric]]:
        """The metrics of every group, updated with its pictures."""
        for group in self.groups:
            for metric in self.metrics[group.name].values():
                metric.reset()
                metric.update(pictures[group.name], self.meant(group))
        return self.metrics

    def scores(self, pictures: dict[str, list[Image.Image]]) -> dict[str, dict[str, dict]]:
        """The scores of one state as files hold them, by group and name."""
        groups = self.measure(pictures)
        self.judges.rest()
        return {group: {name: told(m, self.images) for name, m in metrics.items()} for group, metrics in groups.items()}

    def references(self) -> dict[str, dict[str, float]]:
        """What real pictures score, where that can be asked."""
        found = {}
        for group, metrics in self.metrics.items():
            values = {name: self.reference(metric, group) for name, metric in metrics.items()}
            found[group] = {name: value for name, value in values.items() if value is not None}
        return found

    def reference(self, metric: Metric, group: str) -> float | None:
        if group == PROMPTS and isinstance(metric, (ZeroShot, PromptScore)):
            return self.on_real(metric)
        return metric.reference()

    def on_real(self, metric: PictureMetric) -> float | None:
        """The same score of real pictures with their own captions."""
        real = self.real if self.questions else self.taught
        if not real:
            return None
        captions = [p.caption if self.questions else self.protocol.plain(p.caption) for p in real]
        return float(torch.as_tensor(metric.values([p.image for p in real], captions)).mean())


def smaller(picture: Picture) -> Picture:
    """No judge looks at more than `SHORT` pixels of the short side, and a thousand photographs would fill the memory."""
    share = SHORT / min(picture.image.size)
    if share >= 1:
        return picture
    size = tuple(max(1, round(side * share)) for side in picture.image.size)
    return replace(picture, image=picture.image.resize(size, Image.Resampling.LANCZOS), mask=None)

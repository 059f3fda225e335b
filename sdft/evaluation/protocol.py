"""Evaluation protocol: prompts for the training concept, for its class, and control prompts (forgetting)."""

import re
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.data.dataset import EvaluationSpec, ImageDataset
from sdft.data.prompts import read_prompts

PROMPTS_GROUP, CLASS_GROUP, CONTROLS_GROUP = "prompts", "class", "controls"
PLACEHOLDER_PATTERN = re.compile(r"\{(.*?)\}")


@dataclass
class PromptGroup:
    """`prompts` are sampled; `scoring_prompts` are the same without the placeholder token, which no scorer understands."""

    name: str
    prompts: list[str]
    scoring_prompts: list[str]


@dataclass
class EvaluationProtocol:
    """`prompts`, `class_prompts` and `controls` are lists or text files with one prompt per line; null uses the run's.

    In them `{token}` stands for the placeholder token and `{class}` for the class noun. `images` is the number per prompt.
    """

    prompts: Any = None
    class_prompts: Any = None
    controls: Any = None
    images: int = 4
    placeholder_token: str | None = None
    class_noun: str | None = None

    def __post_init__(self):
        if self.images < 1:
            raise ValueError(f"protocol.images={self.images}: choose 1 or more")
        self.texts = {
            PROMPTS_GROUP: read_prompts(self.prompts, "protocol.prompts"),
            CLASS_GROUP: read_prompts(self.class_prompts, "protocol.class_prompts"),
            CONTROLS_GROUP: read_prompts(self.controls, "protocol.controls"),
        }

    def build_groups(
        self, evaluation_spec: EvaluationSpec | None, prompts: list[str], class_prompts: list[str]
    ) -> list[PromptGroup]:
        """The non-empty groups. Prompts not set here come from the dataset's evaluation spec, else from the arguments."""
        groups = {name: self.build_group(name, texts) for name, texts in self.texts.items()}
        if not groups[PROMPTS_GROUP].prompts:
            scoring_prompts = [self.strip_token(text) for text in prompts]
            if evaluation_spec:
                prompts = evaluation_spec.prompts
                scoring_prompts = evaluation_spec.scoring_prompts or prompts
            groups[PROMPTS_GROUP] = PromptGroup(PROMPTS_GROUP, prompts, scoring_prompts)
        if not groups[CLASS_GROUP].prompts:
            groups[CLASS_GROUP] = PromptGroup(CLASS_GROUP, class_prompts, class_prompts)
        return [group for group in groups.values() if group.prompts]

    def strip_token(self, text: str) -> str:
        """Remove the placeholder token."""
        token = rf"(?<!\w){re.escape(self.placeholder_token)}(?!\w)" if self.placeholder_token else r"(?!)"
        return " ".join(re.sub(token, "", text).split())

    def build_group(self, name: str, texts: list[str]) -> PromptGroup:
        """Fill the placeholders of one group; `ValueError` for an unknown or unset one."""
        values = {"token": self.placeholder_token, "class": self.class_noun}
        for text in texts:
            for placeholder in PLACEHOLDER_PATTERN.findall(text):
                if placeholder not in values:
                    raise ValueError(
                        f"protocol: unknown placeholder {{{placeholder}}} in {text!r}; use {{token}} or {{class}}"
                    )
                if values[placeholder] is None:
                    option = {"token": "placeholder_token=sks", "class": "class_noun=dog"}[placeholder]
                    raise ValueError(f"protocol: {text!r} contains {{{placeholder}}}; set {option}")
        without_token = {**values, "token": ""}
        return PromptGroup(
            name,
            [fill_placeholders(text, values) for text in texts],
            [self.strip_token(fill_placeholders(text, without_token)) for text in texts],
        )


def fill_placeholders(text: str, values: dict[str, str | None]) -> str:
    return " ".join(PLACEHOLDER_PATTERN.sub(lambda match: values[match[1]] or "", text).split())


def extract_token_and_class(instance: str | None, class_prompt: str | None) -> tuple[str | None, str | None]:
    """("a sks dog", "a dog") to ("sks", "dog"); None for what the prompts do not determine."""
    noun = re.sub(r"^(an?|the|some)\s+", "", class_prompt.strip(), flags=re.IGNORECASE) if class_prompt else None
    if not instance or not class_prompt:
        return None, noun
    class_terms = class_prompt.split()
    return " ".join(term for term in instance.split() if term not in class_terms) or None, noun


def build_protocol(cfg: DictConfig) -> EvaluationProtocol:
    """The configured protocol, with {token} and {class} taken from a DreamBooth run's prompts where unset."""
    token, noun = extract_token_and_class(cfg.get("instance_prompt"), cfg.get("class_prompt"))
    placeholders = {"placeholder_token": cfg.get("placeholder_token") or token, "class_noun": noun}
    unset = {key: value for key, value in placeholders.items() if value and not cfg.protocol.get(key)}
    return instantiate(cfg.protocol, **unset)


def build_prompt_groups(
    cfg: DictConfig, protocol: EvaluationProtocol, evaluation_spec: EvaluationSpec | None, source: ImageDataset
) -> list[PromptGroup]:
    class_prompts = [cfg.prior.prompt] if cfg.get("prior") else []
    return protocol.build_groups(evaluation_spec, read_prompts(cfg.prompts) or source.prompts(), class_prompts)


def select_evaluation_spec(evaluation_spec: EvaluationSpec | None, groups: list[PromptGroup]) -> EvaluationSpec | None:
    """The dataset's evaluation spec if it has labels for all scoring prompts, else None."""
    if evaluation_spec and set(groups[0].scoring_prompts) <= set(evaluation_spec.caption_labels):
        return evaluation_spec
    return None

"""What a result is asked to draw: prompts of what was taught, of its class, and of what must stay as it was."""

import re
from dataclasses import dataclass
from typing import Any

from sdft.data.dataset import EvaluationSpec
from sdft.data.prompts import read_prompts

PROMPTS_GROUP, CLASS_GROUP, CONTROLS_GROUP = "prompts", "class", "controls"
PLACEHOLDER_PATTERN = re.compile(r"\{(.*?)\}")


@dataclass
class PromptGroup:
    """`prompts` are drawn; `scoring_prompts` is what judges are asked about them: the same without words that only the run knows."""

    name: str
    prompts: list[str]
    scoring_prompts: list[str]


@dataclass
class EvaluationProtocol:
    """Each of `prompts`, `class_prompts` and `controls` is a list or a text file with one a line; null leaves it to the run.

    `{token}` in them stands for the word that was learned, `{class}` for what the subject is one of. `images` are drawn of each.
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
        """The groups that hold something. Without prompts of its own it asks the data's evaluation_spec, else the run's `prompts`."""
        own = {name: self.filled(name, texts) for name, texts in self.texts.items()}
        if not own[PROMPTS_GROUP].prompts:
            asked, scoring_prompts = prompts, [self.strip_token(text) for text in prompts]
            if evaluation_spec:
                asked, scoring_prompts = (
                    evaluation_spec.prompts,
                    evaluation_spec.scoring_prompts or evaluation_spec.prompts,
                )
            own[PROMPTS_GROUP] = PromptGroup(PROMPTS_GROUP, asked, scoring_prompts)
        if not own[CLASS_GROUP].prompts:
            own[CLASS_GROUP] = PromptGroup(CLASS_GROUP, class_prompts, class_prompts)
        return [group for group in own.values() if group.prompts]

    def strip_token(self, text: str) -> str:
        """Without the word that was learned."""
        word = rf"(?<!\w){re.escape(self.placeholder_token)}(?!\w)" if self.placeholder_token else r"(?!)"
        return " ".join(re.sub(word, "", text).split())

    def filled(self, name: str, texts: list[str]) -> PromptGroup:
        known = {"token": self.placeholder_token, "class": self.class_noun}
        for text in texts:
            for hole in PLACEHOLDER_PATTERN.findall(text):
                if hole not in known:
                    raise ValueError(
                        f"protocol: {{{hole}}} in {text!r}; only {{token}} and {{class}} can stand in braces"
                    )
                if known[hole] is None:
                    word = {"token": "placeholder_token=sks", "class": "class_noun=dog"}[hole]
                    raise ValueError(f"protocol: {text!r} has {{{hole}}} in it; give {word}")
        plain = {**known, "token": ""}
        return PromptGroup(
            name,
            [fill_placeholders(text, known) for text in texts],
            [self.strip_token(fill_placeholders(text, plain)) for text in texts],
        )


def fill_placeholders(text: str, words: dict[str, str | None]) -> str:
    return " ".join(PLACEHOLDER_PATTERN.sub(lambda hole: words[hole[1]] or "", text).split())


def extract_token_and_class(instance: str | None, class_prompt: str | None) -> tuple[str | None, str | None]:
    """ "a sks dog" and "a dog" to "sks" and "dog"; None for what they do not tell."""
    noun = re.sub(r"^(an?|the|some)\s+", "", class_prompt.strip(), flags=re.IGNORECASE) if class_prompt else None
    if not instance or not class_prompt:
        return None, noun
    plain = class_prompt.split()
    return " ".join(word for word in instance.split() if word not in plain) or None, noun

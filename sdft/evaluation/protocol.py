"""What a result is asked to draw: prompts of what was taught, of its class, and of what must stay as it was."""

import re
from dataclasses import dataclass
from typing import Any

from sdft.data.dataset import Questions
from sdft.data.prompts import read_prompts

PROMPTS, CLASS, CONTROLS = "prompts", "class", "controls"
HOLES = re.compile(r"\{(.*?)\}")


@dataclass
class Group:
    """`prompts` are drawn; `meant` is what judges are asked about them: the same without words that only the run knows."""

    name: str
    prompts: list[str]
    meant: list[str]


@dataclass
class Protocol:
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
            PROMPTS: read_prompts(self.prompts, "protocol.prompts"),
            CLASS: read_prompts(self.class_prompts, "protocol.class_prompts"),
            CONTROLS: read_prompts(self.controls, "protocol.controls"),
        }

    def groups(self, questions: Questions | None, prompts: list[str], class_prompts: list[str]) -> list[Group]:
        """The groups that hold something. Without prompts of its own it asks the data's questions, else the run's `prompts`."""
        own = {name: self.filled(name, texts) for name, texts in self.texts.items()}
        if not own[PROMPTS].prompts:
            asked, meant = prompts, [self.plain(text) for text in prompts]
            if questions:
                asked, meant = questions.prompts, questions.meant or questions.prompts
            own[PROMPTS] = Group(PROMPTS, asked, meant)
        if not own[CLASS].prompts:
            own[CLASS] = Group(CLASS, class_prompts, class_prompts)
        return [group for group in own.values() if group.prompts]

    def plain(self, text: str) -> str:
        """Without the word that was learned."""
        word = rf"(?<!\w){re.escape(self.placeholder_token)}(?!\w)" if self.placeholder_token else r"(?!)"
        return " ".join(re.sub(word, "", text).split())

    def filled(self, name: str, texts: list[str]) -> Group:
        known = {"token": self.placeholder_token, "class": self.class_noun}
        for text in texts:
            for hole in HOLES.findall(text):
                if hole not in known:
                    raise ValueError(
                        f"protocol: {{{hole}}} in {text!r}; only {{token}} and {{class}} can stand in braces"
                    )
                if known[hole] is None:
                    word = {"token": "placeholder_token=sks", "class": "class_noun=dog"}[hole]
                    raise ValueError(f"protocol: {text!r} has {{{hole}}} in it; give {word}")
        plain = {**known, "token": ""}
        return Group(name, [fill(text, known) for text in texts], [self.plain(fill(text, plain)) for text in texts])


def fill(text: str, words: dict[str, str | None]) -> str:
    return " ".join(HOLES.sub(lambda hole: words[hole[1]] or "", text).split())


def token_and_class(instance: str | None, class_prompt: str | None) -> tuple[str | None, str | None]:
    """ "a sks dog" and "a dog" to "sks" and "dog"; None for what they do not tell."""
    noun = re.sub(r"^(an?|the|some)\s+", "", class_prompt.strip(), flags=re.IGNORECASE) if class_prompt else None
    if not instance or not class_prompt:
        return None, noun
    plain = class_prompt.split()
    return " ".join(word for word in instance.split() if word not in plain) or None, noun

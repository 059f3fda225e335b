"""The model card: what it is, a picture, how to use it, and the command that made it."""

import json
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

USES = {
    "adapter": """pipe = StableDiffusionPipeline.from_pretrained({base!r})
pipe.load_lora_weights({place}, weight_name="pytorch_lora_weights.safetensors")""",
    "embedding": """pipe = StableDiffusionPipeline.from_pretrained({base!r})
pipe.load_textual_inversion({place}, weight_name="learned_embeds.safetensors")""",
    "pipeline": """pipe = StableDiffusionPipeline.from_pretrained({place})""",
}
KINDS = {"adapter": "A LoRA", "embedding": "A learned word", "pipeline": "A fine-tuned pipeline"}

CARD = """---
{front}
---

# {name}

{what} of `{base}` ({prediction}), trained with sdft for {steps} steps at {resolution} px.

![The same prompts and seeds, from the base to the end of training](samples.png)
{before}
## Use

```python
import torch
from diffusers import StableDiffusionPipeline

{use}
{scheduler}image = pipe(
    {prompt},
{negative}    num_inference_steps={sampling_steps},
    guidance_scale={guidance_scale},
    height={resolution},
    width={resolution},
    generator=torch.Generator().manual_seed({seed}),
).images[0]
```

{gives}
{files}{after}
## Made by

````
python {command}
````
"""

FILES = """
| file | opens in |
|---|---|
| `pytorch_lora_weights.safetensors` | diffusers |
| `{name}-kohya.safetensors` | tools that read the kohya format{dora} |
"""
GIVES = "In fp32 this gives the first picture of the last row above."


@dataclass
class Card:
    """What a card tells. What users wrote is data: it stands in quotes, as JSON or as code."""

    result: str  # the folder of the run that it is about: adapter, embedding or pipeline
    name: str
    base: str
    prediction: str
    method: str
    steps: int
    resolution: int
    prompt: str
    sampling: object  # steps, guidance_scale, seed, negative_prompt
    command: list[str]
    dora: bool = False
    scheduler: str = ""  # lines that give the pipeline another
    place: str | None = None  # where the files are loaded from; the result's folder
    gives: str = GIVES
    front: dict = field(default_factory=dict)  # more of the YAML that hubs read
    before: list[str] = field(default_factory=list)  # sections in front of how to use it
    after: list[str] = field(default_factory=list)  # and behind

    def text(self) -> str:
        base = code(Path(self.base).name if Path(self.base).expanduser().is_absolute() else self.base)
        front = {
            "library_name": "diffusers",
            "base_model": base,
            "pipeline_tag": "text-to-image",
            "tags": ["stable-diffusion", "text-to-image", self.method],
        } | self.front
        dora = " (a DoRA: not diffusers)" if self.dora else ""
        away = self.sampling.negative_prompt
        return CARD.format(
            front="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None),
            base=base,
            prediction=code(self.prediction),
            name=self.name,
            what=KINDS[self.result],
            steps=self.steps,
            resolution=self.resolution,
            use=USES[self.result].format(base=base, place=json.dumps(self.place or self.result)),
            prompt=json.dumps(self.prompt, ensure_ascii=False),
            sampling_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance_scale,
            seed=self.sampling.seed,
            negative=f"    negative_prompt={json.dumps(away, ensure_ascii=False)},\n" if away else "",
            scheduler=self.scheduler,
            gives=self.gives,
            files=FILES.format(name=self.name, dora=dora) if self.result == "adapter" else "",
            before="".join(f"\n{section}\n" for section in self.before),
            after="".join(f"\n{section}\n" for section in self.after),
            command=shlex.join(self.command).replace("````", ""),
        )


def code(text: str) -> str:
    """What may stand between backticks, also in a table: one line, no backtick and no bar."""
    return "".join(mark for mark in str(text) if mark.isprintable() and mark not in "`|")


def quoted(text: str) -> str:
    return f"`{code(text) or ' '}`"


def write_card(
    folder: Path, name: str, module, sampling, prompts: list[str], resolution: int, command: list[str]
) -> None:
    """Write `README.md` and `samples.png` into the result's folder."""
    card = Card(
        result=folder.name,
        name=name,
        base=module.model.name,
        prediction=module.model.prediction_type,
        method=type(module.method).__name__.lower(),
        steps=module.trainer.global_step,
        resolution=resolution,
        prompt=prompts[0],
        sampling=sampling,
        command=command,
        dora=getattr(module.method, "use_dora", False),
        scheduler=used(sampling.create_scheduler(module.model)) if sampling.scheduler else "",
    )
    (folder / "README.md").write_text(card.text(), encoding="utf-8")
    shutil.copyfile(folder.parent / "samples.png", folder / "samples.png")


def used(scheduler) -> str:
    """The lines that make a pipeline draw with it, in full."""
    kind, words = type(scheduler).__name__, json.loads(scheduler.to_json_string())
    told = {key: value for key, value in words.items() if not key.startswith("_")}
    return f"from diffusers import {kind}\n\npipe.scheduler = {kind}.from_config({told!r})\n"

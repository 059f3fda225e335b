"""The model card: what it is, a picture, how to use it, and the command that made it."""

import json
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

USAGE_SNIPPETS = {
    "adapter": """pipe = StableDiffusionPipeline.from_pretrained({base!r})
pipe.load_lora_weights({load_path}, weight_name="pytorch_lora_weights.safetensors")""",
    "embedding": """pipe = StableDiffusionPipeline.from_pretrained({base!r})
pipe.load_textual_inversion({load_path}, weight_name="learned_embeds.safetensors")""",
    "pipeline": """pipe = StableDiffusionPipeline.from_pretrained({load_path})""",
}
RESULT_DESCRIPTIONS = {"adapter": "A LoRA", "embedding": "A learned word", "pipeline": "A fine-tuned pipeline"}

CARD_TEMPLATE = """---
{front_matter}
---

# {name}

{what} of `{base}` ({prediction}), trained with sdft for {steps} steps at {resolution} px.

![The same prompts and seeds, from the base to the end of training](samples.png)
{leading_sections}
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

{reproduction_note}
{files}{trailing_sections}
## Made by

````
python {command}
````
"""

FILES_TABLE = """
| file | opens in |
|---|---|
| `pytorch_lora_weights.safetensors` | diffusers |
| `{name}-kohya.safetensors` | tools that read the kohya format{dora} |
"""
REPRODUCTION_NOTE = "In fp32 this gives the first picture of the last row above."


@dataclass
class ModelCard:
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
    load_path: str | None = None  # where the files are loaded from; the result's folder
    reproduction_note: str = REPRODUCTION_NOTE
    front_matter: dict = field(default_factory=dict)  # more of the YAML that hubs read
    leading_sections: list[str] = field(default_factory=list)  # sections in front of how to use it
    trailing_sections: list[str] = field(default_factory=list)  # and behind

    def text(self) -> str:
        base = to_inline_code_text(Path(self.base).name if Path(self.base).expanduser().is_absolute() else self.base)
        front = {
            "library_name": "diffusers",
            "base_model": base,
            "pipeline_tag": "text-to-image",
            "tags": ["stable-diffusion", "text-to-image", self.method],
        } | self.front_matter
        dora = " (a DoRA: not diffusers)" if self.dora else ""
        away = self.sampling.negative_prompt
        return CARD_TEMPLATE.format(
            front_matter="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None),
            base=base,
            prediction=to_inline_code_text(self.prediction),
            name=self.name,
            what=RESULT_DESCRIPTIONS[self.result],
            steps=self.steps,
            resolution=self.resolution,
            use=USAGE_SNIPPETS[self.result].format(base=base, load_path=json.dumps(self.load_path or self.result)),
            prompt=json.dumps(self.prompt, ensure_ascii=False),
            sampling_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance_scale,
            seed=self.sampling.seed,
            negative=f"    negative_prompt={json.dumps(away, ensure_ascii=False)},\n" if away else "",
            scheduler=self.scheduler,
            reproduction_note=self.reproduction_note,
            files=FILES_TABLE.format(name=self.name, dora=dora) if self.result == "adapter" else "",
            leading_sections="".join(f"\n{section}\n" for section in self.leading_sections),
            trailing_sections="".join(f"\n{section}\n" for section in self.trailing_sections),
            command=shlex.join(self.command).replace("````", ""),
        )


def to_inline_code_text(text: str) -> str:
    """What may stand between backticks, also in a table: one line, no backtick and no bar."""
    return "".join(mark for mark in str(text) if mark.isprintable() and mark not in "`|")


def format_inline_code(text: str) -> str:
    return f"`{to_inline_code_text(text) or ' '}`"


def write_model_card(
    folder: Path, name: str, module, sampling, prompts: list[str], resolution: int, command: list[str]
) -> None:
    """Write `README.md` and `samples.png` into the result's folder."""
    card = ModelCard(
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
        scheduler=format_scheduler_code(sampling.create_scheduler(module.model)) if sampling.scheduler else "",
    )
    (folder / "README.md").write_text(card.text(), encoding="utf-8")
    shutil.copyfile(folder.parent / "samples.png", folder / "samples.png")


def format_scheduler_code(scheduler) -> str:
    """The lines that make a pipeline draw with it, in full."""
    kind, words = type(scheduler).__name__, json.loads(scheduler.to_json_string())
    told = {key: value for key, value in words.items() if not key.startswith("_")}
    return f"from diffusers import {kind}\n\npipe.scheduler = {kind}.from_config({told!r})\n"

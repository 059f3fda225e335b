"""The model card: what it is, a picture, how to use it, and the command that made it."""

import json
import shlex
import shutil
from pathlib import Path

USES = {
    "adapter": """pipe = StableDiffusionPipeline.from_pretrained({base!r})
pipe.load_lora_weights("adapter", weight_name="pytorch_lora_weights.safetensors")""",
    "embedding": """pipe = StableDiffusionPipeline.from_pretrained({base!r})
pipe.load_textual_inversion("embedding", weight_name="learned_embeds.safetensors")""",
    "pipeline": """pipe = StableDiffusionPipeline.from_pretrained("pipeline")""",
}

CARD = """---
library_name: diffusers
base_model: {base_json}
pipeline_tag: text-to-image
tags: {tags}
---

# {name}

{what} of `{base}` ({prediction}), trained with sdft for {steps} steps at {resolution} px.

![The same prompts and seeds, from the base to the end of training](samples.png)

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

In fp32 this gives the first picture of the last row above.
{files}
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


def write_card(
    folder: Path, name: str, module, sampling, prompts: list[str], resolution: int, command: list[str]
) -> None:
    """Write `README.md` and `samples.png` into the result's folder. What users wrote is data: it stands in quotes."""
    result, model = folder.name, module.model
    base = Path(model.name).name if Path(model.name).expanduser().is_absolute() else model.name
    base = "".join(mark for mark in base if mark.isprintable() and mark != "`")
    away = sampling.negative_prompt
    dora = " (a DoRA: not diffusers)" if getattr(module.method, "dora", False) else ""
    tags = ["stable-diffusion", "text-to-image", type(module.method).__name__.lower()]
    card = CARD.format(
        base=base,
        base_json=json.dumps(base),
        prediction=model.prediction_type,
        tags=json.dumps(tags),
        name=name,
        what={"adapter": "A LoRA", "embedding": "A learned word", "pipeline": "A fine-tuned pipeline"}[result],
        steps=module.trainer.global_step,
        resolution=resolution,
        use=USES[result].format(base=base),
        prompt=json.dumps(prompts[0], ensure_ascii=False),
        sampling_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        seed=sampling.seed,
        negative=f"    negative_prompt={json.dumps(away, ensure_ascii=False)},\n" if away else "",
        scheduler=used(sampling.scheduler_of(model)) if sampling.scheduler else "",
        files=FILES.format(name=name, dora=dora) if result == "adapter" else "",
        command=shlex.join(command).replace("````", ""),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.copyfile(folder.parent / "samples.png", folder / "samples.png")


def used(scheduler) -> str:
    """The lines that make a pipeline draw with it, in full."""
    kind, words = type(scheduler).__name__, json.loads(scheduler.to_json_string())
    told = {key: value for key, value in words.items() if not key.startswith("_")}
    return f"from diffusers import {kind}\n\npipe.scheduler = {kind}.from_config({told!r})\n"

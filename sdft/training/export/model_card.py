"""Model card: description, sample images, usage code, and the training command."""

import json
import shutil
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path

from sdft.methods.textual_inversion import EMBEDDING_FILE
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.family import get_model_class
from sdft.models.sampling import GEOMETRY_OPTIONS
from sdft.runs.files import is_local_path
from sdft.runs.metadata import format_command_line

USAGE_SNIPPETS = {
    "adapter": """{base}
pipe = {pipeline}.{loader}(base)
pipe.load_lora_weights({load_path}, weight_name="pytorch_lora_weights.safetensors")""",
    "embedding": """{base}
pipe = {pipeline}.{loader}(base)
{load_embedding}""",
    "pipeline": """pipe = {pipeline}.from_pretrained({load_path})""",
}
RESULT_DESCRIPTIONS = {
    "adapter": "A LoRA",
    "embedding": "A textual inversion embedding",
    "pipeline": "A fine-tuned pipeline",
}
METHOD_TAGS = {"FullFineTuning": "sft"}  # by class name; the other tags are the class name in lower case

CARD_TEMPLATE = """---
{front_matter}
---

# {name}

{description} of `{base}` ({prediction}), trained with sdft for {steps} steps at {resolution} px.

![Samples of fixed prompts and seeds, from the base model to the end of training](samples.png)
{leading_sections}
## Use

{location_note}```python
import torch
from diffusers import {pipeline}

{use}
{scheduler}image = pipe(
    {prompt},
{negative}{geometry}{clip_skip}    num_inference_steps={sampling_steps},
    guidance_scale={guidance_scale},
    height={resolution},
    width={resolution},
    generator=torch.Generator().manual_seed({seed}),
).images[0]
```

{reproduction_note}
{files}{trailing_sections}
## Training command

````
{command}
````
"""

FILES_TABLE = """
| file | format |
|---|---|
| `pytorch_lora_weights.safetensors` | diffusers |
| `{name}-kohya.safetensors` | kohya |
"""
DORA_NOTE = """
**DoRA**: sd-scripts, ComfyUI, A1111 and diffusers misread it in the kohya format. Load the other file in diffusers, or convert it
to the nearest LoRA: `sdft convert adapter={name}-kohya.safetensors to=kohya base=MODEL rank=32`.
"""
LOCATION_NOTE = "Run this code in the folder of this file.\n\n"
REPRODUCTION_NOTE = "In fp32 this gives the first image of the last row above."

CLIP_SKIP_NOTE = (
    "diffusers applies `clip_skip` to the prompt only, WebUI and the samples above also to the negative prompt."
)


@dataclass
class ModelCard:
    """Contents of a card. User text is untrusted: the card quotes it as JSON or code."""

    result: str  # output kind: adapter, embedding or pipeline
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
    pipeline: str | None = None  # class of diffusers; default: that of Stable Diffusion 1 and 2
    empty_caption: str | None = None  # of models with a choice: zeros or encoded
    token: str | None = None  # the placeholder token of an embedding
    clip_skip: int = 0  # as diffusers counts
    scheduler: str = ""  # code that replaces the pipeline's scheduler
    load_path: str = "."  # path or repository of the weights; by default the card's folder
    reproduction_note: str = REPRODUCTION_NOTE
    front_matter: dict = field(default_factory=dict)  # further YAML metadata for hubs
    leading_sections: list[str] = field(default_factory=list)  # before the usage code
    trailing_sections: list[str] = field(default_factory=list)  # after it

    def __post_init__(self):
        self.model_class = get_model_class(self.pipeline)
        self.pipeline = self.model_class.pipeline_names["text_to_image"]

    def render(self) -> str:
        """The card as Markdown with YAML front matter."""
        base = to_inline_code_text(Path(self.base).name if is_local_path(self.base) else self.base)
        front = {
            "library_name": "diffusers",
            "base_model": base,
            "pipeline_tag": "text-to-image",
            "tags": [self.model_class.hub_tag, "text-to-image", self.method, "diffusers"],
        } | self.front_matter
        files = (FILES_TABLE + DORA_NOTE * self.dora).format(name=self.name) if self.result == "adapter" else ""
        negative = self.sampling.negative_prompt
        return CARD_TEMPLATE.format(
            front_matter="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None),
            base=base,
            prediction=to_inline_code_text(self.prediction),
            name=self.name,
            description=RESULT_DESCRIPTIONS[self.result],
            steps=self.steps,
            resolution=self.resolution,
            location_note=LOCATION_NOTE if self.load_path == "." else "",
            pipeline=self.pipeline,
            use=self.render_use(),
            geometry="".join(f"    {key}={value},\n" for key, value in read_geometry(self.sampling).items()),
            prompt=json.dumps(self.prompt, ensure_ascii=False),
            sampling_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance_scale,
            seed=self.sampling.seed,
            negative=f"    negative_prompt={json.dumps(negative, ensure_ascii=False)},\n" if negative else "",
            clip_skip=f"    clip_skip={self.clip_skip},\n" if self.clip_skip else "",
            scheduler=self.scheduler,
            reproduction_note=CLIP_SKIP_NOTE if self.clip_skip else self.reproduction_note,
            files=files,
            leading_sections="".join(f"\n{section}\n" for section in self.leading_sections),
            trailing_sections="".join(f"\n{section}\n" for section in self.trailing_sections),
            command=format_command_line(self.command).replace("````", ""),
        )

    def render_use(self) -> str:
        """Code that loads the base and the result."""
        code = USAGE_SNIPPETS[self.result].format(
            base=format_base_code(self.base),
            pipeline=self.pipeline,
            loader=choose_loader(self.base),
            load_path=json.dumps(self.load_path),
            load_embedding=format_embedding_code(self.model_class, self.load_path, self.token),
        )
        return code + "\npipe.register_to_config(force_zeros_for_empty_prompt=False)" * (
            self.empty_caption == "encoded"
        )


def read_geometry(sampling) -> dict[str, tuple[int, ...]]:
    """The size options of sampling that are set, as a pipeline takes them."""
    values = {key: getattr(sampling, key, None) for key in GEOMETRY_OPTIONS}
    return {key: tuple(map(int, value)) for key, value in values.items() if value}


def format_base_code(base: str) -> str:
    """Code that names the base model: a hub id, an embedded one, or a placeholder for a local folder or file."""
    name = to_inline_code_text(base)
    if name.startswith("sdft/assets/"):
        return f'from importlib.resources import files\n\nbase = str(files("sdft") / {name.removeprefix("sdft/")!r})'
    if is_local_path(base):
        kind = "folder" if choose_loader(base) == "from_pretrained" else "checkpoint file"
        return f"base = {f'/PATH/TO/{Path(name).name}'!r}  # the {kind} of the base model"
    return f"base = {name!r}"


def format_embedding_code(model_class: type[DiffusionModel], load_path: str, token: str | None) -> str:
    """Code that adds the tokens of an embedding to a pipeline: to its text encoder, or to each of several."""
    components = [pair for pair in model_class.component_names.items() if pair[1].startswith("text_encoder")]
    if len(components) == 1:
        return f"pipe.load_textual_inversion({json.dumps(load_path)}, weight_name={json.dumps(EMBEDDING_FILE)})"
    file, imports = json.dumps(EMBEDDING_FILE), "from safetensors.torch import load_file\n\n"
    if load_path != ".":
        file = f"hf_hub_download({json.dumps(load_path)}, {file})"
        imports = f"from huggingface_hub import hf_hub_download\n{imports}"
    code, token = f"{imports}vectors = load_file({file})\n", json.dumps(token, ensure_ascii=False)
    for (part, component), tokenizer in zip(components, model_class.tokenizer_names, strict=True):
        arguments = f"token={token}, text_encoder=pipe.{component}, tokenizer=pipe.{tokenizer}"
        code += f'pipe.load_textual_inversion(vectors["{part}"], {arguments})\n'
    return code + model_class.new_token_code


def choose_loader(base: str) -> str:
    """The method of a diffusers pipeline that opens the base model: a folder, a hub id, or a file in the original layout."""
    return "from_single_file" if is_local_path(base) and base.endswith(".safetensors") else "from_pretrained"


def get_method_tag(class_name: str) -> str:
    """The tag of a method by its class name."""
    return METHOD_TAGS.get(class_name, class_name.lower())


def to_inline_code_text(text: str) -> str:
    """Text that is safe between backticks, also in a table: one line without backticks or bars."""
    return "".join(char for char in str(text) if char.isprintable() and char not in "`|")


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
        pipeline=module.model.pipeline_names["text_to_image"],
        empty_caption=module.model.empty_caption,
        token=getattr(module.method, "placeholder_token", None),
        clip_skip=module.model.diffusers_clip_skip,
        method=get_method_tag(type(module.method).__name__),
        steps=module.trainer.global_step,
        resolution=resolution,
        prompt=prompts[0],
        sampling=sampling,
        command=command,
        dora=getattr(module.method, "use_dora", False),
        scheduler=format_scheduler_code(sampling.create_scheduler(module.model)) if sampling.scheduler else "",
    )
    (folder / "README.md").write_text(card.render(), encoding="utf-8")
    shutil.copyfile(folder.parent / "samples.png", folder / "samples.png")


def format_scheduler_code(scheduler) -> str:
    """Code that gives a pipeline this scheduler, with all settings that differ from its defaults."""
    class_name, config = type(scheduler).__name__, json.loads(scheduler.to_json_string())
    defaults = {name: parameter.default for name, parameter in signature(type(scheduler)).parameters.items()}
    changed = {key: value for key, value in config.items() if key in defaults and value != defaults[key]}
    return f"from diffusers import {class_name}\n\npipe.scheduler = {class_name}.from_config({changed!r})\n"

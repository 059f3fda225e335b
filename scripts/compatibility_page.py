"""The page of `compatibility.py`."""

EXACT = 1e-4  # a relative error below this is rounding

PAGE = """# Compatibility: which tools read the files of a run

Made by `python -m scripts.compatibility`: random adapters on narrow models with all layers of the published ones, read by plain
diffusers and by the key names and formulas of the other tools. Numbers are the relative error of the change in weights,
|read − written| / |written|: `exact` is rounding, 1 is no effect, — is a format that the tool does not read.

Environments: {environments}.

## `pytorch_lora_weights.safetensors` (diffusers)

{diffusers}

The scale alpha / rank is part of `lora_B`, so that alpha equals the rank, and all layers of a part have one rank: older diffusers
reads no alpha there, and scales other ranks wrongly. ComfyUI does not know these names for the attention layers of the UNet:
give it, and WebUIs, the kohya file.

## `NAME-kohya.safetensors` (sd-scripts, ComfyUI, A1111, LyCORIS)

{kohya}

LoHa, LoKr and PiSSA are saved as the LoRA they equal, which every tool reads. The alpha of rank-stabilized LoRA is alpha · √rank.

**DoRA is wrong in most tools in this format**, which do not agree on `dora_scale`: sd-scripts and diffusers ignore it, ComfyUI
divides by the norms of the base weights, A1111 by those of the inputs. Use the diffusers file in diffusers, and elsewhere the
nearest plain LoRA: [LoRA files](lora_files.md).

## Models and embeddings

{others}

`exact` covers all weights and the token ids of prompts with accents, emoji and Chinese characters. diffusers reads the single
file offline with a folder of configurations, `from_single_file(FILE, config=FOLDER)`. The embedding of Stable Diffusion XL has a
tensor per text encoder, which is loaded as the model card says.
"""


def render_page(adapters: dict[str, dict], others: dict[str, dict]) -> str:
    """Markdown from errors by model, `KIND/FORMAT` or name of a file, and reader."""
    tables = {name: {} for name in ("diffusers", "kohya")}
    for model, rows in adapters.items():
        for key, row in rows.items():
            kind, name = key.split("/")
            tables[name].setdefault(model, {})[kind] = row
    first_row = next(iter(next(iter(others.values())).values()))
    return PAGE.format(
        **{name: render_tables("adapter", by_model) for name, by_model in tables.items()},
        others=render_tables("file", others),
        environments="; ".join(reader.replace(", ", " with ") for reader in first_row),
    )


def render_tables(label: str, by_model: dict[str, dict]) -> str:
    return "\n\n".join(f"{model}:\n\n{render_table(label, rows)}" for model, rows in by_model.items())


def render_table(label: str, rows: dict[str, dict]) -> str:
    """The columns of environments are narrow: they have only the version of diffusers."""
    readers = list(next(iter(rows.values())))
    lines = [[label, *(reader.partition(",")[0] for reader in readers)], ["---"] * (len(readers) + 1)]
    lines += [[name, *(format_error(row[reader]) for reader in readers)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_error(error: float | str | None) -> str:
    if error is None:
        return "—"
    if isinstance(error, str):
        return error
    return "exact" if error < EXACT else f"**{error:#.2g}**"

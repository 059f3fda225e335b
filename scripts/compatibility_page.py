"""The page of `compatibility.py`."""

EXACT = 1e-4  # a relative error below this is rounding

PAGE = """# Compatibility: which tools read the files of a run

Made by `python -m scripts.compatibility`: random adapters on a narrow Stable Diffusion 1.5 with all its layers, read by plain
diffusers in each environment and by the key names and formulas of the other tools. Numbers are the relative error of the
change in weights, |read − written| / |written|: `exact` is rounding, 1 is no effect, — is a format that the tool does not read.

## `pytorch_lora_weights.safetensors` (diffusers)

{diffusers}

The scale alpha / rank is part of `lora_B`, so that alpha equals the rank, and all layers of a part have one rank: older diffusers
reads no alpha there, and scales other ranks wrongly. ComfyUI does not know these names for the attention layers of the UNet of
Stable Diffusion 1 and 2: give it, and WebUIs, the kohya file.

## `NAME-kohya.safetensors` (sd-scripts, ComfyUI, A1111, LyCORIS)

{kohya}

LoHa, LoKr and PiSSA are saved as the LoRA they equal, which every tool reads. The alpha of rank-stabilized LoRA is alpha · √rank.

**DoRA is wrong in most tools in this format**, which do not agree on `dora_scale`: sd-scripts and diffusers ignore it, ComfyUI
divides by the norms of the base weights, A1111 by those of the inputs. Use the diffusers file in diffusers, and elsewhere the
nearest plain LoRA: [LoRA files](lora_files.md).

## Models and embeddings

{others}

`exact` covers all weights and the token ids of prompts with accents, emoji and Chinese characters.
"""


def render_page(adapters: dict[str, dict], others: dict[str, dict]) -> str:
    """Markdown from `KIND/FORMAT` and file names by reader."""
    by_format = {
        name: {key.partition("/")[0]: row for key, row in adapters.items() if key.endswith(f"/{name}")}
        for name in ("diffusers", "kohya")
    }
    return PAGE.format(
        diffusers=render_table("adapter", by_format["diffusers"]),
        kohya=render_table("adapter", by_format["kohya"]),
        others=render_table("file", others),
    )


def render_table(label: str, rows: dict[str, dict]) -> str:
    readers = list(next(iter(rows.values())))
    lines = [[label, *readers], ["---"] * (len(readers) + 1)]
    lines += [[name, *(format_error(row[reader]) for reader in readers)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_error(error: float | str | None) -> str:
    if error is None:
        return "—"
    if isinstance(error, str):
        return error
    return "exact" if error < EXACT else f"**{error:.2g}**"

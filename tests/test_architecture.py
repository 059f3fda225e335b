"""The arrows of the house run one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sdft"
# lowest first; a module imports only what stands before its own layer
LAYERS = [
    ["processes", "asleep"],
    ["lean"],
    [
        "draws",
        "config",
        "schedule",
        "precision",
        "strategy",
        "tracking",
        "optimizer",
        "tokenizer",
        "assets",
        "files",
        "drawn",
        "threads",
        "lock",
        "fitting",
        "help_page",
        "compiled",
        "templates",
        "schedulers",
        "grids",
        "lora.factors",
    ],
    ["checkpoints", "metrics_file", "loggers", "layout"],
    ["loop", "checkpoint_io", "jobs", "resume"],
    ["reproduce"],
    ["launchers.local", "launchers.call"],
    ["launchers.slurm", "launchers.ray_cluster"],
    ["publishing.triggers"],
    [
        "record",
        "publishing.modelspec",
        "data.scan",
        "prompts",
        "digest",
        "lora.equivalent",
        "curves",
        "charts",
        "model",
        "objective",
    ],
    ["metrics.embedder", "metrics.base", "sharding", "generation.metadata", "generation.axes", "lora.architecture"],
    ["morph.inversion", "morph.interpolation", "lora.blend"],
    ["lora.names"],
    ["lora.tensors"],
    ["lora.file", "lora.learned"],
    ["data.images", "data.buckets", "data.plan", "data.source"],
    ["data.tables", "data.view"],
    ["consistency", "smoothness", "morph.attention", "morph.pair"],
    [
        "loading",
        "data.folder",
        "data.digits",
        "data.stream",
        "sampling",
        "lora.export",
        "protocol",
        "stylise.controlnet",
    ],
    ["metrics.clip", "metrics.dino", "metrics.faces", "pictures", "scores", "timeline", "morph.film"],
    ["morph.morph"],
    ["metrics.prompt", "metrics.subject", "metrics.copies", "metrics.zero_shot", "metrics.distribution"],
    ["metrics.perceptual", "metrics.drift", "metrics.identity", "metrics.diversity"],
    ["data.module", "data.cache", "data.prior", "data.hub", "data.shards", "data.report", "methods.base"],
    ["assets.tokenizer", "assets.vae", "assets.clip", "methods.lora", "methods.sft", "methods.textual_inversion"],
    ["methods.pretrain", "methods.lcm_lora", "module", "ghosts"],
    ["memory"],
    ["disk", "advice"],
    [
        "exam",
        "states",
        "calibration",
        "lora.adapters",
        "generation.strengths",
        "lora.mixing",
        "lora.contents",
        "lora.single_file",
    ],
    ["lora.merging"],
    ["suite"],
    ["exhibits", "asked", "stylise.restyling"],
    ["apps.model", "apps.files", "generation.again"],
    ["generation.generation"],
    ["generation.order", "generation.sheets"],
    ["page"],
    ["results"],
    ["compare_page"],
    ["compare", "search"],
    ["overview"],
    ["combinations"],
    ["sweep"],
    ["command"],
    [
        "callbacks.checkpoints",
        "callbacks.meters",
        "callbacks.numbers",
        "callbacks.stops",
        "callbacks.rescue",
        "callbacks.ema",
        "callbacks.gradients",
        "publishing.card",
        "preflight",
    ],
    [
        "callbacks.validation",
        "callbacks.samples",
        "callbacks.progress",
        "callbacks.spikes",
        "evaluation",
        "publishing.sections",
    ],
    ["publishing.publication", "publishing.upload"],
    ["dashboard", "morph.portrait"],
    ["gallery.facts", "gallery.inside", "gallery.guard"],
    ["gallery.prints", "gallery.scores", "gallery.series", "gallery.shelf"],
    ["gallery.overview"],
    ["gallery.run_page"],
    ["gallery.pair_page"],
    ["gallery.app"],
    ["gallery.serving"],
    ["callbacks.evaluations"],
    ["callbacks.export"],
    ["build", "closing"],
    ["opening"],
    ["training", "panels", "apps.inspect", "apps.generate", "apps.publish", "apps.stylise", "apps.morph"],
    ["apps.dashboard", "apps.gallery"],
    ["apps.mix", "apps.merge", "apps.extract", "apps.resize", "apps.convert", "apps.show"],
]
LAYER = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}


def modules() -> dict[str, Path]:
    files = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in files.items() if name != "__init__"}


def imports(path: Path) -> set[str]:
    """The project's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module != "sdft", f"{path}: import from the module itself"
            found |= {node.module} if node.module.startswith("sdft.") else set()
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("sdft")}
    return {name.removeprefix("sdft.") for name in found}


@pytest.mark.parametrize("name", [n for n in modules() if n in LAYER or modules()[n].read_text() != ""])
def test_a_module_imports_only_from_layers_below(name):
    assert name in LAYER, f"sdft/{name} has no layer"
    assert not {other for other in imports(modules()[name]) if LAYER[other] >= LAYER[name]}


def test_files_and_functions_stay_short():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert len(path.read_text().splitlines()) <= 250, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.name}"


def test_the_objective_and_the_draws_import_nothing_of_ours():
    for name in ("draws", "config", "objective"):
        assert not imports(modules()[name])


def test_the_two_programs_stay_under_forty_lines():
    for name in ("train.py", "evaluate.py"):
        assert len((PACKAGE.parent / name).read_text().splitlines()) < 40

"""The structure that docs/architecture.md draws: layers, short files and functions, public APIs only."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sdft"
MODULES = sorted(PACKAGE.rglob("*.py"))
TOP_LEVEL = {"__init__", "__main__", "config", "rng", "distributed"}
MAX_PACKAGES = 12
MAX_IMPORTS = 12  # of our own modules, imports inside functions counted
MAX_FILE, MAX_FUNCTION = 250, 50  # lines
THIRD_PARTY_PRIVATE = {  # accesses to private names of dependencies, each with its reason
    "sdft/training/fake_tensors.py: from torch.utils._python_dispatch import TorchDispatchMode": (
        "documented extension point without a public alias; FakeTensorMode is private too and slower"
    ),
    "sdft/training/fake_tensors.py: Tensor._make_wrapper_subclass": (
        "documented extension point without a public alias; a meta tensor must report another device for its kernels"
    ),
    "sdft/training/master_weights.py: torch._foreach_copy_": "documented foreach operation, whose names all begin so",
    "sdft/training/master_weights.py: torch._foreach_add_": "documented foreach operation, whose names all begin so",
}
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_args_", "_recursive_"}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def test_imports_point_downward_and_have_no_cycle(monkeypatch):
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


def test_the_package_is_about_ten_packages():
    assert {file.stem for file in PACKAGE.glob("*.py")} <= TOP_LEVEL
    assert len([folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()]) <= MAX_PACKAGES


def own_imports(tree: ast.Module) -> set[str]:
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.startswith("sdft.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sdft"):
            for alias in node.names:
                file = ROOT / node.module.replace(".", "/") / f"{alias.name}.py"
                modules.add(f"{node.module}.{alias.name}" if file.is_file() else node.module)
    return modules


def test_no_module_imports_many_others():
    counts = {str(file.relative_to(ROOT)): len(own_imports(parse(file))) for file in MODULES}
    print(f"own imports per module: {sum(counts.values()) / len(counts):.2f} in the mean, of {len(counts)} modules")
    assert not {name for name, count in counts.items() if count > MAX_IMPORTS}


def test_files_and_functions_are_short():
    long = {}
    for file in MODULES:
        name, text = str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MAX_FILE:
            long[name] = lines
        for node in ast.walk(ast.parse(text)):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION:
                long[f"{name}:{node.name}"] = lines
    assert not long


def private_accesses(file: Path):
    """`path: expression` of every private name that is not this package's own."""
    tree, where = parse(file), file.relative_to(ROOT).as_posix()
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value)
    } | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not (is_self(node.value) and node.attr in own):
            yield f"{where}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sdft"):
            names = [*(node.module or "").split("."), *[alias.name for alias in node.names]]
            if any(map(is_private, names)):
                yield f"{where}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if is_private(str(name)):
                yield f"{where}: {ast.unparse(node)}"


def is_private(name: str) -> bool:
    return bool(re.match(r"_[A-Za-z]", name)) and name not in HYDRA_KEYS | {"_exit"}


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_dependencies_are_used_through_public_names():
    used = {access for file in MODULES for access in private_accesses(file)}
    assert used == set(THIRD_PARTY_PRIVATE) and len(used) <= 8


@pytest.mark.parametrize(
    "pattern", [r"sys\.meta_path", r"sys\.modules\[[^\]]*\] *=", r"MetaPathFinder", r"sys\.modules\.update"]
)
def test_no_other_package_is_hidden_or_replaced(pattern):
    files = [*MODULES, *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert not [file for file in files if re.search(pattern, file.read_text(encoding="utf-8"))]


def test_text_reaches_the_terminal_through_one_function():
    """`print_text` escapes names, captions and metadata of others."""
    calls = {
        file.relative_to(PACKAGE).as_posix()
        for file in MODULES
        for node in ast.walk(parse(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    }
    assert calls == {"runs/terminal.py"}


def test_the_losses_import_only_each_other():
    for file in (PACKAGE / "losses").glob("*.py"):
        assert all(name.startswith("sdft.losses") for name in own_imports(parse(file)))


@pytest.mark.parametrize("package", ["training", "losses", "data", "methods"])
def test_training_names_no_family_of_models(package):
    """Whatever differs between families is an attribute or a method of the model."""
    for file in (PACKAGE / package).rglob("*.py"):
        text = file.read_text(encoding="utf-8").replace("JPEG XL", "")
        terms = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)
        assert not {"xl", "sdxl"} & {term.lower() for term in terms}, file


def test_below_the_command_line_nothing_reads_its_state():
    """A run can be started from Python: arguments and Hydra's state are passed in, exits are exceptions."""
    above = {"__main__.py", "cli", "apps"}
    names = {"HydraConfig", "sys.argv", "sys.exit", "signal.signal"}
    wrong = set()
    for file in MODULES:
        if file.relative_to(PACKAGE).parts[0] in above:
            continue
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in names:
                wrong.add(f"{file.relative_to(ROOT)}: {ast.unparse(node)}")
    assert not wrong

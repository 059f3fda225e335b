"""Names are the field's terms: no private vocabulary, no two things with one name, functions are verbs with an object."""

import ast
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [file for folder in ("sdft", "benchmarks", "scripts") for file in (ROOT / folder).rglob("*.py")]
SOURCES += [ROOT / "train.py", ROOT / "evaluate.py"]
TESTS = [*(ROOT / "tests").rglob("*.py")]
# stems of a private vocabulary
STEMS = """
    told asked exam judge judges judged picture pictures word words learns learned taught alone kept shown ghost
    ghosts bedroom sleeper shelf whoever wear chance untold
"""
# words of text or of memory, which are called so
ALLOWED = """
    trigger_words find_trigger_words stop_words max_frequent_words wrap_long_words word_bytes sum_words
    end_of_word_suffix learnedperceptualimagepatchsimilarity words test_caption_words_are_optional
    test_command_uses_the_runs_trigger_words_and_requires_a_prompt_without_run
    test_trigger_words_come_from_options_or_captions
"""
# English adjectives and participles that say nothing about what a function does
BARE = """
    told asked kept plain alone opened named shown whole flat chosen met called closed given made found done held
    known seen spread wanted worded listed understood mended trained composed faked reduced balanced cut drawn taken
    written postponed
"""


def identifiers(tree: ast.AST):
    """Every name that a file binds or reads, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).rpartition(".")[2], 0


def parts(name: str) -> list[str]:
    """`HeldOut_split` -> held, out, split."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


@pytest.mark.parametrize("files", [SOURCES, TESTS], ids=["package", "tests"])
def test_no_identifier_holds_a_private_stem(files):
    stems, allowed = set(STEMS.split()), set(ALLOWED.split())
    wrong = {
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files
        for name, line in identifiers(ast.parse(file.read_text(encoding="utf-8")))
        if stems & set(parts(name)) and name.lower() not in allowed
    }
    assert not wrong, "\n".join(sorted(wrong))


def definitions(kinds, public: bool = True):
    for file in SOURCES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, kinds) and not (public and node.name.startswith("_")):
                yield node.name, file.relative_to(ROOT)


def test_no_two_public_classes_have_one_name():
    counts = Counter(name for name, _ in definitions(ast.ClassDef))
    assert not [name for name, count in counts.items() if count > 1]


def test_no_function_is_a_bare_participle():
    names = chain.from_iterable(
        (
            node.name
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        )
        for file in SOURCES
    )
    assert not {name for name in names if name in BARE.split()}

"""The rules that keep the house simple, read from the sources: who imports whom, what appears once, what is documented.

A failure names the file and the line. The rule is the point, not the test: change the code first.
"""

from __future__ import annotations

import ast
import copy
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrail
from vitrail import recipes
from vitrail.models import printed_figures, title

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vitrail"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

FLOORS = [  # from the ground up; what stands on one line does not know its neighbours
    {"errors"},
    {"layers"},
    {"weights", "data"},
    {"models"},
    {"recipe", "checkpoint"},
    {"run"},
    {"engines"},
    {"training", "interpretability", "formats", "recipes"},
    {"comparison"},
    {"verbs"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
]

NAMES = """
Recipe compare create_model describe doctor evaluate explain export inspect list_models load optimize predict
read_image record robustness train
"""


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def wing(path: Path) -> str:
    """The package, or the module beside the packages, that a file of vitrail belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """What a file imports from vitrail, also inside functions: the node, and the full name of the module."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names if alias.name.startswith("vitrail."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node)} imports relatively; write the full name"
            if node.module == "vitrail":
                yield from ((node, f"vitrail.{alias.name}") for alias in node.names if alias.name != "__version__")
            elif node.module and node.module.startswith("vitrail."):
                yield node, node.module


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, FUNCTION))


def family_files() -> dict[Path, list[str]]:
    """Every model file with its VARIANTS' names."""
    found = {}
    for path in sorted((PACKAGE / "models").glob("[a-z]*.py")):
        for node in TREES[path].body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARIANTS":
                assert isinstance(node.value, ast.Dict), f"{where(path, node)}: VARIANTS is no literal dict"
                found[path] = [ast.literal_eval(key) for key in node.value.keys if key]
    return found


FAMILIES = family_files()

# ---------------------------------------------------------------------- structure


def test_every_file_stands_on_a_floor() -> None:
    assert {wing(path) for path in SOURCES} == set().union(*FLOORS)


def test_imports_go_down() -> None:
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for path in SOURCES:
        for node, name in imports(path):
            own, other = wing(path), name.split(".")[1]
            if other != own and height[other] >= height[own]:
                wrong.append(f"{where(path, node)}: {own} imports {name}")
    assert not wrong


def test_light_modules_import_no_torch() -> None:
    """What answers `vitrail --help`, `models`, `recipes` and `train --help`, in a Python of its own."""
    code = """
import sys, vitrail
import vitrail.cli, vitrail.commands, vitrail.errors, vitrail.recipe, vitrail.weights
from vitrail import models, recipes
assert models.list_models() and models.summaries() and recipes.list_recipes() and vitrail.cli.help_text()
print(*sorted(name for name in ("torch", "torchvision", "numpy", "matplotlib") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_public_names() -> None:
    assert vitrail.__all__ == NAMES.split()
    for name in vitrail.__all__:
        value = getattr(vitrail, name)
        assert callable(value), name
        assert value.__doc__, f"vitrail.{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = vitrail.trian
    assert set(vitrail.__all__) < set(dir(vitrail))


def test_sizes() -> None:
    long_files = [f"{path.relative_to(ROOT)}" for path in SOURCES if len(path.read_text().splitlines()) > 400]
    assert not long_files, "split by idea, not by length"
    lengths = {
        f"{where(path, node)} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in TREES.items()
        for node in functions(tree)
    }
    assert not {name: length for name, length in lengths.items() if length > 60}
    assert sorted(lengths.values())[len(lengths) // 2] <= 12, "the median function has become long"
    assert max(len(path.relative_to(PACKAGE).parts) for path in SOURCES) <= 3


def test_names() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "base", "misc", "cfg"}
    assert not [path for path in SOURCES if vague & {path.stem, path.parent.name} or path.stem.startswith("legacy")]
    keywords = [
        f"{where(path, node)} {node.name}"
        for path, tree in TREES.items()
        for node in functions(tree)
        if node.args.kwarg
    ]
    assert [text.split()[-1] for text in keywords] == ["create_model"], "only create_model takes **keywords"


# ---------------------------------------------------------------------- once


def test_attention_is_computed_in_one_file() -> None:
    """Fused attention anywhere, and softmax among layers and models, appear in layers/attention.py only. Elsewhere a
    softmax makes probabilities of classes."""
    fused = {
        "scaled_dot_product_attention",
        "flex_attention",
        "multi_head_attention_forward",
        "MultiheadAttention",
        "TransformerEncoderLayer",
        "TransformerDecoderLayer",
    }
    soft = {"softmax", "log_softmax", "Softmax", "Softmax2d"}
    wrong: list[str] = []
    right: list[str] = []
    for path, tree in TREES.items():
        refused = fused | (soft if wing(path) in ("layers", "models") else set())
        for node in ast.walk(tree):
            names = {getattr(node, "attr", None), getattr(node, "id", None)}
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
            if names & refused:
                (right if path.name == "attention.py" and wing(path) == "layers" else wrong).append(where(path, node))
    assert not wrong, "call attend, or attention_weights and observe"
    assert len(right) >= 2, "the rule no longer finds what it guards"


def normalised(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The body without docstring and types, its own variables numbered in order: the same text for the same code."""
    function = copy.deepcopy(function)
    if ast.get_docstring(function, clean=False) is not None:
        function.body = function.body[1:]
    own = [arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)]
    body = ast.Module(function.body, [])
    own += [node.id for node in ast.walk(body) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    number = {name: f"v{k}" for k, name in enumerate(dict.fromkeys(own))}
    for node in ast.walk(body):
        if isinstance(node, ast.Name):
            node.id = number.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.arg, node.annotation = number.get(node.arg, node.arg), None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.unparse(body)


def test_no_function_is_written_twice() -> None:
    seen = defaultdict(list)
    for path, tree in TREES.items():
        for node in functions(tree):
            body = normalised(node)
            if len(body.splitlines()) >= 6:
                seen[body].append(f"{where(path, node)} {node.name}")
    assert not [places for places in seen.values() if len(places) > 1]


def test_duplicate_detector_sees_through_names() -> None:
    one, two, other = (
        ast.parse(text).body[0]
        for text in (
            'def f(a, b: int):\n    "doc"\n    c = a + b\n    return g(c)',
            "def h(x, y):\n    z = x + y\n    return g(z)",
            "def f(a, b):\n    c = a + b\n    return k(c)",
        )
    )
    assert isinstance(one, ast.FunctionDef)
    assert isinstance(two, ast.FunctionDef)
    assert isinstance(other, ast.FunctionDef)
    assert normalised(one) == normalised(two) != normalised(other)


# ---------------------------------------------------------------------- everything is read


def reads(paths: list[Path], owner: str) -> set[str]:
    """Attributes that are read of anything called `owner`: `config.depth`, `self.config.depth`, `run.recipe.seed`."""
    return {
        node.attr
        for path in paths
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and re.search(rf"(^|[._]){owner}$", ast.unparse(node.value))
    }


def fields(path: Path, name: str) -> list[str]:
    found = next(node for node in TREES[path].body if isinstance(node, ast.ClassDef) and node.name == name)
    return [ast.unparse(node.target) for node in found.body if isinstance(node, ast.AnnAssign)]


@pytest.mark.parametrize(
    "path",
    [path for path in FAMILIES if any(isinstance(n, ast.ClassDef) and n.name == "Config" for n in TREES[path].body)],
    ids=lambda path: path.stem,
)
def test_every_config_field_is_read(path: Path) -> None:
    """By the family's own file, by the file that its model extends, or by the protocol of the CNNs."""
    models = [PACKAGE / "models" / f"{name.split('.')[2]}.py" for _, name in imports(path) if name.count(".") == 2]
    near = [path, *(file for file in models if file in TREES), PACKAGE / "models" / "torchvision_cnn.py"]
    assert not set(fields(path, "Config")) - reads(near, "config")


@pytest.mark.parametrize("name", ["Data", "Augment", "Optim", "Schedule", "Recipe"])
def test_every_recipe_field_is_read(name: str) -> None:
    lists = ("recipes", "recipe", "limits")  # they set and check values; reading means acting on them
    acting = [path for path in SOURCES if wing(path) not in lists and path.stem not in lists]
    assert not set(fields(PACKAGE / "recipe.py", name)) - reads(acting, name.lower())


def test_unread_arguments_and_warnings_are_errors() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    lint = settings["ruff"]["lint"]
    assert {"ARG", "F", "B", "I", "UP"} <= set(lint["select"])
    assert not [rule for rule in lint["ignore"] if rule.startswith(("ARG", "F", "B"))]
    assert "per-file-ignores" not in lint
    assert settings["pytest"]["ini_options"]["filterwarnings"][0] == "error"
    assert settings["mypy"]["check_untyped_defs"]


# ---------------------------------------------------------------------- what is written about


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_a_model_file_reads_like_its_paper(path: Path) -> None:
    text = ast.get_docstring(TREES[path]) or ""
    assert len(title(text)) > 10, "the paper's title ends in the first full stop"
    assert re.search(r"arXiv \d{4}\.\d{4,5}", text)
    parts = re.findall(r"^(Idea|Differs|Shapes|Lecture)  +\S", text, re.MULTILINE)
    assert parts == ["Idea", "Differs", "Shapes", "Lecture"]
    assert list(printed_figures(text)) == FAMILIES[path], "the table names every variant, in the order of VARIANTS"
    assert all("params" in row for row in printed_figures(text).values())


def test_every_name_is_in_one_file() -> None:
    names = [name for found in FAMILIES.values() for name in found]
    assert sorted(set(names)) == sorted(names)


def test_every_file_says_its_idea_and_every_class_what_it_is() -> None:
    silent = [path for path in SOURCES if not ast.get_docstring(TREES[path])]
    classes = [
        where(path, node)
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not silent + classes


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_recipe_says_command_and_expectation(name: str) -> None:
    file, _, function = name.partition("/")
    text = getattr(importlib.import_module(f"vitrail.recipes.{file}"), function or file).__doc__
    command = re.search(r"^ +Command   vitrail train ?(.*)$", text, re.MULTILINE)
    assert command
    assert re.search(r"^ +Expected  \S", text, re.MULTILINE)
    words = command[1].split()
    said = words[words.index("--recipe") + 1] if "--recipe" in words else "scratch" if words else "quickstart"
    assert said == name, "the command is the one that runs this recipe"


# ---------------------------------------------------------------------- the files speak of the project alone


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout, so nothing says which files are the project's")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine() -> None:
    folders = "|".join(("home", "root", "Users", "opt", "work", "srv", "mnt"))
    hosts = "|".join(("artifactory", "nexus", "devpi", r"\.internal\b", r"\.corp\b"))
    pattern = re.compile(rf"(?<![\w.}}*~])/(?:{folders})/\w|(?:{hosts})", re.IGNORECASE)
    assert pattern.search("see /opt/tools/x")
    assert not pattern.search("https://example.org/srv/x and ~/srv/x")
    wrong = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture
        wrong += [
            f"{path.relative_to(ROOT)}:{k}: {line.strip()[:100]}"
            for k, line in enumerate(lines, 1)
            if pattern.search(line)
        ]
    assert not wrong

"""The layers of the package: imports point down, some libraries are never imported, and starting up is immediate."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import openblip

SOURCE = Path(openblip.__file__).parent

# Layers, from the bottom to the top, as docs and design draw them. A layer imports the layers that it names and those
# that these name; imports for type checkers count. A module belongs to the longest name here that it starts with.
LAYERS: dict[str, set[str]] = {
    "_version": set(),
    "confidence": {"errors"},
    "defaults": set(),
    "drawing": set(),
    "errors": set(),
    "extras": {"errors"},
    "generation": {"errors"},
    "heap": set(),
    "io": {"_version", "errors", "extras"},
    "processor": set(),
    "results": {"drawing", "io"},
    "tasks": {"errors"},
    # Torch-free parts of packages that otherwise need torch.
    "model.config": {"errors", "tasks"},
    "checkpoints.published": {"model.config"},
    "checkpoints.layouts": {"checkpoints.published", "confidence"},
    "data.visdial": {"errors"},
    # The model and its inputs.
    "model": {"heap", "model.config", "processor"},
    "preprocess": {"_version", "errors", "extras", "heap", "io"},
    "decoding": {"io", "model", "preprocess"},
    "checkpoints": {"checkpoints.layouts", "generation", "io", "model", "preprocess"},
    "engine": {"decoding", "defaults", "extras", "io"},
    # The public API.
    "pipelines": {"checkpoints", "engine", "results"},
    "signatures": {"pipelines"},
    "blip": {"pipelines", "signatures"},
    # Data and training.
    "data": {"data.visdial", "model.config", "preprocess"},
    "training": {"checkpoints", "data", "engine", "evaluation.metrics"},
    # Applications of the public API.
    "bench": {"blip"},
    "jobs": {"blip", "data"},
    "evaluation.metrics": {"confidence", "errors", "extras"},
    "evaluation.files": {"evaluation.metrics", "io"},
    "evaluation.protocols": {"data.visdial", "evaluation.files", "model.config", "preprocess"},
    "evaluation.tables": {"evaluation.metrics"},
    "evaluation.report": {"drawing", "evaluation.files", "evaluation.tables", "preprocess"},
    "evaluation": {"blip", "data", "evaluation.protocols", "evaluation.report"},
    "compat": {"blip", "data", "training"},
    # The Keras classes take the parts of `compat` that need no torch; a test below follows their imports.
    "keras": {"compat"},
    "capfilt": {"jobs"},
    "export": {"pipelines"},
    "search": {"jobs"},
    "serving": {"search"},
    "bootstrap": {"capfilt", "training"},
    "cli": {"bench", "bootstrap", "capfilt", "evaluation", "export", "jobs", "search", "serving", "training"},
}


def may_import(layer: str) -> set[str]:
    """The layers below one, and itself."""
    return {layer}.union(*(may_import(below) for below in LAYERS[layer]))


# Modules that load without torch, so that names, help and errors are there at once.
NO_TORCH = (
    "openblip",
    "openblip.confidence",
    "openblip.defaults",
    "openblip.errors",
    "openblip.extras",
    "openblip.results",
    "openblip.tasks",
    "openblip.model.config",
    "openblip.checkpoints.published",
    "openblip.checkpoints.hub",
    "openblip.checkpoints.resolve",
    "openblip.io.atomic",
    "openblip.io.download",
    "openblip.io.hashing",
    "openblip.io.jsonlines",
    "openblip.io.progress",
    "openblip.checkpoints.fingerprint",
    "openblip.checkpoints.layouts",
    "openblip.checkpoints.folder",
    "openblip.compat.transformers_api.config",
    "openblip.compat.transformers_api.misfit",
    "openblip.compat.transformers_api.options",
    "openblip.compat.transformers_api.outputs",
    "openblip.compat.transformers_api.processing",
    "openblip.decoding.options",
    "openblip.engine.choice",
    "openblip.processor",
    "openblip.preprocess.image",
    "openblip.preprocess.text",
    "openblip.jobs.answers",
    "openblip.jobs.captions",
    "openblip.jobs.edits",
    "openblip.jobs.explanations",
    "openblip.jobs.matches",
    "openblip.jobs.run",
    "openblip.jobs.sheet",
    "openblip.jobs.sinks",
    "openblip.capfilt.folder",
    "openblip.capfilt.report",
    "openblip.capfilt.rethreshold",
    "openblip.capfilt.rows",
    "openblip.capfilt.summary",
    "openblip.data.sources.shards",
    "openblip.io.fetch",
    "openblip.jobs.executors",
    "openblip.jobs.ray",
    "openblip.jobs.sharded",
    "openblip.search",
    "openblip.training.config",
    "openblip.evaluation.metrics.captions",
    "openblip.evaluation.protocols",
    "openblip.evaluation.report",
    "openblip.cli",
)

# Where an import inside a function is right, and why.
LATE = {
    "openblip.engine.choice": {"torch"},  # only to ask a GPU for bf16
    "openblip.checkpoints.hub": {"huggingface_hub"},  # only for a hub folder
    "openblip.io.progress": {"rich"},  # only on a terminal
    "openblip.preprocess": {"torch", "tokenizers"},  # opening, resizing and cleaning need neither
    "openblip.compat.transformers_api": {"torch", "huggingface_hub"},  # a configuration alone needs neither
    "openblip.results": {"openblip"},  # drawing needs Pillow, and only notebooks draw
    "openblip.search.index": {"openblip"},  # listing and filtering need no model and no database
    "openblip.search.scan": {"faiss"},
    "openblip.keras.base": {"openblip"},  # the exports import the models
    "openblip.jobs.reporting": {"rich"},  # only on a terminal
    "openblip.training.reporters": {"torch"},  # its TensorBoard writer needs tensorboard, which is optional
    # `--help` is instant; a command loads what it runs.
    "openblip.cli": {"openblip", "torch", "rich", "huggingface_hub", "importlib"},
}

IMPORT_NAMES = {
    "pillow": "PIL",
    "faiss-cpu": "faiss",
    "faiss_cpu": "faiss",
    "pyyaml": "yaml",
    "tensorflow_cpu": "tensorflow",
    "tensorflow-cpu": "tensorflow",
}  # where the distribution's name is not the module's
SECONDS = 0.5
HELP = """
import openblip.cli, sys
sys.argv = ['openblip', {} '--help']
try:
    openblip.cli.main()
except SystemExit:
    pass
"""


HAS_KERAS = importlib.util.find_spec("keras") is not None  # the Keras classes have an environment of their own


class Import(NamedTuple):
    module: str  # who imports
    target: str  # what, in full; a name taken from a package is part of it if it is a module
    line: int
    late: bool  # inside a function
    typing: bool  # for type checkers only


@cache
def modules() -> dict[str, Path]:
    paths = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


@cache
def imports() -> tuple[Import, ...]:
    return tuple(each for module, path in modules().items() for each in _imports(module, path))


def _imports(module: str, path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        where = id(node) in late, id(node) in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, *where)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full_name = f"{node.module}.{alias.name}"
                target = full_name if full_name in modules() else str(node.module)
                yield Import(module, target, node.lineno, *where)


def layer_of(module: str) -> str:
    name = module.removeprefix("openblip").removeprefix(".")
    fitting = [layer for layer in LAYERS if name == layer or name.startswith(f"{layer}.")]
    return max(fitting, key=len, default=name)


def test_every_module_belongs_to_a_layer() -> None:
    homeless = [module for module in modules() if module != "openblip" and layer_of(module) not in LAYERS]
    assert homeless == [], "say in LAYERS what it may import"
    assert {layer_of(module) for module in modules()} - {""} == set(LAYERS), "every layer has a module"
    assert len(imports()) > 1000, "the walk over the sources finds their imports"
    assert sum(each.typing for each in imports()) > 50


def test_imports_point_down() -> None:
    wrong = [
        f"{each.module}:{each.line} imports {each.target}"
        for each in imports()
        if each.module != "openblip" and each.target.startswith("openblip.")
        if layer_of(each.target) not in may_import(layer_of(each.module))
    ]
    assert wrong == []


def test_lower_layers_do_not_import_the_package_itself() -> None:
    """Its names are those of the highest layers: a version or an error has a module of its own."""
    wrong = [f"{each.module}:{each.line}" for each in imports() if each.target == "openblip"]
    assert [line for line in wrong if not line.startswith(("openblip.cli", "openblip.compat"))] == []


def test_the_layers_have_no_circle() -> None:
    order: list[str] = []
    remaining = {name: below - {name} for name, below in LAYERS.items()}
    while remaining:
        free = [name for name, below in remaining.items() if not below & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        order += free
        for name in free:
            del remaining[name]
    assert order[0] == "_version"


def test_modules_import_each_other_in_no_circle() -> None:
    """Imports for type checkers count; those inside functions do not."""
    edges: dict[str, set[str]] = {module: set() for module in modules()}
    for each in imports():
        if each.target in edges and not each.late and each.target != each.module:
            edges[each.module].add(each.target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def distributions(extra: bool) -> set[str]:
    """The modules of what the package requires, or of what its extras for users require."""
    lines = importlib.metadata.requires("openblip") or ()
    chosen = [line for line in lines if ("extra ==" in line) is extra and "dev" not in line.partition("extra ==")[2]]
    names = {re.split(r"[^\w-]", line)[0].lower().replace("-", "_") for line in chosen}
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_late_imports_are_those_with_a_reason() -> None:
    optional = distributions(extra=True)  # looked for where they are needed
    unexplained = []
    for each in imports():
        reasons = [LATE[home] for home in LATE if each.module == home or each.module.startswith(f"{home}.")]
        if (
            each.late
            and not each.typing
            and not any(each.target.partition(".")[0] in allowed for allowed in (optional, *reasons))
        ):
            unexplained.append(f"{each.module}:{each.line} imports {each.target}")
    assert unexplained == []


def _is_optional(each: Import) -> bool:
    """Whether an import may need an extra: late, or in a package that as a whole needs one."""
    return each.late or each.module.startswith(("openblip.keras", "openblip.serving"))


def test_only_declared_packages_are_imported() -> None:
    always = distributions(extra=False) | sys.stdlib_module_names | {"openblip"}
    strangers = [
        f"{each.module}:{each.line} imports {each.target}"
        for each in imports()
        if each.target.partition(".")[0] not in (always | distributions(extra=True) if _is_optional(each) else always)
        if not each.typing
    ]
    assert "torch" in always
    assert "transformers" not in always | distributions(extra=True)
    assert strangers == []


def run(program: str) -> tuple[str, float]:
    """What a fresh interpreter prints for a program, and the seconds it took.

    They are seconds of the processor, start of the interpreter included: a busy machine makes them no longer.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_light_modules_import_no_torch() -> None:
    names = ", ".join(NO_TORCH)
    out, _ = run(f"import sys, {names}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))")
    assert out.strip() == "[]"


def test_the_keras_classes_import_no_torch() -> None:
    """Not even by way of other modules; their own environment, which has no torch, shows the same."""
    targets: dict[str, set[str]] = {}
    for each in imports():
        if not each.late and not each.typing:
            targets.setdefault(each.module, set()).add(each.target)
    reached = {"openblip", *(module for module in modules() if module.startswith("openblip.keras"))}
    waiting = list(reached)
    while waiting:
        for target in targets.get(waiting.pop(), ()):
            parts = target.split(".")
            new = {".".join(parts[:length]) for length in range(1, len(parts) + 1)} & modules().keys()
            waiting += new - reached
            reached |= new
            assert parts[0] != "torch"
    assert len(reached) > 30


def test_a_caption_needs_no_compiler() -> None:
    """PyTorch's takes a second and 75 MB to import, and anything that draws on the meta device imports it."""
    program = "import sys, openblip; from PIL import Image; openblip.load('pocket').caption(Image.new('RGB', (9, 9)));"
    out, _ = run(program + "print(sorted({'torch._dynamo', 'sympy'} & set(sys.modules)))")
    assert out.strip() == "[]"


def test_nothing_imports_transformers() -> None:
    names = [name for name in modules() if HAS_KERAS or not name.startswith("openblip.keras")]
    program = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    out, _ = run(program + "print('torch' in sys.modules, 'transformers' in sys.modules)")
    assert out.strip() == "True False"


@pytest.mark.parametrize(
    "program",
    ["import openblip", HELP.format(""), HELP.format("'caption',")],
    ids=["import", "help", "command-help"],
)
def test_starting_up_is_instant(program: str) -> None:
    seconds = []
    for _ in range(5):
        out, took = run(f"{program}\nimport sys; print('torch' in sys.modules)")
        assert out.endswith("False\n"), out
        seconds.append(took)
    print(f"best of 5: {min(seconds):.3f} s")
    assert min(seconds) < SECONDS


def test_every_exported_name_exists() -> None:
    for module in modules():
        if module.startswith("openblip.keras") and not HAS_KERAS:
            continue
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), f"{module}.{name}"
    assert len(openblip.__all__) == len(set(openblip.__all__))
    assert set(openblip.__all__) < set(dir(openblip)), "with the names that need an extra"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = openblip.nothing


def test_type_checkers_see_the_names_that_are_exported() -> None:
    tree = ast.parse(modules()["openblip"].read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    exported = {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert exported | {"__version__"} == {
        name for name in dir(openblip) if not name.startswith("_") or "version" in name
    }
    assert {name for name in exported if name.startswith("TF")} == exported - set(openblip.__all__)

"""Who may import whom (docs/architecture.md), read from the sources; nothing is imported here."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "hfgd_jax"
# From the ground up: a room imports its own modules and those of rooms above it in this list.
ROOMS = (
    *("errors", "geometry", "config", "runtime", "data", "models", "losses", "weights", "inference"),
    *("runs", "evaluation", "training", "export", "api"),
    *("figures", "report", "serve", "tools", "main", "cli"),
)
FILES_AND_OPTIMIZERS = {
    *(
        "absl",
        "cv2",
        "etils",
        "glob",
        "grain",
        "optax",
        "orbax",
        "os",
        "pathlib",
        "PIL",
        "safetensors",
        "shutil",
    ),
    *("tempfile", "tensorboardX", "tensorflow_datasets"),
}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# But for the package's own `__init__.py`, which loads the API when it is asked for it.
MODULES = {_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py")) if _name(path) != PACKAGE}


def _imports(name: str, *, inside_functions_only: bool = False) -> set[str]:
    """Modules that a module imports, whole names; of the package's own, the module that holds the thing."""
    tree = ast.parse(MODULES[name].read_text())
    nodes = ast.walk(tree)
    if inside_functions_only:
        functions = [
            n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ]
        nodes = (node for function in functions for node in ast.walk(function))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative import; write the whole name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys()
            if inner - MODULES.keys():
                found.add(node.module)
    return found


def _own(name: str) -> set[str]:
    return {other for other in _imports(name) if other.startswith(f"{PACKAGE}.")}


def _room(name: str) -> str:
    """`models` for hfgd_jax.models.layers, "" for the package itself."""
    return [*name.split("."), ""][1]


def _allow(room: str, *others: str) -> None:
    for name in (n for n in MODULES if _room(n) == room):
        wrong = {other for other in _own(name) if _room(other) not in (room, *others)}
        assert not wrong, f"{name} imports {', '.join(sorted(wrong))}; allowed: {', '.join(others)}"


def test_the_sources_are_seen():
    assert {"hfgd_jax.config.fields", "hfgd_jax.models", "hfgd_jax.tools.macs"} <= MODULES.keys()
    assert "hfgd_jax.geometry" in _own("hfgd_jax.models.segmenter")
    assert "hfgd_jax.models.macs" in _own("hfgd_jax.tools.macs")  # `from hfgd_jax.models import macs`
    assert {_room(name) for name in MODULES} == {*ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_lower_rooms_only(room):
    _allow(room, *ROOMS[: ROOMS.index(room)])


@pytest.mark.parametrize("room", ["models", "losses"])
def test_models_and_losses_know_arrays_only(room):
    _allow(room, "geometry", "config", "errors", *(["models"] if room == "losses" else []))  # of `Outputs`
    for name in (n for n in MODULES if _room(n) == room):
        wrong = {other.split(".")[0] for other in _imports(name)} & FILES_AND_OPTIMIZERS
        assert not wrong, f"{name} imports {', '.join(wrong)}: files and optimizers are not its business"


def test_data_and_runtime_know_nothing_of_models():
    _allow("data", "geometry", "config", "errors", "runtime")
    _allow("runtime", "config", "errors")


def test_collectives_are_in_one_module():
    """JAX's and orbax's are called `multihost_utils` and `multihost`."""
    users = {name for name, path in MODULES.items() if "multihost" in path.read_text()}
    assert users == {"hfgd_jax.runtime.collectives"}


def test_importing_a_module_defines_no_flag():
    for name, path in MODULES.items():
        for statement in ast.parse(path.read_text()).body:
            if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                text = ast.unparse(statement)
                assert "DEFINE_" not in text, f"{name} defines a flag when it is imported: {text}"


def test_inference_knows_nothing_of_runs_and_weights():
    _allow("inference", "geometry", "config", "errors", "runtime", "data", "models")


def test_a_bundles_loader_needs_jax_and_numpy_alone():
    """Pillow is imported where an image file is read, and nowhere else."""
    outside = {name.split(".")[0] for name in _imports("hfgd_jax.export.loader")} - sys.stdlib_module_names
    inside = _imports("hfgd_jax.export.loader", inside_functions_only=True)
    assert outside == {"jax", "numpy", "PIL"} and {name.split(".")[0] for name in inside} == {"PIL"}


def test_no_circles():
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in done:
            return
        for other in sorted(_own(name)):
            if other in MODULES:
                visit(other, (*way, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())


def test_no_own_module_is_imported_inside_a_function():
    for name in MODULES.keys() - {"hfgd_jax.cli"}:  # `hfgd --help` answers at once
        own = {n for n in _imports(name, inside_functions_only=True) if n.split(".")[0] == PACKAGE}
        assert not own, f"{name} imports {', '.join(own)} inside a function"


def test_every_own_import_exists():
    for name in MODULES:
        missing = _own(name) - MODULES.keys()
        assert not missing, f"{name} imports {', '.join(missing)}"

"""Handle imports of the module names of earlier releases: two names still work, the others raise a helpful error.

This module lies in `run/`, above the modules that it names. It imports only the standard library and the exit codes,
because `import jaxdistill` installs its import finder and must stay fast.

`jaxdistill.config` and `jaxdistill.registry` still work, because configs import them. Importing any other old module,
or a name from an old package, raises an error that names the module which has the content now (the successor). Running
an old module as a command prints this error and exits with code 2.
"""

import importlib
import importlib.machinery
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from jaxdistill.run.exit_codes import MISTAKE

ALIASES = {  # old module -> the modules that have its public names
    "jaxdistill.config": ("jaxdistill.run.config", "jaxdistill.run.config_files"),
    "jaxdistill.registry": ("jaxdistill.core.registry", "jaxdistill.core.spec"),
}
RENAMED = {"load": "load_config"}  # functions of these modules: old name -> new name
COMMANDS = {  # modules that were run by `python -m`
    **{f"jaxdistill.{name}": name for name in ("cache", "heads", "plan", "synthesize", "vocabulary")},
}
PACKAGES = {
    "jaxdistill.hub": "jaxdistill.models.hub",
    "jaxdistill.kernels": "jaxdistill.core.kernels",
    "jaxdistill.plan": "jaxdistill.run.plan",
    "jaxdistill.report": "jaxdistill.evaluation.report",
}
PARENTS = {
    "jaxdistill",
    *PACKAGES,
    *(f"jaxdistill.{name}" for name in ("data", "losses", "models", "parallel", "steps")),
}
MOVED = {  # modules whose last name changed; others are found by it
    "jaxdistill.apart": "jaxdistill.teachers.submesh",
    "jaxdistill.build": "jaxdistill.run.resolve",
    "jaxdistill.cached": "jaxdistill.teachers.cache",
    "jaxdistill.commands": "jaxdistill.run.commands.cli",
    "jaxdistill.data.graphs": "jaxdistill.data.builders.class_hierarchy",
    "jaxdistill.data.orders": "jaxdistill.data.order",
    "jaxdistill.data.selections": "jaxdistill.data.selection",
    "jaxdistill.evaluate": "jaxdistill.evaluation.evaluator",
    "jaxdistill.fetch": "jaxdistill.core.packages",
    "jaxdistill.fits": "jaxdistill.run.validate",
    "jaxdistill.heads": "jaxdistill.run.commands.heads",
    "jaxdistill.hub.cut": "jaxdistill.models.hub.slice",
    "jaxdistill.hub.gguf": "jaxdistill.models.hub.gguf",
    "jaxdistill.hub.folders": "jaxdistill.models.hub.locate",
    "jaxdistill.hub.legacy": "jaxdistill.models.hub.torch_legacy",
    "jaxdistill.hub.write": "jaxdistill.export.model_folder",
    "jaxdistill.interrupts": "jaxdistill.run.preemption",
    "jaxdistill.kernels.calls": "jaxdistill.core.kernels.launch",
    "jaxdistill.kernels.graph": "jaxdistill.core.kernels.trace",
    "jaxdistill.kernels.operations": "jaxdistill.core.kernels.primitives",
    "jaxdistill.kernels.rows": "jaxdistill.core.kernels.fused",
    "jaxdistill.launch": "jaxdistill.run.launch",
    "jaxdistill.losses.edges": "jaxdistill.losses.relations.edges",
    "jaxdistill.means": "jaxdistill.core.chunked.terms",
    "jaxdistill.meshes": "jaxdistill.run.rules.devices",
    "jaxdistill.models.cached": "jaxdistill.teachers.codec",
    "jaxdistill.models.few": "jaxdistill.teachers.sparse_logits",
    "jaxdistill.models.causal": "jaxdistill.models.decoder_network",
    "jaxdistill.models.importance": "jaxdistill.evaluation.interpret.head_importance",
    "jaxdistill.models.narrow": "jaxdistill.core.quantized_array",
    "jaxdistill.models.quantized": "jaxdistill.compress.quantize",
    "jaxdistill.pieces": "jaxdistill.core.chunked.chunks",
    "jaxdistill.plan.told": "jaxdistill.run.plan.summary",
    "jaxdistill.report.table": "jaxdistill.evaluation.report.table",
    "jaxdistill.report.card": "jaxdistill.export.model_card",
    "jaxdistill.selected": "jaxdistill.run.subset",
    "jaxdistill.sources": "jaxdistill.data.pipeline",
    "jaxdistill.staged": "jaxdistill.run.resolve",
    "jaxdistill.streamed": "jaxdistill.core.chunked.one_pass",
    "jaxdistill.train": "jaxdistill.run.train",
    "jaxdistill.vocabulary": "jaxdistill.run.commands.vocabulary",
    "jaxdistill.workfolder": "jaxdistill.run.workdir",
}


def successor(name: str) -> str:
    """Return the current name of a module of an earlier release of jaxdistill, or '' if no such module is known.

    Args:
        name: the old name of the module, such as "jaxdistill.meshes".
    """
    if name in MOVED or name in PACKAGES:
        return MOVED.get(name) or PACKAGES[name]
    root = Path(__file__).parents[1]
    if name.rpartition(".")[0] not in PARENTS:
        return ""
    files = sorted(root.rglob(f"{name.rpartition('.')[2]}.py"))
    return "jaxdistill." + ".".join(files[0].relative_to(root).with_suffix("").parts) if files else ""


def message(name: str) -> str:
    """Return the error message for importing `name`, a module of an earlier release: it names the module to use now."""
    command = f"; the command is: jaxdistill {COMMANDS[name]}" if name in COMMANDS else ""
    return f"{name} is {successor(name)} now{command}"


class _Alias:
    """A module loader for an old name that still works: it looks up attributes in the modules that `ALIASES` lists."""

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        homes = [importlib.import_module(home) for home in ALIASES[module.__name__]]

        def find(name: str) -> Any:
            name = RENAMED.get(name, name)
            for home in homes:
                if hasattr(home, name):
                    return getattr(home, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


class _Moved:
    """A module loader that refuses to import or run a module of an earlier release, and names its successor."""

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ not in PACKAGES:
            raise ModuleNotFoundError(message(module.__name__), name=module.__name__)

        def refuse(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise ModuleNotFoundError(message(module.__name__), name=module.__name__)

        module.__getattr__ = refuse  # type: ignore[method-assign]

    def get_code(self, name: str) -> CodeType:
        text = f"import sys\nsys.stderr.write({f'error: {message(name)}' + chr(10)!r})\nsys.exit({MISTAKE})\n"
        return compile(text, name, "exec")


class _Finder:
    """An import finder for the module names of earlier releases; Python asks it after all other finders."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in ALIASES:
            return importlib.machinery.ModuleSpec(name, _Alias())  # type: ignore[arg-type]
        if not name.startswith("jaxdistill.") or not successor(name):
            return None
        as_command = name in COMMANDS and sys.argv[:1] == ["-m"]  # `python -m` wants no package
        package = name in PACKAGES and not as_command
        return importlib.machinery.ModuleSpec(name, _Moved(), is_package=package)  # type: ignore[arg-type]


def install() -> None:
    """Add an import finder for the module names of earlier releases to `sys.meta_path`, unless it is there already."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())

"""Which part may import which, read from the syntax trees: also imports inside functions, and importlib with a literal name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pocketqa", "distillation", "mobile_export", "service", "loadtest")

# What of ours each part may import besides itself.
MAY_IMPORT = {
    "pocketqa": (),
    "distillation": ("pocketqa",),
    "mobile_export": ("pocketqa",),
    "service": ("pocketqa",),
    "loadtest": ("pocketqa.squad", "pocketqa.metrics", "pocketqa.runs", "pocketqa.errors"),  # errors: what the other three raise
}
# Baseline B is the service without its serving, so it opens models and answers as the service does.
MAY_ALSO_IMPORT = {
    "loadtest/baseline_openvino.py": ("pocketqa.reader", "pocketqa.types"),
    "loadtest/baseline_endpoint.py": ("pocketqa.runtimes",),
    "loadtest/baseline_matrices.py": ("pocketqa.runtimes",),
}
# Foreign packages that stand in named places only; the baselines of the load test are other people's way of serving, which needs their libraries.
TORCH_PLACES = ("distillation/**", "mobile_export/**", "pocketqa/runtimes/pytorch.py", "loadtest/baseline_*.py")
ONLY_IN = {
    "torch": TORCH_PLACES,
    "transformers": TORCH_PLACES,
    "accelerate": ("distillation/**", "mobile_export/**"),
    "coremltools": ("mobile_export/**",),
    "executorch": ("mobile_export/**",),
    "nncf": ("mobile_export/**",),
    "openvino": ("mobile_export/**", "pocketqa/runtimes/openvino.py"),
    "fastapi": ("service/**", "loadtest/baseline_*.py"),
    "starlette": ("service/**",),
    "uvicorn": ("service/**", "loadtest/baseline_*.py"),
    "locust": ("loadtest/**",),
    "ray": ("pocketqa/bulk/ray_data.py",),
}
# They run what a file tells them to: no file of ours is read or written by them, nor by torch.load, which is one of them.
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
# Modules that are imported only when their engine is chosen may import their engine at the top.
OPTIONAL_MODULES = ("pocketqa/runtimes/openvino.py", "pocketqa/runtimes/pytorch.py")


@dataclass(frozen=True)
class Imported:
    """One imported name: the module, or the module and what was taken from it; whether a mere import of the file executes it."""

    name: str
    line: int
    at_once: bool


def imports(source: str, module: str) -> list[Imported]:
    """Every import of a file.  `module` is its own dotted name, for relative imports."""
    tree = ast.parse(source)
    return [
        Imported(name, getattr(node, "lineno", 0), at_once) for node, at_once in _walk(tree, at_once=True) for name in _imported_names(node, module)
    ]


def _walk(node: ast.AST, at_once: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        )
        yield child, at_once
        yield from _walk(child, at_once and not later)


def _imported_names(node: ast.AST, module: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = ".".join(module.split(".")[: -node.level]) if node.level else ""
        base = ".".join(part for part in (package, node.module) if part)
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and re.fullmatch(r"(importlib\.)?import_module|__import__", ast.unparse(node.func)):
        return [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
    return []


def problems(source: str, path: str) -> list[str]:
    """The forbidden imports and calls of one file, each as "path:line: what"."""
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    relative_to = f"{module}.__init__" if path.endswith("__init__.py") else module
    found = []
    for item in imports(source, relative_to):
        reason = _forbidden(item.name, path)
        if reason:
            found.append(f"{path}:{item.line}: {reason}")
    for node in ast.walk(ast.parse(source)):
        reason = _forbidden_call(node)
        if reason:
            found.append(f"{path}:{getattr(node, 'lineno', 0)}: {reason}")
    return found


def _forbidden(name: str, path: str) -> str | None:
    own, top = path.split("/")[0], name.split(".")[0]
    if top in PICKLES:
        return f"imports {top}, which executes what it loads"
    if top in PACKAGES and top != own:
        allowed = (*MAY_IMPORT[own], *MAY_ALSO_IMPORT.get(path, ()))
        if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed):
            return f"{own} may not import {name} (only {', '.join(allowed) or 'nothing of ours'})"
    if top in ONLY_IN and not any(_matches(path, pattern) for pattern in ONLY_IN[top]):
        return f"{top} may be imported only in {', '.join(ONLY_IN[top])}"
    return None


def _matches(path: str, pattern: str) -> bool:
    if pattern.endswith("/**"):
        return path.startswith(pattern.removesuffix("**"))
    return PurePosixPath(path).match(pattern)


def _forbidden_call(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    if ast.unparse(node.func) == "torch.load":
        return "torch.load reads pickles; use safetensors"
    for keyword in node.keywords:
        if keyword.arg == "allow_pickle" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
            return "allow_pickle must be False"
    return None


def code_files() -> list[str]:
    return sorted(file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", code_files())
def test_imports_keep_their_directions(path: str) -> None:
    assert problems((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize("path", [path for path in code_files() if path.startswith(("pocketqa/", "service/")) and path not in OPTIONAL_MODULES])
def test_the_base_install_is_enough_to_serve(path: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in project["dependencies"]}
    base = {name.replace("-", "_") for name in base}  # the name of a package and of its module differ in that alone
    base |= {"pydantic", "starlette"}  # fastapi is built on these two and shows them in its own interface
    module = path.removesuffix(".py").replace("/", ".")
    needed = {item.name.split(".")[0] for item in imports((ROOT / path).read_text(encoding="utf-8"), module) if item.at_once}
    assert needed - base - set(PACKAGES) - sys.stdlib_module_names == set()


def test_import_pocketqa_stays_light() -> None:
    heavy = ("torch", "transformers", "fastapi", "openvino", "datasets")
    code = f"import sys, pocketqa; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("path", "source", "says"),
    [
        ("pocketqa/reader.py", "import service.app", "nothing of ours"),
        ("pocketqa/reader.py", "def late():\n    from distillation import losses", "pocketqa may not import distillation.losses"),
        ("service/app.py", "from distillation.evaluate import main", "service may not import"),
        ("service/app.py", "import importlib\nimportlib.import_module('loadtest.qa')", "service may not import loadtest.qa"),
        ("loadtest/qa.py", "from pocketqa import Reader", "loadtest may not import pocketqa.Reader"),
        ("loadtest/qa.py", "import pocketqa", "loadtest may not import pocketqa "),
        ("loadtest/qa.py", "from pocketqa.reader import Reader", "loadtest may not import"),
        ("pocketqa/features.py", "import torch", "torch may be imported only in"),
        ("pocketqa/features.py", "def late():\n    import torch.nn as nn", "torch may be imported only in"),
        ("pocketqa/runtimes/onnx.py", "from transformers import BertModel", "transformers may be imported only in"),
        ("loadtest/qa.py", "import torch", "torch may be imported only in"),
        ("distillation/losses.py", "import coremltools as ct", "coremltools may be imported only in"),
        ("pocketqa/answer.py", "from fastapi import FastAPI", "fastapi may be imported only in"),
        ("mobile_export/package.py", "import pickle", "executes what it loads"),
        ("mobile_export/package.py", "from joblib import load", "executes what it loads"),
        ("distillation/loop.py", "import torch\nstate = torch.load('x')", "torch.load"),
        ("distillation/loop.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
    ],
)
def test_the_rules_catch(path: str, source: str, says: str) -> None:
    found = problems(source, path)
    assert len(found) == 1
    assert says in found[0]
    assert found[0].startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("service/app.py", "from pocketqa import Reader\nimport fastapi"),
        ("distillation/losses.py", "import torch\nfrom . import loop\nfrom distillation.batches import x"),
        ("loadtest/qa.py", "from pocketqa.squad import load\nfrom pocketqa import metrics, runs\nimport locust"),
        ("loadtest/baseline_naive.py", "import torch, transformers, fastapi"),
        ("pocketqa/runtimes/pytorch.py", "import torch"),
        ("pocketqa/runtimes/__init__.py", "from .base import Runtime\nfrom . import onnx"),
        ("mobile_export/formats/coreml.py", "import coremltools"),
        ("distillation/x.py", "import numpy as np\nnp.load('x', allow_pickle=False)"),
    ],
)
def test_the_rules_let_pass(path: str, source: str) -> None:
    assert problems(source, path) == []


def test_relative_imports_are_resolved() -> None:
    assert [item.name for item in imports("from ..folders import x\nfrom . import y", "pocketqa.runtimes.onnx")] == [
        "pocketqa.folders.x",
        "pocketqa.runtimes.y",
    ]


def test_imports_within_functions_and_for_types_only_do_not_count_as_at_once() -> None:
    source = "from typing import TYPE_CHECKING\nimport a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\nclass D:\n    import d\n"
    assert {item.name: item.at_once for item in imports(source, "x")} == {
        "typing.TYPE_CHECKING": True, "a": True, "b": False, "c": False, "d": True,
    }  # fmt: skip

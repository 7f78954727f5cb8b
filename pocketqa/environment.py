"""The environment block of a run file: what a figure was measured on, without saying whose machine it was (no host name, no paths)."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from pocketqa.types import JSON

PACKAGES = (
    "pocketqa",
    "numpy",
    "tokenizers",
    "onnxruntime",
    "openvino",
    "torch",
    "transformers",
    "accelerate",
    "scikit-learn",
    "scipy",
    "safetensors",
    "onnx",
    "coremltools",
    "executorch",
    "nncf",
    "fastapi",
    "uvicorn",
    "locust",
)
# Instruction sets on which the speed of an engine and its choice of precision depend, as Linux names them in /proc/cpuinfo.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimddp", "bf16", "i8mm", "sve")


def describe_environment(packages: Iterable[str] = PACKAGES) -> JSON:
    """CPU model and instruction sets, usable cores, memory in GiB, OS, Python, versions of installed packages, git commit of a checkout or None."""
    from pocketqa.runtimes import usable_cores  # here, so that reading run files never loads what the engines need

    cpuinfo = _read(Path("/proc/cpuinfo"))
    return {
        "cpu": _cpu_model(cpuinfo),
        "instructions": _instructions(cpuinfo),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "os": _operating_system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": _versions(packages),
        "commit": git_commit(),
    }


def git_commit(package: Path | None = None) -> str | None:
    """The commit of the checkout that `package` (this one) stands at the top of, with "+changes" when files differ from it; None outside one."""
    package = package or Path(__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != package.parent:  # an installed copy inside somebody else's repository
        return None
    commit = _git(package, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return None
    return f"{commit}+changes" if _git(package, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a file system that does not answer
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    if platform.system() == "Darwin":
        done = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return platform.processor() or "unknown"


def _instructions(cpuinfo: str) -> list[str]:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:  # x86-64, aarch64
            present = set(value.split())
            return [name for name in INSTRUCTIONS if name in present]
    return []


def _memory_gib() -> float | None:
    sizes = []
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit():
        sizes.append(int(limit))
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return round(min(sizes) / 2**30, 1) if sizes else None


def _operating_system() -> str:
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.release()}"
    except (OSError, KeyError):  # not Linux, or a system without os-release
        return f"{platform.system()} {platform.mac_ver()[0] or platform.release()}"


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # not installed: it had no part in the figure
            continue
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # only Linux has these files
        return ""

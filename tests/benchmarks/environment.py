"""The interpreters and virtual environments that the benchmark makes for itself, and what they are."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# One environment holds them all: none of today's releases excludes another's. Each panel runs in a process of its own.
PEERS = (
    "attrs",
    "codetiming",
    "logfire",
    "nv-one-logger-core",
    "nvtx",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "stormlog",
    "viztracer",
)


class PythonNotFoundError(Exception):
    """No interpreter of the wanted version is there."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with stormphase and its peers.

    Attributes:
        python: its interpreter.
        version: of CPython, as `3.11.7`.
        packages: the versions of stormphase and its peers, how this CPython was built (profile-guided optimisation
            speeds some things up more than others), and whether a C compiler was there for stormphase.
    """

    python: Path
    version: str
    packages: dict[str, str]


def find_python(version: str) -> Path:
    """Return an interpreter of `version` ("3.11"), from this process, the PATH or pyenv.

    Raises:
        PythonNotFoundError: if there is none.
    """
    if platform.python_version().startswith(f"{version}."):
        return Path(sys.executable)
    on_path = shutil.which(f"python{version}")
    # A pyenv shim is there for every version that is installed, and works for the selected ones only.
    if on_path and subprocess.run([on_path, "-c", ""], check=False, capture_output=True).returncode == 0:
        return Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in sorted(pyenv.glob(f"versions/{version}.*/bin/python")):
        return candidate
    message = f"There is no CPython {version} on the PATH or under pyenv. Install it, or choose another with --python."
    raise PythonNotFoundError(message)


def default_cache() -> Path:
    """Return the folder that keeps the environments between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stormphase-benchmarks"


def make_environment(version: str, cache: Path) -> Environment:
    """Make or bring up to date the environment for a version of CPython, and install the checkout into it.

    Raises:
        PythonNotFoundError: if there is no such interpreter.
        subprocess.CalledProcessError: if pip fails; its output is shown.
    """
    folder = cache / version
    python = folder / "bin" / "python"
    if not python.exists():
        _run([find_python(version), "-m", "venv", folder])
    pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    _run([*pip, "--upgrade", *PEERS])
    # A wheel, not an editable install: what is measured is what a user gets.
    _run([*pip, "--force-reinstall", "--no-deps", ROOT])
    return Environment(python=python, version=_ask(python, _VERSION), packages=json.loads(_ask(python, _PACKAGES)))


def machine() -> str:
    """Describe this machine in one line, without its name."""
    return f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def load() -> float:
    """Return how many processes wanted a core during the last minute, on average."""
    return os.getloadavg()[0]


_VERSION = "import platform; print(platform.python_version())"
_PACKAGES = f"""
import importlib.metadata as metadata, json, sysconfig
is_optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
from stormphase import _native
build = {{"(build of CPython)": "with PGO" if is_optimised else "without PGO"}}
build |= {{"(build of stormphase)": "compiled" if _native.speedups else "in Python alone"}}
print(json.dumps(build | {{name: metadata.version(name) for name in {("stormphase", *PEERS)!r}}}))
"""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True)


def _ask(python: Path, code: str) -> str:
    return subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout.strip()

"""Builds `stormphase._speedups`, the compiled half of the hot path, where there is a C compiler.

Where there is none the package is pure Python, does the same and costs more per phase. STORMPHASE_PURE=1 asks for that.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("stormphase", "_speedups.c")
HEADERS = "_c/*.h"  # beside it, one for each part that it includes


class SpeedupsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles one file and what it includes into each wheel, or into the checkout for an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel say which Python and platform it is for."""
        if os.environ.get("STORMPHASE_PURE", "0") not in {"", "0"}:
            return
        self._folder = tempfile.mkdtemp(prefix="stormphase-build-")
        try:
            built = _compile(Path(self.root), Path(self._folder))
            if version == "editable":
                _put_in_place(built, Path(self.root, SOURCE.parent, built.name))
        except Exception as error:  # noqa: BLE001 - no compiler, no headers, a read-only checkout: all end in pure Python
            self.app.display_warning(f"stormphase is built as pure Python, since its C could not be built: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        if version != "editable":
            build_data["force_include"][str(built)] = f"{SOURCE.parent}/{built.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Take away what was compiled on the way."""
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder, ignore_errors=True)


def _put_in_place(built: Path, place: Path) -> None:
    # Beside, and then in its place at once: a process may have the old one loaded.
    beside = place.with_suffix(f".{os.getpid()}")
    try:
        shutil.copy(built, beside)
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _compile(root: Path, folder: Path) -> Path:
    # Setuptools knows each platform's compiler; the build environment has it.
    from setuptools import Distribution, Extension  # noqa: PLC0415

    parts = [root / SOURCE, *sorted((root / SOURCE.parent).glob(HEADERS))]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    extension = Extension(
        "stormphase._speedups",
        [str(root / SOURCE)],
        depends=[str(part) for part in parts],
        define_macros=[("STORMPHASE_SOURCE", f'"{digest}"')],
        extra_compile_args=[] if os.name == "nt" else ["-g0"],
    )
    distribution = Distribution({"name": "stormphase", "ext_modules": [extension]})
    command = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder), str(folder / "objects")
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(extension.name))

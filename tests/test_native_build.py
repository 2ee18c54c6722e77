"""How the compiled half is built into a wheel or a checkout, and what is left where that cannot be."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest


class Hook:
    """Stands for the base class that the build tool has."""

    def __init__(self, root):
        self.root = str(root)
        self.warnings = []
        self.app = types.SimpleNamespace(display_warning=self.warnings.append)


@pytest.fixture
def build(repository, monkeypatch, tmp_path):
    """Return the hook's module, whose compiler writes a file at once and whose temporary folders are in `tmp_path`."""
    name = "hatchling.builders.hooks.plugin.interface"
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(BuildHookInterface=Hook))
    for parent in ("hatchling.builders.hooks.plugin", "hatchling.builders.hooks", "hatchling.builders", "hatchling"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    spec = importlib.util.spec_from_file_location("hatch_build", repository / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("STORMPHASE_PURE", raising=False)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "checkout" / "stormphase").mkdir(parents=True)

    def compile_at_once(root, folder):
        built = Path(folder, "_speedups.so")
        built.write_bytes(b"new")
        return built

    monkeypatch.setattr(module, "_compile", compile_at_once)
    return module


def run(build, tmp_path, version):
    """Run the hook as the build tool does; return its warnings, its wheel's data, and what stands where after it."""
    hook = build.SpeedupsHook(tmp_path / "checkout")
    data = {"force_include": {}}
    hook.initialize(version, data)
    taken = {Path(source).read_bytes(): place for source, place in data.pop("force_include").items()}
    hook.finalize(version, data, "the wheel")
    assert [] == list((tmp_path / "temporary").iterdir())
    return hook.warnings, data, taken, {each.name for each in (tmp_path / "checkout" / "stormphase").iterdir()}


BUILT = {"pure_python": False, "infer_tag": True}


def test_a_wheel_has_it_and_says_so(build, tmp_path):
    """What was compiled goes into the wheel, under the package; the checkout stays as it is."""
    assert ([], BUILT, {b"new": "stormphase/_speedups.so"}, set()) == run(build, tmp_path, "standard")


def test_an_editable_installation_has_it_beside_its_source(build, tmp_path):
    """It takes the place of an older one."""
    place = tmp_path / "checkout" / "stormphase" / "_speedups.so"
    place.write_bytes(b"old")
    assert ([], BUILT, {}, {"_speedups.so"}) == run(build, tmp_path, "editable")
    assert b"new" == place.read_bytes()


def test_a_checkout_that_cannot_be_written_is_installed_as_pure_python(build, tmp_path, monkeypatch):
    """A read-only one is no reason to refuse: it says why, and leaves nothing behind."""

    def refuse(source, target):
        raise PermissionError(13, "Read-only file system", str(target))

    monkeypatch.setattr(build.shutil, "copy", refuse)
    warnings, data, taken, left = run(build, tmp_path, "editable")
    assert (1, {}, {}, set()) == (len(warnings), data, taken, left)
    assert "Read-only file system" in warnings[0]


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_beside_it(build, tmp_path, monkeypatch):
    """Where another process holds the old one, as some systems let it, that stays alone."""

    def refuse(self, target):
        raise PermissionError(13, "in use", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    warnings, data, taken, left = run(build, tmp_path, "editable")
    assert (1, {}, {}, set()) == (len(warnings), data, taken, left)


def test_without_a_compiler_it_is_pure_python(build, tmp_path, monkeypatch):
    """Whatever the compiler says, or is not there to say, the wheel is for all."""

    def refuse(root, folder):
        raise RuntimeError("command 'cc' failed: No such file or directory")

    monkeypatch.setattr(build, "_compile", refuse)
    warnings, data, taken, left = run(build, tmp_path, "standard")
    assert (1, {}, {}, set()) == (len(warnings), data, taken, left)


def test_nothing_is_compiled_for_whom_wants_it_pure(build, tmp_path, monkeypatch):
    """STORMPHASE_PURE=1 keeps the wheel pure, and says nothing."""
    monkeypatch.setenv("STORMPHASE_PURE", "1")
    assert ([], {}, {}, set()) == run(build, tmp_path, "standard")

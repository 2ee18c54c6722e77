"""Makes the modules that these tests share importable: the suite leaves sys.path alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).parent
_SHARED = {
    "interrupts": _HERE.parent / "test_interrupts.py",
    "journal_sample": _HERE.parent / "journal" / "sample.py",
    "journal_writing": _HERE.parent / "journal" / "writing.py",
    "faults_stores": _HERE / "stores.py",
    "faults_truth": _HERE / "truth.py",
    "faults_scripts": _HERE / "scripts.py",
    "faults_kills": _HERE / "kills.py",
}

for _name, _path in _SHARED.items():
    if _name not in sys.modules:
        _spec = importlib.util.spec_from_file_location(_name, _path)
        _module = importlib.util.module_from_spec(_spec)
        sys.modules[_name] = _module
        _spec.loader.exec_module(_module)

"""Makes the modules that several of these tests share importable: the suite leaves sys.path alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for _name in ("sample", "independent_reader", "writing", "hostile"):
    _spec = importlib.util.spec_from_file_location(f"journal_{_name}", Path(__file__).with_name(f"{_name}.py"))
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[_spec.name] = _module
    _spec.loader.exec_module(_module)

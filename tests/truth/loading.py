"""Makes the modules beside this one importable as `truth_*`: the suite leaves sys.path alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).parent
# Each after those that it needs.
_SHARED = (
    "simulation",
    "machine",
    "job",
    "training",
    "outcomes",
    "kinds_issue",
    "kinds_own",
    "kinds_more",
    "kinds",
    "judge",
    "page",
    "real_time",
)

for _name in _SHARED:
    if f"truth_{_name}" not in sys.modules:
        _spec = importlib.util.spec_from_file_location(f"truth_{_name}", _HERE / f"{_name}.py")
        _module = importlib.util.module_from_spec(_spec)
        sys.modules[_spec.name] = _module
        _spec.loader.exec_module(_module)

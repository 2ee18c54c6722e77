"""Ranks that Fabric's own launcher starts: launched_by_fabric.py FOLDER LABEL RANKS DEED."""

from __future__ import annotations

import sys

import lightning
import planted

if __name__ == "__main__":
    fabric = lightning.Fabric(devices=int(sys.argv[3]), strategy="ddp", accelerator="cpu")
    fabric.launch()
    planted.main(*sys.argv[1:])

"""A script that begins its session before Fabric starts the other ranks: launched_late.py FOLDER LABEL RANKS."""

from __future__ import annotations

import sys

import lightning
import planted

if __name__ == "__main__":
    place = planted.Place(*sys.argv[1:4])
    with place.tracker() as tracker, tracker.enter_phase("train"):
        place.say_who(tracker)
        lightning.Fabric(devices=place.ranks, strategy="ddp", accelerator="cpu").launch()
        place.meet()

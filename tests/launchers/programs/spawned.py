"""Ranks that `torch.multiprocessing.spawn` starts, with a process group: spawned.py FOLDER LABELS RANKS DEED.

It does so once for each label, of which several are joined by commas. No environment variable says who they are: only
the process group does.
"""

from __future__ import annotations

import sys
import tempfile

import planted
import torch.distributed
import torch.multiprocessing


def run(index: int, store: str, arguments: list[str]) -> None:
    """Be one rank."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=index, world_size=int(arguments[2])
    )
    planted.main(*arguments)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    folder, labels, ranks, deed = sys.argv[1:]
    for label in labels.split(","):
        with tempfile.TemporaryDirectory() as stores:
            arguments = [folder, label, ranks, deed]
            torch.multiprocessing.spawn(run, args=(f"{stores}/store", arguments), nprocs=int(ranks))

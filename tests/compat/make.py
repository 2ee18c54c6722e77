"""Writes `made_by_0_1_0.tar.xz` and what 0.1.0 itself reads there: run once, by a Python that has stormphase 0.1.0.

`python tests/compat/make.py FOLDER` runs two programs, one that ends in order and one that is killed, each with a
journal and a SQLite store. Host and boot are made up, so that no machine ever takes their processes for its own.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

MADE_UP = """
import os, sys
import stormphase._liveness as liveness, stormphase._process_facts as facts
boot = "0a1b2c3d-0000-4000-8000-00000000c0de"
for module in (liveness, facts):
    read = module._text_of
    module._host = lambda: "node-1"
    module._text_of = lambda path, read=read: boot if path.endswith("boot_id") else read(path)
"""

CLEAN = """
import asyncio, contextvars, sqlite3, threading
from stormphase import PhaseTracker
from stormphase.journal import JournalOptions
from stormphase.stores import SqliteStore

store = SqliteStore("clean.db")
journal = JournalOptions("journals", max_bytes=1 << 20)
tracker = PhaseTracker("digits", session_id="clean", journal=journal, store=store, bridge=None, capture=True)
with tracker:
    with tracker.enter_phase("train", {"epochs": 2, "rate": 0.5, "dataset": "digits", "layers": [3, 5], "on": True}):
        for step in range(3):
            tracker.set_step(step)
            with tracker.enter_phase("step") as phase:
                with tracker.enter_phase("all_reduce", sync=True, timeout_s=60):
                    pass
                phase.set_attribute("loss", 1 / (step + 1))
                print("step", step)
        tracker.set_step(None)
        first = tracker.enter_phase("upload", {"to": "mirror-\\u00e9"})
        try:
            with first:
                with tracker.enter_phase("connect"):
                    raise ConnectionError("no route to host")
        except ConnectionError:
            with tracker.retry(first):
                pass

        def load():
            with tracker.enter_phase("load", {"shard": 1}):
                pass

        thread = threading.Thread(target=contextvars.copy_context().run, args=[load], name="loader")
        thread.start()
        thread.join()

        async def evaluate():
            async with asyncio.timeout(60):
                with tracker.enter_phase("evaluate"):
                    await asyncio.sleep(0)

        async def main():
            await asyncio.create_task(evaluate(), name="evaluator")

        asyncio.run(main())
    waiting = tracker.enter_phase("waiting")
    waiting.pause()
    waiting.resume()
    moved = tracker.acquire(waiting.release())
    moved.close()
    token = tracker.enter("cancelled")
    tracker.exit(token, error=KeyboardInterrupt())
    tracker.enter("left open")
"""

KILLED = """
import os, signal
from stormphase import PhaseTracker
from stormphase.journal import JournalOptions
from stormphase.stores import SqliteStore

store = SqliteStore("killed.db")
journal = JournalOptions("journals", max_bytes=1 << 20)
tracker = PhaseTracker(
    "crash", session_id="killed", rank=1, world_size=2, journal=journal, store=store, bridge=None, capture=True
)
tracker.start()
tracker.enter("train", {"epochs": 2})
for step in range(3):
    tracker.set_step(step)
    with tracker.enter_phase("step"):
        pass
tracker.enter("backward", {"bucket": 7})
print("asking for 64 GiB")
tracker.flush(20)
os.kill(os.getpid(), signal.SIGKILL)
"""

READ = """
import json, sys
from stormphase.journal import read_directory
from stormphase.records import read_records

def plain(image):
    totals = {" / ".join(path): [t.count, t.total_ns, t.self_ns, t.failed] for path, t in image.totals.items()}
    return {"session_id": image.identity.session_id, "damage": list(image.damage), "totals": totals}

sources = ("clean.db", "killed.db", "journals")
expected = {source: [record.to_dict() for record in read_records(source)] for source in sources}
images = map(plain, read_directory("journals"))
expected["images"] = sorted(images, key=lambda image: image["session_id"])
json.dump(expected, sys.stdout, indent=1, sort_keys=True)
"""


def main(folder: Path) -> None:
    """Write archive and expectation into this file's folder, with `folder`, which must not exist, as the workplace."""
    here = Path(__file__).resolve().parent
    folder.mkdir(parents=True)
    for name, program, status in (("clean.py", CLEAN, 0), ("killed.py", KILLED, -signal.SIGKILL)):
        # Compiled under a name alone: no path of a machine stands in a traceback.
        run = MADE_UP + f"exec(compile({program!r}, {name!r}, 'exec'))"
        done = subprocess.run([sys.executable, "-c", run], cwd=folder, check=False)
        if done.returncode != status:
            raise SystemExit(f"{name} ended with {done.returncode}, not {status}.")
    archive = here / "made_by_0_1_0.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=_nobodys)
    copy = folder.with_name(folder.name + "-read")
    shutil.copytree(folder, copy)
    read = subprocess.run([sys.executable, "-c", READ], cwd=copy, check=True, capture_output=True, text=True)
    json.loads(read.stdout)
    (here / "made_by_0_1_0.json").write_text(read.stdout + "\n")


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]))

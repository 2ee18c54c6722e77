"""A model that holds a tracker is copied, pickled and sent like any other, and its phases go where they should."""

from __future__ import annotations

import copy
import pickle

import pytest

import stormphase
from stormphase import ConfigurationError, PhaseRecorder, PhaseTracker
from stormphase._noop import NOOP, NOOP_TOKEN
from stormphase.otel import OTelBridge
from stormphase.stores import MemoryStore, SqliteStore

COPIES = pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])

MODEL = """
class Model:
    def __init__(self, tracker):
        self.tracker = tracker
        self.weights = [1, 2]
        self.loading = tracker.phase("load", attributes={"kind": "csv"})
        self.token = None
        self.open = None

    def forward(self):
        with self.tracker.enter_phase("forward"), self.loading:
            return sum(self.weights)
"""
exec(MODEL)  # noqa: S102 - ours; once more in another process below
Model = globals()["Model"]


def pickled(value):
    """Return what comes out of a pickle."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


def paths(seen):
    """Return the paths of the phases that a sink was told have ended, in that order."""
    scopes = [boundary.metadata["phase_scope"] for boundary in seen]
    return [" / ".join(scope["path"]) for scope in scopes if scope["action"] == "exit"]


@COPIES
def test_a_copied_model_has_the_same_tracker(make_tracker, copied):
    """Before the start, while it runs, within a phase and after the stop; and what it records is told once."""
    seen = []
    tracker = make_tracker(sinks=[seen.append])
    model = Model(tracker)
    models = [copied(model)]
    with tracker:
        models.append(copied(model))
        with tracker.enter_phase("train"):
            models.append(copied(model))
            assert [3, 3, 3] == [each.forward() for each in models]
    models.append(copied(model))
    assert [tracker] * 4 == [each.tracker for each in models]
    within = ["train / forward / load", "train / forward"]
    assert [*within * 3, "train"] == paths(seen)


@COPIES
def test_a_copy_of_a_model_in_mid_phase_holds_the_same_phase(make_tracker, copied):
    """Callback-style code keeps handle and token on the model: the handle is itself, a token's copy no proof."""
    with make_tracker() as tracker:
        model = Model(tracker)
        model.open = tracker.enter_phase("epoch")
        model.token = tracker.enter("batch")
        twin = copied(copied(model))
        assert (model.open, tracker) == (twin.open, twin.tracker)
        tracker.exit(model.token)
        twin.open.close()
        assert (True, {}) == (model.open.closed, tracker.stats()["misuse"])


@COPIES
@pytest.mark.parametrize(
    "make",
    [
        PhaseRecorder,
        MemoryStore,
        OTelBridge,
        lambda: PhaseTracker(bridge=None).lane_set or PhaseRecorder().lane_set("s", 0),
        lambda: stormphase.worker({}),
        lambda: NOOP,
    ],
    ids=["recorder", "store", "bridge", "lanes", "worker", "no phase"],
)
def test_what_belongs_to_its_process_copies_to_itself(copied, make):
    """With its locks, its lanes and its context variable: there is one of each."""
    made = make()
    assert made is copied(made)


@COPIES
def test_a_store_in_a_file_copies_to_itself(tmp_path, copied):
    """A second one would write rows of its own into the same file."""
    store = SqliteStore(tmp_path / "runs.db")
    assert store is copied(store)


def test_a_pickled_tracker_is_the_one_that_runs_where_it_is_read(make_tracker):
    """Whichever that was when it was written: a model that is loaded from a checkpoint records here."""
    first, second = make_tracker(), make_tracker()
    data = pickle.dumps(Model(first))
    with second:
        model = pickle.loads(data)  # noqa: S301 - our own
        assert second is model.tracker
        assert 3 == model.forward()


def test_of_several_that_run_a_pickle_finds_the_one_of_the_callers_context(make_tracker):
    """As `stormphase.phase` does."""
    with make_tracker() as first, make_tracker(), first.enter_phase("train"):
        assert first is pickled(first)


def test_a_tracker_that_was_read_where_none_runs_does_nothing(make_tracker):
    """All that a tracker can be asked has an answer, and no call raises."""
    model = pickled(Model(make_tracker("job")))
    tracker = model.tracker
    assert 3 == model.forward()
    assert 5 == tracker.phase("decorated")(lambda: 5)()
    assert (NOOP, NOOP_TOKEN) == (tracker.enter_phase("x"), tracker.enter("x"))
    tracker.exit(NOOP_TOKEN)
    assert (NOOP, NOOP) == (tracker.acquire(NOOP_TOKEN), tracker.retry(NOOP))
    tracker.set_step(3)
    tracker.stop()
    assert (True, False, None, None, None, None) == (
        tracker.flush(),
        tracker.is_running,
        tracker.lane_set,
        tracker.name,
        tracker.level,
        tracker.capture,
    )
    assert ("disabled", {}, {}) == (tracker.session_id, tracker.carrier(), tracker.stats()["sinks"])
    assert isinstance(tracker, PhaseTracker)
    assert {"A": "1"} == tracker.environment({"A": "1"})


def test_a_tracker_that_was_read_early_is_the_one_that_starts_later(make_tracker):
    """One after the other, also for what was decorated with it; and it ends with none of them."""
    seen = []
    model = pickled(Model(make_tracker()))

    @model.tracker.phase("evaluate")
    def evaluate():
        return model.forward()

    for _ in range(2):
        with make_tracker(sinks=[seen.append]) as tracker:
            model.tracker.set_step(7)
            token = model.tracker.enter("epoch")
            assert 3 == evaluate()
            model.tracker.exit(token)
            model.tracker.stop()
            assert tracker.is_running
            assert (tracker.session_id, 7) == (model.tracker.session_id, tracker.lane_set.step)
            assert model.tracker.flush()
        assert 3 == evaluate()
    within = ["epoch / evaluate / forward / load", "epoch / evaluate / forward", "epoch / evaluate", "epoch"]
    assert within * 2 == paths(seen)


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy, pickled])
def test_what_was_read_is_copied_and_pickled_in_turn(make_tracker, twin_of):
    """A model is sent on by the process that it was sent to."""
    tracker = pickled(make_tracker())
    assert (True, NOOP) == (isinstance(twin_of(tracker), PhaseTracker), twin_of(tracker).enter_phase("x"))


def test_what_was_read_cannot_be_started(make_tracker):
    """It is another one's, and the error says what to do; an attribute that no tracker has is an error as well."""
    tracker = pickled(make_tracker())
    with pytest.raises(ConfigurationError, match=r"stormphase\.worker"), tracker:
        pass
    assert not hasattr(tracker, "nothing")
    assert not hasattr(tracker, "__nothing__")
    with make_tracker():
        tracker.__exit__(None, None, None)


def test_a_recorder_that_was_pickled_is_a_new_one(clock):
    """With what it was told, and without what is open."""
    recorder = PhaseRecorder(on_misuse="record")
    token, _ = recorder.enter(session_id="s", rank=0, name="train")
    twin = pickled(recorder)
    assert "phase_misuse" == twin.exit(token).event_type
    assert [] == list(twin.lane_set("s", 0).open_phases())
    recorder.exit(token)


def test_a_model_that_a_spawned_worker_gets_records_in_the_session_of_its_caller(make_tracker, run_python, tmp_path):
    """Within `stormphase.worker` its tracker is the caller's; before that it does nothing."""
    source = f"""
import json, pickle, sys, types
import stormphase
module = types.ModuleType("test_copies")
exec({MODEL!r}, module.__dict__)
sys.modules[{__name__!r}] = module
model, carrier = pickle.loads(bytes.fromhex(sys.argv[1]))
model.forward()
with stormphase.worker(carrier, bridge=None) as tracker:
    model.forward()
    assert model.tracker.session_id == tracker.session_id
"""
    store = SqliteStore(tmp_path / "runs.db")
    with make_tracker(store=store) as tracker, tracker.enter_phase("train"):
        run_python(source, pickle.dumps((Model(tracker), tracker.carrier())).hex())
    found = sorted(record.path_text for record in SqliteStore(tmp_path / "runs.db").query(kind="phase"))
    assert ["train", "train / forward", "train / forward / load"] == found

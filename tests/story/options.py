"""All pairs of options: every argument of `PhaseTracker` and `OTelBridge`, every variable, both halves, all starts.

`FACTORS` is the table: what may be chosen, and which arguments or variables that is. `rows` covers every pair of
choices in as few rows as a greedy search finds, and `program_of` makes a row a program as `interpreter.py` runs it,
with threads, tasks, generators, moves, failures, a fork and an end.
"""

from __future__ import annotations

import functools
import itertools
import random

import attrs
import story_programs as programs

UNSET = None
PHASES = 20  # At least so many are entered by every row.


@attrs.frozen
class Factor:
    """One choice.

    Attributes:
        choices: what may be chosen; the first is the default.
        tracker: the arguments of `PhaseTracker` that it is.
        bridge: those of `OTelBridge`; they count only where the row has a bridge of its own.
        environ: the environment variables.
    """

    choices: tuple
    tracker: tuple[str, ...] = ()
    bridge: tuple[str, ...] = ()
    environ: tuple[str, ...] = ()


def _argument(name, *choices):
    return Factor(choices, tracker=(name,))


def _of_bridge(name, *choices):
    return Factor(choices, bridge=(name,))


def _variable(name, *choices):
    return Factor((UNSET, *choices), environ=(name,))


# What a launcher sets, for the ranks that `place` has, or for others, which then are the caller's own word.
LAUNCHERS = {
    "torchrun": {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "0b6b3e0c-51f0-4dd6-a5be-6ba4ab1b3f4d",
        "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_ERROR_FILE": "logs/none_y/attempt_1/0/error.json",
    },
    "srun": {
        "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_CLUSTER_NAME": "c", "SLURM_RESTART_COUNT": "0",
    },
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-host-77@1", "PMIX_RANK": "0",
        "PMIX_SERVER_URI21": "prterun-host-77@0.0;tcp4://127.0.0.1:40001",
        "PMIX_SERVER_URI3": "prterun-host-77@0.0;tcp4://127.0.0.1:40001",
    },
    "mpiexec": {
        "PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", "PALS_LOCAL_RANKID": "0",
        "PALS_APID": "a-7",
    },
}  # fmt: skip

FACTORS = {
    "half": Factor(("compiled", "python"), environ=("STORMPHASE_PURE",)),
    "start": Factor(("with", "start_stop", "start")),
    "end": Factor(("kill", "clean", "exception", "sigterm")),
    "name": _argument("name", "story", None),
    "session_id": _argument("session_id", None, "given"),
    "given_attempt": _argument("attempt", None, 3),
    "place": Factor(((None, None), (0, 1), (0, 2), (1, 2)), tracker=("rank", "world_size")),
    "bridge": _argument("bridge", "own", "default", None),
    "sinks": _argument("sinks", "one", "two", "none"),
    "store": _argument("store", "sqlite", "memory", None),
    "correlation_id": _argument("correlation_id", None, "ticket-7"),
    "on_misuse": _argument("on_misuse", "raise", "record"),
    "level": _argument("level", None, "INFO"),
    "summary": _argument("summary", None, True, "all", False),
    "stop_on_sigterm": _argument("stop_on_sigterm", False, True),
    "hang_factor": _argument("hang_factor", None, 10),
    "queue_bound": _argument("queue_bound", 131_072, 2_000),
    "capture": _argument("capture", False, True, "fd", "options"),
    "journal": _argument("journal", "path", "options", None),
    "redact": _argument("redact", (), (r"customer \d+",)),
    "clock": _argument("clock", None, "own"),
    "tracer_provider": _of_bridge("tracer_provider", "own", "global"),
    "logger_provider": _of_bridge("logger_provider", "own", "global"),
    "meter_provider": _of_bridge("meter_provider", None, "own"),
    "events": _of_bridge("events", "long", "all", "off"),
    "events_to": _of_bridge("events_to", "logs", "span"),
    "trace_per": _of_bridge("trace_per", None, "step"),
    "keep_failures": _of_bridge("keep_failures", False, True),
    "pending": _of_bridge("pending", False, True),
    "metrics": _of_bridge("metrics", False, True),
    "span_budget": _of_bridge("span_budget", 5_000, None),
    "recover": _of_bridge("recover", True, False),
    "launcher": Factor(
        (UNSET, *LAUNCHERS), environ=tuple(sorted({name for each in LAUNCHERS.values() for name in each}))
    ),
    "directory": _variable("STORMPHASE_DIR", "runs"),
    "wants_summary": _variable("STORMPHASE_SUMMARY", "1", "all"),
    "session_variable": _variable("STORMPHASE_SESSION_ID", "given"),
    "attempt": _variable("STORMPHASE_ATTEMPT", "2"),
    "correlation": _variable("STORMPHASE_CORRELATION_ID", "run-8"),
    "checks": _variable("STORMPHASE_CHECKS", "1"),
    "disabled": _variable("STORMPHASE_DISABLED", "0"),
    "caller": Factor(
        (UNSET, ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=1")),
        environ=("TRACEPARENT", "TRACESTATE"),
    ),
    "exceptions_to": _variable("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs", "logs/dup"),
    "sampler": Factor((UNSET, "always_off"), environ=("OTEL_TRACES_SAMPLER",)),
    "service": _variable("OTEL_SERVICE_NAME", "resnet"),
    "resource": _variable("OTEL_RESOURCE_ATTRIBUTES", "team=a"),
    "terminal": Factor((UNSET, ("dumb", "1", "1", "60")), environ=("TERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS")),
}
# Variables that are no part of a row, and where they are tested.
ELSEWHERE = {
    "STORMPHASE_CARRIER": "read by `stormphase.worker()` only, as subprocesses of random programs do",
    "OTEL_PYTHON_CONTEXT": "another context turns the bridge off: tests/otel",
    "OTEL_SDK_DISABLED": "no provider is built then: tests/otel/test_configure.py",
    "OTEL_CONFIG_FILE": "refused: tests/otel/test_settings.py",
    "OTEL_EXPERIMENTAL_CONFIG_FILE": "refused: tests/otel/test_settings.py",
    "OTEL_PYTHON_ID_GENERATOR": "of the providers' own spans: tests/otel/test_id_generator.py",
    "OTEL_TRACES_SAMPLER_ARG": "the number of a sampler: tests/otel/test_settings.py",
    **dict.fromkeys(
        (
            "OTEL_TRACES_EXPORTER", "OTEL_LOGS_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_METRIC_EXPORT_INTERVAL",
            "OTEL_METRIC_EXPORT_TIMEOUT", "OTEL_BSP", "OTEL_BLRP", "OTEL_BSP_MAX_QUEUE_SIZE",
            "OTEL_BLRP_MAX_QUEUE_SIZE", "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        "of the user's exporters: tests/otel/test_settings.py, tests/otel/test_otlp_http.py",
    ),
    **dict.fromkeys(
        (
            "NODE_RANK", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "PALS_NODEID", "PMIX_SERVER_URI2", "PMIX_SERVER_URI4",
            "PMIX_SERVER_URI41", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE", "PRTE_LAUNCHED", "RAY_JOB_ID", "RAY_RAYLET_PID",
            "SLURM_JOBID", "SLURM_NPROCS", "SLURM_PTY_PORT", "SLURM_STEPID", "SLURM_STEP_TASKS_PER_NODE",
            "SLURM_TASKS_PER_NODE",
        ),
        "what launchers set beside those in LAUNCHERS: tests/test_rank.py",
    ),
    "STORMPHASE_STARTED_BY": "what a rank leaves to the programs that it starts: tests/test_starters.py",
    **dict.fromkeys(
        (
            "ALPS_APP_PE", "CROSS_RANK", "FLUX_JOB_ID", "FLUX_JOB_ID_PATH", "FLUX_JOB_SIZE",
            "FLUX_TASK_LOCAL_ID", "FLUX_TASK_RANK", "HOROVOD_CROSS_RANK", "HOROVOD_LOCAL_RANK",
            "HOROVOD_LOCAL_SIZE", "HOROVOD_RANK", "HOROVOD_SIZE", "I_MPI_", "JSM_NAMESPACE_LOCAL_RANK",
            "JSM_NAMESPACE_LOCAL_SIZE", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "LOCAL_SIZE",
            "LSB_JOBID", "MASTER_ADDR", "MASTER_PORT", "MV2_COMM_WORLD_LOCAL_RANK",
            "MV2_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
            "OMPI_NUM_APP_CTX", "PALS_LOCAL_SIZE", "PALS_RANKID", "TORCHELASTIC_USE_AGENT_STORE",
        ),
        "of other launchers: tests/test_launchers.py",
    ),
}  # fmt: skip


def all_pairs():
    """Return every pair of choices that must stand in a row together."""
    pairs = set()
    for first, second in itertools.combinations(FACTORS, 2):
        for one, other in itertools.product(FACTORS[first].choices, FACTORS[second].choices):
            if _makes_sense({first: one, second: other}):
                pairs.add(((first, one), (second, other)))
    return pairs


def _makes_sense(row):
    """Whether a pair can have an effect: options of a bridge need one."""
    needs_bridge = any(FACTORS[name].bridge for name in row)
    return not (needs_bridge and row.get("bridge", "own") != "own")


def _covered(row):
    """Return the pairs that a row covers."""
    return {
        ((first, row[first]), (second, row[second]))
        for first, second in itertools.combinations(FACTORS, 2)
        if _makes_sense({first: row[first], second: row[second]})
        and not ({*FACTORS[first].bridge, *FACTORS[second].bridge} and row["bridge"] != "own")
    }


@functools.cache
def rows(*, tries=30, seed=1):
    """Return rows that together cover every pair: of random candidates that begin with a missing pair, the best."""
    chance = random.Random(seed)
    missing = all_pairs()
    found = []
    while missing:
        ordered = sorted(missing, key=repr)
        best, most = None, set()
        for _ in range(tries):
            row = {name: chance.choice(factor.choices) for name, factor in FACTORS.items()}
            pair = (chance.choice(ordered), ordered[0])[len(found) % 2]
            for name, choice in pair:
                row[name] = choice
                if FACTORS[name].bridge:
                    row["bridge"] = "own"
            if 2 in (row["place"][1], 2 * (row["launcher"] in ("srun", "mpirun"))) and not (
                row["session_id"] or row["session_variable"]
            ):
                pinned = "session_variable" in dict(pair)
                row["session_id" if pinned else "session_variable"] = "given"  # Ranks must agree on the session.
            covered = _covered(row) & missing
            if len(covered) > len(most):
                best, most = row, covered
        if best is not None:
            found.append(best)
            missing -= most
    return found


def pairs_in(found):
    """Return how many pairs some rows cover."""
    return len(set().union(*map(_covered, found)))


def _phase(name, *inside, how="with", **more):
    return {
        "op": "phase",
        "n": -1,
        "how": how,
        "name": name,
        "attributes": {"a": 1, "who": "customer 42"},
        "sync": False,
        "in": list(inside),
        **more,
    }


def _op(kind, **more):
    return {"op": kind, "n": -1, **more}


def _body(end, *, holds, is_slow):
    """Return a program with something of everything; `holds`: it is also looked at while a generator is suspended."""
    failing = _op("try", then="handle", catches="Exception", **{"in": [_phase("load", _op("raise", error="OSError"))]})
    again = _op("retry", name="save", tries=2, **{"in": [_op("late", way="attribute", attributes={"loss": 0.5})]})
    bodies = [[_phase("forward", _op("sleep", ms=1))], [_phase("backward", how="decorated")]]
    loop = _op("loop", backend="asyncio", **{"in": [_phase("gather", _op("tasks", how="group", bodies=bodies))]})
    batches = _op(
        "generator",
        name="batches",
        items=21,
        stop="exhausted",
        **{"in": [_phase("read")], "between": [_phase("step"), *([_op("hold")] if holds else [])]},
    )
    thread = _op("thread", copies=True, passes=False, **{"in": [_phase("evaluate", how="ambient")]})
    move = _op("move", name="upload", attributes={"a": 2}, **{"in": [_phase("pack")], "there": [_phase("send")]})
    fork = _op("fork", end="flush", **{"in": [_phase("child", _op("late", way="attributes", attributes={"b": 3}))]})
    killed = _op("fork", end="kill_open", **{"in": [_phase("doomed")]})
    quiet = _phase("debug", how="quiet")
    late = _op("late", way="event", attributes={"c": 4})
    step = _phase("step", _op("say"), failing, again, late, _op("pause", ms=0), quiet, how="late")
    inside = [_op("step", step=3), step, loop, batches, thread, move, fork, killed, _op("flush")]
    inside += [_op("sleep", ms=1_100)] * is_slow  # What is open for a second is told by events, or by pending spans.
    last = _phase("backward", *([_op("kill", how=end)] if end in ("kill", "sigterm") else []))
    if end == "kill":  # Phases are open in two threads then.
        last = _op("thread", copies=True, passes=False, **{"in": [last]})
    last = _phase("step", last)
    return programs.numbered([_phase("train", *inside), _phase("train", last, how="token")])


def program_of(row, number):
    """Return a row as a program."""
    environ = {}
    for name, factor in FACTORS.items():
        if factor.environ and name != "half" and row[name] is not UNSET:
            values = row[name] if isinstance(row[name], tuple) else (row[name],)
            set_by_one = (
                LAUNCHERS.get(values[0], {}) if name == "launcher" else zip(factor.environ, values, strict=True)
            )
            environ.update(set_by_one)
    tracker = {
        name: row[name]
        for name in ("name", "session_id", "correlation_id", "on_misuse", "level", "summary", "stop_on_sigterm",
                     "hang_factor", "queue_bound", "capture", "redact")
    }  # fmt: skip
    rank, world_size = row["place"]
    bridge = (
        {name: row[name] for name, factor in FACTORS.items() if factor.bridge}
        if row["bridge"] == "own"
        else row["bridge"]
    )
    tracker["attempt"] = row["given_attempt"]
    return {
        "seed": number,
        "body": _body(row["end"], holds=number % 4 == 0, is_slow=row["pending"] and number % 3 == 0),
        "end": {"how": row["end"]},
        "tracker": {**tracker, "rank": rank, "world_size": world_size},
        "bridge": bridge,
        "store": row["store"],
        "journal": row["journal"],
        "sinks": row["sinks"],
        "clock": row["clock"],
        "start": row["start"],
        "environ": environ,
        "pure": row["half"] == "python",
        "order": ("journal_first", "store_first")[number % 2],
    }

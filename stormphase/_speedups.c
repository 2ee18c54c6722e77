/* The plain way through a phase, compiled: what `_enter.enter_phase`, `PhaseHandle.__exit__`, the bridge's `put` and
 * the journal's stores do where nothing is out of the ordinary.
 *
 * The Python that stands beside it is the definition: whatever is not plain is handed to it, and where this file was
 * not built, all is. Classes and their slots are Python's; here they are found by name, once. Nothing in here lets
 * another thread or a signal handler run but the calls that say so, and after each of those the lane is looked at
 * again, as the Python does.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#include <marshal.h>
#include <structmember.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "_c/greenlets.h"

#ifdef Py_GIL_DISABLED
#error "Lanes rest on the GIL."
#endif

#if PY_VERSION_HEX < 0x030C0000
#define T_OBJECT_EX_TYPE T_OBJECT_EX
#else
#define T_OBJECT_EX_TYPE Py_T_OBJECT_EX
#endif

/* --- Slots of Python's classes ---------------------------------------------------------------------------------- */

#define HANDLE_SLOTS(X)                                                                                                \
    X(handle, attributes, "_attributes")                                                                               \
    X(handle, below, "_below")                                                                                         \
    X(handle, children_ns, "_children_ns")                                                                             \
    X(handle, code, "_code")                                                                                           \
    X(handle, context_token, "_context_token")                                                                         \
    X(handle, ended_ns, "_ended_ns")                                                                                   \
    X(handle, entered_ns, "_entered_ns")                                                                               \
    X(handle, extra, "_extra")                                                                                         \
    X(handle, instruction, "_instruction")                                                                             \
    X(handle, lane, "_lane")                                                                                           \
    X(handle, path, "_path")                                                                                           \
    X(handle, sequence, "_sequence")                                                                                   \
    X(handle, slot, "_slot")                                                                                           \
    X(handle, status, "_status")                                                                                       \
    X(handle, step, "_step")

#define LANE_SLOTS(X)                                                                                                  \
    X(lane, children_ns, "_children_ns")                                                                               \
    X(lane, path, "_path")                                                                                             \
    X(lane, sequence, "_sequence")                                                                                     \
    X(lane, ended_count, "ended_count")                                                                                \
    X(lane, entered_count, "entered_count")                                                                            \
    X(lane, is_plain, "is_plain")                                                                                      \
    X(lane, lanes, "lanes")                                                                                            \
    X(lane, now, "now")                                                                                                \
    X(lane, number, "number")                                                                                          \
    X(lane, reset, "reset")                                                                                            \
    X(lane, thread_id, "thread_id")                                                                                    \
    X(lane, top, "top")                                                                                                \
    X(lane, write_exit, "write_exit")                                                                                  \
    X(lane, writer, "writer")

#define LANES_SLOTS(X)                                                                                                 \
    X(lanes, attribute_counts, "attribute_counts")                                                                     \
    X(lanes, current_phase, "current_phase")                                                                           \
    X(lanes, enter_queues, "enter_queues")                                                                             \
    X(lanes, exit_queues, "exit_queues")                                                                               \
    X(lanes, handle_type, "handle_type")                                                                               \
    X(lanes, local, "local")                                                                                           \
    X(lanes, put, "put")                                                                                               \
    X(lanes, redactor, "redactor")                                                                                     \
    X(lanes, running_loop, "running_loop")                                                                             \
    X(lanes, running_tasks, "running_tasks")                                                                           \
    X(lanes, sequence, "sequence")                                                                                     \
    X(lanes, step, "step")                                                                                             \
    X(lanes, taken, "taken")

#define PATH_SLOTS(X)                                                                                                  \
    X(path, children, "children")                                                                                      \
    X(path, helped, "helped")                                                                                          \
    X(path, number, "number")

#define WRITER_SLOTS(X)                                                                                                \
    X(writer, blobs_from, "_blobs_from")                                                                               \
    X(writer, last_slot, "last_slot")                                                                                  \
    X(writer, slot, "slot")                                                                                            \
    X(writer, traces_phases, "traces_phases")                                                                          \
    X(writer, write_enter, "write_enter")

#define DECLARE(kind, field, name) static Py_ssize_t kind##_##field;
HANDLE_SLOTS(DECLARE)
LANE_SLOTS(DECLARE)
LANES_SLOTS(DECLARE)
PATH_SLOTS(DECLARE)
WRITER_SLOTS(DECLARE)

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

/* Find where `type` keeps the slot `name`; -1 with an exception if it is none. */
static Py_ssize_t
offset_of(PyTypeObject *type, const char *name)
{
    PyObject *found = PyObject_GetAttrString((PyObject *)type, name);
    if (found == NULL)
        return -1;
    Py_ssize_t offset = -1;
    if (Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        PyMemberDef *member = ((PyMemberDescrObject *)found)->d_member;
        if (member->type == T_OBJECT_EX_TYPE)
            offset = member->offset;
    }
    Py_DECREF(found);
    if (offset < 0)
        PyErr_Format(PyExc_TypeError, "%s.%s is no slot", type->tp_name, name);
    return offset;
}

#define FIND(kind, field, name)                                                                                        \
    if ((kind##_##field = offset_of(type, name)) < 0)                                                                  \
        return -1;
static int find_handle(PyTypeObject *type) { HANDLE_SLOTS(FIND) return 0; }
static int find_lane(PyTypeObject *type) { LANE_SLOTS(FIND) return 0; }
static int find_lanes(PyTypeObject *type) { LANES_SLOTS(FIND) return 0; }
static int find_path(PyTypeObject *type) { PATH_SLOTS(FIND) return 0; }
static int find_writer(PyTypeObject *type) { WRITER_SLOTS(FIND) return 0; }

/* Store a new reference in a slot; what stood there is let go of last, since that may run code. */
static inline void
store(PyObject *object, Py_ssize_t offset, PyObject *value)
{
    PyObject *old = SLOT(object, offset);
    SLOT(object, offset) = value;
    Py_XDECREF(old);
}

/* Return what a slot holds, a new reference, since a call may put something else there; NULL with an exception if it is
 * empty, as where a test that patches an attribute deletes it for a moment. */
static inline PyObject *
load(PyObject *object, Py_ssize_t offset)
{
    PyObject *value = SLOT(object, offset);
    if (value == NULL)
        PyErr_Format(PyExc_AttributeError, "'%s' object lacks an attribute", Py_TYPE(object)->tp_name);
    Py_XINCREF(value);
    return value;
}

/* --- What is known once it is bound ----------------------------------------------------------------------------- */

static PyTypeObject *handle_class, *lane_class, *lanes_class, *path_class, *quiet_name_class, *writer_class;
static PyObject *python_enter, *python_exit, *python_take_back, *is_active, *has_succeeded, *modules;
static PyObject *monotonic_ns, *zero, *no_step, *no_arguments, *unwinding_names;
static PyCFunction variable_set, variable_reset, variable_get;
static long long slot_bytes, segment_bytes, blobs_from_at, max_blob;
static PyObject *s_lanes, *s_lane, *s_leave, *s_tell_rest, *s_enter_again, *s_enter, *s_resumed_ns;

/* --- Small pieces ------------------------------------------------------------------------------------------------ */

/* What an `except BaseException:` block does that ends in `raise`: meanwhile the exception counts as being handled, so
 * that it is the context of whatever else is raised there. */
typedef struct {
    PyObject *type, *value, *traceback, *handled_type, *handled, *handled_traceback;
} Handling;

static void
begin_handling(Handling *handling)
{
#if PY_VERSION_HEX >= 0x030C0000
    handling->value = PyErr_GetRaisedException();
    handling->handled = PyErr_GetHandledException();
    PyErr_SetHandledException(handling->value);
#else
    PyErr_Fetch(&handling->type, &handling->value, &handling->traceback);
    PyErr_NormalizeException(&handling->type, &handling->value, &handling->traceback);
    if (handling->traceback != NULL)
        PyException_SetTraceback(handling->value, handling->traceback);
    PyErr_GetExcInfo(&handling->handled_type, &handling->handled, &handling->handled_traceback);
    Py_XINCREF(handling->type);
    Py_XINCREF(handling->value);
    Py_XINCREF(handling->traceback);
    PyErr_SetExcInfo(handling->type, handling->value, handling->traceback);
#endif
}

/* The exception is raised again, unless `result`, which is let go of, is NULL and another one is raised. */
static void
end_handling(Handling *handling, PyObject *result)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetHandledException(handling->handled);
    Py_XDECREF(handling->handled);
    if (result == NULL)
        Py_DECREF(handling->value);
    else
        PyErr_SetRaisedException(handling->value);
#else
    PyErr_SetExcInfo(handling->handled_type, handling->handled, handling->handled_traceback);
    if (result == NULL) {
        Py_XDECREF(handling->type);
        Py_XDECREF(handling->value);
        Py_XDECREF(handling->traceback);
    }
    else
        PyErr_Restore(handling->type, handling->value, handling->traceback);
#endif
    Py_XDECREF(result);
}

/* The variable whose method `bound` is, if it is that one of a context variable; else NULL. */
static inline PyObject *
variable_of(PyObject *bound, PyCFunction method)
{
    if (PyCFunction_CheckExact(bound) && PyCFunction_GET_FUNCTION(bound) == method &&
        PyContextVar_CheckExact(PyCFunction_GET_SELF(bound)))
        return PyCFunction_GET_SELF(bound);
    return NULL;
}

/* Read a clock. The system's own is read here, which is what `time.monotonic_ns` does as well. */
static inline PyObject *
read_clock(PyObject *now)
{
#ifdef __linux__
    if (now == monotonic_ns) {
        struct timespec time;
        if (clock_gettime(CLOCK_MONOTONIC, &time) == 0)
            return PyLong_FromLongLong((long long)time.tv_sec * 1000000000LL + time.tv_nsec);
    }
#endif
    return PyObject_CallNoArgs(now);
}

static inline PyObject *
put_into_context(PyObject *put, PyObject *phase)
{
    PyObject *variable = variable_of(put, variable_set);
    return variable != NULL ? PyContextVar_Set(variable, phase) : PyObject_CallOneArg(put, phase);
}

static inline int
take_out_of_context(PyObject *reset, PyObject *token)
{
    PyObject *variable = variable_of(reset, variable_reset);
    if (variable != NULL)
        return PyContextVar_Reset(variable, token);
    PyObject *result = PyObject_CallOneArg(reset, token);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Return what is current in the caller's context, a new reference. */
static inline PyObject *
current_phase(PyObject *current)
{
    PyObject *variable = variable_of(current, variable_get), *found;
    if (variable == NULL)
        return PyObject_CallNoArgs(current);
    if (PyContextVar_Get(variable, Py_None, &found) < 0)
        return NULL;
    return found;
}

/* Add to the count in a slot; -1 with an exception if that cannot be. */
static inline int
count_up(PyObject *object, Py_ssize_t offset)
{
    long long count = PyLong_AsLongLong(SLOT(object, offset));
    if (count == -1 && PyErr_Occurred())
        return -1;
    PyObject *next = PyLong_FromLongLong(count + 1);
    if (next == NULL)
        return -1;
    store(object, offset, next);
    return 0;
}

/* --- Enter ------------------------------------------------------------------------------------------------------- */

/* Hand the whole call to the Python. */
static PyObject *
call_python(PyObject *function, PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t all = count + (names == NULL ? 0 : PyTuple_GET_SIZE(names));
    PyObject **given = PyMem_Malloc((size_t)(all + 1) * sizeof(PyObject *));
    if (given == NULL)
        return PyErr_NoMemory();
    given[0] = self;
    for (Py_ssize_t i = 0; i < all; i++)
        given[i + 1] = args[i];
    PyObject *result = PyObject_Vectorcall(function, given, (size_t)count + 1, names);
    PyMem_Free(given);
    return result;
}

/* Whether the calling thread runs a loop, or may: 1, 0, or -1 with an exception. */
static inline int
may_be_in_task(PyObject *lanes)
{
    PyObject *tasks = load(lanes, lanes_running_tasks);
    if (tasks == NULL)
        return -1;
    Py_ssize_t running = PyDict_CheckExact(tasks) ? PyDict_GET_SIZE(tasks) : PyObject_IsTrue(tasks);
    Py_DECREF(tasks);
    if (running < 0)
        return -1;
    if (running) {
        PyObject *running_loop = load(lanes, lanes_running_loop);
        PyObject *loop = running_loop == NULL ? NULL : PyObject_CallNoArgs(running_loop);
        Py_XDECREF(running_loop);
        if (loop == NULL)
            return -1;
        Py_DECREF(loop);
        if (loop != Py_None)
            return 1;
    }
    return may_be_in_trio_or_greenlet(modules);
}

/* Note on `handle` from where it was entered: the Python function that called us. */
static inline int
note_caller(PyObject *handle)
{
    PyFrameObject *frame = PyEval_GetFrame();
    if (frame == NULL) { /* Nobody's: it stands at the bottom of a greenlet, or of a thread that was begun in C. */
        Py_INCREF(SLOT(handle, handle_code) = PyFunction_GetCode(python_enter));
        return (SLOT(handle, handle_instruction) = PyLong_FromLong(0)) == NULL ? -1 : 0;
    }
    int instruction = PyFrame_GetLasti(frame);
    SLOT(handle, handle_code) = (PyObject *)PyFrame_GetCode(frame);
    return (SLOT(handle, handle_instruction) = PyLong_FromLong(instruction)) == NULL ? -1 : 0;
}

#include "_c/sites.h"

/* Write a phase into the journal as its writer likes it: whatever there is to say of it. */
static int
write_with_writer(PyObject *writer, PyObject *handle)
{
    PyObject *args[] = {writer, handle};
    PyObject *result = PyObject_VectorcallMethod(s_enter, args, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyTypeObject SlotStoreType;
static int store_blob(PyObject *stores, long long at, PyObject *blob, long long word_at);

/* Write a plain phase into the journal, with attributes or NULL; its writer does what is not plain. */
static int
write_plainly(PyObject *writer, PyObject *lane, PyObject *below, PyObject *path, PyObject *handle, PyObject *attributes)
{
    if (Py_TYPE(writer) != writer_class || SLOT(writer, writer_traces_phases) != Py_False ||
        SLOT(path, path_number) == zero)
        return write_with_writer(writer, handle);
    PyObject *write_enter = load(writer, writer_write_enter), *blob = NULL, *blob_word = NULL, *from = NULL;
    PyObject *next = NULL, *last_left = NULL, *result = NULL;
    long long length = 0;
    int written = -1;
    if (write_enter == NULL)
        return -1;
    if (attributes != NULL) {
        if (!Py_IS_TYPE(write_enter, &SlotStoreType) || !PyDict_CheckExact(attributes))
            goto by_writer;
        if ((blob = PyMarshal_WriteObjectToString(attributes, 2)) == NULL)
            goto done;
        length = PyBytes_GET_SIZE(blob);
        if (length > max_blob)
            goto by_writer;
    }
    PyObject *slot = SLOT(writer, writer_slot), *step = SLOT(handle, handle_step);
    long long at = PyLong_AsLongLong(slot), last = PyLong_AsLongLong(SLOT(writer, writer_last_slot)) - length;
    long long start = PyLong_AsLongLong(SLOT(writer, writer_blobs_from)) - length;
    if (PyErr_Occurred())
        goto done;
    if (at > last)
        goto by_writer;
    if ((next = PyLong_FromLongLong(at + slot_bytes)) == NULL)
        goto done;
    if (blob != NULL) {
        long long offset = start & (segment_bytes - 1);
        if ((blob_word = PyLong_FromLongLong(offset | length << 16)) == NULL ||
            (last_left = PyLong_FromLongLong(last)) == NULL || (from = PyLong_FromLongLong(start)) == NULL)
            goto done;
        /* Nobody tells of the place yet, so it does no harm that the writer may give it to another phase. */
        if (store_blob(write_enter, start, blob, (at & ~(segment_bytes - 1)) + blobs_from_at) < 0)
            goto done;
        store(writer, writer_last_slot, last_left);
        store(writer, writer_blobs_from, from);
        last_left = from = NULL;
    }
    /* From here to the store in the file nothing else runs. What the writer lets go of is kept by the handle. */
    SLOT(writer, writer_slot) = next;
    SLOT(handle, handle_slot) = slot;
    next = NULL;
    PyObject *args[] = {
        NULL,
        slot,
        SLOT(handle, handle_entered_ns),
        SLOT(below, below == lane ? lane_sequence : handle_sequence),
        step == Py_None ? no_step : step,
        SLOT(path, path_number),
        SLOT(lane, lane_number),
        blob_word == NULL ? zero : blob_word,
        zero,
        SLOT(handle, handle_sequence),
    };
    for (int i = 1; i < 10; i++)
        if (args[i] == NULL) {
            PyErr_SetString(PyExc_AttributeError, "a number that the journal needs is missing");
            goto done;
        }
    result = PyObject_Vectorcall(write_enter, args + 1, 9 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    written = result == NULL ? -1 : 0;
    goto done;
by_writer:
    written = write_with_writer(writer, handle);
done:
    Py_XDECREF(result);
    Py_XDECREF(next);
    Py_XDECREF(last_left);
    Py_XDECREF(from);
    Py_XDECREF(blob_word);
    Py_XDECREF(blob);
    Py_DECREF(write_enter);
    return written;
}

/* Undo an enter into which an exception came, which stays raised. */
static void
take_back(PyObject *lanes, PyObject *lane, PyObject *handle)
{
    Handling handling;
    begin_handling(&handling);
    end_handling(&handling, PyObject_CallFunctionObjArgs(python_take_back, lanes, lane, handle, NULL));
}

/* Return a tuple of who is to be told, empty for nobody; NULL with an exception. */
static inline PyObject *
load_queues(PyObject *lanes, Py_ssize_t offset)
{
    PyObject *queues = load(lanes, offset);
    if (queues == NULL || PyTuple_CheckExact(queues))
        return queues;
    int is_some = PyObject_IsTrue(queues);
    PyObject *listed = is_some < 0 ? NULL : is_some ? PySequence_Tuple(queues) : PyTuple_New(0);
    Py_DECREF(queues);
    return listed;
}

/* Tell the sinks of an enter. */
static int
tell_of_enter(PyObject *lanes, PyObject *lane, PyObject *handle)
{
    PyObject *queues = load_queues(lanes, lanes_enter_queues);
    int result = -1;
    if (queues == NULL)
        return -1;
    if (PyTuple_GET_SIZE(queues) > 0 && count_up(lane, lane_entered_count) < 0)
        goto done;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(queues); i++) {
        PyObject *told = PyTuple_Pack(1, handle);
        if (told == NULL)
            goto done;
        PyObject *answer = PyObject_CallOneArg(PyTuple_GET_ITEM(queues, i), told);
        Py_DECREF(told);
        if (answer == NULL)
            goto done;
        Py_DECREF(answer);
    }
    result = 0;
done:
    Py_DECREF(queues);
    return result;
}

static PyObject *
enter_phase(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *attributes = Py_None;
    if (names == NULL && count >= 1 && count <= 4) {
        if ((count >= 3 && args[2] != Py_False) || (count == 4 && args[3] != Py_None))
            return call_python(python_enter, self, args, count, names);
        if (count >= 2)
            attributes = args[1];
    }
    else if (count == 1 && PyTuple_GET_SIZE(names) == 1 &&
             PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "attributes") == 0)
        attributes = args[1];
    else
        return call_python(python_enter, self, args, count, names);
    PyObject *name = args[0];
    if (!PyUnicode_Check(name))
        return call_python(python_enter, self, args, count, names);

    /* What is found to be wrong before anything is changed leads to the Python, which says what is to be said. */
    PyObject *lane = NULL, *below = NULL, *path = NULL, *handle = NULL, *taken = NULL, *spent_ns = NULL, *result = NULL;
    PyObject *local, *outer_path = NULL, *children = NULL, *called = NULL;
    PyTypeObject *type = NULL;
    int is_helped = 0;
    PyObject *lanes = PyObject_GetAttr(self, s_lanes);
    if (lanes == NULL)
        goto python_if_missing;
    if (Py_TYPE(lanes) != lanes_class || (local = load(lanes, lanes_local)) == NULL)
        goto python;
    lane = PyObject_GetAttr(local, s_lane);
    Py_DECREF(local);
    if (lane == NULL)
        goto python_if_missing;
    if (Py_TYPE(lane) != lane_class)
        goto python;
    int is_in_task = may_be_in_task(lanes);
    if (is_in_task < 0)
        goto done;
    if (is_in_task || (below = load(lane, lane_top)) == NULL)
        goto python;
    if (below == lane) {
        if ((called = load(lanes, lanes_current_phase)) == NULL)
            goto python;
        PyObject *origin = current_phase(called);
        Py_CLEAR(called);
        if (origin == NULL)
            goto done;
        Py_DECREF(origin);
        if (origin != Py_None)
            goto python;
        outer_path = SLOT(lane, lane_path);
    }
    else if (PyObject_TypeCheck(below, handle_class))
        outer_path = SLOT(below, handle_path);
    Py_XINCREF(outer_path);
    if (outer_path == NULL || Py_TYPE(outer_path) != path_class ||
        (children = load(outer_path, path_children)) == NULL || !PyDict_CheckExact(children))
        goto python;
    path = PyDict_GetItemWithError(children, name);
    if (path == NULL) {
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_KeyError))
            goto done;
        if ((path = path_of_helper(outer_path, name)) == NULL)
            goto python;
        is_helped = 1;
    }
    Py_INCREF(path);
    type = (PyTypeObject *)load(lanes, lanes_handle_type);
    if (type == NULL || !PyType_Check(type) || !PyType_IsSubtype(type, handle_class))
        goto python;

    if (attributes != Py_None) {
        PyObject *counts = load(lanes, lanes_attribute_counts), *redactor = load(lanes, lanes_redactor);
        PyObject *given[] = {attributes, counts, redactor};
        if (counts != NULL && redactor != NULL && (called = load(lanes, lanes_taken)) != NULL)
            taken = PyObject_Vectorcall(called, given, 3, NULL);
        Py_XDECREF(counts);
        Py_XDECREF(redactor);
        Py_CLEAR(called);
        if (taken == NULL)
            goto done;
    }
    handle = type->tp_new(type, no_arguments, NULL);
    if (handle == NULL)
        goto done;
    if (note_caller(handle) < 0 || (is_helped && note_caller_of_helper(handle) < 0))
        goto done;
    PyObject *sequence = load(lanes, lanes_sequence);
    if (sequence == NULL)
        goto done;
    if (!PyIter_Check(sequence))
        PyErr_Format(PyExc_TypeError, "'%s' object is not an iterator", Py_TYPE(sequence)->tp_name);
    else if ((SLOT(handle, handle_sequence) = Py_TYPE(sequence)->tp_iternext(sequence)) == NULL && !PyErr_Occurred())
        PyErr_SetNone(PyExc_StopIteration);
    Py_DECREF(sequence);
    if (SLOT(handle, handle_sequence) == NULL || (SLOT(handle, handle_step) = load(lanes, lanes_step)) == NULL)
        goto done;
#define HOLD(field, value)                                                                                             \
    do {                                                                                                               \
        PyObject *held = (value);                                                                                      \
        Py_INCREF(held);                                                                                               \
        SLOT(handle, handle_##field) = held;                                                                           \
    } while (0)
    HOLD(lane, lane);
    HOLD(below, below);
    HOLD(path, path);
    HOLD(attributes, taken == NULL ? Py_None : taken);
    HOLD(children_ns, zero);
    HOLD(extra, Py_None);
    HOLD(status, is_active);
#undef HOLD
    Py_ssize_t sum_of_below = below == lane ? lane_children_ns : handle_children_ns;
    if ((spent_ns = load(below, sum_of_below)) == NULL || (called = load(lane, lane_now)) == NULL)
        goto done;
    SLOT(handle, handle_entered_ns) = read_clock(called);
    Py_CLEAR(called);
    if (SLOT(handle, handle_entered_ns) == NULL)
        goto done;
    if ((called = load(lanes, lanes_put)) == NULL)
        goto done;
    /* None may have used the lane since the clock was read. */
    if (SLOT(lane, lane_top) != below || SLOT(below, sum_of_below) != spent_ns) {
        PyObject *sync = Py_False, *timeout_s = Py_None;
        PyObject *again = PyObject_GetAttr(lanes, s_enter_again);
        PyObject *names_again = again == NULL ? NULL : Py_BuildValue("(ss)", "sync", "timeout_s");
        if (names_again != NULL) {
            PyObject *given[] = {handle, name, taken == NULL ? Py_None : taken, sync, timeout_s};
            result = PyObject_Vectorcall(again, given, 3, names_again);
        }
        Py_XDECREF(names_again);
        Py_XDECREF(again);
        goto done;
    }
    Py_INCREF(handle);
    store(lane, lane_top, handle);
    PyObject *writer = NULL;
    if ((SLOT(handle, handle_context_token) = put_into_context(called, handle)) == NULL ||
        (writer = load(lane, lane_writer)) == NULL) {
        take_back(lanes, lane, handle);
        goto done;
    }
    if (writer == Py_None)
        Py_DECREF(writer);
    else {
        int is_empty = taken == NULL || taken == Py_None || (PyDict_CheckExact(taken) && PyDict_GET_SIZE(taken) == 0);
        int written = write_plainly(writer, lane, below, path, handle, is_empty ? NULL : taken);
        Py_DECREF(writer);
        if (written < 0) {
            take_back(lanes, lane, handle);
            goto done;
        }
    }
    if (Py_TYPE(name) != quiet_name_class && tell_of_enter(lanes, lane, handle) < 0)
        goto done;
    Py_INCREF(handle);
    result = handle;
    goto done;

python_if_missing:
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
        goto done;
python:
    PyErr_Clear();
    result = call_python(python_enter, self, args, count, names);
done:
    Py_XDECREF(called);
    Py_XDECREF(spent_ns);
    Py_XDECREF(handle);
    Py_XDECREF(type);
    Py_XDECREF(children);
    Py_XDECREF(outer_path);
    Py_XDECREF(taken);
    Py_XDECREF(path);
    Py_XDECREF(below);
    Py_XDECREF(lane);
    Py_XDECREF(lanes);
    return result;
}

/* --- Exit -------------------------------------------------------------------------------------------------------- */

static PyObject *
handle_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Py_INCREF(self);
    return self;
}

/* Let the Python end the phase, in whatever way. */
static PyObject *
leave(PyObject *lane, PyObject *handle, PyObject *error)
{
    PyObject *lanes = load(lane, lane_lanes);
    if (lanes == NULL)
        return NULL;
    PyObject *args[] = {lanes, handle, error, Py_True};
    PyObject *result = PyObject_VectorcallMethod(s_leave, args, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, unwinding_names);
    Py_DECREF(lanes);
    if (result == NULL)
        return NULL;
    Py_DECREF(result);
    Py_RETURN_NONE;
}

/* Whether the caller is in the thread whose own lane this is. */
static inline int
is_own_lane(PyObject *lane)
{
    if (SLOT(lane, lane_is_plain) != Py_True)
        return 0;
    unsigned long thread_id = PyLong_AsUnsignedLong(SLOT(lane, lane_thread_id));
    if (thread_id == (unsigned long)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return thread_id == PyThread_get_thread_ident();
}

/* Tell journal and sinks of a plain end; where an exception comes in, the rest are told by the Python. */
static int
tell_of_exit(PyObject *lane, PyObject *handle, PyObject *ended_ns, PyObject *spent_ns)
{
    PyObject *lanes = load(lane, lane_lanes), *write_exit = NULL, *queues = NULL;
    Py_ssize_t told = 0;
    if (lanes == NULL)
        return -1;
    if ((write_exit = load(lane, lane_write_exit)) == NULL)
        goto failed;
    if (write_exit != Py_None) {
        PyObject *slot = load(handle, handle_slot), *sequence = load(handle, handle_sequence), *result = NULL;
        PyObject *args[] = {NULL, slot, ended_ns, spent_ns, sequence};
        if (slot != NULL && sequence != NULL)
            result = PyObject_Vectorcall(write_exit, args + 1, 4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        Py_XDECREF(slot);
        Py_XDECREF(sequence);
        if (result == NULL)
            goto failed;
        Py_DECREF(result);
    }
    if ((queues = load_queues(lanes, lanes_exit_queues)) == NULL)
        goto failed;
    if (PyTuple_GET_SIZE(queues) > 0) {
        if (count_up(lane, lane_ended_count) < 0)
            goto failed;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(queues); i++) {
            told++;
            PyObject *answer = PyObject_CallOneArg(PyTuple_GET_ITEM(queues, i), handle);
            if (answer == NULL)
                goto failed;
            Py_DECREF(answer);
        }
    }
    Py_DECREF(queues);
    Py_DECREF(write_exit);
    Py_DECREF(lanes);
    return 0;
failed:
    Py_XDECREF(queues);
    Py_XDECREF(write_exit);
    Handling handling;
    begin_handling(&handling);
    PyObject *count = PyLong_FromSsize_t(told), *rest = NULL;
    if (count != NULL)
        rest = PyObject_CallMethodObjArgs(lanes, s_tell_rest, handle, count, NULL);
    Py_XDECREF(count);
    end_handling(&handling, rest);
    Py_DECREF(lanes);
    return -1;
}

/* Return `before + (ended - entered)`, as numbers of any kind that a clock may give. */
static PyObject *
add_time(PyObject *before, PyObject *ended, PyObject *entered)
{
    if (PyLong_CheckExact(before) && PyLong_CheckExact(ended) && PyLong_CheckExact(entered)) {
        int is_long[3];
        long long sum, took, end = PyLong_AsLongLongAndOverflow(ended, &is_long[0]);
        long long begin = PyLong_AsLongLongAndOverflow(entered, &is_long[1]);
        long long had = PyLong_AsLongLongAndOverflow(before, &is_long[2]);
        if (!is_long[0] && !is_long[1] && !is_long[2] && !__builtin_sub_overflow(end, begin, &took) &&
            !__builtin_add_overflow(had, took, &sum))
            return PyLong_FromLongLong(sum);
    }
    PyObject *took = PyNumber_Subtract(ended, entered);
    PyObject *sum = took == NULL ? NULL : PyNumber_Add(before, took);
    Py_XDECREF(took);
    return sum;
}

PyDoc_STRVAR(handle_enter_doc, "__enter__($self)\n--\n\nReturn the handle: the phase is already entered.");
PyDoc_STRVAR(handle_exit_doc, "__exit__($self, exc_type, exc, traceback)\n--\n\n"
                              "End the phase; never swallows the block's exception, nor replaces it.");

static PyObject *
handle_exit(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *lane = SLOT(self, handle_lane);
    if (count != 3 || names != NULL || lane == NULL || Py_TYPE(lane) != lane_class)
        return call_python(python_exit, self, args, count, names);
    PyObject *error = args[1], *token = SLOT(self, handle_context_token), *entered_ns = SLOT(self, handle_entered_ns);
    PyObject *spent_ns = SLOT(self, handle_children_ns), *below = SLOT(self, handle_below);
    if (error != Py_None || SLOT(lane, lane_top) != self || SLOT(self, handle_extra) != Py_None || !is_own_lane(lane))
        return leave(lane, self, error);
    if (token == NULL || entered_ns == NULL || spent_ns == NULL || below == NULL)
        return call_python(python_exit, self, args, count, names);
    Py_ssize_t sum_of_below = below == lane ? lane_children_ns : handle_children_ns;
    PyObject *ended_ns = NULL, *before = NULL, *sum = NULL, *result = NULL, *called;
    int is_plain = 1;
    Py_INCREF(lane); /* The handle keeps it, and may lose it where others end the phase. */
    Py_INCREF(below);
    Py_INCREF(spent_ns);
    Py_INCREF(token);
    Py_INCREF(entered_ns);
    if ((called = load(lane, lane_now)) == NULL)
        goto done;
    ended_ns = read_clock(called);
    Py_DECREF(called);
    if (ended_ns == NULL || (called = load(lane, lane_reset)) == NULL)
        goto done;
    int is_reset = take_out_of_context(called, token);
    Py_DECREF(called);
    if (is_reset < 0) {
        /* Another context; or reset before by an exit that was interrupted, which may have let go of the token, too. */
        if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_RuntimeError) &&
            !PyErr_ExceptionMatches(PyExc_TypeError))
            goto done;
        PyErr_Clear();
        is_plain = 0;
    }
    if (is_plain && (below == lane || PyObject_TypeCheck(below, handle_class)) &&
        ((before = load(below, sum_of_below)) == NULL || (sum = add_time(before, ended_ns, entered_ns)) == NULL))
        goto done;
    if (sum != NULL && SLOT(lane, lane_top) == self && SLOT(self, handle_children_ns) == spent_ns &&
        SLOT(self, handle_below) == below && SLOT(below, sum_of_below) == before) {
        /* Nothing else runs in these stores: what they let go of is held here, but for a status. */
        Py_INCREF(below);
        store(lane, lane_top, below);
        store(below, sum_of_below, sum);
        sum = NULL;
        Py_INCREF(ended_ns);
        store(self, handle_ended_ns, ended_ns);
        Py_INCREF(has_succeeded);
        store(self, handle_status, has_succeeded);
        Py_INCREF(Py_None);
        store(self, handle_context_token, Py_None);
        if (tell_of_exit(lane, self, ended_ns, spent_ns) == 0) {
            Py_INCREF(Py_None);
            result = Py_None;
        }
    }
    else
        result = leave(lane, self, error);
done:
    Py_XDECREF(sum);
    Py_XDECREF(before);
    Py_XDECREF(ended_ns);
    Py_DECREF(entered_ns);
    Py_DECREF(token);
    Py_DECREF(spent_ns);
    Py_DECREF(below);
    Py_DECREF(lane);
    return result;
}

/* --- What carries phases in OpenTelemetry's context --------------------------------------------------------------- */

/* `SpanCarrier._make_put` in one object: called with a phase, it makes that current and returns the token. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *variable, *span_key, *phase_key, *plain_outer;
    PyTypeObject *context_class, *span_class;
    Py_ssize_t outer, extra;
} SpanPut;

static PyObject *
span_put_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    SpanPut *self = (SpanPut *)callable;
    if (PyVectorcall_NARGS(flags) != 1 || names != NULL || !PyObject_TypeCheck(args[0], self->span_class)) {
        PyErr_SetString(PyExc_TypeError, "put takes one phase that is a span");
        return NULL;
    }
    PyObject *phase = args[0], *context = NULL, *token = NULL, *outer, *extra;
    if ((extra = load(phase, self->extra)) == NULL)
        return NULL;
    if (PyContextVar_Get(self->variable, NULL, &outer) < 0) {
        Py_DECREF(extra);
        return NULL;
    }
    if (outer == NULL || !PyDict_Check(outer)) {
        PyErr_SetString(PyExc_TypeError, "OpenTelemetry's context is no dict");
        goto done;
    }
    /* What a phase was entered in is noted once, and stays when it is resumed. */
    int is_first = extra == Py_None;
    if (!is_first) {
        PyObject *resumed_ns = PyObject_GetAttr(extra, s_resumed_ns);
        if (resumed_ns == NULL)
            goto done;
        is_first = resumed_ns == Py_None;
        Py_DECREF(resumed_ns);
    }
    if (is_first) {
        Py_INCREF(outer);
        store(phase, self->outer, outer);
    }
    context = self->context_class->tp_new(self->context_class, no_arguments, NULL);
    if (context == NULL)
        goto done;
    if (outer != self->plain_outer && PyDict_Update(context, outer) < 0)
        goto done;
    if (PyDict_SetItem(context, self->span_key, phase) < 0 || PyDict_SetItem(context, self->phase_key, phase) < 0)
        goto done;
    /* The last context seen to hold nothing that a phase does not replace: that of the phase around, for a loop. */
    if (outer != self->plain_outer && PyDict_GET_SIZE(context) == 2) {
        Py_INCREF(outer);
        Py_XSETREF(self->plain_outer, outer);
    }
    token = PyContextVar_Set(self->variable, context);
done:
    Py_XDECREF(context);
    Py_XDECREF(outer);
    Py_DECREF(extra);
    return token;
}

static int
span_put_traverse(PyObject *object, visitproc visit, void *arg)
{
    SpanPut *self = (SpanPut *)object;
    Py_VISIT(self->variable);
    Py_VISIT(self->span_key);
    Py_VISIT(self->phase_key);
    Py_VISIT(self->plain_outer);
    Py_VISIT(self->context_class);
    Py_VISIT(self->span_class);
    return 0;
}

static int
span_put_clear(PyObject *object)
{
    SpanPut *self = (SpanPut *)object;
    Py_CLEAR(self->plain_outer);
    return 0;
}

static void
span_put_free(PyObject *object)
{
    SpanPut *self = (SpanPut *)object;
    PyObject_GC_UnTrack(object);
    Py_XDECREF(self->variable);
    Py_XDECREF(self->span_key);
    Py_XDECREF(self->phase_key);
    Py_XDECREF(self->plain_outer);
    Py_XDECREF(self->context_class);
    Py_XDECREF(self->span_class);
    PyObject_GC_Del(object);
}

static PyTypeObject SpanPutType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "stormphase._speedups.SpanPut",
    .tp_basicsize = sizeof(SpanPut),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(SpanPut, call),
    .tp_traverse = span_put_traverse,
    .tp_clear = span_put_clear,
    .tp_dealloc = span_put_free,
};

static PyObject *
span_put(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *variable, *span_key, *phase_key;
    PyTypeObject *context_class, *span_class;
    if (!PyArg_ParseTuple(args, "O!OOO!O!", &PyContextVar_Type, &variable, &span_key, &phase_key, &PyType_Type,
                          &context_class, &PyType_Type, &span_class))
        return NULL;
    if (handle_class == NULL || !PyType_IsSubtype(span_class, handle_class) ||
        !PyType_IsSubtype(context_class, &PyDict_Type)) {
        PyErr_SetString(PyExc_TypeError, "not a span's class, or not a context's");
        return NULL;
    }
    Py_ssize_t outer = offset_of(span_class, "_outer"), extra = offset_of(span_class, "_extra");
    if (outer < 0 || extra < 0)
        return NULL;
    SpanPut *self = PyObject_GC_New(SpanPut, &SpanPutType);
    if (self == NULL)
        return NULL;
    self->call = span_put_call;
    self->plain_outer = NULL;
    self->outer = outer;
    self->extra = extra;
    Py_INCREF(variable);
    self->variable = variable;
    Py_INCREF(span_key);
    self->span_key = span_key;
    Py_INCREF(phase_key);
    self->phase_key = phase_key;
    Py_INCREF(context_class);
    self->context_class = context_class;
    Py_INCREF(span_class);
    self->span_class = span_class;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* --- What stores into the journal --------------------------------------------------------------------------------- */

/* `ENTER.pack_into` or `EXIT.pack_into` on a mapped file: called with a slot's offset and the fields. The last word of
 * each is stored last, as one, so that what is torn looks unwritten. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *file;
    Py_ssize_t begin; /* Within the slot. */
} SlotStore;     /* `file` is NULL, and `call` does nothing, once it has let go. */

#define ENTER_WORDS 6
#define EXIT_WORDS 3

static inline int
word_of(PyObject *number, int is_signed, uint64_t most, uint64_t *word)
{
    *word = is_signed ? (uint64_t)PyLong_AsLongLong(number) : (uint64_t)PyLong_AsUnsignedLongLong(number);
    if (*word == (uint64_t)-1 && PyErr_Occurred())
        return -1;
    if (*word > most) {
        PyErr_Format(PyExc_OverflowError, "%S does not fit into its field of a journal's slot", number);
        return -1;
    }
    return 0;
}

static PyObject *store_watcher; /* Told after each store, so that tests can look at what a kill there would leave. */

static void
tell_of_store(void)
{
    PyObject *result = PyObject_CallNoArgs(store_watcher);
    if (result == NULL)
        PyErr_WriteUnraisable(store_watcher);
    Py_XDECREF(result);
}

static PyObject *
store_words(SlotStore *self, PyObject *slot, const uint64_t *words, Py_ssize_t count)
{
    Py_ssize_t at = PyLong_AsSsize_t(slot);
    if (at == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer view;
    if (PyObject_GetBuffer(self->file, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    if (at < 0 || at % 8 || at > view.len - self->begin - count * 8) {
        PyBuffer_Release(&view);
        PyErr_Format(PyExc_IndexError, "no slot at offset %zd of the journal", at);
        return NULL;
    }
    uint64_t *place = (uint64_t *)((char *)view.buf + at + self->begin);
    for (Py_ssize_t i = 0; i < count; i++) {
        __atomic_store_n(place + i, words[i], __ATOMIC_RELEASE);
        if (store_watcher != NULL)
            tell_of_store();
    }
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

/* Store a blob, and first the word that says from where on its segment has them, so that no reader takes one for a slot. */
static int
store_blob(PyObject *stores, long long at, PyObject *blob, long long word_at)
{
    PyObject *file = ((SlotStore *)stores)->file;
    Py_buffer view;
    if (file == NULL)
        return 0;
    if (PyObject_GetBuffer(file, &view, PyBUF_WRITABLE) < 0)
        return -1;
    Py_ssize_t length = PyBytes_GET_SIZE(blob);
    int fits = word_at >= 0 && word_at % 8 == 0 && at >= word_at && at <= view.len - length;
    if (fits) {
        uint64_t offset = (uint64_t)(at & (segment_bytes - 1));
        char *place = (char *)view.buf + at, *text = PyBytes_AS_STRING(blob);
        size_t first = store_watcher == NULL ? 0 : (size_t)length / 2;
        __atomic_store_n((uint64_t *)((char *)view.buf + word_at), offset, __ATOMIC_RELEASE);
        if (store_watcher != NULL) {
            tell_of_store();
            memcpy(place, text, first);
            tell_of_store();
        }
        memcpy(place + first, text + first, (size_t)length - first);
        if (store_watcher != NULL)
            tell_of_store();
    }
    else
        PyErr_Format(PyExc_IndexError, "no place for a blob at offset %lld of the journal", at);
    PyBuffer_Release(&view);
    return fits ? 0 : -1;
}

static PyObject *
store_enter(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    if (PyVectorcall_NARGS(flags) != 9 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "an enter has an offset and eight fields");
        return NULL;
    }
    uint64_t words[ENTER_WORDS], path, lane, blob, other;
    if (word_of(args[1], 1, UINT64_MAX, &words[0]) < 0 || word_of(args[2], 0, UINT64_MAX, &words[1]) < 0 ||
        word_of(args[3], 1, UINT64_MAX, &words[2]) < 0 || word_of(args[4], 0, UINT32_MAX, &path) < 0 ||
        word_of(args[5], 0, UINT32_MAX, &lane) < 0 || word_of(args[6], 0, UINT32_MAX, &blob) < 0 ||
        word_of(args[7], 0, UINT32_MAX, &other) < 0 || word_of(args[8], 0, UINT64_MAX, &words[5]) < 0)
        return NULL;
    words[3] = path | lane << 32;
    words[4] = blob | other << 32;
    return store_words((SlotStore *)callable, args[0], words, ENTER_WORDS);
}

static PyObject *
store_exit(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    if (PyVectorcall_NARGS(flags) != 4 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "an exit has an offset and three fields");
        return NULL;
    }
    uint64_t words[EXIT_WORDS];
    if (word_of(args[1], 1, UINT64_MAX, &words[0]) < 0 || word_of(args[2], 1, UINT64_MAX, &words[1]) < 0 ||
        word_of(args[3], 0, UINT64_MAX, &words[2]) < 0)
        return NULL;
    return store_words((SlotStore *)callable, args[0], words, EXIT_WORDS);
}

static PyObject *
store_nothing(PyObject *Py_UNUSED(callable), PyObject *const *Py_UNUSED(args), size_t Py_UNUSED(flags),
              PyObject *Py_UNUSED(names))
{
    Py_RETURN_NONE;
}

/* Do nothing from now on, for whoever holds it. The file goes when the last call that is under way has stored: that one
 * has its buffer. */
static PyObject *
slot_store_let_go(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    SlotStore *self = (SlotStore *)object;
    self->call = store_nothing;
    Py_CLEAR(self->file);
    Py_RETURN_NONE;
}

static PyMethodDef slot_store_methods[] = {
    {"let_go", slot_store_let_go, METH_NOARGS, "Hold the file no longer, and store nothing from now on."},
    {NULL, NULL, 0, NULL},
};

static int
slot_store_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(((SlotStore *)object)->file);
    return 0;
}

static void
slot_store_free(PyObject *object)
{
    PyObject_GC_UnTrack(object);
    Py_XDECREF(((SlotStore *)object)->file);
    PyObject_GC_Del(object);
}

static PyTypeObject SlotStoreType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "stormphase._speedups.SlotStore",
    .tp_basicsize = sizeof(SlotStore),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(SlotStore, call),
    .tp_traverse = slot_store_traverse,
    .tp_dealloc = slot_store_free,
    .tp_methods = slot_store_methods,
};

static PyObject *
slot_stores(PyObject *Py_UNUSED(module), PyObject *file)
{
    PyObject *both = PyTuple_New(2);
    for (int i = 0; both != NULL && i < 2; i++) {
        SlotStore *self = PyObject_GC_New(SlotStore, &SlotStoreType);
        if (self == NULL) {
            Py_CLEAR(both);
            break;
        }
        self->call = i ? store_exit : store_enter;
        self->begin = i ? ENTER_WORDS * 8 : 0;
        Py_INCREF(file);
        self->file = file;
        PyObject_GC_Track(self);
        PyTuple_SET_ITEM(both, i, (PyObject *)self);
    }
    return both;
}

/* --- Faults in what is mapped ------------------------------------------------------------------------------------- */

#include "_c/sigbus.h"

/* --- The module --------------------------------------------------------------------------------------------------- */

static PyMethodDef enter_phase_method = {
    "enter_phase", (PyCFunction)(void (*)(void))enter_phase, METH_FASTCALL | METH_KEYWORDS, NULL};
static PyMethodDef handle_enter_method = {"__enter__", handle_enter, METH_NOARGS, handle_enter_doc};
static PyMethodDef handle_exit_method = {
    "__exit__", (PyCFunction)(void (*)(void))handle_exit, METH_FASTCALL | METH_KEYWORDS, handle_exit_doc};

/* The C function behind a method of context variables. */
static int
find_method(PyObject *variable, const char *name, PyCFunction *found)
{
    PyObject *method = PyObject_GetAttrString(variable, name);
    if (method == NULL)
        return -1;
    if (!PyCFunction_CheckExact(method)) {
        Py_DECREF(method);
        PyErr_SetString(PyExc_TypeError, "context variables are not C's");
        return -1;
    }
    *found = PyCFunction_GET_FUNCTION(method);
    Py_DECREF(method);
    return 0;
}

/* Give the compiled `enter_phase` the signature and the docstring of the Python. */
static int
document(PyObject *enter)
{
    PyObject *doc = PyObject_GetAttrString(enter, "__doc__");
    PyObject *text = doc == NULL ? NULL
                                 : PyUnicode_FromFormat("enter_phase($self, /, name, attributes=None, sync=False, "
                                                        "timeout_s=None, metadata=None)\n--\n\n%V",
                                                        doc == Py_None ? NULL : doc, "");
    Py_XDECREF(doc);
    if (text == NULL)
        return -1;
    enter_phase_method.ml_doc = PyUnicode_AsUTF8(text); /* It stays with the text, which is kept. */
    return enter_phase_method.ml_doc == NULL ? -1 : 0;
}

static PyObject *
bind(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"handle", "lane", "lanes", "path", "quiet_name", "variable", "clock", "enter_phase",
                            "exit_phase", "take_back", "active", "succeeded", "slot_bytes", "no_step", NULL};
    PyTypeObject *handle, *lane, *lanes, *path, *quiet_name;
    PyObject *variable, *clock, *enter, *exit, *back, *active, *succeeded, *step;
    long long bytes;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "$O!O!O!O!O!O!OOOOOOLO", names, &PyType_Type, &handle, &PyType_Type,
                                     &lane, &PyType_Type, &lanes, &PyType_Type, &path, &PyType_Type, &quiet_name,
                                     &PyContextVar_Type, &variable, &clock, &enter, &exit, &back, &active, &succeeded,
                                     &bytes, &step))
        return NULL;
    if (handle_class != NULL) {
        PyErr_SetString(PyExc_ImportError, "bound already, in another interpreter or before a reload");
        return NULL;
    }
    if (find_contextlib() < 0 || find_handle(handle) < 0 || find_lane(lane) < 0 || find_lanes(lanes) < 0 || find_path(path) < 0 ||
        find_method(variable, "set", &variable_set) < 0 || find_method(variable, "reset", &variable_reset) < 0 ||
        find_method(variable, "get", &variable_get) < 0 || document(enter) < 0)
        return NULL;
    PyObject *methods[3] = {
        PyDescr_NewMethod(lanes, &enter_phase_method),
        PyDescr_NewMethod(handle, &handle_enter_method),
        PyDescr_NewMethod(handle, &handle_exit_method),
    };
    PyObject *result = NULL;
    if (methods[0] != NULL && methods[1] != NULL && methods[2] != NULL)
        result = PyTuple_Pack(3, methods[0], methods[1], methods[2]);
    for (int i = 0; i < 3; i++)
        Py_XDECREF(methods[i]);
    if (result == NULL)
        return NULL;
#define KEEP(place, value)                                                                                             \
    Py_INCREF(value);                                                                                                  \
    place = value
    KEEP(lane_class, lane);
    KEEP(lanes_class, lanes);
    KEEP(path_class, path);
    KEEP(quiet_name_class, quiet_name);
    KEEP(monotonic_ns, clock);
    KEEP(python_enter, enter);
    KEEP(python_exit, exit);
    KEEP(modules, PyImport_GetModuleDict());
    KEEP(python_take_back, back);
    KEEP(is_active, active);
    KEEP(has_succeeded, succeeded);
    KEEP(no_step, step);
    slot_bytes = bytes;
    KEEP(handle_class, handle);
    return result;
}

static PyObject *
bind_writer(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"writer", "segment_bytes", "blobs_from_at", "max_blob", NULL};
    PyTypeObject *type;
    long long segment, from, most;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "$O!LLL", names, &PyType_Type, &type, &segment, &from, &most))
        return NULL;
    if (writer_class == NULL) {
        if (find_writer(type) < 0)
            return NULL;
        segment_bytes = segment;
        blobs_from_at = from;
        max_blob = most;
        KEEP(writer_class, type);
    }
    Py_RETURN_NONE;
}

static PyObject *
watch_stores(PyObject *Py_UNUSED(module), PyObject *watcher)
{
    PyObject *before = store_watcher;
    Py_INCREF(watcher);
    store_watcher = watcher;
    if (watcher == Py_None)
        Py_CLEAR(store_watcher);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

/* Return `enter_phase` as a method of another class, whatever that is: it asks its object for `_lanes`. */
static PyObject *
enter_phase_of(PyObject *Py_UNUSED(module), PyObject *owner)
{
    if (!PyType_Check(owner) || handle_class == NULL) {
        PyErr_SetString(PyExc_TypeError, "a class is needed, and bind before");
        return NULL;
    }
    return PyDescr_NewMethod((PyTypeObject *)owner, &enter_phase_method);
}

#include "_c/frames.h"
#include "_c/capture.h"
#include "_c/redaction.h"

static PyMethodDef functions[] = {
    {"bind", (PyCFunction)(void (*)(void))bind, METH_VARARGS | METH_KEYWORDS,
     "Take note of the Python that stands beside; return `enter_phase`, `__enter__` and `__exit__`."},
    {"enter_phase_of", enter_phase_of, METH_O, "Return `enter_phase` as a method of a class."},
    {"bind_writer", (PyCFunction)(void (*)(void))bind_writer, METH_VARARGS | METH_KEYWORDS, "Take note of the class of the journal's writers."},
    {"span_put", span_put, METH_VARARGS, "Return what makes a span's phase current in OpenTelemetry's context."},
    {"stream_hook", stream_hook, METH_VARARGS,
     "Return what stands in the place of a stream's method; see `capture._writes`."},
    {"count_newlines", count_newlines, METH_VARARGS, "Count the newlines of a text or of bytes between two places."},
    {"slot_stores", slot_stores, METH_O, "Return what stores the two halves of a slot into a mapped file."},
    {"without_secrets", (PyCFunction)(void (*)(void))without_secrets, METH_FASTCALL,
     "Return a text with a marker in the place of each secret."},
    {"watch_stores", watch_stores, METH_O, "Have a callable told after each store into a journal; None for nobody."},
    SIGBUS_FUNCTIONS
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "stormphase._speedups",
    .m_doc = "The plain way through a phase, compiled; see `_native`.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    prepare_redaction();
    if (PyType_Ready(&SpanPutType) < 0 || PyType_Ready(&SlotStoreType) < 0 || PyType_Ready(&HookType) < 0)
        return NULL;
    if ((zero = PyLong_FromLong(0)) == NULL || (no_arguments = PyTuple_New(0)) == NULL ||
        (unwinding_names = Py_BuildValue("(s)", "is_unwinding")) == NULL)
        return NULL;
#define INTERN(place, text)                                                                                            \
    if ((place = PyUnicode_InternFromString(text)) == NULL)                                                            \
        return NULL;
    if (find_library_names() < 0)
        return NULL;
    INTERN(s_lanes, "_lanes")
    INTERN(s_lane, "lane")
    INTERN(s_leave, "leave")
    INTERN(s_tell_rest, "tell_rest")
    INTERN(s_enter_again, "enter_again")
    INTERN(s_enter, "enter")
    INTERN(s_resumed_ns, "resumed_ns")
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (PyModule_AddStringConstant(module, "SOURCE", STORMPHASE_SOURCE) < 0 ||
                           PyModule_AddIntConstant(module, "WRITES_FRAMES", WRITES_FRAMES) < 0 ||
                           PyModule_AddIntConstant(module, "ABI", 3) < 0)) /* See `_native`. */
        Py_CLEAR(module);
    return module;
}

/* What stands at a captured stream's `write`, `flush` and the like, compiled: `_writes.StreamHook` is the definition.
 *
 * It has no frame, so that tracebacks of the program's own errors are as without it, and it appends to a thread's own
 * lists as the Python does. Which streams a thread is writing to right now stands in a small table of the thread, and
 * not on the C stack, which greenlets move.
 */

#ifdef _MSC_VER
#define CAPTURE_LOCAL static __declspec(thread)
#else
#define CAPTURE_LOCAL static __thread
#endif

#include "quiet.h"

#define MOST_ACTIVE 32
CAPTURE_LOCAL Py_ssize_t active_groups[MOST_ACTIVE];
CAPTURE_LOCAL int active_count;
CAPTURE_LOCAL unsigned long noted_count;

enum { HOOK_PLAIN, HOOK_FOREIGN, HOOK_BUFFER, HOOK_OTHER };

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *original;
    PyObject *wrapped; /* `__wrapped__`: what `remove` puts back */
    PyObject *before;  /* unless all is quiet, called first: what it returns, if not None, is the answer */
    PyObject *note;    /* called with what was written; returns a cell */
    PyObject *after;   /* called after, without arguments */
    PyObject *cell;    /* see `_cells`: how this thread may keep its next text by itself, or NULL */
    PyObject *line;    /* where a lone newline goes, or NULL */
    unsigned long cell_thread, line_thread;
    Py_ssize_t group;
    Py_ssize_t room, whole_room;
    int kind;
    int is_retired;
    int probe;      /* an epoll descriptor of pipes: nothing to read there, and the page's first word 1, is quiet; or -1 */
    long long marked_ns;
    Py_buffer page; /* shared with the process that reads them */
} HookObject;

enum { CELL_CURRENT, CELL_VALUE, CELL_HOLDER, CELL_THREAD, CELL_ADD, CELL_STAMP, CELL_NOW, CELL_MAKE_ROOM, CELL_LINE };
#define CELL_SIZE 9

static int
is_group_active(Py_ssize_t group)
{
    for (int index = active_count; index-- > 0;)
        if (active_groups[index] == group)
            return 1;
    return 0;
}

static inline int
begin_group(Py_ssize_t group)
{
    if (active_count == MOST_ACTIVE)
        return 0;
    active_groups[active_count++] = group;
    return 1;
}

/* Take one entry of the group out: the last one, but where greenlets have taken turns in between. */
static inline void
end_group(Py_ssize_t group)
{
    for (int index = active_count; index-- > 0;) {
        if (active_groups[index] == group) {
            memmove(active_groups + index, active_groups + index + 1, (size_t)(active_count - index - 1) * sizeof(group));
            active_count--;
            return;
        }
    }
}

/* Let an error of ours go, but for one that is the program's: an interrupt. 0, or -1 with the exception still set. */
static int
let_go(void)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyErr_Clear();
    return 0;
}

static void
forget_cell(HookObject *hook)
{
    PyObject *cell = hook->cell, *line = hook->line;
    hook->cell = hook->line = NULL;
    Py_XDECREF(cell);
    Py_XDECREF(line);
}

/* Append to the list whose bound `append` this is, or call it. */
static int
append_to(PyObject *append, PyObject *value)
{
    if (PyCFunction_CheckExact(append)) {
        PyObject *list = PyCFunction_GET_SELF(append);
        if (list != NULL && PyList_CheckExact(list))
            return PyList_Append(list, value);
    }
    PyObject *result = PyObject_CallOneArg(append, value);
    if (result == NULL)
        return -1;
    Py_DECREF(result);
    return 0;
}

/* Return what `get` of a context variable returns, or what another callable does. */
static PyObject *
value_of(PyObject *get)
{
    PyObject *variable = variable_of(get, variable_get), *value;
    if (variable == NULL || PyContextVar_Get(variable, NULL, &value) < 0 || value == NULL) {
        PyErr_Clear();
        return PyObject_CallNoArgs(get);
    }
    return value;
}

static int
is_holder_open(PyObject *holder)
{
    if (handle_class != NULL && PyObject_TypeCheck(holder, handle_class))
        return SLOT(holder, handle_status) == is_active;
    PyObject *status = PyObject_GetAttrString(holder, "_status");
    if (status == NULL) {
        PyErr_Clear();
        return 0;
    }
    Py_DECREF(status);
    return status == is_active;
}

static void
use_cell(HookObject *hook, PyObject *cell)
{
    PyObject *line;
    if (!PyTuple_CheckExact(cell) || PyTuple_GET_SIZE(cell) != CELL_SIZE)
        return;
    line = PyTuple_GET_ITEM(cell, CELL_LINE);
    unsigned long thread = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(cell, CELL_THREAD));
    if (PyErr_Occurred() || thread == 0 || !PyTuple_CheckExact(line) || PyTuple_GET_SIZE(line) != 2) {
        PyErr_Clear();
        return;
    }
    PyObject *old_cell = hook->cell, *old_line = hook->line;
    Py_INCREF(cell);
    Py_INCREF(line);
    hook->cell = cell;
    hook->cell_thread = thread;
    hook->line = line;
    hook->line_thread = thread;
    Py_XDECREF(old_cell);
    Py_XDECREF(old_line);
}

/* Keep a text on the fast way: 1 if that was done, 0 if it is not this thread's turn, -1 with an exception. */
static int
keep_by_cell(HookObject *hook, PyObject *text, Py_ssize_t size)
{
    PyObject *cell = hook->cell;
    unsigned long thread = PyThread_get_thread_ident();
    if (cell == NULL || hook->cell_thread != thread)
        return 0;
    if (!is_holder_open(PyTuple_GET_ITEM(cell, CELL_HOLDER)))
        return 0;
    int kept = -1;
    Py_INCREF(cell);
    PyObject *current = value_of(PyTuple_GET_ITEM(cell, CELL_CURRENT));
    if (current == NULL)
        goto done;
    Py_DECREF(current);
    if (current != PyTuple_GET_ITEM(cell, CELL_VALUE)) {
        kept = 0;
        goto done;
    }
    PyObject *when = read_clock(PyTuple_GET_ITEM(cell, CELL_NOW));
    if (when == NULL)
        goto done;
    /* The time first, so that no text is without one. */
    int failed = append_to(PyTuple_GET_ITEM(cell, CELL_STAMP), when);
    Py_DECREF(when);
    if (failed || append_to(PyTuple_GET_ITEM(cell, CELL_ADD), text) < 0)
        goto done;
    PyObject *line = PyTuple_GET_ITEM(cell, CELL_LINE), *old_line = hook->line;
    if (line != old_line) {
        Py_INCREF(line);
        hook->line = line;
        hook->line_thread = thread;
        Py_XDECREF(old_line);
    }
    kept = 1;
    hook->room -= size + 1;
    if (hook->room < 0) {
        hook->room = hook->whole_room;
        PyObject *made = PyObject_CallNoArgs(PyTuple_GET_ITEM(cell, CELL_MAKE_ROOM));
        if (made == NULL)
            kept = -1;
        Py_XDECREF(made);
    }
done:
    Py_DECREF(cell);
    return kept;
}

static inline int
is_newline(PyObject *text)
{
    return PyUnicode_CheckExact(text) && PyUnicode_GET_LENGTH(text) == 1 && PyUnicode_READ_CHAR(text, 0) == '\n';
}

/* Keep what was written; 0, or -1 with an exception that is the program's. */
static int
note_written(HookObject *hook, PyObject *text, PyObject *result, int is_passed_on)
{
    noted_count++;
    if (hook->kind != HOOK_FOREIGN) {
        int kept = 0;
        if (is_newline(text)) {
            /* What `print` writes last: it ends the line that this thread has begun, whatever happened since. */
            PyObject *line = hook->line;
            if (line != NULL && hook->line_thread == PyThread_get_thread_ident()) {
                hook->line = NULL;
                kept = append_to(PyTuple_GET_ITEM(line, 1), text) < 0 ? -1 : 1;
                Py_DECREF(line);
            }
        } else if (PyUnicode_CheckExact(text)) {
            kept = keep_by_cell(hook, text, PyUnicode_GET_LENGTH(text));
        } else if (PyBytes_CheckExact(text) && PyLong_CheckExact(result) &&
                   PyLong_AsSsize_t(result) == PyBytes_GET_SIZE(text)) {
            kept = keep_by_cell(hook, text, PyBytes_GET_SIZE(text));
        }
        if (kept < 0)
            return let_go();
        if (kept)
            return 0;
        forget_cell(hook);
    }
    PyObject *arguments[] = {text, result, is_passed_on ? Py_True : Py_False};
    PyObject *cell = PyObject_Vectorcall(hook->note, arguments, hook->kind == HOOK_FOREIGN ? 3 : 2, NULL);
    if (cell == NULL)
        return let_go();
    if (!hook->is_retired && hook->kind != HOOK_FOREIGN)
        use_cell(hook, cell);
    Py_DECREF(cell);
    return 0;
}

static void
leave_probe(HookObject *hook)
{
    if (hook->probe >= 0) {
        hook->probe = -1;
        PyBuffer_Release(&hook->page);
    }
}

static PyObject *
hook_call(PyObject *self, PyObject *const *args, size_t flags, PyObject *keywords)
{
    HookObject *hook = (HookObject *)self;
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    PyObject *result;
    if (hook->is_retired || (hook->kind == HOOK_BUFFER && is_group_active(hook->group))) {
        /* Whoever called may let go of us meanwhile. */
        Py_INCREF(self);
        result = PyObject_Vectorcall(hook->original, args, flags, keywords);
        Py_DECREF(self);
        return result;
    }
    Py_INCREF(self);
    /* The end of a `print` goes with what it has begun. */
    if (hook->before != NULL && !(hook->probe >= 0 && count > 0 && is_newline(args[0])) && !is_quiet(hook->probe, &hook->page, &hook->marked_ns)) {
        result = PyObject_Vectorcall(hook->before, args, (size_t)(count > 0), NULL);
        if (result == NULL && let_go() < 0)
            goto done;
        if (result != NULL && PyTuple_CheckExact(result) && count > 0) {
            PyObject *plan = result;
            result = write_planned(plan, args[0]);
            Py_DECREF(plan);
            if (result != NULL || PyErr_Occurred())
                goto done;
        } else if (result != NULL && result != Py_None) {
            goto done;
        } else {
            Py_XDECREF(result);
        }
    }
    unsigned long noted_before = noted_count;
    int is_begun = hook->kind != HOOK_OTHER && begin_group(hook->group);
    result = PyObject_Vectorcall(hook->original, args, flags, keywords);
    if (is_begun)
        end_group(hook->group);
    if (result == NULL)
        goto done;
    int failed = 0;
    if (hook->note != NULL && count > 0 && !hook->is_retired)
        failed = note_written(hook, args[0], result, noted_count != noted_before);
    if (!failed && hook->after != NULL) {
        PyObject *done_after = PyObject_CallNoArgs(hook->after);
        failed = done_after == NULL ? let_go() : 0;
        Py_XDECREF(done_after);
    }
    if (failed)
        Py_CLEAR(result);
done:
    Py_DECREF(self);
    return result;
}

static PyObject *
hook_forget(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    forget_cell((HookObject *)self);
    Py_RETURN_NONE;
}

static PyObject *
hook_retire(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ((HookObject *)self)->is_retired = 1;
    leave_probe((HookObject *)self);
    forget_cell((HookObject *)self);
    Py_RETURN_NONE;
}

/* What is not ours is the original's: its name, its `__self__`, its documentation. */
static PyObject *
hook_getattro(PyObject *self, PyObject *name)
{
    PyObject *found = PyObject_GenericGetAttr(self, name);
    if (found != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError))
        return found;
    PyErr_Clear();
    return PyObject_GetAttr(((HookObject *)self)->original, name);
}

static PyObject *
hook_repr(PyObject *self)
{
    return PyObject_Repr(((HookObject *)self)->original);
}

/* No `tp_clear`: the stream's own breaks the circle, and until then it must be able to write. */
static int
hook_traverse(PyObject *self, visitproc visit, void *arg)
{
    HookObject *hook = (HookObject *)self;
    Py_VISIT(hook->original);
    Py_VISIT(hook->wrapped);
    Py_VISIT(hook->before);
    Py_VISIT(hook->note);
    Py_VISIT(hook->after);
    Py_VISIT(hook->cell);
    Py_VISIT(hook->line);
    return 0;
}

static void
hook_dealloc(PyObject *self)
{
    HookObject *hook = (HookObject *)self;
    PyObject_GC_UnTrack(self);
    leave_probe(hook);
    forget_cell(hook);
    Py_XDECREF(hook->original);
    Py_XDECREF(hook->wrapped);
    Py_XDECREF(hook->before);
    Py_XDECREF(hook->note);
    Py_XDECREF(hook->after);
    PyObject_GC_Del(self);
}

static PyMethodDef hook_methods[] = {
    {"forget", hook_forget, METH_NOARGS, "Have every thread ask anew at its next write."},
    {"retire", hook_retire, METH_NOARGS, "Only hand on from now on."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef hook_members[] = {
    {"__wrapped__", T_OBJECT_EX_TYPE, offsetof(HookObject, wrapped), 1, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject HookType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "stormphase._speedups.StreamHook",
    .tp_basicsize = sizeof(HookObject),
    .tp_dealloc = hook_dealloc,
    .tp_vectorcall_offset = offsetof(HookObject, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_repr = hook_repr,
    .tp_getattro = hook_getattro,
    .tp_traverse = hook_traverse,
    .tp_methods = hook_methods,
    .tp_members = hook_members,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
};

static PyObject *
given(PyObject *value)
{
    if (value == Py_None)
        return NULL;
    Py_XINCREF(value);
    return value;
}

static PyObject *
stream_hook(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *original, *wrapped, *before, *note, *after, *page;
    Py_ssize_t group, room;
    int kind, probe;
    if (!PyArg_ParseTuple(args, "OinOOOOniO", &original, &kind, &group, &wrapped, &before, &note, &after, &room, &probe,
                          &page))
        return NULL;
    HookObject *hook = PyObject_GC_New(HookObject, &HookType);
    if (hook == NULL)
        return NULL;
    hook->vectorcall = hook_call;
    hook->original = given(original);
    hook->wrapped = given(wrapped);
    hook->before = given(before);
    hook->note = given(note);
    hook->after = given(after);
    hook->cell = hook->line = NULL;
    hook->cell_thread = hook->line_thread = 0;
    hook->group = group;
    hook->kind = kind;
    hook->room = hook->whole_room = room;
    hook->is_retired = 0;
    hook->probe = -1;
    hook->marked_ns = 0;
    if (probe >= 0) {
        if (PyObject_GetBuffer(page, &hook->page, PyBUF_SIMPLE) < 0)
            PyErr_Clear(); /* It is asked each time then. */
        else if (hook->page.len < (Py_ssize_t)(8 * sizeof(uint64_t)))
            PyBuffer_Release(&hook->page);
        else
            hook->probe = probe;
    }
    PyObject_GC_Track((PyObject *)hook);
    return (PyObject *)hook;
}

/* Count the newlines between two places of a text or of bytes, as `count` does, which takes twenty times as long. */
static PyObject *
count_newlines(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *text;
    Py_ssize_t from, to, size, count = 0;
    const char *data;
    if (!PyArg_ParseTuple(args, "Onn", &text, &from, &to))
        return NULL;
    if (PyBytes_Check(text)) {
        data = PyBytes_AS_STRING(text);
        size = PyBytes_GET_SIZE(text);
    } else if (PyUnicode_Check(text) && PyUnicode_KIND(text) == PyUnicode_1BYTE_KIND) {
        data = (const char *)PyUnicode_1BYTE_DATA(text);
        size = PyUnicode_GET_LENGTH(text);
    } else {
        return PyObject_CallMethod(text, "count", "snn", "\n", from, to);
    }
    if (to > size)
        to = size;
    /* Eight at a time: of each byte that is a newline, one bit is left. */
    const uint64_t each = 0x0101010101010101u, low = 0x7f7f7f7f7f7f7f7fu;
    for (; to - from >= 8; from += 8) {
        uint64_t word;
        memcpy(&word, data + from, sizeof(word));
        word ^= each * '\n';
        word = ~(((word & low) + low) | word | low);
        count += (Py_ssize_t)(((word >> 7) * each) >> 56);
    }
    for (; from < to; from++)
        count += data[from] == '\n';
    return PyLong_FromSsize_t(count);
}

/* Whether the caller may run in a task of trio's, or in a greenlet that is not its thread's first: `_tasks` knows. */

#ifndef STORMPHASE_GREENLETS_H
#define STORMPHASE_GREENLETS_H

static PyObject *s_greenlet, *s_getcurrent, *s_parent, *s_trio;
/* What was found when so many modules were loaded. Each phase asks, and modules come, or go, ever more seldom; that as
 * many go as come between two phases, and one of these two among them, is not worth two look-ups a phase. */
static Py_ssize_t module_count = -1;
static int has_trio, has_greenlet;

static int
find_library_names(void)
{
    if ((s_greenlet = PyUnicode_InternFromString("greenlet")) == NULL ||
        (s_getcurrent = PyUnicode_InternFromString("getcurrent")) == NULL ||
        (s_parent = PyUnicode_InternFromString("parent")) == NULL ||
        (s_trio = PyUnicode_InternFromString("trio")) == NULL)
        return -1;
    return 0;
}

static int
is_in_greenlet(PyObject *modules)
{
    PyObject *library = PyDict_GetItemWithError(modules, s_greenlet);
    if (library == NULL)
        return PyErr_Occurred() ? -1 : 0;
    Py_INCREF(library);
    PyObject *current = PyObject_CallMethodNoArgs(library, s_getcurrent);
    Py_DECREF(library);
    PyObject *parent = current == NULL ? NULL : PyObject_GetAttr(current, s_parent);
    Py_XDECREF(current);
    if (parent == NULL) { /* Half imported, say: the Python looks again. */
        PyErr_Clear();
        return 1;
    }
    Py_DECREF(parent);
    return parent != Py_None;
}

/* 1, 0, or -1 with an exception. */
static inline int
may_be_in_trio_or_greenlet(PyObject *modules)
{
    Py_ssize_t count = PyDict_GET_SIZE(modules);
    if (count != module_count) {
        if ((has_trio = PyDict_Contains(modules, s_trio)) < 0 ||
            (has_greenlet = PyDict_Contains(modules, s_greenlet)) < 0)
            return -1;
        module_count = count;
    }
    if (has_trio || !has_greenlet)
        return has_trio;
    return is_in_greenlet(modules);
}

#endif

/* Names that a small helper of the user's enters, and where it was called: what `_sites.through` finds. */

static PyObject *contextlib_file; /* Whose frames stand between a decorated generator and who enters it. */

#if defined(__GNUC__)
#define SELDOM __attribute__((cold, noinline)) /* so that whoever enters directly does not pay for its room */
#else
#define SELDOM
#endif

/* Return the node of a name that a helper enters, borrowed; NULL if there is none, without an exception. */
SELDOM static PyObject *
path_of_helper(PyObject *outer, PyObject *name)
{
    PyObject *helped = SLOT(outer, path_helped), *path;
    PyErr_Clear();
    if (helped == NULL || !PyDict_CheckExact(helped))
        return NULL;
    path = PyDict_GetItemWithError(helped, name);
    if (path == NULL)
        PyErr_Clear();
    return path;
}

static inline long
instruction_of(PyFrameObject *frame)
{
#if PY_VERSION_HEX >= 0x030B0000
    return PyFrame_GetLasti(frame);
#else
    return frame->f_lasti < 0 ? -1 : frame->f_lasti * (long)sizeof(_Py_CODEUNIT);
#endif
}

/* Note beside the instruction at which a helper enters the code and the instruction of its caller. */
SELDOM static int
note_caller_of_helper(PyObject *handle)
{
    PyFrameObject *frame = PyEval_GetFrame(), *caller = frame == NULL ? NULL : PyFrame_GetBack(frame);
    PyCodeObject *code = NULL;
    while (caller != NULL) {
        code = PyFrame_GetCode(caller);
        if (code->co_filename != contextlib_file && PyUnicode_Compare(code->co_filename, contextlib_file) != 0)
            break;
        Py_CLEAR(code);
        PyFrameObject *above = PyFrame_GetBack(caller);
        Py_DECREF(caller);
        caller = above;
    }
    if (caller == NULL)
        return 0;
    PyObject *at = PyLong_FromLong(instruction_of(caller));
    Py_DECREF(caller);
    PyObject *both = at == NULL ? NULL : PyTuple_Pack(3, SLOT(handle, handle_instruction), (PyObject *)code, at);
    Py_XDECREF(at);
    Py_DECREF(code);
    if (both == NULL)
        return -1;
    store(handle, handle_instruction, both);
    return 0;
}

/* Learn which file is contextlib's: -1 with an exception if it is not to be found. */
static int
find_contextlib(void)
{
    PyObject *module = PyImport_ImportModule("stormphase._sites");
    contextlib_file = module == NULL ? NULL : PyObject_GetAttrString(module, "CONTEXTLIB");
    Py_XDECREF(module);
    return contextlib_file == NULL ? -1 : 0;
}

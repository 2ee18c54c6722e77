/* Text on its way into a captured descriptor's pipe, in frames, as `Descriptors._put` writes them.
 *
 * No handler of a signal runs between the first frame and the return to the buffer above: its exception would have that
 * write the same text once more.
 */

#ifndef _WIN32
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#define FRAME_WORD 16
#define FRAME_HEADER 22 /* "<BBQQI", as `_tee.HEADER` */
#define FRAME_MOST (PIPE_BUF < 4096 ? PIPE_BUF : 4096)
enum { FRAME_TEXT = 1, FRAME_PAGE_PUT = 6 }; /* as in `_tee` */

/* Write one frame whole, which is atomic: 0, or an `errno`; EINTR if a signal came before anything was written. */
static int
write_frame(int descriptor, const char *frame, size_t size)
{
    for (;;) {
        if (write(descriptor, frame, size) >= 0)
            return 0;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return errno;
        /* Some child made the shared pipe non-blocking. */
        struct pollfd wanted = {.fd = descriptor, .events = POLLOUT};
        if (poll(&wanted, 1, -1) < 0)
            return errno;
    }
}

/* Write data as a plan says, which is what `Descriptors.write_text` returns; how much, or NULL.
 * Without an exception then, the descriptor is none of ours any more: a program may close all, and open others. */
static PyObject *
write_planned(PyObject *plan, PyObject *written)
{
    int descriptor, target, error = 0;
    unsigned long long device, inode, when_ns;
    Py_buffer word, data, page;
    if (PyObject_GetBuffer(written, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    if (!PyArg_ParseTuple(plan, "iKKy*iKw*", &descriptor, &device, &inode, &word, &target, &when_ns, &page)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    Py_ssize_t done = 0;
    char frame[FRAME_MOST];
    struct stat found;
    if (word.len != FRAME_WORD || page.len < (Py_ssize_t)((FRAME_PAGE_PUT + 1) * sizeof(uint64_t)))
        error = EINVAL;
    else if (fstat(descriptor, &found) < 0 || (unsigned long long)found.st_dev != device ||
             (unsigned long long)found.st_ino != inode)
        error = EBADF;
    while (!error && done < data.len) {
        Py_ssize_t size = data.len - done;
        if (size > FRAME_MOST - FRAME_WORD - FRAME_HEADER)
            size = FRAME_MOST - FRAME_WORD - FRAME_HEADER;
        uint64_t when = when_ns, number = 0;
        uint32_t length = (uint32_t)size;
        char *at = frame + FRAME_WORD;
        memcpy(frame, word.buf, FRAME_WORD);
        at[0] = FRAME_TEXT;
        at[1] = (char)target;
        memcpy(at + 2, &when, 8);
        memcpy(at + 10, &number, 8);
        memcpy(at + 18, &length, 4);
        memcpy(at + FRAME_HEADER, (char *)data.buf + done, (size_t)size);
        ((volatile uint64_t *)page.buf)[FRAME_PAGE_PUT] += 1;
        Py_BEGIN_ALLOW_THREADS
        error = write_frame(descriptor, frame, (size_t)(FRAME_WORD + FRAME_HEADER + size));
        Py_END_ALLOW_THREADS
        if (!error) {
            done += size;
            continue;
        }
        ((volatile uint64_t *)page.buf)[FRAME_PAGE_PUT] -= 1;
        /* Of what is written already the caller is told, as by `write(2)`: it writes the rest. */
        if (error != EINTR || done > 0 || PyErr_CheckSignals() < 0)
            break;
        error = 0;
    }
    PyBuffer_Release(&word);
    PyBuffer_Release(&data);
    PyBuffer_Release(&page);
    if (PyErr_Occurred())
        return NULL;
    if (error == EBADF && !done)
        return NULL;
    if (error && !done) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSsize_t(done);
}

#define WRITES_FRAMES 1
#else
#define WRITES_FRAMES 0
static PyObject *
write_planned(PyObject *plan, PyObject *written)
{
    (void)plan, (void)written;
    return NULL;
}
#endif

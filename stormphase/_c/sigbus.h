/* A fault in a file that is mapped for writing, and that somebody has cut short, costs that file and not the process.
 *
 * The kernel sends SIGBUS to whoever touches a page that the file no longer has. The handler here looks whether the
 * page belongs to one of the mappings in `guarded`; then it puts memory of zeros in the place of that page and of all
 * behind it, takes a note that the file is lost, and the instruction is done again. Any other SIGBUS goes to whoever
 * had the signal before.
 *
 * The handler may interrupt any instruction of any thread, so it takes no lock, allocates nothing and makes no call but
 * system calls. The table is changed under the GIL.
 */

#ifndef _WIN32
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

#define MOST_GUARDED 1024
#define MOST_LEVELS 8

typedef struct {
    uintptr_t begin, end; /* `begin` is stored last, and 0 where the place is free. */
    int is_lost;
} GuardedMapping;

static GuardedMapping guarded[MOST_GUARDED];
static int guarded_count;
static uintptr_t page_bytes;

/* Whoever takes the signal after us may call what stood there before, which is a handler of ours. So that this does not
 * go round in a circle when we take it again, we do that with another handler each time: a level. */
static struct sigaction before[MOST_LEVELS];
static int last_level = -1;

/* Put zeros in the place of the page and of all behind it, if it is a guarded one. */
static int
replace_pages(uintptr_t address)
{
    for (int i = 0; i < MOST_GUARDED; i++) {
        GuardedMapping *place = guarded + i;
        uintptr_t begin = __atomic_load_n(&place->begin, __ATOMIC_ACQUIRE);
        uintptr_t end = __atomic_load_n(&place->end, __ATOMIC_ACQUIRE);
        if (begin == 0 || address < begin || address >= end ||
            begin != __atomic_load_n(&place->begin, __ATOMIC_ACQUIRE))
            continue;
        char *page = (char *)(address & ~(page_bytes - 1));
        int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        if (mmap(page, end - (uintptr_t)page, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED &&
            mmap(page, page_bytes, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
            return 0;
        __atomic_store_n(&place->is_lost, 1, __ATOMIC_RELEASE);
        return 1;
    }
    return 0;
}

/* Do what would have been done without us. */
static void
pass_on(struct sigaction *next, int number, siginfo_t *info, void *context)
{
    int is_a_fault = info->si_code > 0;
#ifdef BUS_MCEERR_AO
    is_a_fault = is_a_fault && info->si_code != BUS_MCEERR_AO; /* A page is broken that nobody has touched yet. */
#endif
    struct sigaction taken = *next;
    if (taken.sa_flags & (int)SA_RESETHAND) {
        next->sa_handler = SIG_DFL;
        next->sa_flags &= ~(int)(SA_SIGINFO | SA_RESETHAND);
    }
    if (taken.sa_flags & SA_SIGINFO) {
        taken.sa_sigaction(number, info, context);
        return;
    }
    if (taken.sa_handler != SIG_DFL && taken.sa_handler != SIG_IGN) {
        taken.sa_handler(number);
        return;
    }
    if (taken.sa_handler == SIG_IGN && !is_a_fault)
        return;
    /* A fault comes again when we return, with the address that belongs into a core dump; nobody can ignore it. */
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigemptyset(&fatal.sa_mask);
    sigaction(number, &fatal, NULL);
    if (!is_a_fault)
        raise(number);
}

static void
on_bus_error(int level, int number, siginfo_t *info, void *context)
{
    int error = errno;
    if (info->si_code != BUS_ADRERR || !replace_pages((uintptr_t)info->si_addr))
        pass_on(before + level, number, info, context);
    errno = error;
}

#define LEVEL(level)                                                                                                   \
    static void on_bus_error_##level(int number, siginfo_t *info, void *context)                                       \
    {                                                                                                                  \
        on_bus_error(level, number, info, context);                                                                    \
    }
LEVEL(0) LEVEL(1) LEVEL(2) LEVEL(3) LEVEL(4) LEVEL(5) LEVEL(6) LEVEL(7)

static void (*const levels[MOST_LEVELS])(int, siginfo_t *, void *) = {
    on_bus_error_0, on_bus_error_1, on_bus_error_2, on_bus_error_3,
    on_bus_error_4, on_bus_error_5, on_bus_error_6, on_bus_error_7,
};

/* The level of a handler of ours, or -1. */
static int
level_of(const struct sigaction *action)
{
    for (int level = 0; level < MOST_LEVELS; level++)
        if (action->sa_flags & SA_SIGINFO && action->sa_sigaction == levels[level])
            return level;
    return -1;
}

/* On which stack ours runs, and with it whoever it calls: on that which this one wants, since an alternate stack may be
 * too small for a handler that was not made for it, and another one (Go's) may be called on nothing else. Where nobody is
 * called, the alternate one, if the thread has any: the system takes the thread's own where there is none. */
static int
stack_for(const struct sigaction *next)
{
    int calls_nobody = next->sa_handler == SIG_DFL || next->sa_handler == SIG_IGN;
    return calls_nobody ? SA_ONSTACK : next->sa_flags & SA_ONSTACK;
}

/* See that faults come to us first, whoever has taken the signal meanwhile. */
static void
take_signal(void)
{
    struct sigaction now;
    if (sigaction(SIGBUS, NULL, &now) != 0 || level_of(&now) >= 0)
        return;
    int level = last_level + 1;
    if (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN)
        level = 0; /* It calls nobody. */
    else if (level > 0 && now.sa_handler == before[level - 1].sa_handler)
        level--; /* It has taken the signal anew. */
    if (level == MOST_LEVELS)
        return; /* Somebody does that without end: let them have it. */
    before[level] = now;
    last_level = level;
    struct sigaction ours = {.sa_sigaction = levels[level]};
    ours.sa_mask = now.sa_mask;
    ours.sa_flags = SA_SIGINFO | stack_for(&now) | (now.sa_flags & (int)(SA_NODEFER | SA_RESTART));
    sigaction(SIGBUS, &ours, NULL);
}

/* Leave the signal to whoever had it, unless somebody has taken it since: they may call our handler, which stays. */
static void
leave_signal(void)
{
    struct sigaction now;
    int level;
    if (sigaction(SIGBUS, NULL, &now) == 0 && (level = level_of(&now)) >= 0 &&
        sigaction(SIGBUS, before + level, NULL) == 0)
        last_level = level - 1;
}

/* Return the number of a place in the table for the mapping that `mapped` shows; -1 if there is none. */
static PyObject *
guard(PyObject *Py_UNUSED(module), PyObject *mapped)
{
    Py_buffer view;
    if (PyObject_GetBuffer(mapped, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    uintptr_t begin = (uintptr_t)view.buf, end = begin + (uintptr_t)view.len;
    PyBuffer_Release(&view);
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    long number = 0;
    while (number < MOST_GUARDED && guarded[number].begin != 0)
        number++;
    if (number == MOST_GUARDED)
        return PyLong_FromLong(-1);
    guarded[number].is_lost = 0;
    __atomic_store_n(&guarded[number].end, end, __ATOMIC_RELEASE);
    __atomic_store_n(&guarded[number].begin, begin, __ATOMIC_RELEASE);
    guarded_count++;
    take_signal();
    return PyLong_FromLong(number);
}

static GuardedMapping *
guarded_at(PyObject *number)
{
    long at = PyLong_AsLong(number);
    if (at >= 0 && at < MOST_GUARDED && guarded[at].begin != 0)
        return guarded + at;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_IndexError, "no mapping is guarded under this number");
    return NULL;
}

/* Forget a mapping, before it goes. */
static PyObject *
unguard(PyObject *Py_UNUSED(module), PyObject *number)
{
    GuardedMapping *place = guarded_at(number);
    if (place == NULL)
        return NULL;
    __atomic_store_n(&place->begin, 0, __ATOMIC_RELEASE);
    if (--guarded_count == 0)
        leave_signal();
    Py_RETURN_NONE;
}

/* Whether a page of the mapping was replaced. */
static PyObject *
has_faulted(PyObject *Py_UNUSED(module), PyObject *number)
{
    GuardedMapping *place = guarded_at(number);
    return place == NULL ? NULL : PyBool_FromLong(__atomic_load_n(&place->is_lost, __ATOMIC_ACQUIRE));
}

/* Take the signal back where somebody has taken it since; it still gets what is not ours. */
static PyObject *
guard_again(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing))
{
    if (guarded_count != 0)
        take_signal();
    Py_RETURN_NONE;
}

#define SIGBUS_FUNCTIONS                                                                                               \
    {"guard", guard, METH_O, "Have faults in a mapped file cost the file and not the process; return a number."},      \
        {"unguard", unguard, METH_O, "Forget the mapping of a number, before it goes."},                               \
        {"has_faulted", has_faulted, METH_O, "Whether a page of the mapping of a number was replaced by zeros."},      \
        {"guard_again", guard_again, METH_NOARGS, "Come first again, if somebody has taken SIGBUS since."},
#else
#define SIGBUS_FUNCTIONS
#endif

/* Whether nothing that C wrote is on its way through a captured descriptor: asked before each text that Python writes. */

#ifdef __linux__
#include <stdio.h>
#ifdef __GLIBC__
#include <stdio_ext.h>
#endif
#include <sys/epoll.h>

enum { PAGE_IS_IDLE = 0, PAGE_FRAMES_PUT = 6, PAGE_FRAMES_SEEN = 7 }; /* as in `_tee` */
#define MARK_EVERY_NS 100000

static inline long long
clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Have C's stdout written, if something waits in it: to ask costs a tenth of flushing what is empty. */
static inline void
flush_c(void)
{
#ifdef __GLIBC__
    if (__fpending(stdout) == 0)
        return;
#endif
    fflush(stdout);
}
#endif

/* Whether what is written now needs no mark before it, as `Descriptors.begin_text` finds out. The one system call in
 * here is what this costs, so the clock is read only where it may be left out. */
static int
is_quiet(int probe, const Py_buffer *shared, long long *marked_ns)
{
#ifdef __linux__
    if (probe < 0)
        return 0;
    struct epoll_event event;
    const volatile uint64_t *page = shared->buf;
    flush_c();
    if (page[PAGE_FRAMES_SEEN] != page[PAGE_FRAMES_PUT] && clock_ns() < *marked_ns + MARK_EVERY_NS)
        return 1;
    /* In this order: the reader says that it is idle before it looks, and that it is not before it takes. */
    if (epoll_wait(probe, &event, 1, 0) == 0 && page[PAGE_IS_IDLE] == 1)
        return 1;
    *marked_ns = clock_ns();
#else
    (void)probe, (void)shared, (void)marked_ns;
#endif
    return 0;
}

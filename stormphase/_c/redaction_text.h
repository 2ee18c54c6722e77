/* A text as the rules of redaction look at it: bytes, classes of characters, words, and the spans that are found. */

enum { NOTHING = -1, OTHER = 128, OTHER_SPACE, KINDS_OF_BYTES };
/* A text as bytes: ASCII as it is, of all others spaces alike and the rest. NOTHING is beyond either end. */

enum { ON_STACK = 8192, SPANS_ON_STACK = 64 };

typedef struct {
    Py_ssize_t start, end;
} Span;

/* How far a rule is that looks for names: of how many it has found a value, where the last one that goes on ended, and
 * where it looks on. */
typedef struct {
    Py_ssize_t count, until, from;
} Named;

typedef struct {
    const unsigned char *raw, *low; /* The text, and the text in lower case. */
    int kind;
    const void *data; /* The text's own characters. */
    Py_ssize_t length;
    Span few[SPANS_ON_STACK], *spans;
    Py_ssize_t count, room;
    int is_unsorted; /* Whether one began before the end of another. */
    Py_ssize_t last_end;
    Named named, by_last; /* Names by a word of theirs, and by their last one. */
    Py_ssize_t scheme_from, url_from, shape_from, key_from; /* Where each rule looks on. */
} Scan;

typedef struct {
    const char *text;
    Py_ssize_t length;
} Word;

#define W(literal) {literal, (Py_ssize_t)sizeof(literal) - 1}

/* The rules, as bits. */
enum { NAME = 1, SCHEME = 2, URL = 4, SHAPE = 8, KEY = 16, LAST = 32 };

/* The classes of bytes, as bits. */
enum {
    LETTER = 1,
    DIGIT = 2,
    UPPER = 4,
    WORD = 8,
    NAMES = 16,
    SPACE = 32,
    HEX = 64,
    QUOTE = 128,       /* "' */
    JOINT = 256,       /* _-. and space: between the words of a name */
    PREFIX = 512,      /* bfru: before a quote, as in b'...' */
    BARE_END = 1024,   /* ,;&"')]} and spaces */
    IN_TOKEN = 2048,   /* letters, digits and ._~+/=:- */
    ENCODED = 4096,    /* digits and +/= */
    USER_END = 8192,   /* :/@"' and spaces */
    FIRST_OF_LAST = 16384, /* ktsp: what `_LAST_WORD` begins with */
    OPEN = 32768,          /* ([{ */
    CLOSE = 65536,         /* )]} */
};
static unsigned int class_of[256];
static unsigned char low_of[256];
static unsigned char firsts[KINDS_OF_BYTES], thirds[KINDS_OF_BYTES]; /* Which letters may stand third in a name. */
static unsigned char begins[KINDS_OF_BYTES][KINDS_OF_BYTES]; /* Which rules may find something at two characters. */

static inline int
char_at(const Scan *scan, Py_ssize_t at)
{
    return at < 0 || at >= scan->length ? NOTHING : scan->raw[at];
}

static inline int
low_at(const Scan *scan, Py_ssize_t at)
{
    return at < 0 || at >= scan->length ? NOTHING : scan->low[at];
}

static inline int
is_class(int character, int class)
{
    return character >= 0 && class_of[character] & class;
}

/* The same of what is at a place, and by Unicode where that is not ASCII. */
static inline int
is_class_at(const Scan *scan, Py_ssize_t at, int class)
{
    int character = char_at(scan, at);
    if (character != OTHER)
        return is_class(character, class);
    Py_UCS4 own = PyUnicode_READ(scan->kind, scan->data, at);
    return class & (WORD | NAMES) ? Py_UNICODE_ISALNUM(own) : 0;
}

static inline int
is_letter(int low)
{
    return low >= 'a' && low <= 'z';
}

static inline int
is_digit(int character)
{
    return character >= '0' && character <= '9';
}

static inline int
is_space_at(const Scan *scan, Py_ssize_t at)
{
    return is_class_at(scan, at, SPACE);
}

/* Whether a character is one of those of a string. */
static inline int
is_of(int character, const char *characters)
{
    return character > 0 && strchr(characters, character) != NULL;
}

/* Whether `word` stands in one of the two forms of a text; by hand, since most words differ at once. */
static inline int
stands_in(const Scan *scan, const unsigned char *form, Py_ssize_t at, Word word)
{
    if (at < 0 || at + word.length > scan->length)
        return 0;
    for (Py_ssize_t each = 0; each < word.length; each++)
        if (form[at + each] != (unsigned char)word.text[each])
            return 0;
    return 1;
}

/* The length of what stands at a place if that is `word`, which is in lower case; else 0. */
static inline Py_ssize_t
word_at(const Scan *scan, Py_ssize_t at, Word word)
{
    return stands_in(scan, scan->low, at, word) ? word.length : 0;
}

/* The same with regard to case. */
static inline Py_ssize_t
exactly_at(const Scan *scan, Py_ssize_t at, Word word)
{
    return stands_in(scan, scan->raw, at, word) ? word.length : 0;
}

/* The end of the first of several words that stands at a place, else -1. */
static Py_ssize_t
one_of(const Scan *scan, Py_ssize_t at, const Word *words)
{
    int first = low_at(scan, at);
    for (; words->text != NULL; words++)
        if (words->text[0] == first && word_at(scan, at, *words))
            return at + words->length;
    return -1;
}

/* Whether what stands from `start` to `end` is one of several words. */
static int
is_one_of(const Scan *scan, Py_ssize_t start, Py_ssize_t end, const Word *words)
{
    for (; words->text != NULL; words++)
        if (words->length == end - start && word_at(scan, start, *words))
            return 1;
    return 0;
}

/* Whether a span of text is one of the words that are no secret. */
static int
is_not_secret(const Scan *scan, Py_ssize_t start, Py_ssize_t end)
{
    static const Word words[] = {
        W("none"), W("null"), W("true"), W("false"), W("..."), W("***"), W("[redacted]"), {NULL, 0}};
    return start == end || is_one_of(scan, start, end, words);
}

static int
add_span(Scan *scan, Py_ssize_t start, Py_ssize_t end)
{
    if (scan->count == scan->room) {
        size_t size = (size_t)scan->room * 2 * sizeof(Span);
        Span *more = scan->spans == scan->few ? PyMem_Malloc(size) : PyMem_Realloc(scan->spans, size);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        if (scan->spans == scan->few)
            memcpy(more, scan->few, sizeof scan->few);
        scan->spans = more;
        scan->room *= 2;
    }
    if (start <= scan->last_end)
        scan->is_unsorted = 1;
    if (end > scan->last_end)
        scan->last_end = end;
    scan->spans[scan->count++] = (Span){start, end};
    return 0;
}

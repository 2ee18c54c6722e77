/* Where in a text something stands that looks like a credential: the rules of `_secret_spans`, in one pass.

   The Python is the definition, and its comments say what each rule is for. Each rule has a place from which on it
   looks, which is where its last match ended: so the time grows with the length of the text, whatever is in it. */

#include "redaction_names.h"

#include "redaction_last.h"

/* `Authorization: Bearer abc` */
static int
find_by_scheme(Scan *scan, Py_ssize_t at)
{
    static const Word schemes[] = {W("bearer"), W("basic"), W("digest"), W("negotiate"), {NULL, 0}};
    Py_ssize_t end = one_of(scan, at, schemes), start;
    int each, before = 0;
    int is_encoded = low_at(scan, at + 1) == 'e' && low_at(scan, at) == 'b';
    if (end < 0 || is_class_at(scan, at - 1, WORD))
        return 0;
    for (start = end; is_space_at(scan, start); start++)
        ;
    if (start == end)
        return 0;
    for (end = start; (each = char_at(scan, end)) != NOTHING; end++) {
        if (!is_class(low_at(scan, end), IN_TOKEN))
            break;
        if (is_class(each, ENCODED) || (is_letter(before) && is_class(each, UPPER)))
            is_encoded = 1;
        before = each;
    }
    if (end - start < 6)
        return 0;
    scan->scheme_from = end;
    return is_encoded ? add_span(scan, start, end) : 0;
}

/* https://user:password@host, https://token@host; `at` is the colon's place. */
static int
find_in_url(Scan *scan, Py_ssize_t at)
{
    int each = low_at(scan, at - 1);
    Py_ssize_t start = at + 3, end, user_end;
    if (char_at(scan, at + 1) != '/' || char_at(scan, at + 2) != '/')
        return 0;
    if (!is_letter(each) && !is_digit(each) && !is_of(each, "+.-"))
        return 0;
    for (end = start; (each = char_at(scan, end)) != NOTHING && !is_class_at(scan, end, USER_END); end++)
        ;
    user_end = end;
    if (each == ':') {
        for (end++; (each = char_at(scan, end)) == ':' || (each != NOTHING && !is_class_at(scan, end, USER_END)); end++)
            ;
        if (end == user_end + 1)
            return 0;
    }
    if (each != '@')
        return 0;
    scan->url_from = end + 1;
    if (end > user_end)
        start = user_end + 1;
    else if (end - start < 16 || !(word_at(scan, at - 4, (Word)W("http")) || word_at(scan, at - 5, (Word)W("https"))))
        return 0;
    return is_not_secret(scan, start, end) ? 0 : add_span(scan, start, end);
}

/* Tokens that say by their shape what they are. */

typedef struct {
    Word begin;         /* A question mark stands for one of the letters of `second`. */
    const char *second;
    Py_ssize_t least;
    int class;
    const char *also;   /* Characters beside those of the class. */
} Shape;

static int
is_in_shape(const Scan *scan, Py_ssize_t at, const Shape *shape)
{
    return is_class_at(scan, at, shape->class) || is_of(char_at(scan, at), shape->also);
}

static Py_ssize_t
shape_end(const Scan *scan, Py_ssize_t at, const Shape *shape)
{
    while (is_in_shape(scan, at, shape))
        at++;
    return at;
}

static int
is_begin_of(const Scan *scan, Py_ssize_t at, const Shape *shape)
{
    for (Py_ssize_t each = 0; each < shape->begin.length; each++) {
        int character = char_at(scan, at + each);
        if (shape->begin.text[each] == '?' ? !is_of(character, shape->second) : character != shape->begin.text[each])
            return 0;
    }
    return 1;
}

/* Whether small letters, joined, are all there is: sk-learn-compatible. */
static int
is_of_words(const Scan *scan, Py_ssize_t at, Py_ssize_t end)
{
    int each, is_joined = 0;
    for (; at < end; at++)
        if ((each = char_at(scan, at)) == '-' || each == '_')
            is_joined = 1;
        else if (!is_letter(each))
            return 0;
    return is_joined;
}

static int
find_shape(Scan *scan, Py_ssize_t at)
{
    static const Shape shapes[] = {
        {W("sk-"), "", 16, LETTER | DIGIT, "_-"},     {W("sk_live_"), "", 16, LETTER | DIGIT, ""},
        {W("sk_test_"), "", 16, LETTER | DIGIT, ""},  {W("rk_live_"), "", 16, LETTER | DIGIT, ""},
        {W("rk_test_"), "", 16, LETTER | DIGIT, ""},  {W("gsk_"), "", 20, LETTER | DIGIT, ""},
        {W("gh?_"), "pousr", 20, LETTER | DIGIT, ""}, {W("github_pat_"), "", 20, WORD, ""},
        {W("glpat-"), "", 16, NAMES, ""},             {W("hf_"), "", 16, LETTER | DIGIT, ""},
        {W("xox?-"), "abprs", 10, LETTER | DIGIT, "-"},
        {W("xapp-"), "", 16, LETTER | DIGIT, "-"},    {W("xai-"), "", 20, LETTER | DIGIT, ""},
        {W("nvapi-"), "", 20, NAMES, ""},             {W("dapi"), "", 32, HEX, ""},
        {W("r8_"), "", 20, LETTER | DIGIT, ""},       {W("ya29."), "", 20, NAMES, ""},
        {W("hvs."), "", 20, NAMES, ""},
        {W("AKIA"), "", 16, UPPER | DIGIT, ""},       {W("ASIA"), "", 16, UPPER | DIGIT, ""},
        {W("AIza"), "", 30, NAMES, ""},               {W("npm_"), "", 20, LETTER | DIGIT, ""},
        {W("pypi-"), "", 20, NAMES, ""},              {W("dop_v1_"), "", 20, HEX, ""},
        {W("eyJ"), "", 8, NAMES, ""},
    };
    const Shape *last = &shapes[sizeof shapes / sizeof *shapes - 1], *shape = shapes;
    Py_ssize_t start, end, second;
    int first = char_at(scan, at);
    if (is_class_at(scan, at - 1, WORD))
        return 0;
    while (shape->begin.text[0] != first || !is_begin_of(scan, at, shape))
        if (shape++ == last)
            return 0;
    start = at + shape->begin.length;
    if (shape->class == (UPPER | DIGIT))
        for (end = start; end < start + shape->least && is_in_shape(scan, end, shape); end++)
            ;
    else
        end = shape_end(scan, start, shape);
    if (end - start < shape->least)
        return 0;
    scan->shape_from = end;
    if (shape == shapes && is_of_words(scan, start, end))
        return 0;
    if (shape != last)
        return add_span(scan, at, end);
    if (char_at(scan, end) != '.')
        return 0;
    second = shape_end(scan, end + 1, shape);
    if (second - end - 1 < 8 || char_at(scan, second) != '.')
        return 0;
    scan->shape_from = shape_end(scan, second + 1, shape);
    return add_span(scan, at, scan->shape_from);
}

/* -----BEGIN PRIVATE KEY----- */
static int
find_key(Scan *scan, Py_ssize_t at)
{
    Py_ssize_t length, run, start, end;
    int each;
    if (char_at(scan, at + 5) != 'B' || !(length = exactly_at(scan, at, (Word)W("-----BEGIN "))))
        return 0;
    for (run = at + length; (each = char_at(scan, run)) == ' ' || (each >= 'A' && each <= 'Z'); run++)
        ;
    if (!(run - 11 >= at + length && exactly_at(scan, run - 11, (Word)W("PRIVATE KEY-----"))) &&
        !(run - 17 >= at + length && exactly_at(scan, run - 17, (Word)W("PRIVATE KEY BLOCK-----"))))
        return 0;
    start = run + 5;
    for (end = start; end < scan->length; end++)
        if (char_at(scan, end + 5) == 'E' && exactly_at(scan, end, (Word)W("-----END")))
            break;
    scan->key_from = end;
    return is_not_secret(scan, start, end) ? 0 : add_span(scan, start, end);
}

static void
begin_with(const char *pairs, int rule)
{
    for (; *pairs != 0; pairs += 3)
        begins[(unsigned char)pairs[0]][(unsigned char)pairs[1]] |= (unsigned char)rule;
}

/* Have the words of a name that begin with `first` go on with one of some letters in the third place. */
static void
third_of(int bit, int first, const char *letters)
{
    firsts[first] = (unsigned char)bit;
    for (; *letters != 0; letters++)
        thirds[(unsigned char)*letters] |= (unsigned char)bit;
}

static void
prepare_redaction(void)
{
    for (int each = 0; each < 256; each++) {
        int letter = (each >= 'A' && each <= 'Z') || is_letter(each), upper = letter && !is_letter(each);
        int word = letter || is_digit(each) || each == '_';
        int space = (each >= '\t' && each <= '\r') || (each >= 0x1C && each <= ' ') || each == OTHER_SPACE;
        int hex = is_digit(each) || (each >= 'a' && each <= 'f');
        low_of[each] = (unsigned char)(upper ? each + 32 : each);
        class_of[each] = (unsigned int)(letter * LETTER + is_digit(each) * DIGIT + upper * UPPER + word * WORD +
                                        (word || each == '-') * NAMES + space * SPACE + hex * HEX +
                                        is_of(each, "\"'") * QUOTE + is_of(each, "_-. ") * JOINT +
                                        is_of(each, "bfru") * PREFIX + (space || is_of(each, ",;&\"')]}")) * BARE_END +
                                        (letter || is_digit(each) || is_of(each, "._~+/=:-")) * IN_TOKEN +
                                        (is_digit(each) || is_of(each, "+/=")) * ENCODED +
                                        (space || is_of(each, ":/@\"'")) * USER_END +
                                        is_of(each, "ktsp") * FIRST_OF_LAST + is_of(each, "([{") * OPEN +
                                        is_of(each, ")]}") * CLOSE);
    }
    begin_with("ap ac au cl cr co en pr pa pw se sa si st to ", NAME);
    third_of(1, 'a', "ipct"), third_of(2, 'c', "ieon"), third_of(4, 'e', "c"), third_of(8, 'p', "isd");
    third_of(16, 's', "crsgo"), third_of(32, 't', "k");
    begin_with("cr jw ke pa ", LAST);
    begin_with("be ba di ne ", SCHEME);
    begin_with("gh gi gl gs hf sk rk r8 xo xa ak as ai np nv py do da ey ya hv ", SHAPE);
    begin_with(":/ ", URL);
    begin_with("-- ", KEY);
}

static int
look(Scan *scan, Py_ssize_t at, int rules)
{
    if (rules & NAME && at >= scan->named.from && thirds[low_at(scan, at + 2) & 127] & firsts[scan->low[at]] &&
        find_named(scan, at) < 0)
        return -1;
    if (rules & LAST && find_by_last_word(scan, at) < 0)
        return -1;
    if (rules & SCHEME && at >= scan->scheme_from && find_by_scheme(scan, at) < 0)
        return -1;
    if (rules & URL && at >= scan->url_from && find_in_url(scan, at) < 0)
        return -1;
    if (rules & SHAPE && at >= scan->shape_from && find_shape(scan, at) < 0)
        return -1;
    return rules & KEY && at >= scan->key_from ? find_key(scan, at) : 0;
}

static int
look_at_all(Scan *scan)
{
    for (Py_ssize_t at = 0; at + 1 < scan->length; at++) {
        int rules = begins[scan->low[at]][scan->low[at + 1]];
        if (rules && look(scan, at, rules) < 0)
            return -1;
    }
    return 0;
}

static int
by_place(const void *one, const void *other)
{
    const Span *first = one, *second = other;
    Py_ssize_t by = first->start != second->start ? first->start - second->start : first->end - second->end;
    return (by > 0) - (by < 0);
}

/* Make of spans in any order some that are in order and apart. */
static void
unite(Scan *scan)
{
    Py_ssize_t last = 0;
    qsort(scan->spans, (size_t)scan->count, sizeof(Span), by_place);
    for (Py_ssize_t each = 1; each < scan->count; each++)
        if (scan->spans[each].start > scan->spans[last].end)
            scan->spans[++last] = scan->spans[each];
        else if (scan->spans[each].end > scan->spans[last].end)
            scan->spans[last].end = scan->spans[each].end;
    scan->count = last + 1;
}

/* The spaces of Unicode beyond ASCII; by hand, since each text of other letters asks of each character. */
static inline unsigned char
byte_of_other(Py_UCS4 character)
{
    int is_space = (character >= 0x2000 && character <= 0x200A) || character == 0x85 || character == 0xA0 ||
                   character == 0x1680 || character == 0x2028 || character == 0x2029 || character == 0x202F ||
                   character == 0x205F || character == 0x3000;
    return is_space ? OTHER_SPACE : OTHER;
}

/* Of what is not ASCII, two characters come to it in lower case. */
static inline unsigned char
low_of_other(Py_UCS4 character)
{
    return character == 0x212A ? 'k' : character == 0x130 ? 'i' : byte_of_other(character);
}

/* Write a text's characters as bytes, and those in lower case. */
#define WRITE_BYTES(type)                                                                                              \
    do {                                                                                                               \
        const type *characters = scan->data;                                                                           \
        for (Py_ssize_t at = 0; at < scan->length; at++) {                                                             \
            Py_UCS4 character = characters[at];                                                                        \
            int is_ascii = character < 128;                                                                            \
            raw[at] = is_ascii ? (unsigned char)character : byte_of_other(character);                                  \
            low[at] = is_ascii ? low_of[character & 127] : low_of_other(character);                                    \
        }                                                                                                              \
    } while (0)

static void
write_bytes(const Scan *scan, unsigned char *raw, unsigned char *low)
{
    if (scan->kind == PyUnicode_1BYTE_KIND)
        WRITE_BYTES(Py_UCS1);
    else if (scan->kind == PyUnicode_2BYTE_KIND)
        WRITE_BYTES(Py_UCS2);
    else
        WRITE_BYTES(Py_UCS4);
}

/* Copy characters from `from` of one string, on to `to` of a new one; the place behind them. */
static Py_ssize_t
copied(PyObject *made, Py_ssize_t to, PyObject *text, Py_ssize_t from, Py_ssize_t count)
{
    int kind = (int)PyUnicode_KIND(text), made_kind = (int)PyUnicode_KIND(made);
    const char *data = PyUnicode_DATA(text);
    char *written = PyUnicode_DATA(made);
    if (kind == made_kind)
        memcpy(written + to * kind, data + from * kind, (size_t)(count * kind));
    else
        for (Py_ssize_t at = 0; at < count; at++)
            PyUnicode_WRITE(made_kind, written, to + at, PyUnicode_READ(kind, data, from + at));
    return to + count;
}

/* The largest character of those that are kept. */
static Py_UCS4
largest_kept(const Scan *scan)
{
    Py_UCS4 largest = 127;
    Py_ssize_t at = 0;
    for (Py_ssize_t each = 0; each <= scan->count; each++) {
        Py_ssize_t until = each < scan->count ? scan->spans[each].start : scan->length;
        for (; at < until; at++) {
            Py_UCS4 character = PyUnicode_READ(scan->kind, scan->data, at);
            largest = character > largest ? character : largest;
        }
        if (each < scan->count)
            at = scan->spans[each].end;
    }
    return largest;
}

/* Return a copy of `text` in which `marker` stands in the place of each span. */
static PyObject *
replaced(PyObject *text, const Scan *scan, PyObject *marker)
{
    Py_ssize_t marker_length = PyUnicode_GET_LENGTH(marker), from = 0, to = 0;
    Py_ssize_t size = scan->length + scan->count * marker_length;
    Py_UCS4 largest = PyUnicode_IS_ASCII(text) ? 127 : largest_kept(scan);
    for (Py_ssize_t each = 0; each < scan->count; each++)
        size -= scan->spans[each].end - scan->spans[each].start;
    PyObject *made = PyUnicode_New(size, largest);
    if (made == NULL)
        return NULL;
    for (Py_ssize_t each = 0; each < scan->count; each++) {
        to = copied(made, to, text, from, scan->spans[each].start - from);
        to = copied(made, to, marker, 0, marker_length);
        from = scan->spans[each].end;
    }
    copied(made, to, text, from, scan->length - from);
    return made;
}

static PyObject *
without_secrets(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || !PyUnicode_Check(arguments[0]) || !PyUnicode_Check(arguments[1]) ||
        !PyUnicode_IS_ASCII(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "what is taken is a text and a marker in ASCII, both str");
        return NULL;
    }
    PyObject *text = arguments[0], *found = NULL;
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(text) < 0)
        return NULL;
#endif
    Scan scan = {.kind = (int)PyUnicode_KIND(text),
                 .data = PyUnicode_DATA(text),
                 .length = PyUnicode_GET_LENGTH(text),
                 .room = SPANS_ON_STACK,
                 .last_end = -1};
    unsigned char on_stack[2 * ON_STACK], *bytes = on_stack;
    if (scan.length > ON_STACK && (bytes = PyMem_Malloc(2 * (size_t)scan.length)) == NULL)
        return PyErr_NoMemory();
    scan.spans = scan.few;
    scan.low = bytes;
    if (PyUnicode_IS_ASCII(text)) {
        scan.raw = scan.data;
        for (Py_ssize_t at = 0; at < scan.length; at++)
            bytes[at] = low_of[scan.raw[at]];
    }
    else {
        scan.raw = bytes + scan.length;
        write_bytes(&scan, bytes + scan.length, bytes);
    }
    if (look_at_all(&scan) == 0) {
        if (scan.is_unsorted)
            unite(&scan);
        if (scan.count)
            found = replaced(text, &scan, arguments[1]);
        else {
            Py_INCREF(text);
            found = text;
        }
    }
    if (scan.spans != scan.few)
        PyMem_Free(scan.spans);
    if (bytes != on_stack)
        PyMem_Free(bytes);
    return found;
}

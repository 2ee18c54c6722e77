/* Where in a text something stands that looks like a credential: the rules of `_secret_spans`, in one pass.

   The Python is the definition, and its comments say what each rule is for. Each rule has a place from which on it looks,
   which is where its last match ended, so that the time grows with the length of the text, whatever is in it. */

enum { NOTHING = -1, OTHER = 128, KINDS_OF_BYTES };
/* A text's characters as bytes: ASCII as it is, all others alike. NOTHING is beyond either end. */

enum { ON_STACK = 8192, SPANS_ON_STACK = 64 };

typedef struct {
    Py_ssize_t start, end;
} Span;

typedef struct {
    const unsigned char *raw, *low; /* The text, and the text in lower case. */
    int kind;
    const void *data; /* The text's own characters. */
    Py_ssize_t length;
    Span few[SPANS_ON_STACK], *spans;
    Py_ssize_t count, room;
    int is_unsorted; /* Whether one began before the end of another. */
    Py_ssize_t last_end;
    Py_ssize_t named_count, last_named; /* Values of names, and where the last one of them ended. */
    Py_ssize_t name_from, scheme_from, url_from, shape_from, key_from; /* Where each rule looks on. */
} Scan;

typedef struct {
    const char *text;
    Py_ssize_t length;
} Word;

#define W(literal) {literal, (Py_ssize_t)sizeof(literal) - 1}

/* The rules, as bits. */
enum { NAME = 1, SCHEME = 2, URL = 4, SHAPE = 8, KEY = 16 };

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
};
static unsigned int class_of[256];
static unsigned char low_of[256];
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
    return class & (SPACE | BARE_END | USER_END) ? Py_UNICODE_ISSPACE(own) : class & (WORD | NAMES) ? Py_UNICODE_ISALNUM(own) : 0;
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

/* The length of what stands at a place if that is `word`, which is in lower case; else 0. */
static inline Py_ssize_t
word_at(const Scan *scan, Py_ssize_t at, Word word)
{
    return at >= 0 && at + word.length <= scan->length && memcmp(scan->low + at, word.text, (size_t)word.length) == 0
               ? word.length
               : 0;
}

/* The same with regard to case. */
static inline Py_ssize_t
exactly_at(const Scan *scan, Py_ssize_t at, Word word)
{
    return at >= 0 && at + word.length <= scan->length && memcmp(scan->raw + at, word.text, (size_t)word.length) == 0
               ? word.length
               : 0;
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

/* Whether a span of text is one of the words that are no secret. */
static int
is_not_secret(const Scan *scan, Py_ssize_t start, Py_ssize_t end)
{
    static const Word words[] = {W("none"), W("null"), W("true"), W("false"), W("..."), W("***"), W("[redacted]"), {NULL, 0}};
    return start == end || (end - start <= 10 && one_of(scan, start, words) == end);
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

/* Names of credentials */

static const Word last_words[] = {W("key"), W("token"), W("secret"), W("pwd"), W("password"), {NULL, 0}};

/* The end of `_LAST_WORD`, else -1. */
static Py_ssize_t
last_word(const Scan *scan, Py_ssize_t at)
{
    Py_ssize_t end = is_class(low_at(scan, at), FIRST_OF_LAST) ? one_of(scan, at, last_words) : -1;
    if (end < 0)
        return -1;
    if (low_at(scan, end) == 's')
        end++;
    return is_letter(low_at(scan, end)) ? -1 : end;
}

/* Whether `token` at a place is a piece of text: what stands before it says so. */
static int
is_of_text(const Scan *scan, Py_ssize_t at)
{
    static const Word words[] = {W("pad"), W("eos"), W("bos"), W("unk"), W("sep"), W("cls"), W("mask"), W("stop"), W("start"), W("end"), W("special"), W("image"), W("audio"), W("video"), W("text"), W("word"), W("first"), W("next"), W("last"), W("prev"), W("previous"), W("current"), W("new"), W("each"), W("every"), W("per"), W("one"), W("top"), W("best"), W("max"), W("min"), W("num"), W("input"), W("output"), W("prompt"), W("target"), W("source"), W("predicted"), W("generated"), W("sampled"), W("decoded"), W("draft"), W("vocab"), {NULL, 0}};
    if (!is_class(low_at(scan, at - 1), JOINT))
        return 0;
    Py_ssize_t end = at - 1, start = end;
    while (end - start <= 9 && is_letter(low_at(scan, start - 1)))
        start--;
    return end > start && end - start <= 9 && one_of(scan, start, words) == end;
}

/* The end of `token` where it is one of the words for credentials, else -1. */
static Py_ssize_t
token_word(const Scan *scan, Py_ssize_t at)
{
    static const Word kinds[] = {W("value"), W("string"), W("secret"), W("key"), W("hash"), {NULL, 0}};
    Py_ssize_t length = word_at(scan, at, (Word)W("token")), end = at + length;
    int next;
    if (!length || is_letter(low_at(scan, at - 1)))
        return -1;
    next = low_at(scan, end);
    if (is_letter(next) || is_digit(next))
        return -1;
    if (next != ' ' && is_class(next, JOINT)) {
        int after = low_at(scan, end + 1);
        if (is_letter(after) || is_digit(after)) {
            Py_ssize_t kind = one_of(scan, end + 1, kinds);
            if (kind < 0 || is_letter(low_at(scan, kind)))
                return -1;
        }
    }
    return is_of_text(scan, at) ? -1 : end;
}

/* The end of a word that no letter may stand before or behind, else -1. */
static Py_ssize_t
lone_word(const Scan *scan, Py_ssize_t at, Word word)
{
    Py_ssize_t length = word_at(scan, at, word);
    if (!length || is_letter(low_at(scan, at - 1)) || is_letter(low_at(scan, at + length)))
        return -1;
    return at + length;
}

/* The end of `_AND_KEY` at a place, else -1. */
static Py_ssize_t
and_key(const Scan *scan, Py_ssize_t at)
{
    return last_word(scan, is_class(low_at(scan, at), JOINT) ? at + 1 : at);
}

/* The end of one of `_WORDS`, else -1. */
static Py_ssize_t
credential_word(const Scan *scan, Py_ssize_t at)
{
    static const Word of_a[] = {W("api"), W("access"), W("account"), W("app"), W("auth"), {NULL, 0}};
    static const Word of_c[] = {W("client"), {NULL, 0}}, of_e[] = {W("encryption"), {NULL, 0}}, of_p[] = {W("private"), {NULL, 0}};
    static const Word of_s[] = {W("service"), W("session"), W("signing"), W("storage"), {NULL, 0}};
    static const Word alone_c[] = {W("credential"), W("connectionstring"), W("connection_string"), {NULL, 0}};
    static const Word alone_p[] = {W("password"), W("passwd"), W("passphrase"), {NULL, 0}}, alone_s[] = {W("secret"), {NULL, 0}};
    static const Word none[] = {{NULL, 0}};
    const Word *first_words = none, *alone = none;
    Word lone = W("auth");
    Py_ssize_t end, with;
    switch (low_at(scan, at)) {
    case 'a':
        first_words = of_a;
        if (word_at(scan, at, (Word)W("authorization")))
            lone = (Word)W("authorization");
        break;
    case 'c':
        first_words = of_c, alone = alone_c, lone = (Word)W("cookie");
        break;
    case 'e':
        first_words = of_e;
        break;
    case 'p':
        first_words = of_p, alone = alone_p, lone = (Word)W("pwd");
        break;
    case 's':
        first_words = of_s, alone = alone_s, lone = (Word)W("sas");
        break;
    default:
        return token_word(scan, at);
    }
    if ((end = one_of(scan, at, first_words)) >= 0 && (with = and_key(scan, end)) >= 0)
        return with;
    if ((end = one_of(scan, at, alone)) >= 0)
        return end;
    return lone_word(scan, at, lone);
}

static Py_ssize_t
name_end(const Scan *scan, Py_ssize_t at)
{
    while (is_class_at(scan, at, NAMES))
        at++;
    return at;
}

/* Skip up to `most` spaces. */
static Py_ssize_t
skip_spaces(const Scan *scan, Py_ssize_t at, int most)
{
    for (; most > 0 && is_space_at(scan, at); most--)
        at++;
    return at;
}

/* Skip what stands between a name and its value; -1 if it is something else. */
static Py_ssize_t
skip_assignment(const Scan *scan, Py_ssize_t at)
{
    int first = char_at(scan, at);
    if (is_class(first, QUOTE))
        at++;
    at = skip_spaces(scan, at, 8);
    first = char_at(scan, at);
    if (first == ':')
        at += char_at(scan, at + 1) == '=' ? 2 : 1;
    else if (first != '=')
        return -1;
    else if (char_at(scan, at + 1) == '>')
        at += 2;
    else {
        int count = 0;
        while (count < 4 && char_at(scan, at + count) == '=')
            count++;
        if (count > 3 || char_at(scan, at + count) == '>')
            return -1;
        at += count;
    }
    return skip_spaces(scan, at, 8);
}

/* The place of the quote that ends what the one at `at` begins, else -1. */
static Py_ssize_t
end_quote(const Scan *scan, Py_ssize_t at)
{
    int quote = char_at(scan, at), each;
    for (at++; (each = char_at(scan, at)) != NOTHING; at++) {
        if (each == quote)
            return at;
        if (each == '\\')
            at++;
    }
    return -1;
}

/* The place of the quote at or, behind letters as in b'...', after a place; else -1. */
static Py_ssize_t
begin_quote(const Scan *scan, Py_ssize_t at)
{
    Py_ssize_t quote = at;
    while (quote < at + 2 && is_class(low_at(scan, quote), PREFIX))
        quote++;
    return is_class(char_at(scan, quote), QUOTE) ? quote : -1;
}

/* The end of a value without quotes, or `at` if there is none. */
static Py_ssize_t
bare_end(const Scan *scan, Py_ssize_t at)
{
    static const Word schemes[] = {W("bearer"), W("basic"), W("digest"), W("negotiate"), {NULL, 0}};
    int first = low_at(scan, at);
    Py_ssize_t end = first == 'b' || first == 'd' || first == 'n' ? one_of(scan, at, schemes) : -1;
    if ((end >= 0 && is_space_at(scan, end)) || word_at(scan, at, (Word)W("[redacted]")) || begin_quote(scan, at) >= 0)
        return at;
    for (end = at; end < scan->length && !is_class_at(scan, end, BARE_END); end++)
        ;
    return end;
}

/* Find the value of `_ASSIGNED` at a place; whether there is one. */
static int
assigned(const Scan *scan, Py_ssize_t at, Py_ssize_t *start, Py_ssize_t *end)
{
    Py_ssize_t quote = begin_quote(scan, at);
    if (quote >= 0) {
        *start = quote + 1;
        if ((*end = end_quote(scan, quote)) >= 0 || (*end = bare_end(scan, *start)) > *start)
            return 1;
    }
    *start = at;
    *end = bare_end(scan, at);
    return *end > at;
}

/* Whether a span is a number, as tokenizers have them. */
static int
is_number(const Scan *scan, Py_ssize_t at, Py_ssize_t end)
{
    Py_ssize_t digits;
    if (is_of(char_at(scan, at), "+-"))
        at++;
    for (digits = 0; digits < 12 && at < end && is_digit(char_at(scan, at)); digits++)
        at++;
    if (digits == 0)
        return 0;
    if (at < end && char_at(scan, at) == '.')
        for (at++, digits = 0; digits < 12 && at < end && is_digit(char_at(scan, at)); digits++)
            at++;
    if (at < end && low_at(scan, at) == 'e') {
        at++;
        if (at < end && is_of(char_at(scan, at), "+-"))
            at++;
        for (digits = 0; digits < 3 && at < end && is_digit(char_at(scan, at)); digits++)
            at++;
        if (digits == 0)
            return 0;
    }
    if (at < end && char_at(scan, at) == '%')
        at++;
    return at == end;
}

/* Whether "token" stands somewhere from `at` to `end`. */
static int
has_token(const Scan *scan, Py_ssize_t at, Py_ssize_t end)
{
    for (; at + 5 <= end; at++)
        if (word_at(scan, at, (Word)W("token")))
            return 1;
    return 0;
}

/* Take the value of a name, if it is secret. */
static int
take_value(Scan *scan, Py_ssize_t name, Py_ssize_t start, Py_ssize_t end, Py_ssize_t matched)
{
    if (is_not_secret(scan, start, end) || (is_number(scan, start, end) && has_token(scan, name, matched)))
        return 0;
    if (start > scan->last_named) {
        Py_ssize_t most = scan->length / 10 > 64 ? scan->length / 10 : 64;
        if (scan->named_count++ == most) /* It is made of nothing else, and costs as much as it can. */
            scan->name_from = end = scan->length;
    }
    if (end > scan->last_named)
        scan->last_named = end;
    return add_span(scan, start, end);
}

/* Whether the name whose end is `end` has `--` at its begin, and the word at `at` in it. */
static int
is_option(const Scan *scan, Py_ssize_t at, Py_ssize_t end)
{
    if (name_end(scan, at) != end)
        return 0;
    while (is_class_at(scan, at - 1, NAMES))
        at--;
    return char_at(scan, at) == '-' && char_at(scan, at + 1) == '-';
}

static int
find_named(Scan *scan, Py_ssize_t at)
{
    Py_ssize_t end = credential_word(scan, at), start, stop, next;
    if (end < 0)
        return 0;
    Py_ssize_t word_end = end, more;
    int first;
    end = name_end(scan, end);
    while (((first = char_at(scan, end)) == ' ' || first == '.') && (more = last_word(scan, end + 1)) >= 0)
        end = name_end(scan, more);
    if ((next = skip_assignment(scan, end)) >= 0 && assigned(scan, next, &start, &stop)) {
        scan->name_from = stop;
        return take_value(scan, at, start, stop, stop);
    }
    if (end > word_end)
        scan->name_from = end;
    next = skip_spaces(scan, end, 8);
    if (next == end)
        return 0;
    first = char_at(scan, next);
    if (is_class(first, QUOTE)) {
        start = next + 1;
        if ((stop = end_quote(scan, next)) < 0)
            return 0;
    }
    else {
        if (first == NOTHING || first == '-' || is_space_at(scan, next))
            return 0;
        start = stop = next;
        while (stop < scan->length && !is_class_at(scan, stop, SPACE) && !is_class(char_at(scan, stop), QUOTE))
            stop++;
    }
    scan->name_from = end; /* A match, though what follows is not consumed. */
    return is_option(scan, at, end) ? take_value(scan, at, start, stop, end) : 0;
}

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

static int
find_shape(Scan *scan, Py_ssize_t at)
{
    static const Shape shapes[] = {
        {W("gh?_"), "pousr", 20, LETTER | DIGIT, ""}, {W("github_pat_"), "", 20, WORD, ""},
        {W("glpat-"), "", 16, NAMES, ""},             {W("hf_"), "", 16, LETTER | DIGIT, ""},
        {W("sk-"), "", 16, LETTER | DIGIT, "_-"},     {W("xox?-"), "abprs", 10, LETTER | DIGIT, "-"},
        {W("AKIA"), "", 16, UPPER | DIGIT, ""},       {W("ASIA"), "", 16, UPPER | DIGIT, ""},
        {W("AIza"), "", 30, NAMES, ""},               {W("npm_"), "", 20, LETTER | DIGIT, ""},
        {W("pypi-"), "", 20, NAMES, ""},              {W("dop_v1_"), "", 20, HEX, ""},
        {W("eyJ"), "", 8, NAMES, ""},
    };
    const Shape *last = &shapes[sizeof shapes / sizeof *shapes - 1], *shape = shapes;
    Py_ssize_t start, end, second;
    if (is_class_at(scan, at - 1, WORD))
        return 0;
    while (!is_begin_of(scan, at, shape))
        if (shape++ == last)
            return 0;
    start = at + shape->begin.length;
    if (shape->class == (UPPER | DIGIT))
        for (end = start; end < start + 16 && is_in_shape(scan, end, shape); end++)
            ;
    else
        end = shape_end(scan, start, shape);
    if (end - start < shape->least)
        return 0;
    scan->shape_from = end;
    if (shape != last)
        return add_span(scan, at, end);
    if (char_at(scan, end) != '.' || (second = shape_end(scan, end + 1, shape)) - end - 1 < 8 || char_at(scan, second) != '.')
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
    if (run - 11 < at + length || !exactly_at(scan, run - 11, (Word)W("PRIVATE KEY-----")))
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

static void
prepare_redaction(void)
{
    for (int each = 0; each < 256; each++) {
        int letter = (each >= 'A' && each <= 'Z') || is_letter(each), upper = letter && !is_letter(each);
        int word = letter || is_digit(each) || each == '_';
        int space = (each >= '\t' && each <= '\r') || (each >= 0x1C && each <= ' ');
        int hex = is_digit(each) || (each >= 'a' && each <= 'f');
        low_of[each] = (unsigned char)(upper ? each + 32 : each);
        class_of[each] = (unsigned int)(letter * LETTER + is_digit(each) * DIGIT + upper * UPPER + word * WORD +
                                        (word || each == '-') * NAMES + space * SPACE + hex * HEX +
                                        is_of(each, "\"'") * QUOTE + is_of(each, "_-. ") * JOINT +
                                        is_of(each, "bfru") * PREFIX + (space || is_of(each, ",;&\"')]}")) * BARE_END +
                                        (letter || is_digit(each) || is_of(each, "._~+/=:-")) * IN_TOKEN +
                                        (is_digit(each) || is_of(each, "+/=")) * ENCODED +
                                        (space || is_of(each, ":/@\"'")) * USER_END +
                                        is_of(each, "ktsp") * FIRST_OF_LAST);
    }
    begin_with("ap ac au cl cr co en pr pa pw se sa si st to ", NAME);
    begin_with("be ba di ne ", SCHEME);
    begin_with("gh gi gl hf sk xo ak as ai np py do ey ", SHAPE);
    begin_with(":/ ", URL);
    begin_with("-- ", KEY);
}

static int
look(Scan *scan, Py_ssize_t at, int rules)
{
    if (rules & NAME && at >= scan->name_from && find_named(scan, at) < 0)
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

/* Write a text's characters as bytes, and those in lower case. */
static void
write_bytes(int kind, const void *data, Py_ssize_t length, unsigned char *raw, unsigned char *low)
{
    for (Py_ssize_t at = 0; at < length; at++) {
        Py_UCS4 character = PyUnicode_READ(kind, data, at);
        int byte = character < 128 ? (int)character : OTHER;
        raw[at] = (unsigned char)byte;
        /* All that lower case brings to ASCII. */
        low[at] = character == 0x212A ? 'k' : character == 0x130 ? 'i' : low_of[byte];
    }
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
    if (count != 2 || !PyUnicode_Check(arguments[0]) || !PyUnicode_Check(arguments[1]) || !PyUnicode_IS_ASCII(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "what is taken is a text and a marker in ASCII, both str");
        return NULL;
    }
    PyObject *text = arguments[0], *found = NULL;
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(text) < 0)
        return NULL;
#endif
    Scan scan = {.kind = (int)PyUnicode_KIND(text), .data = PyUnicode_DATA(text), .length = PyUnicode_GET_LENGTH(text), .room = SPANS_ON_STACK, .last_end = -1, .last_named = -1};
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
        write_bytes(scan.kind, scan.data, scan.length, bytes + scan.length, bytes);
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

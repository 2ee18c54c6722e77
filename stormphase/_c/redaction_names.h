/* Values of what has a credential's name: `_NAMED` and `_NAMED_OR_OPTION` of `_secret_spans`. */

#include "redaction_text.h"

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
    static const Word words[] = {
        W("pad"), W("eos"), W("bos"), W("unk"), W("sep"), W("cls"), W("mask"), W("stop"), W("start"), W("end"),
        W("special"), W("image"), W("audio"), W("video"), W("text"), W("word"), W("first"), W("next"),
        W("last"), W("prev"), W("previous"), W("current"), W("new"), W("each"), W("every"), W("per"), W("one"),
        W("top"), W("best"), W("max"), W("min"), W("num"), W("input"), W("output"), W("prompt"), W("target"),
        W("source"), W("predicted"), W("generated"), W("sampled"), W("decoded"), W("draft"), W("vocab"), W("n"),
        W("total"), {NULL, 0}};
    if (!is_class(low_at(scan, at - 1), JOINT))
        return 0;
    Py_ssize_t end = at - 1, start = end;
    while (end - start <= 9 && is_letter(low_at(scan, start - 1)))
        start--;
    return is_one_of(scan, start, end, words);
}

/* Whether `token` at a place is of an account: the word that it is written together with says so (refreshToken). */
static int
is_of_account(const Scan *scan, Py_ssize_t at)
{
    static const Word words[] = {W("hf"),     W("bot"),    W("jwt"),    W("csrf"),    W("xsrf"),
                                 W("bearer"), W("github"), W("gitlab"), W("refresh"), {NULL, 0}};
    for (const Word *word = words; word->text != NULL; word++)
        if (word_at(scan, at - word->length, *word))
            return 1;
    return 0;
}

/* The end of `token` where it is one of the words for credentials, else -1. */
static Py_ssize_t
token_word(const Scan *scan, Py_ssize_t at)
{
    static const Word kinds[] = {W("value"), W("string"), W("secret"), W("key"), W("hash"), {NULL, 0}};
    Py_ssize_t length = word_at(scan, at, (Word)W("token")), end = at + length;
    int next;
    if (!length || (is_letter(low_at(scan, at - 1)) && !is_of_account(scan, at)))
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

/* The end of `sig` or `signature` where it is a parameter of a URL, else -1. */
static Py_ssize_t
signature_word(const Scan *scan, Py_ssize_t at)
{
    Py_ssize_t length = word_at(scan, at, (Word)W("signature"));
    if (length ? char_at(scan, at - 1) != '-' : !is_of(char_at(scan, at - 1), "?&"))
        return -1;
    length = length ? length : word_at(scan, at, (Word)W("sig"));
    return length && char_at(scan, at + length) == '=' ? at + length : -1;
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
    static const Word of_c[] = {W("client"), {NULL, 0}}, of_e[] = {W("encryption"), {NULL, 0}};
    static const Word of_p[] = {W("private"), {NULL, 0}};
    static const Word of_s[] = {W("service"), W("session"), W("signing"), W("storage"), {NULL, 0}};
    static const Word alone_c[] = {W("credential"), W("connectionstring"), W("connection_string"), {NULL, 0}};
    static const Word alone_p[] = {W("password"), W("passwd"), W("passphrase"), {NULL, 0}};
    static const Word alone_s[] = {W("secret"), {NULL, 0}};
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
    if ((end = one_of(scan, at, alone)) >= 0) {
        static const Word of_offices[] = {W("ary"), W("ari"), {NULL, 0}}, without[] = {W("less"), {NULL, 0}};
        const Word *others = alone == alone_s ? of_offices : low_at(scan, end - 1) == 'd' ? without : none;
        if (one_of(scan, end, others) < 0)
            return end;
    }
    if (alone == alone_s && (end = signature_word(scan, at)) >= 0)
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

/* The place of the quote at a place, or behind up to eight backslashes there; else -1. */
static Py_ssize_t
escaped_quote(const Scan *scan, Py_ssize_t at)
{
    Py_ssize_t quote = at;
    while (quote < at + 8 && char_at(scan, quote) == '\\')
        quote++;
    return is_class(char_at(scan, quote), QUOTE) ? quote : -1;
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

/* Skip the spaces before a value, which in quotes may stand far in on the next line. */
static Py_ssize_t
skip_to_value(const Scan *scan, Py_ssize_t at)
{
    Py_ssize_t near = skip_spaces(scan, at, 8), far = near;
    if (char_at(scan, near) == '\\')
        far++;
    else if (near < at + 8)
        return near;
    at = skip_spaces(scan, far, 64);
    return at > far && begin_quote(scan, at) >= 0 ? at : near;
}

/* Skip what stands between a name and its value; -1 if it is something else. */
static Py_ssize_t
skip_assignment(const Scan *scan, Py_ssize_t at)
{
    Py_ssize_t quote = escaped_quote(scan, at);
    int first;
    if (quote >= 0)
        at = char_at(scan, quote + 1) == ']' ? quote + 2 : quote + 1;
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
    return skip_to_value(scan, at);
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

/* Whether a word stands somewhere from `at` to `end`. */
static int
has_word(const Scan *scan, Py_ssize_t at, Py_ssize_t end, Word word)
{
    for (; at + word.length <= end; at++)
        if (word_at(scan, at, word))
            return 1;
    return 0;
}

enum { NO_VALUE, QUOTED, BARE };

/* Find the value of `_ASSIGNED` at a place; whether there is one, and of which kind. */
static int
assigned(const Scan *scan, Py_ssize_t at, Py_ssize_t *start, Py_ssize_t *end)
{
    Py_ssize_t quote = begin_quote(scan, at);
    if (quote >= 0) {
        *start = quote + 1;
        if ((*end = end_quote(scan, quote)) >= 0 || (*end = bare_end(scan, *start)) > *start)
            return QUOTED;
    }
    else if (char_at(scan, at) == '\\' && (quote = escaped_quote(scan, at)) >= 0) {
        for (*start = *end = quote + 1; *end < scan->length; (*end)++)
            if (is_class(char_at(scan, *end), QUOTE) || char_at(scan, *end) == '\\')
                break;
        return QUOTED;
    }
    *start = at;
    *end = bare_end(scan, at);
    return *end > at ? BARE : NO_VALUE;
}

/* Whether a line that begins at a place has a quote there, but for what it stands in. */
static int
is_quote_next(const Scan *scan, Py_ssize_t at)
{
    Py_ssize_t far = at + 64;
    while (at < far && is_of(char_at(scan, at), " \t"))
        at++;
    return is_class(char_at(scan, at), QUOTE);
}

/* The end of what is in brackets, of which the first one is open before `at`: `_IN_BRACKETS`. */
static Py_ssize_t
brackets_end(const Scan *scan, Py_ssize_t at)
{
    int each, is_deeper = 0;
    for (; (each = char_at(scan, at)) != NOTHING; at++)
        if (each == '\n') {
            if (!is_quote_next(scan, at + 1))
                return at;
        }
        else if (is_class(each, OPEN))
            is_deeper = 1;
        else if (is_class(each, CLOSE)) {
            if (!is_deeper)
                return at + 1;
            is_deeper = 0;
        }
    return at;
}

/* Where a value without quotes ends with all that belongs to it. */
static Py_ssize_t
whole_end(const Scan *scan, Py_ssize_t name, Py_ssize_t start, Py_ssize_t end)
{
    Py_ssize_t at;
    int each;
    for (at = start; at < end; at++)
        if (is_class(char_at(scan, at), OPEN))
            return (at = brackets_end(scan, at + 1)) > end ? at : end;
    if (has_word(scan, name, end, (Word)W("cookie"))) {
        if (char_at(scan, at) == ';')
            while ((each = char_at(scan, at)) != NOTHING && each != '\n' && !is_class(each, QUOTE))
                at++;
        return at;
    }
    if (!has_word(scan, name, end, (Word)W("authorization")))
        return end;
    while (at < end + 8 && char_at(scan, at) == ' ')
        at++;
    if (at == end || at == scan->length || is_class_at(scan, at, BARE_END))
        return end;
    while (at < scan->length && !is_class_at(scan, at, BARE_END))
        at++;
    return at;
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

/* Take the value of a name, of which `name` is where to look for what kind it is, if it is secret. */
static int
take_value(Scan *scan, Named *named, Py_ssize_t name, Py_ssize_t start, Py_ssize_t end, Py_ssize_t matched, int kind)
{
    Py_ssize_t most = scan->length / 18 > 64 ? scan->length / 18 : 64;
    if (is_not_secret(scan, start, end) ||
        (is_number(scan, start, end) && has_word(scan, name, matched, (Word)W("token"))))
        return 0;
    if (kind == BARE && start >= named->until)
        end = named->until = whole_end(scan, name, start, end);
    if (named->count++ == most) /* It is made of nothing else, and costs as much as it can. */
        named->from = end = scan->length;
    return add_span(scan, start, end);
}

/* Whether the name whose end is `end` has `--` at its begin, and the word at `at` in it. */
static int
is_option(const Scan *scan, Py_ssize_t at, Py_ssize_t end)
{
    Py_ssize_t begin = at;
    while (is_class_at(scan, begin - 1, NAMES))
        begin--;
    return char_at(scan, begin) == '-' && char_at(scan, begin + 1) == '-' && name_end(scan, at) == end;
}

/* The end of the whole name that a word is in, which ends at `end`: `_REST`. */
static Py_ssize_t
whole_name_end(const Scan *scan, Py_ssize_t end)
{
    Py_ssize_t more;
    int first;
    end = name_end(scan, end);
    while (((first = char_at(scan, end)) == ' ' || first == '.') && (more = last_word(scan, end + 1)) >= 0)
        end = name_end(scan, more);
    return end;
}

/* Find what an option of a command line is given: whether there is something behind its end. */
static int
followed(const Scan *scan, Py_ssize_t end, Py_ssize_t *start, Py_ssize_t *stop)
{
    Py_ssize_t next = end;
    int first;
    if (is_class(char_at(scan, next), QUOTE))
        next += char_at(scan, next + 1) == ',' ? 2 : 1;
    if (!is_space_at(scan, next))
        return 0;
    next = skip_spaces(scan, next, 8);
    first = char_at(scan, next);
    if (is_class(first, QUOTE)) {
        *start = next + 1;
        return (*stop = end_quote(scan, next)) >= 0;
    }
    if (first == NOTHING || first == '-' || is_space_at(scan, next))
        return 0;
    *start = *stop = next;
    while (*stop < scan->length && !is_class_at(scan, *stop, SPACE) && !is_class(char_at(scan, *stop), QUOTE))
        (*stop)++;
    return 1;
}

static int
find_named(Scan *scan, Py_ssize_t at)
{
    Py_ssize_t word_end = credential_word(scan, at), end, start, stop, next;
    int kind;
    if (word_end < 0)
        return 0;
    end = whole_name_end(scan, word_end);
    if ((next = skip_assignment(scan, end)) >= 0 && (kind = assigned(scan, next, &start, &stop)) != NO_VALUE) {
        scan->named.from = stop;
        return take_value(scan, &scan->named, at, start, stop, stop, kind);
    }
    if (end > word_end)
        scan->named.from = end;
    if (!followed(scan, end, &start, &stop) || !is_option(scan, at, end))
        return 0;
    scan->named.from = end; /* What follows is not consumed, since it may be a name itself. */
    return take_value(scan, &scan->named, at, start, stop, end, QUOTED);
}

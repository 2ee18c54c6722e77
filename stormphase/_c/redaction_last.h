/* Names whose last word makes them a credential's only beside another, as in `ssh_key` and `DB_PASS`: `_by_last_word` of
 * `_secret_spans`. */

enum { LONGEST_FIRST = 13 };

static const Word before_key[] = {
        W("ssh"), W("gpg"), W("pgp"), W("rsa"), W("dsa"), W("ecdsa"), W("aes"), W("hmac"), W("tls"), W("ssl"),
        W("jwt"), W("license"), W("licence"), W("master"), W("subscription"), W("activation"), W("deploy"), W("priv"),
        W("encrypt"), W("decrypt"), W("decryption"), W("webhook"), W("admin"), W("consumer"), W("vault"), W("unseal"),
        W("wallet"), W("security"), W("aws"), W("azure"), W("gcp"), W("google"), W("openai"), W("anthropic"),
        W("cohere"), W("mistral"), W("groq"), W("wandb"), W("github"), W("gitlab"), W("stripe"), W("sendgrid"),
        W("twilio"), W("mailgun"), W("slack"), W("datadog"), W("sentry"), W("comet"), W("neptune"), W("kaggle"),
        W("ngc"), W("runpod"), W("pinecone"), W("cloudflare"), {NULL, 0}};
static const Word before_pass[] = {
        W("db"), W("database"), W("sql"), W("mysql"), W("mssql"), W("pgsql"), W("pg"), W("postgres"), W("postgresql"),
        W("mongo"), W("mongodb"), W("redis"), W("rabbitmq"), W("amqp"), W("mqtt"), W("oracle"), W("elastic"),
        W("kafka"), W("smtp"), W("mail"), W("email"), W("imap"), W("ftp"), W("sftp"), W("ssh"), W("ldap"), W("vpn"),
        W("wifi"), W("http"), W("https"), W("proxy"), W("user"), W("admin"), W("root"), W("sudo"), W("login"),
        W("account"), W("auth"), W("registry"), W("docker"), W("jenkins"), W("git"), W("key"), W("keystore"),
        W("truststore"), W("cert"), W("ssl"), W("tls"), W("vault"), {NULL, 0}};

/* Whether one of some words stands before a place, at once or behind one of the characters that join. */
static int
is_behind(const Scan *scan, Py_ssize_t at, const char *joints, const Word *words)
{
    Py_ssize_t end = is_of(char_at(scan, at - 1), joints) ? at - 1 : at, start = end;
    while (end - start <= LONGEST_FIRST && is_letter(low_at(scan, start - 1)))
        start--;
    return start < end && is_one_of(scan, start, end, words);
}

/* The end of such a last word at a place, else -1. */
static Py_ssize_t
last_of_two(const Scan *scan, Py_ssize_t at)
{
    int before = low_at(scan, at - 1), next;
    Py_ssize_t length;
    switch (low_at(scan, at)) {
    case 'k':
        if (!(length = word_at(scan, at, (Word)W("key"))))
            return -1;
        next = low_at(scan, at + length);
        if (is_letter(next) && (next != 's' || is_letter(low_at(scan, at + length + 1))))
            return -1;
        return is_behind(scan, at, "_-. ", before_key) ? at + length : -1;
    case 'p':
        if (!(length = word_at(scan, at, (Word)W("pass"))) || is_letter(low_at(scan, at + length)))
            return -1;
        return is_behind(scan, at, "_-.", before_pass) ? at + length : -1;
    case 'c':
        return lone_word(scan, at, (Word)W("creds"));
    case 'j':
        if (!(length = word_at(scan, at, (Word)W("jwt"))) || is_class_at(scan, at + length, NAMES))
            return -1;
        return is_letter(before) || is_digit(before) ? -1 : at + length;
    default:
        return -1;
    }
}

static int
find_by_last_word(Scan *scan, Py_ssize_t at)
{
    Named *named = &scan->by_last;
    Py_ssize_t word_end = last_of_two(scan, at), end, start, stop, next;
    int kind;
    if (word_end < named->from)
        return 0;
    end = whole_name_end(scan, word_end);
    if ((next = skip_assignment(scan, end)) >= 0 && (kind = assigned(scan, next, &start, &stop)) != NO_VALUE) {
        named->from = stop;
        return take_value(scan, named, word_end, start, stop, stop, kind);
    }
    if (!is_option(scan, at, end) || !followed(scan, end, &start, &stop))
        return 0;
    return take_value(scan, named, word_end, start, stop, end, QUOTED);
}

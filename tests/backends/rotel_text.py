"""Reads what rotel prints with ``--debug-log traces --debug-log logs --debug-log-verbosity detailed``.

The text is made for people: nothing in it is escaped, so a value may hold line ends and even lines that look like
the collector's own. The rules here, as seen in what rotel 0.0.1a15 prints:

* Every request is one block that begins with ``ResourceSpans #0`` or ``ResourceLog #0``, printed in one piece.
* A value reads ``Str(..)``, ``Int(..)``, ``Double(..)``, ``Bool(..)``, ``Bytes([..])``, ``Slice(.., ..)``,
  ``Map(key:.., ..)`` or ``Empty``. One that does not end with ``)`` goes on in the next line, whatever that looks like.
* A line that no rule knows goes on with the text before it.
* A root's ``Parent ID`` is empty. Flags and dropped counts of spans are not printed.

A name that imitates whole lines of the collector can thus be misread, and a string in a nested list as well if it
holds a closing bracket. Tests with hostile names read OTLP itself instead (see `faulty`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import define, field

from .received import Attributes, ReceivedEvent, ReceivedLink, ReceivedLog, ReceivedScope, ReceivedSpan, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HEADING = re.compile(
    r"(?P<heading>ResourceSpans|ResourceLog|ScopeSpans|ScopeLogs|Span|LogRecord|SpanEvent|SpanLink) #\d+"
    r"|(?P<section>Resource attributes|InstrumentationScope attributes|Attributes|Events|Links):"
)
_PAIR = re.compile(
    r"(?: {4}(?P<padded>Trace ID|Parent ID|ID|Name|Kind|TraceState|Status code|Status message|Span ID) *: ?"
    r"|(?P<plain>Start time|End time|Resource SchemaURL|ScopeSpans SchemaURL|ScopeLogs SchemaURL|ObservedTimestamp"
    r"|Timestamp|SeverityText|SeverityNumber|EventName|Body|Flags): ?"
    r"|(?P<scope>InstrumentationScope) "
    r"|     -> (?P<part>Name|Timestamp|Trace ID|ID|TraceState|DroppedAttributesCount|Attributes:): ?)"
)
_ATTRIBUTE = re.compile(r" {5,10}-> (?P<key>.*?): (?=(?:Str|Int|Double|Bool|Bytes|Slice|Map)\(|Empty$)", re.DOTALL)
_BETWEEN_ITEMS = re.compile(r", (?=(?:Str|Int|Double|Bool|Bytes|Slice|Map)\(|Empty)")
_BETWEEN_PAIRS = re.compile(r", (?=[^:]*:(?:(?:Str|Int|Double|Bool|Bytes|Slice|Map)\(|Empty))")
_PARTS_OF = ("SpanEvent", "SpanLink")
_OWN_LOG_LINE = '{"v":0,"name":"rotel'


class UnreadableTextError(ValueError):
    """The collector printed something that the rules of this module do not cover."""


def read_value(text: str) -> Value:
    """Read one printed value.

    Raises:
        UnreadableTextError: `text` is not a whole value.
    """
    if text == "Empty":
        return None
    kind, bracket, rest = text.partition("(")
    if not bracket or not rest.endswith(")") or kind not in _READERS:
        message = f"Not a value: {text!r}"
        raise UnreadableTextError(message)
    try:
        return _READERS[kind](rest[:-1])
    except ValueError as error:
        message = f"Not a value: {text!r}"
        raise UnreadableTextError(message) from error


def _read_bool(inside: str) -> bool:
    return {"true": True, "false": False}[inside] if inside in {"true", "false"} else _refuse(inside)


def _refuse(inside: str) -> bool:
    raise UnreadableTextError(inside)


def _read_bytes(inside: str) -> bytes:
    return bytes(int(number) for number in inside.strip("[]").split(", ") if number)


def _read_slice(inside: str) -> list[Value]:
    return [value for _, value in _whole_values(inside, _BETWEEN_ITEMS, keyed=False)]


def _read_map(inside: str) -> dict[str, Value]:
    return dict(_whole_values(inside, _BETWEEN_PAIRS, keyed=True))


def _whole_values(inside: str, between: re.Pattern[str], *, keyed: bool) -> Iterator[tuple[str, Value]]:
    # A separator within a nested value or a string splits too early: pieces are joined again until they can be read.
    if not inside:
        return
    pending = ""
    for piece in between.split(inside):
        pending = f"{pending}, {piece}" if pending else piece
        key, _, text = pending.partition(":") if keyed else ("", "", pending)
        try:
            value = read_value(text)
        except UnreadableTextError:
            continue
        yield key, value
        pending = ""
    if pending:
        message = f"Not a list of values: {inside!r}"
        raise UnreadableTextError(message)


_READERS: dict[str, Callable[[str], Value]] = {
    "Str": str,
    "Int": int,
    "Double": float,
    "Bool": _read_bool,
    "Bytes": _read_bytes,
    "Slice": _read_slice,
    "Map": _read_map,
}


@define
class _Node:
    """One printed thing with what is printed about it."""

    heading: str
    texts: dict[str, str] = field(factory=dict)
    attributes: dict[str, str] = field(factory=dict)
    parts: list[_Node] = field(factory=list)

    def text(self, key: str) -> str:
        return self.texts.get(key, "")

    def read_attributes(self) -> Attributes:
        return {key: read_value(text) for key, text in self.attributes.items()}


@define
class _Reader:
    """Takes the lines one by one and keeps what is being read."""

    spans: list[ReceivedSpan] = field(factory=list)
    logs: list[ReceivedLog] = field(factory=list)
    resource: _Node = field(factory=lambda: _Node("Resource"))
    scope: _Node = field(factory=lambda: _Node("Scope"))
    item: _Node | None = None
    current: _Node = field(factory=lambda: _Node("Nothing"))
    open_texts: dict[str, str] = field(factory=dict)
    open_key: str = ""

    def take(self, line: str) -> None:
        if self._goes_on():
            self.open_texts[self.open_key] += "\n" + line
            return
        heading = _HEADING.fullmatch(line)
        if heading is not None:
            self._take_heading(heading["heading"], heading["section"])
            return
        # A part's own lines look like attributes of that name; what follows "Attributes::" tells which.
        is_in_part = self.current.heading in _PARTS_OF and "Attributes:" not in self.current.texts
        pair = _PAIR.match(line)
        if pair is not None and (pair["part"] is None or is_in_part):
            key = pair["padded"] or pair["plain"] or pair["scope"] or pair["part"]
            self._open(self.current.texts, key, line[pair.end() :])
            return
        attribute = _ATTRIBUTE.match(line)
        if attribute is not None:
            self._open(self.current.attributes, attribute["key"], line[attribute.end() :])
            return
        if not self.open_key:
            message = f"No rule for the line {line!r}"
            raise UnreadableTextError(message)
        self.open_texts[self.open_key] += "\n" + line

    def _goes_on(self) -> bool:
        if self.open_texts is not self.current.attributes or not self.open_key:
            return False
        text = self.open_texts[self.open_key]
        return text != "Empty" and not text.endswith(")")

    def _open(self, texts: dict[str, str], key: str, text: str) -> None:
        texts[key] = text
        self.open_texts, self.open_key = texts, key

    def _take_heading(self, heading: str | None, section: str | None) -> None:
        if heading in {"ResourceSpans", "ResourceLog"}:
            self.finish_item()
            self.resource = self.current = _Node("Resource")
        elif heading in {"ScopeSpans", "ScopeLogs"}:
            self.finish_item()
            self.scope = self.current = _Node("Scope")
        elif heading in {"Span", "LogRecord"}:
            self.finish_item()
            self.item = self.current = _Node(heading)
        elif heading is not None and self.item is not None:
            self.current = _Node(heading)
            self.item.parts.append(self.current)
        elif section == "Attributes" and self.item is not None:
            self.current = self.item
        self.open_key = ""

    def finish_item(self) -> None:
        """Turn the span or log record being read into its object; does nothing when there is none."""
        item, self.item = self.item, None
        if item is None:
            return
        resource, scope = self.resource.read_attributes(), self._read_scope()
        if item.heading == "Span":
            self.spans.append(_read_span(item, resource, scope))
        else:
            self.logs.append(_read_log(item, resource, scope))

    def _read_scope(self) -> ReceivedScope:
        # Printed as "name version": a name may hold blanks, a version does not.
        name, _, version = self.scope.text("InstrumentationScope").rpartition(" ")
        schema_url = self.scope.text("ScopeSpans SchemaURL") or self.scope.text("ScopeLogs SchemaURL")
        return ReceivedScope(name=name, version=version, schema_url=schema_url, attributes=self.scope.read_attributes())


def read_text(text: str) -> tuple[list[ReceivedSpan], list[ReceivedLog]]:
    """Read whole blocks of the collector's output, in the order in which they were printed.

    Raises:
        UnreadableTextError: a line or value that this module's rules do not cover.
    """
    reader = _Reader()
    # Not splitlines(): it also splits at form feeds and other characters that names may hold.
    for line in text.removesuffix("\n").split("\n") if text else []:
        if line.startswith(_OWN_LOG_LINE):
            reader.finish_item()
            continue
        reader.take(line)
    reader.finish_item()
    return reader.spans, reader.logs


def _read_span(node: _Node, resource: Attributes, scope: ReceivedScope) -> ReceivedSpan:
    return ReceivedSpan(
        trace_id=node.text("Trace ID"),
        span_id=node.text("ID"),
        parent_span_id=node.text("Parent ID") or None,
        name=node.text("Name"),
        kind=node.text("Kind").removeprefix("SPAN_KIND_"),
        started_ns=int(node.text("Start time")),
        ended_ns=int(node.text("End time")),
        status=node.text("Status code").removeprefix("STATUS_CODE_"),
        status_message=node.text("Status message"),
        trace_state=node.text("TraceState"),
        attributes=node.read_attributes(),
        events=tuple(
            ReceivedEvent(
                name=part.text("Name"), time_ns=int(part.text("Timestamp")), attributes=part.read_attributes()
            )
            for part in node.parts
            if part.heading == "SpanEvent"
        ),
        links=tuple(
            ReceivedLink(trace_id=part.text("Trace ID"), span_id=part.text("ID"), attributes=part.read_attributes())
            for part in node.parts
            if part.heading == "SpanLink"
        ),
        resource=resource,
        scope=scope,
    )


def _read_log(node: _Node, resource: Attributes, scope: ReceivedScope) -> ReceivedLog:
    severity = node.text("SeverityNumber").partition("(")[0].removeprefix("SEVERITY_NUMBER_")
    return ReceivedLog(
        event_name=node.text("EventName"),
        time_ns=int(node.text("Timestamp")),
        observed_ns=int(node.text("ObservedTimestamp")),
        severity=severity,
        severity_text=node.text("SeverityText"),
        body=read_value(node.text("Body") or "Empty"),
        trace_id=node.text("Trace ID") or None,
        span_id=node.text("Span ID") or None,
        attributes=node.read_attributes(),
        resource=resource,
        scope=scope,
    )

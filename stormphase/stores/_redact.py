"""Takes secrets out of records before a store sees them: out of attributes, error messages, tracebacks and reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._redaction import is_credential_name

if TYPE_CHECKING:
    from stormphase._record import PhaseRecord
    from stormphase._redaction import Redactor

# What can hold no secret but where its key says so.
_HARMLESS: Final = frozenset({int, float, bool, type(None)})


class RecordRedactor:
    """Returns records without their secrets; a record that has none is returned as it is. Thread-safe.

    Captured output is redacted where it is captured.
    """

    def __init__(self, redactor: Redactor) -> None:
        """Use `redactor`, which knows what a secret looks like."""
        self._redactor = redactor

    def __call__(self, record: PhaseRecord) -> PhaseRecord:
        """Return the record without secrets."""
        changes: dict[str, Any] = {}
        for key, value in record.attributes.items():
            if type(value) not in _HARMLESS or is_credential_name(key):
                cleaned = self._redactor.mapping(record.attributes)
                if cleaned != record.attributes:
                    changes["attributes"] = cleaned
                break
        if record.error_type is not None or record.reason is not None:
            for name in ("error_message", "traceback", "reason"):
                text = getattr(record, name)
                if text is not None and (clean := self._redactor.text(text)) != text:
                    changes[name] = clean
        return attrs.evolve(record, **changes) if changes else record

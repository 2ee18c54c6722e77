"""What was printed, logged and warned while a phase was open; see docs/capture.md."""

from stormphase._redaction import Redactor
from stormphase.capture._lines import CapturedLine, CapturedOutput
from stormphase.capture._options import CaptureOptions
from stormphase.capture._session import CaptureSession

__all__ = ["CaptureOptions", "CaptureSession", "CapturedLine", "CapturedOutput", "Redactor"]

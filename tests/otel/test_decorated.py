"""Spans of decorated functions, through a whole session."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stormphase import PhaseTracker
from stormphase.otel import OTelBridge


class Model:
    """Something with a method."""

    def fit(self, *, is_broken: bool = False) -> int:
        """Work, or fail."""
        if is_broken:
            raise ValueError("broken")
        return 1


@pytest.mark.usefixtures("clean_environ")
@pytest.mark.parametrize("is_broken", [False, True])
def test_a_decorated_functions_span_names_the_function(is_broken: bool):
    """`code.function.name` is the function's qualified name, whether the call succeeds or fails."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with PhaseTracker("job", bridge=OTelBridge(provider)) as tracker:
        fit = tracker.phase("fit")(Model.fit)
        if is_broken:
            with pytest.raises(ValueError, match="broken"):
                fit(Model(), is_broken=True)
        else:
            assert fit(Model()) == 1
        with tracker.enter_phase("block"):
            pass
    names = {span.name: (span.attributes or {}).get("code.function.name") for span in exporter.get_finished_spans()}
    assert {"fit": f"{Model.__module__}.Model.fit", "block": None, "rank 0": None, "session": None} == names

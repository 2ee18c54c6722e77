"""Components that other packages offer by name are found, loaded, and missed with an error of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stormphase.otel._entry_points import EntryPointMissingError, installed_names, load

if TYPE_CHECKING:
    from conftest import OfferPackage


def test_an_offered_component_is_found_and_loaded(offer_package: OfferPackage) -> None:
    """What an installed package offers is among the names of its group, and loading it gives the very object."""
    offer_package("class Exporter: pass", {"opentelemetry_traces_exporter/mine": "Exporter"})
    assert {"mine", "console"} <= installed_names("opentelemetry_traces_exporter")
    assert "Exporter" == load("opentelemetry_traces_exporter", "mine").__name__


def test_a_missing_component_has_an_error_of_its_own() -> None:
    """Nobody offering a name is told apart from an offer that cannot be imported."""
    with pytest.raises(EntryPointMissingError, match="nobody"):
        load("opentelemetry_traces_exporter", "nobody")


def test_an_offer_that_cannot_be_imported_raises_its_own_error(offer_package: OfferPackage) -> None:
    """The error of an import that fails is the import's."""
    offer_package("import no_such_module", {"opentelemetry_traces_exporter/broken": "Exporter"})
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load("opentelemetry_traces_exporter", "broken")

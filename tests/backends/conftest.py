"""Fixtures of real backends: a collector, an endpoint that misbehaves, an MLflow server."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest

from .collector import Collector
from .faulty import FaultyEndpoint
from .mlflow_server import MlflowServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def _rotel() -> None:
    if sys.version_info >= (3, 14) and importlib.util.find_spec("rotel") is None:
        pytest.skip("rotel has no wheel for Python 3.14; the other Pythons run this")


# Not for the whole session: tests in other folders fork, which Python warns of while a thread is running.
@pytest.fixture(scope="package")
def _shared_collector(_rotel: None) -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def collector(_shared_collector: Collector) -> Collector:
    """A running collector that has received nothing yet. It goes on to the next test: never stop or freeze it."""
    _shared_collector.clear()
    return _shared_collector


@pytest.fixture
def own_collector(_rotel: None) -> Iterator[Collector]:
    """A running collector that a test may stop, freeze or kill."""
    with Collector() as collector:
        yield collector


@pytest.fixture
def faulty() -> Iterator[FaultyEndpoint]:
    """A running OTLP endpoint that accepts everything until it is told otherwise."""
    with FaultyEndpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="package")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running MLflow server with an empty store. The first use on a machine installs MLflow, which takes a minute."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server

"""One server over models-examples/ for the whole run, and the clients that talk to it.

pip install -r tests/python/requirements.txt
pytest tests/python            # ROUNDHOUSE_BIN names the binary; else target/release, else target/debug
"""

import pytest
import tritonclient.http

from harness import EXAMPLES, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with running_server(EXAMPLES, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def client(server):
    with tritonclient.http.InferenceServerClient(server.http, concurrency=8) as client:
        yield client


@pytest.fixture
def url(server):
    return f"http://{server.http}"

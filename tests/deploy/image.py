"""Tries an image: an OCI archive, as scripts/image makes it. Run by scripts/check-image, as root."""

import argparse
import base64
import gzip
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of the loopback network, so that no name server of the machine has its port.
NAME_SERVER = "127.53.7.1"
KNOWN, UNKNOWN = "vault.leasehold.test", "none.leasehold.test"
CLASS = """
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: a}
spec:
  provider: vault
  parameters:
    roleName: r
    objects: "- {objectName: x, secretPath: secret/data/x, secretKey: k}"
"""
PATIENCE = 30


def blobs(archive):
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def check_content(archive, limit):
    """One file, executable by all and written by none; nothing in the settings but what runs it. Returns it."""
    found = blobs(archive)

    def blob(descriptor):
        return found["blobs/" + descriptor["digest"].replace(":", "/")]

    manifest = json.loads(blob(json.loads(found["index.json"])["manifests"][0]))
    settings = json.loads(blob(manifest["config"]))
    files = {}
    for layer in manifest["layers"]:
        data = blob(layer)
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)) as tar:
            for member in tar:
                assert member.isfile(), f"the image has {member.name}, which is no file"
                assert member.mtime == 0, f"{member.name} has a time"
                files[member.name.lstrip("./")] = (member.mode, tar.extractfile(member).read())
    assert list(files) == ["leasehold"], f"the image has {list(files)}"
    mode, binary = files["leasehold"]
    assert mode & 0o7777 == 0o555, oct(mode)
    config = settings["config"]
    assert config["Entrypoint"] == ["/leasehold"] and config["User"] == "0:0" and not config.get("Cmd"), config
    assert settings["created"].startswith("1970-01-01T00:00:00"), settings["created"]
    assert limit is None or len(binary) < limit, f"{len(binary)} bytes, {limit} are allowed"
    print(f"{len(binary):,} bytes, {sum(layer['size'] for layer in manifest['layers']):,} compressed")
    return binary


def name_server():
    """Knows one name, as an address of this host's own."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((NAME_SERVER, 53))

    def serve():
        while True:
            query, peer = server.recvfrom(512)
            at, labels = 12, []
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode())
                at += query[at] + 1
            is_known = ".".join(labels) == KNOWN
            answer = b""
            if is_known and query[at + 1:at + 3] == b"\0\1":
                answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton("127.0.0.1")
            head = struct.pack(">HHHHH", 0x8180 if is_known else 0x8183, 1, bool(answer), 0, 0)
            server.sendto(query[:2] + head + query[12:at + 5] + answer, peer)

    threading.Thread(target=serve, daemon=True).start()


def token():
    pod = {"namespace": "a", "pod": {"name": "b", "uid": "c"}, "serviceaccount": {"name": "d", "uid": "e"}}
    claims = {"exp": int(time.time()) + 600, "aud": ["vault"], "kubernetes.io": pod}
    parts = [json.dumps({"alg": "RS256"}).encode(), json.dumps(claims).encode(), b"signature"]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def check_empty_root(binary, folder):
    """Beside the binary there is resolv.conf only (and what it is asked about): a name resolves, another does not."""
    (folder / "etc").mkdir()
    (folder / "etc/resolv.conf").write_text(f"nameserver {NAME_SERVER}\noptions timeout:2 attempts:2\n")
    (folder / "leasehold").write_bytes(binary)
    (folder / "leasehold").chmod(0o555)
    (folder / "class.yaml").write_text(CLASS)
    (folder / "token").write_text(token())
    name_server()

    def run(*arguments):
        command = ["/usr/sbin/chroot", str(folder), "/leasehold", *arguments]
        return subprocess.run(command, env={}, capture_output=True, text=True, check=False, timeout=PATIENCE)

    assert run("version").stdout.startswith("leasehold "), run("version")
    # That the name leads to this host's own loopback is refused: so it was resolved.
    for host, expected in ((KNOWN, "resolves to 127.0.0.1"), (UNKNOWN, "the host name does not resolve")):
        ran = run("render", "/class.yaml", "--target=/t", "--token-file=/token", f"--vault-addr=http://{host}:8200")
        assert expected in ran.stderr, ran.stderr


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def container(port):
    """As the chart and a kubelet would set it up, with the profile of deploy/seccomp, on the machine's network."""
    folders = ("/providers", "/run/leasehold", "/kubelet/pods")
    tmpfs = [{"destination": folder, "type": "tmpfs", "source": "tmpfs"} for folder in folders]
    sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [
                "/leasehold", "provider", "--endpoint=/providers/vault.sock", "--kubelet-root=/kubelet",
                f"--health-addr=127.0.0.1:{port}", "--vault-addr=https://127.0.0.1:1",
            ],
            "env": [],
            "cwd": "/",
            "capabilities": {name: [] for name in sets},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            *tmpfs,
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            "seccomp": json.loads((ROOT / "deploy/seccomp/leasehold.json").read_text()),
            "readonlyPaths": ["/proc/sys"],
        },
    }


def check_container(binary, folder):
    """Without capabilities, on a read-only root, under its own profile: it confines itself, serves and stops."""
    rootfs = folder / "rootfs"
    for name in ("proc", "dev", "providers", "run/leasehold", "kubelet/pods"):
        (rootfs / name).mkdir(parents=True)
    (rootfs / "leasehold").write_bytes(binary)
    (rootfs / "leasehold").chmod(0o555)
    port = free_port()
    (folder / "config.json").write_text(json.dumps(container(port)))
    name = f"leasehold-{os.getpid()}"
    # Debian 12's crun stumbles over a second hierarchy of cgroups, where a machine has both.
    script = f"umount /sys/fs/cgroup/unified 2>/dev/null; exec crun --cgroup-manager=disabled run -b {folder} {name}"
    ran = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stderr=subprocess.PIPE, text=True)
    try:
        deadline, report = time.monotonic() + PATIENCE, None
        while report is None and ran.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE) as answer:
                    report = answer.read().decode()
            except OSError:
                time.sleep(0.05)
    finally:
        subprocess.run(["crun", "kill", name, "TERM"], capture_output=True, check=False)
        try:
            _, log = ran.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            ran.kill()
            _, log = ran.communicate()
        subprocess.run(["crun", "delete", "--force", name], capture_output=True, check=False)
    assert report is not None and report.startswith("ready") and "sandbox" not in report, f"{report}\n{log}"
    assert ran.returncode == 0 and "stopped" in log, f"{ran.returncode}\n{log}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("archive")
    parser.add_argument("--limit", type=int, help="bytes that the binary must be below")
    options = parser.parse_args()
    binary = check_content(options.archive, options.limit)
    for check in (check_empty_root, check_container):
        with tempfile.TemporaryDirectory(prefix="lhimage") as folder:
            check(binary, Path(folder))
        print(f"{check.__name__}: ok")
    return 0


sys.exit(main())

#!/usr/bin/env python3
"""run.py HOME PORT FOLDER [KEY=VALUE…]: becomes Milvus on PORT, with all it writes in FOLDER.

The package's own code writes the configuration; its launcher is left out, so that the server is the process that was started.
What it listens on cannot be bound to loopback; the addresses it gives its own parts are.
"""

import os
import pathlib
import random
import socket
import sys

home, port, folder = pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]), pathlib.Path(sys.argv[3]).resolve()
sys.path.insert(0, str(home))
import milvus  # noqa: E402


def is_free(port):
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(taken):
    while True:
        # Below those that the kernel gives to outgoing connections.
        port = random.randrange(15_000, 32_000)
        if port not in taken and is_free(port):
            taken.add(port)
            return port


class Config(milvus.MilvusServerConfig):
    def try_bind_port(self, port):
        # A port that was in use a moment ago, too: a server starts again on its own.
        tried = socket.socket()
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return None
        return tried


config = Config(data_dir=str(folder))
taken = {port}
ports = {}
for key in [key for key in config.configurable_items if key.endswith("_port")]:
    ports[key] = port if key == "proxy_port" else free_port(taken)
config.update(**ports)
for part in ["rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"]:
    config.set(f"{part}.ip", "127.0.0.1")
for setting in sys.argv[4:]:
    key, value = setting.split("=", 1)
    config.set(key, value)
config.resolve()
# Its embedded etcd listens on 2379 and 2380, whatever the port above, unless a file of its own says otherwise.
own, peers = free_port(taken), free_port(taken)
(folder / "etcd.yaml").write_text(
    f"name: default\nlisten-client-urls: http://127.0.0.1:{own}\nadvertise-client-urls: http://127.0.0.1:{own}\n"
    f"listen-peer-urls: http://127.0.0.1:{peers}\ninitial-advertise-peer-urls: http://127.0.0.1:{peers}\n"
    f"initial-cluster: default=http://127.0.0.1:{peers}\n"
)
written = folder / "configs/milvus.yaml"
text = written.read_text().replace("  use:\n    embed: true", f"  config:\n    path: {folder}/etcd.yaml\n  use:\n    embed: true")
written.write_text(text)
os.chdir(folder)
os.environ.update(
    DEPLOY_MODE="STANDALONE",
    METRICS_PORT=str(free_port(taken)),
    LD_LIBRARY_PATH=f"{home}/bin:{os.environ.get('LD_LIBRARY_PATH', '')}",
)
# Its process file is outside of FOLDER, in /run/milvus, and without an alias the same for all servers of a machine.
os.execv(home / "bin/milvus", ["milvus", "run", "standalone", "-alias", str(port)])

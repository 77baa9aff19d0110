"""Where the time of `imagedex load` into Elasticsearch goes: core-seconds of client and server, and what the server does.

    es_profile.py VECTORS.parquet --url URL --imagedex PROGRAM --node DATA --jdk HOME [--loads N]

After two loads that do not count come N more, whole commands, of `index:false`. Core-seconds are those of /proc. What the server does is seen by
Java Flight Recorder, as shares of its samples whose stack holds a method; so one share may be part of another. DATA is the
folder of a server that tests/es-node/node.sh started.
"""

import argparse
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from es_load import Ours, machine

# What a person would ask for, and the method that does it.
PARTS = {
    "reading and parsing documents": "DocumentMapper.parse",
    "writing them to the index": "IndexingChain.processDocument",
    "of that, compressing stored documents": "Lucene90CompressingStoredFieldsWriter.flush",
    "the log of operations (translog)": "Translog.add",
    "flushing segments": "DocumentsWriterPerThread.flush",
    "merging segments": "ConcurrentMergeScheduler.doMerge",
}


def server_of(node):
    """The server's process: what the starter, whose number is in the folder, has started."""
    starter = (Path(node) / "pid").read_text().strip()
    return subprocess.run(["pgrep", "-P", starter, "java"], check=True, capture_output=True, text=True).stdout.split()[0]


def core_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors")
    for name in ("url", "imagedex", "node", "jdk"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--loads", type=int, default=5)
    args = parser.parse_args()
    server = server_of(args.node)
    # The server may run as another user, and the recorder talks to that user's programs alone.
    owner = Path(f"/proc/{server}").owner()
    as_owner = [] if owner == Path("/proc/self").owner() else ["setpriv", f"--reuid={owner}", "--clear-groups"]

    def recorder(*command):
        subprocess.run([*as_owner, f"{args.jdk}/bin/jcmd", server, *command], check=True, capture_output=True)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(args.imagedex, args.url, args.vectors, folder)
        for load in range(-2, args.loads):
            if load == 0:
                recorder("JFR.start", "name=load", "settings=profile")
            client, before = resource.getrusage(resource.RUSAGE_CHILDREN), core_seconds(server)
            loaded, whole = ours.load(False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - client.ru_utime - client.ru_stime
            if load >= 0:
                rows.append((loaded, whole, used, core_seconds(server) - before))
    recording = Path(args.node).resolve() / "tmp" / "load.jfr"
    recorder("JFR.dump", "name=load", f"filename={recording}")
    printed = subprocess.run(
        [f"{args.jdk}/bin/jfr", "print", "--events", "jdk.ExecutionSample", "--stack-depth", "64", recording],
        check=True, capture_output=True, text=True,
    ).stdout
    samples = [sample for sample in printed.split("sampledThread") if "line:" in sample]
    loaded, whole, client, server_used = (statistics.median(column) for column in zip(*rows))
    print(f"{ours.expected:,} documents, {args.loads} loads, medians; {machine()}; load average {Path('/proc/loadavg').read_text().split()[0]}.\n")
    print(f"load {loaded:.2f} s, whole command {whole:.2f} s; client {client:.2f} core-s, server {server_used:.2f} core-s\n")
    print(f"| what the server does, {len(samples)} samples | share |\n|---|---:|")
    for part, method in PARTS.items():
        print(f"| {part} | {sum(method in sample for sample in samples) / max(len(samples), 1):.0%} |")


if __name__ == "__main__":
    main()

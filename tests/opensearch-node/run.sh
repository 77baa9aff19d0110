#!/bin/bash
# run.sh HOME PORT DATA [setting=value ...]: runs the server in the foreground; SIGTERM stops it cleanly.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=$(cd "$1" && pwd); port=$2; mkdir -p "$3/tmp"; data=$(cd "$3" && pwd); shift 3
. "$here/../es-node/jdk.sh"
settings=(cluster.name=opensearch-node node.name=node-1 discovery.type=single-node network.host=127.0.0.1
	"http.port=$port" "transport.port=$((port + 1))" "path.home=$home" "path.data=$data/data" "path.logs=$data/logs")
# The usual watermarks are shares of the disk: on a large one that is nine tenths full, no shard would be put anywhere.
watermark=cluster.routing.allocation.disk.watermark
settings+=($watermark.low=2gb $watermark.high=1gb $watermark.flood_stage=500mb)
exec "$JAVA_HOME/bin/java" ${OPENSEARCH_JAVA_OPTS:--Xms512m -Xmx512m} -Djava.io.tmpdir="$data/tmp" -Dlog4j2.disable.jmx=true \
	-Dlog4j2.configurationFile="$home/config/log4j2.properties" -Dlog4j2.formatMsgNoLookups=true \
	-cp "$home/lib/*" Server "${settings[@]}" "$@"

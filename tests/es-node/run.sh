#!/bin/bash
# run.sh HOME PORT DATA [setting=value ...]: runs the server in the foreground; SIGTERM stops it cleanly. Its configuration is
# DATA/config, made anew from HOME's unless it is there. Security is off unless xpack.security.enabled=true is given.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=$(cd "$1" && pwd); port=$2; mkdir -p "$3/tmp"; data=$(cd "$3" && pwd); shift 3
. "$here/jdk.sh"
conf=$data/config
[ -d "$conf" ] || cp -r "$home/config" "$conf"
settings=(-E cluster.name=es-node -E node.name=node-1 -E discovery.type=single-node -E network.host=127.0.0.1
	-E "http.port=$port" -E "transport.port=$((port + 1))" -E "path.data=$data/data" -E "path.logs=$data/logs")
# The usual watermarks are shares of the disk: on a large one that is nine tenths full, no shard would be put anywhere.
watermark=cluster.routing.allocation.disk.watermark
settings+=(-E $watermark.low=2gb -E $watermark.high=1gb -E $watermark.flood_stage=500mb)
case " $* " in *" xpack.security.enabled="*) ;; *) settings+=(-E xpack.security.enabled=false) ;; esac
for setting in "$@"; do settings+=(-E "$setting"); done
export ES_JAVA_HOME=$JAVA_HOME ES_JAVA_OPTS="${ES_JAVA_OPTS:--Xms512m -Xmx512m}" ES_PATH_CONF=$conf ES_TMPDIR=$data/tmp HOME=$data/tmp
as=()
if [ "$(id -u)" = 0 ]; then
	chown -R nobody "$data"
	as=(setpriv --reuid=nobody --clear-groups)
fi
exec "${as[@]}" "$home/bin/elasticsearch" "${settings[@]}"

#!/bin/bash
# node.sh up HOME DATA PORT [RUN [HEALTH]] | down DATA: the test server for people, in the background. What it holds stays in DATA.
# RUN is the program that starts it: run.sh here, OpenSearch's, or Milvus'. HEALTH is a path that it answers once it is ready.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command=$1; shift

up() {
	local home=$1 data=$2 port=$3 run=${4:-$here/run.sh} health=${5:-/_cluster/health} pid
	mkdir -p "$data"
	if runs "$data"; then echo "it runs already, at http://localhost:$(cat "$data/port"); make es-down stops it"; return; fi
	# A session of its own: closing the terminal does not end it.
	setsid "$run" "$home" "$port" "$data" > "$data/log" 2>&1 < /dev/null &
	pid=$!
	echo "$pid" > "$data/pid"; echo "$port" > "$data/port"
	for _ in $(seq 600); do
		if ! kill -0 "$pid" 2>/dev/null; then break; fi
		if answers "$port" "$health" 2>/dev/null; then
			echo "the server answers at http://localhost:$port; its log is $data/log; make es-down stops it"
			return
		fi
		sleep 0.5
	done
	kill "$pid" 2>/dev/null || true
	rm "$data/pid"
	tail -n 20 "$data/log" >&2
	echo "the server did not start; the whole log is $data/log" >&2
	return 1
}

down() {
	local data=$1
	if ! runs "$data"; then echo "it does not run"; return; fi
	kill "$(cat "$data/pid")"
	# Milvus takes no notice of that; what it was told to keep is on disk.
	for _ in $(seq 100); do runs "$data" || break; sleep 0.2; done
	if runs "$data"; then kill -KILL "$(cat "$data/pid")"; fi
	while runs "$data"; do sleep 0.2; done
	rm "$data/pid"
	echo "stopped; what it holds stays in $data"
}

# A number that is left over from an earlier boot may be another program's by now.
runs() { ps -o args= -p "$(cat "$1/pid" 2>/dev/null || echo 0)" 2>/dev/null | grep -q -e server-launcher -e cluster.name=opensearch-node -e 'milvus run standalone'; }

answers() {
	local first
	exec 3<>"/dev/tcp/127.0.0.1/$1" || return
	printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&3
	read -r first <&3 || true
	exec 3>&-
	case $first in *' 200 '*) ;; *) return 1 ;; esac
}

"$command" "$@"

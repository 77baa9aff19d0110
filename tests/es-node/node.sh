#!/bin/bash
# node.sh up HOME DATA PORT [RUN] | down DATA: the test server for people, in the background. What it holds stays in DATA.
# RUN is the script that starts it: run.sh here, or OpenSearch's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command=$1; shift

up() {
	local home=$1 data=$2 port=$3 run=${4:-$here/run.sh} pid
	mkdir -p "$data"
	if runs "$data"; then echo "it runs already, at http://localhost:$(cat "$data/port"); make es-down stops it"; return; fi
	# A session of its own: closing the terminal does not end it.
	setsid "$run" "$home" "$port" "$data" > "$data/log" 2>&1 < /dev/null &
	pid=$!
	echo "$pid" > "$data/pid"; echo "$port" > "$data/port"
	for _ in $(seq 600); do
		if ! kill -0 "$pid" 2>/dev/null; then break; fi
		if health "$port" 2>/dev/null; then
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
	while runs "$data"; do sleep 0.2; done
	rm "$data/pid"
	echo "stopped; what it holds stays in $data"
}

# A number that is left over from an earlier boot may be another program's by now.
runs() { ps -o args= -p "$(cat "$1/pid" 2>/dev/null || echo 0)" 2>/dev/null | grep -q -e server-launcher -e cluster.name=opensearch-node; }

health() {
	local first
	exec 3<>"/dev/tcp/127.0.0.1/$1" || return
	printf 'GET /_cluster/health HTTP/1.0\r\n\r\n' >&3
	read -r first <&3 || true
	exec 3>&-
	case $first in *' 200 '*) ;; *) return 1 ;; esac
}

"$command" "$@"

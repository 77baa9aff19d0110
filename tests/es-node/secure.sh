#!/bin/bash
# secure.sh HOME CONFIG ADMIN PASSWORD READER PASSWORD: prepares a configuration folder for a server with TLS and two users.
# CONFIG/ca.pem is the authority that signed the server's certificate. ADMIN may do everything; READER may look at the cluster
# and read indices.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=$(cd "$1" && pwd); cd "$2"; shift 2
. "$here/jdk.sh"
export ES_JAVA_HOME=$JAVA_HOME ES_PATH_CONF=$PWD
unset JAVA_HOME

openssl req -x509 -newkey rsa:2048 -nodes -days 7 -subj "/CN=test authority" -keyout ca.key -out ca.pem
openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout node.key -out node.csr
openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 7 -out node.pem \
	-extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1")

cat >> roles.yml <<'END'
reader:
  cluster: [monitor]
  indices:
    - names: ["*"]
      privileges: [read, view_index_metadata]
END
"$home/bin/elasticsearch-users" useradd "$1" -p "$2" -r superuser
"$home/bin/elasticsearch-users" useradd "$3" -p "$4" -r reader

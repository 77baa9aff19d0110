#!/bin/bash
# secure.sh FOLDER: an authority (ca.pem) and the server's key and certificate (node.key, node.pem) for loopback.
set -euo pipefail
cd "$1"
{
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=authority of a test" -keyout ca.key -out ca.pem
	openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout node.key -out node.csr
	openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out node.pem \
		-extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1")
} 2>&1

#!/bin/bash
# company.sh FOLDER ADDRESS UPSTREAM: what a company's network has, in FOLDER and on ADDRESS of this host: a certificate
# authority (ca.pem), an HTTP proxy (3128), a package index (8080), a web server with a certificate of that authority (8443),
# and a container registry with one (5443), which fetches from UPSTREAM. Ends with its standard input.
set -eu
cd "$1"; address=$2 upstream=$3
ip address show dev lo | grep -q "$address/32" || ip address add "$address/32" dev lo

openssl req -quiet -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj '/CN=a company' -days 2 2>/dev/null
openssl req -quiet -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj "/CN=$address" 2>/dev/null
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -days 2 -out certificate.pem 2>/dev/null \
  -extfile <(echo "subjectAltName = IP:$address")

# A wheel is a zip file with four entries.
info=garret_probe-1.0.dist-info
mkdir -p web/simple/garret-probe wheel/$info
echo hello >web/hello
echo 'print("the probe is installed")' >wheel/garret_probe.py
printf 'Metadata-Version: 2.1\nName: garret-probe\nVersion: 1.0\n' >wheel/$info/METADATA
printf 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n' >wheel/$info/WHEEL
printf '%s,,\n' garret_probe.py $info/METADATA $info/WHEEL $info/RECORD >wheel/$info/RECORD
wheel=garret_probe-1.0-py3-none-any.whl
(cd wheel && python3 -m zipfile -c ../web/simple/garret-probe/$wheel garret_probe.py $info)
echo "<a href='$wheel'>$wheel</a>" >web/simple/garret-probe/index.html

cat >registry.yml <<YAML
version: 0.1
log: { level: warn }
storage: { filesystem: { rootdirectory: "$PWD/registry" } }
http: { addr: "$address:5443", tls: { certificate: "$PWD/certificate.pem", key: "$PWD/key.pem" } }
proxy: { remoteurl: "$upstream" }
YAML
printf 'Port 3128\nListen %s\nLogFile "%s"\nLogLevel Connect\nConnectPort 5443\nConnectPort 8443\nTimeout 60\n' \
  "$address" "$PWD/proxy.log" >proxy.conf

trap 'kill $(jobs -p); ip address del "$address/32" dev lo' EXIT
tinyproxy -d -c proxy.conf >/dev/null 2>&1 &
docker-registry serve registry.yml >registry.log 2>&1 &
python3 "$(dirname "$0")/serve.py" web "$address" 8080 >/dev/null 2>&1 &
python3 "$(dirname "$0")/serve.py" web "$address" 8443 certificate.pem key.pem >/dev/null 2>&1 &
answers() { (: <>"/dev/tcp/$address/$1") 2>/dev/null; }
for port in 3128 5443 8080 8443; do
  for _ in $(seq 300); do ! answers $port || break; sleep 0.1; done
  answers $port || { echo "nothing answers on port $port"; exit 1; }
done
echo ready
cat

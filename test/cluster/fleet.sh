#!/bin/sh
# A network of many agents on one machine, from nothing: AGENT='agent' fleet.sh DIRECTORY COUNT
# Each has its state in DIRECTORY/nodeN. They run until this script is ended.
set -eu

directory=$1
count=$2
: "${AGENT:=agent}"

pids=''
trap 'kill -KILL $pids 2>/dev/null' EXIT
trap 'exit 0' TERM INT HUP

for n in $(seq "$count"); do
  mkdir -p "$directory/node$n"
  $AGENT start --name "node$n" --state "$directory/node$n" --socket "$directory/node$n/agent.sock" \
    --listen /ip4/127.0.0.1/tcp/0 --http off --proxy off --dns off --no-mdns 2>"$directory/node$n/log" &
  pids="$pids $!"
done

# The command that follows, on that node, which may not be up yet.
on() {
  export UNDERNET_SOCKET="$directory/$1/agent.sock"
  shift
  until [ -S "$UNDERNET_SOCKET" ]; do sleep 0.1; done
  $AGENT "$@"
}

on node1 network create fleet
(umask 077 && on node1 invite --uses "$count" --expires 1h >"$directory/token")
for n in $(seq 2 "$count"); do
  tries=5
  # A machine that is very busy answers too late; the same node may use the token again.
  until on "node$n" join <"$directory/token"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ]
    sleep 1
  done
done

echo 'all have joined'
wait

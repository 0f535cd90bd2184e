set -e
# The launcher raises its own limit as far as it may.
ulimit -H -n 4096
chmod +x sockets
./sockets serve unix v_5000 "$count" >served &
server=$!
launch &
launcher=$!
# The launcher makes it at the start.
while [ ! -S v ]; do kill -0 "$launcher"; done
./sockets call guest v 6000 "$count" >called || true
wait "$launcher"
wait "$server"
sed 's/^/host /' served called
if [ -e v ]; then echo "host left: v"; fi

set -e
# The launcher raises its own limit as far as it may.
ulimit -H -n 4096
chmod +x sockets
./sockets serve unix v_5000 "$count" >served &
server=$!
launch >console &
launcher=$!
# The launcher makes it at the start.
while [ ! -S v ]; do kill -0 "$launcher" || break; done
./sockets call guest v 6000 "$count" >called || true
status=0
wait "$launcher" || status=$?
cat console
# Without all of the guest's calls it would wait for ever.
grep -q '^called: ' console || kill "$server"
wait "$server" || true
sed 's/^/host /' served called
if [ -e v ]; then echo "host left: v"; fi
exit "$status"

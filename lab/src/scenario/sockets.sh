set -e
# The launcher raises its own limit as far as it may.
ulimit -H -n 4096
chmod +x sockets
./sockets serve unix v_5000 "$count" >served &
server=$!
# One that takes what its socket holds, and one that goes on beside it.
./sockets serve unix v_5001 1 &
slow=$!
until grep -q ' 00010000 .* v_5001$' /proc/net/unix; do kill -0 "$slow"; done
kill -STOP "$slow"
./sockets serve unix v_5002 1 >good &
good=$!
launch >console &
launcher=$!
# The launcher makes it at the start.
while [ ! -S v ]; do kill -0 "$launcher" || break; done
until_it_says stalled
kill -9 "$slow"
./sockets call guest v 6000 "$count" >called || true
status=0
wait "$launcher" || status=$?
cat console
# An emulator that stands still is one that loses its guest.
longest=$(sed -n 's/^longest call ms: //p' console | tr -d '\r')
[ "${longest:-0}" -lt 2000 ] || echo "lab: late: a call of the guest's waited for $longest ms" >&2
# Without all of the guest's calls it would wait for ever.
grep -q '^called: ' console || kill "$server"
grep -q '^steps: ' console || kill "$good"
wait "$server" "$good" || true
sed 's/^/host /' served called
sed 's/^/host metrics: /' metrics-vsock
if [ -e v ]; then echo "host left: v"; fi
exit "$status"

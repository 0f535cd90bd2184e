set -e
tunctl -t tap-devices >/dev/null
echo 1 >/proc/sys/net/ipv6/conf/tap-devices/disable_ipv6
ip link set tap-devices up
ip addr add 172.16.2.1/24 dev tap-devices
for image in disk-devices memory-devices; do
    dd if=/dev/zero of=$image bs=1M count=0 seek=2 2>/dev/null
    printf '%s' "$image" | dd of=$image conv=notrunc 2>/dev/null
done
./sockets serve unix v-devices_5000 1 >served-devices &
server=$!
until grep -q ' 00010000 .* v-devices_5000$' /proc/net/unix; do kill -0 "$server"; done
status=0
launch || status=$?
# Without the guest's call it would wait for ever.
[ -s served-devices ] || kill "$server"
wait "$server" || true
sed 's/^/host /' served-devices
for image in disk-devices memory-devices; do
    echo "host $image: $(dd if=$image bs=4096 skip=1 count=1 2>/dev/null | head -c 9)"
done
sed 's/^/host metrics: /' metrics-devices
exit "$status"

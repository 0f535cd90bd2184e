set -e
chmod +x io
dd if=/dev/zero of=disk bs=1M count=64 2>/dev/null
tunctl -t tap0 >/dev/null
echo 1 >/proc/sys/net/ipv6/conf/tap0/disable_ipv6
ip link set tap0 up
./io frames serve tap0 &
frames=$!
./io stream serve v_5000 &
stream=$!
# A guest of its own for each device: the scheduler takes what it saw of a thread before into the next load.
status=0
for load in $loads; do
    sed "s/load=/&$load/" io.json >io-$load.json
    "./$launcher" --no-api --config-file io-$load.json </dev/null || status=$?
    rm -f v
done
kill "$frames" "$stream"
tunctl -d tap0 >/dev/null
rm -f v_5000
exit "$status"

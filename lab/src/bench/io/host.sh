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
status=0
"./$launcher" --no-api --config-file io.json </dev/null || status=$?
kill "$frames" "$stream"
tunctl -d tap0 >/dev/null
rm -f v v_5000
exit "$status"

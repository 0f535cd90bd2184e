set -e
# Taps in a network namespace of their own, which /sys shows to who mounts it there.
if [ -z "$within" ]; then
    export within=yes
    exec unshare --net --mount sh "$0"
fi
mount -t sysfs sysfs /sys
tunctl -t tap0 >/dev/null
for setting in accept_ra accept_dad; do echo 0 >/proc/sys/net/ipv6/conf/tap0/$setting; done
ip link set tap0 mtu "$mtu"
ip link set tap0 up
ip addr add 172.16.0.1/24 dev tap0
ip -6 addr add fd00::1/64 dev tap0
# Of the other card's tap: what comes there that is not from its own network is from the service, and is not to.
tunctl -t tap1 >/dev/null
echo 1 >/proc/sys/net/ipv6/conf/tap1/disable_ipv6
ip link set tap1 up
ip addr add 172.16.1.1/24 dev tap1
# Who calls gets so much, and is to send as much. Told when the guest is gone: the launcher writes the guest's lines
# byte by byte, and another's line would be in the midst of one.
for family in 4 6; do
    ./stream serve 100$family "$size" 1$family >over-ipv$family &
done
# Ports 1004 and 1006, in state 0A, "listening" (Documentation/networking/proc_net_tcp.rst).
listening() { grep -c -E ':(03EC|03EE) [0-9A-F]+:0000 0A' /proc/net/tcp6; }
while [ "$(listening)" -lt 2 ]; do :; done
launch
for family in 4 6; do sed "s/^/host over IPv$family /" over-ipv$family; done
for count in rx_packets rx_bytes rx_errors rx_dropped tx_packets tx_bytes; do
    echo "host $count: $(cat /sys/class/net/tap0/statistics/$count)"
done
for count in rx_packets tx_packets tx_bytes; do
    echo "host metadata's $count: $(cat /sys/class/net/tap1/statistics/$count)"
done
echo "host large: $(sha256sum <large | cut -d ' ' -f 1)"
sed 's/^/host metrics: /' metrics
# OutSegs (RFC 4022), of which a frame may hold many.
echo "host segments: $(awk '/^Tcp: [0-9]/ { print $12 }' /proc/net/snmp)"

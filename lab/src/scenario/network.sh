set -e
tunctl -t tap0 >/dev/null
for setting in accept_ra accept_dad; do echo 0 >/proc/sys/net/ipv6/conf/tap0/$setting; done
ip link set tap0 mtu "$mtu"
ip link set tap0 up
ip addr add 172.16.0.1/24 dev tap0
ip -6 addr add fd00::1/64 dev tap0
dd if=/dev/urandom of=data bs=1M count="$size" 2>/dev/null
# Of the other card's tap: what comes there that is not from its own network is from the service, and is not to.
tunctl -t tap1 >/dev/null
echo 1 >/proc/sys/net/ipv6/conf/tap1/disable_ipv6
ip link set tap1 up
ip addr add 172.16.1.1/24 dev tap1
sum() { sha256sum | cut -d ' ' -f 1; }
echo "host gave: $(sum <data)"
# Whoever connects gets the data; and whoever sends some, their checksum when all is there.
printf '#!/bin/sh\ncat data\n' >give
printf '#!/bin/sh\nsha256sum | cut -d " " -f 1\n' >answer
chmod +x give answer
for family in 4 6; do
    nc -l -p 100$family -e ./give &
    nc -l -p 200$family -e ./answer &
done
# Ports 1004, 1006, 2004 and 2006, in state 0A, "listening" (Documentation/networking/proc_net_tcp.rst).
listening() { cat /proc/net/tcp /proc/net/tcp6 | grep -c -E ':(03EC|03EE|07D4|07D6) [0-9A-F]+:0000 0A'; }
while [ "$(listening)" -lt 4 ]; do :; done
launch
for count in rx_packets rx_bytes rx_errors rx_dropped tx_packets tx_bytes; do
    echo "host $count: $(cat /sys/class/net/tap0/statistics/$count)"
done
for count in rx_packets tx_packets tx_bytes; do
    echo "host metadata's $count: $(cat /sys/class/net/tap1/statistics/$count)"
done
echo "host large: $(sum <large)"
sed 's/^/host metrics: /' metrics
# OutSegs (RFC 4022), of which a frame may hold many.
echo "host segments: $(awk '/^Tcp: [0-9]/ { print $12 }' /proc/net/snmp)"

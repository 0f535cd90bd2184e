# The first program of a Linux guest with a network card: takes what a host has for it and sends
# it what it has made, over IPv4 and IPv6, and tells what it saw.
card=/sys/class/net/eth0
echo "driver: $(/bin/busybox basename "$(/bin/busybox readlink $card/device/driver)")"
echo "address: $(/bin/busybox cat $card/address)"
echo "mtu: $(/bin/busybox cat $card/mtu)"
# Nothing but what is done here is to be on the wire, and an address is there at once.
for setting in accept_ra accept_dad router_solicitations; do
    echo 0 >/proc/sys/net/ipv6/conf/eth0/$setting
done
/bin/busybox ip link set eth0 up
/bin/busybox ip addr add 172.16.0.2/24 dev eth0
/bin/busybox ip -6 addr add fd00::2/64 dev eth0
sum() { /bin/busybox sha256sum | /bin/busybox cut -d ' ' -f 1; }
size="${size:-4}"
/bin/busybox dd if=/dev/urandom of=/data bs=1M count="$size" 2>/dev/null
echo "made: $(sum </data)"
for way in "4 172.16.0.1" "6 fd00::1"; do
    set -- $way
    /bin/busybox nc "$2" "100$1" </dev/null >/taken || echo "trouble: nothing came over IPv$1"
    echo "taken over IPv$1: $(sum </taken)"
    /bin/busybox nc "$2" "200$1" </data >/answer || echo "trouble: nothing went over IPv$1"
    echo "host had over IPv$1: $(/bin/busybox cat /answer)"
done
echo "pings: $(/bin/busybox ping -c 1 172.16.0.1 2>&1 | /bin/busybox sed -n 's/ packets received.*//; s/.*, //p')"
/bin/busybox ip link set eth0 down
for count in rx_packets rx_bytes rx_errors rx_dropped tx_packets tx_bytes tx_errors tx_dropped; do
    echo "$count: $(/bin/busybox cat $card/statistics/$count)"
done
# OutSegs (RFC 4022), of which a frame may hold many.
echo "segments: $(/bin/busybox awk '/^Tcp: [0-9]/ { print $12 }' /proc/net/snmp)"
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|NETDEV WATCHDOG|lockup' |
    /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
/bin/busybox poweroff -f

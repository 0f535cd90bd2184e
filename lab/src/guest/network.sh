# The first program of a Linux guest with a network card: takes what a host has for it and sends
# it what it has made, over IPv4 and IPv6, and tells what it saw;
# then with a second one, by which it reads its metadata.
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
# The host's addresses, 172.16.0.1 and fd00::1.
for way in "4 00000000000000000000ffffac100001" "6 fd000000000000000000000000000001"; do
    set -- $way
    /bin/stream call "$2" "100$1" "$size" "2$1" | /bin/busybox sed "s/^\(sent\|taken\)/& over IPv$1/"
done
echo "pings: $(/bin/busybox ping -c 1 172.16.0.1 2>&1 | /bin/busybox sed -n 's/ packets received.*//; s/.*, //p')"
/bin/busybox ip link set eth0 down
for count in rx_packets rx_bytes rx_errors rx_dropped tx_packets tx_bytes tx_errors tx_dropped; do
    echo "$count: $(/bin/busybox cat $card/statistics/$count)"
done
# OutSegs (RFC 4022), of which a frame may hold many.
echo "segments: $(/bin/busybox awk '/^Tcp: [0-9]/ { print $12 }' /proc/net/snmp)"
# The metadata service is on the second card, beside a host, and wants a token. Nothing else is there.
sum() { /bin/busybox sha256sum | /bin/busybox cut -d ' ' -f 1; }
card=/sys/class/net/eth1
service=169.254.169.254
echo "metadata's card: $(/bin/busybox cat $card/address)"
echo 1 >/proc/sys/net/ipv6/conf/eth1/disable_ipv6
/bin/busybox ip link set eth1 up
/bin/busybox ip addr add 172.16.1.2/24 dev eth1
/bin/busybox ip route add "$service" dev eth1
/bin/busybox ping -A -c 50 -s 1000 172.16.1.1 >/pings 2>&1 &
curl() { "/curl/$loader" --library-path /curl /curl/curl --silent "$@"; }
fetch() { /bin/busybox wget -q -O - "$@" 2>&1; }
echo "without a token: $(fetch "http://$service/latest" | /bin/busybox grep -o 'HTTP/1.1 [0-9]*')"
token=$(curl --request PUT --header 'X-metadata-token-ttl-seconds: 600' "http://$service/latest/api/token")
token="X-aws-ec2-metadata-token: $token"
echo "with a wrong one: $(fetch --header "${token%?}" "http://$service/latest" | /bin/busybox grep -o 'HTTP/1.1 [0-9]*')"
echo "names: $(fetch --header "$token" "http://$service/latest/meta-data/" | /bin/busybox tr '\n' ' ')"
echo "as JSON: $(fetch --header "$token" --header 'Accept: application/json' "http://$service/latest/meta-data/tags")"
echo "large: $(curl --header "$token" "http://$service/latest/meta-data/large" | sum)"
for round in 1 2; do
    echo "large: $(fetch --header "$token" "http://$service/latest/meta-data/large" | sum)"
done
echo "nothing: $(fetch --header "$token" "http://$service/nothing" | /bin/busybox grep -o 'HTTP/1.1 [0-9]*')"
wait
echo "pings beside: $(/bin/busybox sed -n 's/ packets received.*//; s/.*, //p' /pings)"
/bin/busybox ip link set eth1 down
for count in rx_packets rx_bytes rx_errors rx_dropped tx_packets tx_bytes tx_errors tx_dropped; do
    echo "metadata's $count: $(/bin/busybox cat $card/statistics/$count)"
done
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|NETDEV WATCHDOG|lockup' |
    /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
/bin/busybox poweroff -f

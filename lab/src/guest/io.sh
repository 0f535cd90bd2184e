# The first program of a Linux guest one of whose devices is measured: each of its loads, and all of them again.
echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
/bin/busybox ip link set eth0 up
round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    case $load in
    disk)
        /bin/io disk read /dev/vda 4096 2000
        /bin/io disk write /dev/vda 4096 2000
        /bin/io disk read /dev/vda 1048576 64
        /bin/io disk write /dev/vda 1048576 64
        ;;
    send) /bin/io frames send eth0 4096 ;;
    receive) /bin/io frames receive eth0 4096 ;;
    streams)
        /bin/io stream send 5000 16
        /bin/io stream receive 5000 16
        ;;
    *) echo "trouble: no load $load" ;;
    esac
done
# The processor's XSAVE contradicts itself in CPUID, of which the kernel warns.
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|lockup' |
    /bin/busybox grep -v fpu__init_system_xstate |
    /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
# No ACPI: launchers differ in whether they take it.
/bin/busybox reboot -f

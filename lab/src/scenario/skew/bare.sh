# A guest without a timekeeper on CPU 0, of which one vCPU goes to CPU 1, whose TSC is 3 s ahead, and comes back. Nothing
# else is ever on CPU 1, so that nobody measures the two, and the host's own time is that of CPU 0.
taskset -p 1 $$ >/dev/null
start "quiet mitigations=off witness=90" --tsc-domain off --test-without-timekeeper
# phase NAME SUMS: so many more sums, each with the host's time at which it was seen.
phase() {
    wanted=$2
    while [ "$wanted" -gt 0 ]; do
        sums $(($(grep -c '^w sum' serial) + 1))
        echo "phase $1 bare $(grep '^w sum' serial | tail -n 1) at $(cut -d ' ' -f 1 /proc/uptime)" >&2
        wanted=$((wanted - 1))
    done
}
sums 1
for task in /proc/"$launcher"/task/*; do
    read -r thread <"$task/comm"
    case $thread in vcpu0) vcpu=${task##*/} ;; esac
done
phase home 2
./unrest skew 1 600000000
taskset -p 2 "$vcpu" >/dev/null
phase far 2
taskset -p 1 "$vcpu" >/dev/null
phase back 4
phase settled 3
echo "clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" >&2
kill "$launcher"
wait "$launcher"
cat serial

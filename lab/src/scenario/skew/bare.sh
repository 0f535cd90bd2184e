# A guest without a timekeeper on CPU 0, of which one vCPU goes to CPU 1, whose TSC is 3 s ahead, and comes back. Nothing
# else is ever on CPU 1, so that nobody measures the two, and the host's own time is that of CPU 0.
taskset -p 1 $$ >/dev/null
start "quiet mitigations=off witness=90" --tsc-domain off --test-without-timekeeper
# phase NAME SUMS: so many more sums, each with the host's time at which it was seen. None is left out: a sum has the
# largest gaps since the one before.
phase() {
    wanted=$2
    while [ "$wanted" -gt 0 ]; do
        told=$((told + 1))
        sums $told
        echo "phase $1 bare $(grep '^w sum' serial | sed -n ${told}p) at $(cut -d ' ' -f 1 /proc/uptime)" >&2
        wanted=$((wanted - 1))
    done
}
# What has come until now is told of no phase.
go_on_from_here() { told=$(grep -c '^w sum' serial); }
sums 1
for task in /proc/"$launcher"/task/*; do
    read -r thread <"$task/comm"
    case $thread in vcpu0) vcpu=${task##*/} ;; esac
done
go_on_from_here
phase home 2
./unrest skew 1 600000000
go_on_from_here
taskset -p 2 "$vcpu" >/dev/null
phase far 2
taskset -p 1 "$vcpu" >/dev/null
phase back 4
phase settled 3
echo "clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" >&2
kill "$launcher"
wait "$launcher"
cat serial

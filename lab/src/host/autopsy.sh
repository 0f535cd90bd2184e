#!/bin/busybox sh
# autopsy SESSION: what the threads of a step that is late are at, and what their virtual machines did in a
# tenth of a second: who stands still, who runs in circles, and where. A few lines, for the end of a log.
session=$1
debug=/sys/kernel/debug tracing=/sys/kernel/tracing
[ -d $debug/kvm ] || mount -t debugfs none $debug
[ -d $tracing/events ] || mount -t tracefs none $tracing
for stat in /proc/[0-9]*/task/*/stat; do
    # After the name in parentheses: state, parent, group, session.
    # shellcheck disable=SC2046
    set -- $(sed 's/.*) //' "$stat")
    [ "$4" = "$session" ] || continue
    thread=${stat%/stat}
    calls=$(sed 's/^[^ ]* //; s/+.*//' "$thread/stack" | tr '\n' ' ')
    echo "lab: late: $(cat "$thread/comm"), state $1: $calls"
done
echo >$tracing/trace
events="kvm_exit kvm_page_fault kvm_inj_virq kvm_inj_exception"
for event in $events; do echo 1 >$tracing/events/kvm/$event/enable; done
for look in 1 2; do
    for vm in "$debug"/kvm/*-*; do
        line="lab: late: VM ${vm##*/}, look $look:"
        for counter in exits io_exits mmio_exits halt_exits irq_injections nmi_injections pf_taken; do
            line="$line $counter $(cat "$vm/$counter")"
        done
        echo "$line"
    done
    sleep 0.1
done
for event in $events; do echo 0 >$tracing/events/kvm/$event/enable; done
for thread in $(grep -o 'vcpu[0-9]*-[0-9]*' $tracing/trace | sort -u); do
    grep "$thread" $tracing/trace | tail -n 4 | sed 's/^ */lab: late: /'
done

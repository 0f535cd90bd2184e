#!/bin/busybox sh
# The first program of an emulated host: loads KVM, then runs the steps of the laboratory's job, one
# after the other. Marks on the console tell the laboratory what happened; each begins with a word
# that no other output contains, since it is drawn anew for each run.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
# From here on the kernel speaks on the console only in an emergency; its log is sent at the end.
dmesg -n 1
. /lab/job

mark() { echo "$WORD $*"; }

# send STEP NAME FILE: the file's contents, compressed, which also gives them a checksum.
send() {
    mark "file $1 $2"
    gzip -c "$3" | base64 | sed "s/^/$WORD = /"
    mark "end"
}

# Each module's line: its file and its parameters.
while read -r module; do
    # shellcheck disable=SC2086
    insmod /lab/modules/$module 2>/tmp/insmod || mark "problem insmod $module: $(cat /tmp/insmod)"
done </lab/modules/order

kvm=no
[ -c /dev/kvm ] && kvm=yes
# The kernel measures a TSC for a second before it takes it for good; until then it is "tsc-early".
current=/sys/devices/system/clocksource/clocksource0/current_clocksource
tries=0
while read -r clocksource <$current && [ "$clocksource" = tsc-early ] && [ "$tries" -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
mark "ready kvm=$kvm clocksource=$clocksource cpus=$(nproc) uptime=$(cut -d ' ' -f 1 /proc/uptime)"

# Each step's line: its name, its limit in seconds, and where its output goes.
while read -r name limit output; do
    mark "begin $name"
    # A folder of its own, so that what one leaves is in nobody's way.
    own=/lab/own/$name
    mkdir "$own" && cp -al /lab/files/. "$own" && cd "$own" || mark "problem no files for $name"
    if [ "$output" = live ]; then
        setsid sh "/lab/steps/$name" </dev/null 2>&1 &
    else
        setsid sh "/lab/steps/$name" </dev/null >/tmp/stdout 2>/tmp/stderr &
    fi
    step=$!
    # Signs of life, so that a host that has stopped is told from a step that takes its time. None among the
    # lines of files, and none where the step itself speaks on the console. A step that outlives its end below (a
    # processor may stand still, and with it who sleeps there) is looked at from here; then there are no signs more.
    beat=
    if [ "$output" != live ]; then
        while :; do
            sleep 5
            mark beat
            limit=$((limit - 5))
            if [ "$limit" -lt -30 ]; then
                dmesg | tail -n 10
                autopsy "$step"
                break
            fi
        done &
        beat=$!
    fi
    # When the step is late: first what it is at, then its end.
    setsid sh -c "sleep $limit; autopsy $step >/tmp/late 2>&1; kill -KILL -$step" &
    watch=$!
    wait "$step"
    status=$?
    if [ -n "$beat" ]; then
        kill "$beat"
        wait "$beat" 2>/tmp/kill
    fi
    kill -KILL "-$watch" 2>/tmp/kill
    wait "$watch" 2>/tmp/kill
    if [ -e /tmp/late ]; then
        if [ "$output" = live ]; then cat /tmp/late; else cat /tmp/late >>/tmp/stderr; fi
        rm /tmp/late
        status=late
    fi
    if [ "$output" != live ]; then
        send "$name" stdout /tmp/stdout
        send "$name" stderr /tmp/stderr
    fi
    cd /
    # What something is mounted on stays.
    rm -rf "$own" 2>/tmp/rm
    mark "exit $name $status"
done </lab/steps/order

dmesg >/tmp/dmesg
send host dmesg /tmp/dmesg
mark "done"
# The laboratory ends the emulator when it has read the line above. Powering off here would lose what
# the serial port has not sent yet.
while :; do
    sleep 3600
done

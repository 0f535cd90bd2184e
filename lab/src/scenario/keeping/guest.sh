# start KERNEL OPTIONS [FLAG ...]: a guest with the witness on its two processors. Its console is the file
# `serial`, the launcher's process $launcher.
start() {
    cat >guest.json <<END
{"boot-source": {"kernel_image_path": "kernel", "initrd_path": "initrd", "boot_args": "console=ttyS0 panic=-1 $1"},
 "machine-config": {"vcpu_count": 2, "mem_size_mib": 256}}
END
    shift
    ./keeptime --api-sock api --config-file guest.json --time-report report.json "$@" </dev/null >serial &
    launcher=$!
    until [ -S api ]; do sleep 0.1; done
}

# sums N: waits until the witness has told its Nth sum, or there is nobody to tell it.
sums() {
    until [ "$(grep -c '^w sum' serial)" -ge "$1" ]; do
        kill -0 "$launcher" 2>/dev/null || return
        sleep 0.1
    done
}

# ctl COMMAND ...: what the API is asked, and what it answers.
ctl() { ./keeptime ctl --api-sock api "$@" >&2; }

# mark NAME: the host's CLOCK_REALTIME.
mark() { echo "mark $1$(./witness now)" >&2; }

# finish: waits for the guest's end, and tells of it.
finish() {
    wait "$launcher"
    status=$?
    cat serial
    echo "report $(tr -d '\n' <report.json)" >&2
    exit $status
}

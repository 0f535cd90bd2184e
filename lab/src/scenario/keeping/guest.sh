# start KERNEL OPTIONS [FLAG ...]: a guest with the witness on its two processors. Its console is the file
# `serial`, what is written to descriptor 3 is typed there, and the launcher's process is $launcher.
start() {
    [ -p keys ] || mkfifo keys
    exec 3<>keys
    cat >guest.json <<END
{"boot-source": {"kernel_image_path": "kernel", "initrd_path": "initrd", "boot_args": "console=ttyS0 panic=-1 $1"},
 "machine-config": {"vcpu_count": 2, "mem_size_mib": 256}}
END
    shift
    ./keeptime --api-sock api --config-file guest.json --time-report report.json "$@" <keys 3>&- >serial &
    launcher=$!
    until [ -S api ]; do sleep 0.1; done
}

# sums N: waits until the witness has told its Nth sum, or there is nobody to tell it. A guest that says nothing for some
# forty seconds will say nothing more: it is looked at, and ended.
sums() {
    silent=0
    until [ "$(grep -c '^w sum' serial)" -ge "$1" ]; do
        kill -0 "$launcher" 2>/dev/null || return
        said=$(wc -c <serial)
        [ "$said" = "$heard" ] || silent=0
        heard=$said silent=$((silent + 1))
        if [ "$silent" -gt 400 ]; then
            # The field behind the group: the session, that of this step.
            autopsy "$(cut -d ' ' -f 6 "/proc/$launcher/stat")" >&2
            kill -KILL "$launcher"
            finish
        fi
        sleep 0.1
    done
}

# ctl COMMAND ...: what the API is asked, and what it answers.
ctl() { ./keeptime ctl --api-sock api "$@" >&2; }

# mark NAME: the host's CLOCK_REALTIME.
mark() { echo "mark $1$(./witness now)" >&2; }

# enough: has the witness end.
enough() { echo q >&3; }

# finish: waits for the guest's end, and tells of it.
finish() {
    wait "$launcher"
    status=$?
    cat serial
    echo "report $(tr -d '\n' <report.json)" >&2
    exit $status
}

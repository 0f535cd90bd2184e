set -e
# An initramfs can be nobody's old root (pivot_root(2)): the jailer's host is a file system of its own.
host=/tmp/jailed
mkdir -p "$host"
mount -t tmpfs -o mode=755 none "$host"
mkdir "$host/bin" "$host/dev" "$host/proc" "$host/sys" "$host/lab"
cp /bin/busybox "$host/bin"
cp jailer keeptime kernel initrd-tenant metadata.json requests "$host/lab"
mount -t proc proc "$host/proc"
mount -t sysfs sysfs "$host/sys"
mount -t devtmpfs dev "$host/dev"
mount -t cgroup2 cgroup2 "$host/sys/fs/cgroup"
cat >"$host/lab/inside" <<'INSIDE'
set -e
/bin/busybox --install -s /bin
export PATH=/bin
cat >/lab/vm.json
mkdir -p /run/netns
# What keeptime doctor writes, with domains that are the same each time.
tsc_domains() {
    boot=$(cat /proc/sys/kernel/random/boot_id)
    printf 'tsc-domains 1\nboot %s\nslept-ns 0\n' "$boot"
    printf '%s\n' "$@"
}
mkdir /run/keeptime
tsc_domains 0 1 >/run/apart
for id in vm-1 vm-2; do
    /lab/jailer --id "$id" --exec-file /lab/keeptime --uid 10002 --gid 10002 --cgroup-version 2 \
        --cpuset-tsc-domain=/run/apart -- --version >/dev/null
    echo "host cpuset.cpus.effective of $id: $(cat "/sys/fs/cgroup/keeptime/$id/cpuset.cpus.effective")"
    rmdir "/sys/fs/cgroup/keeptime/$id"
done
if /lab/jailer --id vm-3 --exec-file /lab/keeptime --uid 10002 --gid 10002 --cgroup-version 2 \
    --cgroup cpuset.cpus=0-1 --cpuset-tsc-domain=/run/apart -- --version; then
    echo "host: CPUs of two TSC domains are taken"
fi
tsc_domains 0-1 >/run/keeptime/tsc-domains
# A guest in a jail of its own: configured and started by a file, or by requests to the API.
live() {
    way=$1
    echo "host begins: $way"
    jail=/srv/jailer/keeptime/$way/root
    network=/run/netns/$way
    console=/console-$way
    mkdir -p "$jail"
    : >"$network"
    unshare --net="$network" true
    # busybox gives taps no owner: this one is open to whoever is in its namespace.
    nsenter --net="$network" sh -ec '
        tunctl -t tap0 >/dev/null
        ip addr add 172.16.0.1/24 dev tap0
        ip link set tap0 up
    '
    cp /lab/kernel /lab/initrd-tenant /lab/metadata.json /lab/vm.json "$jail"
    chmod 644 "$jail/metadata.json"
    dd if=/dev/zero of="$jail/disk" bs=1M count=0 seek=16 2>/dev/null
    chown 10001:10001 "$jail/disk"
    chmod 600 "$jail/disk"
    case $way in
    file) set -- --no-api --config-file vm.json --metadata metadata.json ;;
    api) set -- --api-sock api.socket ;;
    esac
    /lab/jailer --id "$way" --exec-file /lab/keeptime --uid 10001 --gid 10001 --netns "$network" \
        --cgroup-version 2 --cgroup pids.max=64 --cgroup memory.max=536870912 \
        --cpuset-tsc-domain -- "$@" >"$console" &
    launcher=$!
    if [ "$way" = api ]; then
        until /lab/keeptime ctl --api-sock "$jail/api.socket" get / >/dev/null 2>&1; do
            goes_on
        done
        while read -r path body; do
            /lab/keeptime ctl --api-sock "$jail/api.socket" put "$path" "$body"
        done </lab/requests
    fi
    while ! grep -q -e '--- user space ---' "$console"; do
        goes_on
    done
    # Uid, Gid, CapEff, CapBnd, NoNewPrivs, Seccomp: proc_pid_status(5)
    for key in Uid Gid Groups CapEff CapBnd NoNewPrivs Seccomp; do
        echo "host $key: $(sed -n "s/^$key:[[:space:]]*//p" "/proc/$launcher/status" | tr '\t' ' ')"
    done
    for thread in "/proc/$launcher/task"/*; do
        # A thread that has ended since is none.
        name=$(cat "$thread/comm" 2>/dev/null) || continue
        filter=$(sed -n 's/^Seccomp:[[:space:]]*//p' "$thread/status" 2>/dev/null) || continue
        # KVM's own workers, which the kernel lists among a process's threads, have no filter.
        case $name in kvm-*) continue ;; esac
        case $filter in 2 | '') ;; *) echo "host without a filter: $name ($filter)" ;; esac
    done
    echo "host cgroup: $(cat "/proc/$launcher/cgroup")"
    for key in pids.max cpuset.cpus cpuset.cpus.effective; do
        echo "host $key: $(cat "/sys/fs/cgroup/keeptime/$way/$key")"
    done
    status=0
    wait "$launcher" || status=$?
    cat "$console"
    echo "host disk: $(dd if="$jail/disk" bs=1M count=8 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
    rmdir "/sys/fs/cgroup/keeptime/$way"
    # It is of memory.
    rm -r "$jail"
    [ "$status" -eq 0 ] || exit "$status"
}
goes_on() {
    if ! kill -0 "$launcher" 2>/dev/null; then
        cat "$console"
        wait "$launcher"
        exit 1
    fi
}
live file
live api
INSIDE
printf '%s' "$configuration" | chroot "$host" /bin/busybox sh /lab/inside

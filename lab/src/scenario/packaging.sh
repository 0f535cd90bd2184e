set -e
fault() {
    echo "fault: $*"
}

# Each page renders without a warning, and says what the program is.
for page in *.1; do
    echo "page $page"
    warnings=$(MANWIDTH=100 man --warnings --local-file --troff-device=utf8 --ditroff "$page" 2>&1 >/dev/null)
    [ -z "$warnings" ] || fault "$page: $warnings"
    text=$(MANWIDTH=100 man --local-file "$page" 2>/dev/null)
    case $text in *NAME*SYNOPSIS*) ;; *) fault "$page has no name and no synopsis" ;; esac
done

# A tree as the package makes it, with the units' other commands.
root=$PWD/root
units=$root/usr/lib/systemd/system
mkdir -p "$root/usr/bin" "$units" "$root/etc" "$root/run" "$root/var/lib" "$root/srv"
cp keeptime jailer /usr/bin/setpriv /usr/bin/tail /usr/bin/timeout "$root/usr/bin"
for unit in *.service; do
    echo "unit $unit"
    cp "$unit" "$units"
done
for unit in *.service; do
    told=$(systemd-analyze verify --man=no --recursive-errors=no --root="$root" "$units/$unit" 2>&1) ||
        told="$told (status $?)"
    [ -z "$told" ] || fault "$unit: $told"
    # Exposure, of 100: what the jailer must be able to do, and what would cost a filter at each exit, stays.
    case $unit in *@*) most=70 ;; *) most=20 ;; esac
    systemd-analyze security --no-pager --offline=true --threshold="$most" --root="$root" "$units/$unit" \
        >exposure 2>&1 || fault "$unit: $(tail -n 1 exposure)"
done

systemd-sysusers --root="$root" "$PWD/sysusers.conf" || fault "sysusers"
echo "group $(sed -n 's/^\(kvm\):.*keeptime.*/\1/p' "$root/etc/group")"
echo "user $(sed -n 's/^\(keeptime\):.*/\1/p' "$root/etc/passwd")"
systemd-tmpfiles --root="$root" --create "$PWD/tmpfiles.conf" || fault "tmpfiles"
for folder in /run/keeptime /etc/keeptime /var/lib/keeptime /srv/jailer; do
    echo "folder $folder $(stat --format %a "$root$folder")"
done

# The unit's own places and command, by hand: in a mount namespace, with its capabilities.
mkdir -p state run host/srv
cp -L guest state/kernel
cat >vm.json <<'JSON'
{
  "boot-source": {"kernel_image_path": "data/kernel"},
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 128}
}
JSON
unit=keeptime@.service
value() {
    sed -n "s/^$1=//p" "$unit" | sed 's/%i/vm-1/g'
}
value TemporaryFileSystem | sed 's/\(.*\):\(.*\)/\1 \2/' >tmpfs
{
    value BindReadOnlyPaths
    value BindPaths
} | sed 's/:/ /' >binds
value ExecStart | sed "s,/usr/bin/,$root/usr/bin/,g" >command
capabilities=-all$(value CapabilityBoundingSet | sed 's/ *CAP_/,+/g' | tr 'A-Z' 'a-z')
cat >inside <<'INSIDE'
set -e
while read -r place options; do
    mkdir -p "$place"
    mount -t tmpfs -o "$options" none "$place"
done <tmpfs
while read -r from to; do
    case $from in
    /etc/keeptime/*) from=vm.json ;;
    /var/lib/keeptime/*) from=state ;;
    /run/keeptime/*) from=run ;;
    esac
    mkdir -p "$(dirname "$to")"
    if [ -d "$from" ]; then mkdir -p "$to"; else : >"$to"; fi
    mount --bind "$from" "$to"
done <binds
KEEPTIME_UID=10001 KEEPTIME_GID=10001 JAILER_ARGS= KEEPTIME_ARGS=
eval "set -- $(cat command)"
exec setpriv --no-new-privs --bounding-set="$1" "$@"
INSIDE
sed -i "s/--bounding-set=\"\$1\"/--bounding-set=$capabilities/" inside
# The jails' base is this namespace's own.
unshare --mount --net sh -ec 'mount -t tmpfs none /srv; exec sh inside' || fault "the microVM ended with status $?"
[ "$(stat --format %u run)" = 10001 ] || fault "the API's folder is not the microVM's"

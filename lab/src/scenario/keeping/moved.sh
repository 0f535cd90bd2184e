# A guest whose vCPUs' threads are moved between two CPUs, a hundred times a second for thirty seconds.
ln -sf "kernel-$arch" kernel
ln -sf "initrd-witness-$arch" initrd
start "quiet witness=90" --tsc-domain off
sums 1; mark first
threads=
for task in /proc/"$launcher"/task/*; do
    read -r thread <"$task/comm"
    case $thread in vcpu[01]) threads="$threads ${task##*/}" ;; esac
done
# shellcheck disable=SC2086
./unrest move 3000 10 $threads >&2
told=$(grep -c '^w sum' serial)
sums $((told + 1)); mark last
echo "told $told" >&2
enough
finish

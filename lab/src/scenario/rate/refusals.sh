# Asks for half the host's TSC rate, and for 1.7 times that without permission.
khz=$(dmesg | sed -n 's/.*tsc: .* \([0-9]*\)\.\([0-9]*\) MHz.*/\1\2/p' | tail -n 1)
half=$((khz / 2)) fast=$((khz / 10 * 17))
echo "host $khz" >&2
refuse() {
    name=$1
    shift
    ./keeptime run --kernel kernel-amd64 --initrd initrd-amd64 "$@" </dev/null >refused.out 2>refused.err
    echo "refusal $name $? $(wc -l <refused.out) $(wc -l <refused.err) $(cat refused.err)" >&2
}
refuse below --tsc-khz $half --allow-tsc-catchup
refuse above --tsc-khz $fast

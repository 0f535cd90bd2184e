# And with it, where KVM pushes the guest forward: the guest boots, on a machine that tells how its rate is kept.
echo '{"boot-source":{"kernel_image_path":"kernel-amd64","initrd_path":"initrd-amd64",
    "boot_args":"console=ttyS0 panic=-1"},"machine-config":{"vcpu_count":2,"mem_size_mib":256}}' >degraded.json
./keeptime --api-sock degraded.socket --config-file degraded.json --tsc-khz $fast --allow-tsc-catchup </dev/null &
degraded=$!
until [ -S degraded.socket ]; do sleep 0.1; done
echo "report $fast $(./keeptime ctl --api-sock degraded.socket get /time)" >&2
wait $degraded

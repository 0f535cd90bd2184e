# And with it, where KVM accepts the rate and does nothing for it.
refuse allowed --tsc-khz $fast --allow-tsc-catchup

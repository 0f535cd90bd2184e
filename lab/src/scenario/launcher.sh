# What scripts have in common that look at a launcher, whose process is $launcher and whose guest writes to "console".
# How much of the host's memory is behind the guest's, in KiB.
taken() {
    for file in "/proc/$launcher/fd/"*; do
        case $(readlink "$file") in
        /memfd:guest-memory*) echo $(($(stat -L -c %b "$file") / 2)) ;;
        esac
    done
}
# A guest that ends too early is told by what it has not said.
until_it_says() { until grep -q "^$1: " console; do kill -0 "$launcher" || break; sleep 1; done; }

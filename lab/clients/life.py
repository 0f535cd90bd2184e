"""The package firecracker-python, unmodified, drives a launcher through one life of a microVM.

    life.py FIRECRACKER KERNEL

Its class MicroVM always gives a microVM a drive and a network interface; what lies below it, the classes
for the process and for the API, is what is used here.
"""

import os
import pathlib
import signal
import sys

from firecracker.api import Api
from firecracker.exceptions import APIError
from firecracker.process import ProcessManager

NAME = "python01"


def expect(what, seen, wanted):
    if seen != wanted:
        raise SystemExit(f"{what} is {seen!r}, not {wanted!r}")


def main():
    firecracker, kernel = (os.path.abspath(path) for path in sys.argv[1:])
    processes = ProcessManager()
    # Relative: the package loses the upper case of a path, which it makes the host of a URL.
    processes._config.data_path = "."
    processes._config.binary_path = firecracker
    folder = pathlib.Path(NAME)
    folder.mkdir()
    socket, log = str(folder / "firecracker.socket"), str(folder / "log")
    pid = processes.start(NAME, ["--api-sock", socket, "--id", NAME, "--log-path", log])
    expect("running", processes.is_running(NAME), True)
    expect("the process", processes.get_pid(NAME)[0], pid)
    expect("whether it is among all", pid in processes.get_pids(), True)
    api = Api(socket)
    description = api.describe.get().json()
    expect("the identifier", description["id"], NAME)
    expect("the state", description["state"], "Not started")
    print("started the launcher, API", api.version.get().json()["firecracker_version"])

    api.machine_config.put(vcpu_count=1, mem_size_mib=64)
    api.boot.put(kernel_image_path=kernel, boot_args="console=ttyS0", initrd_path=None)
    api.logger.put(log_path=log, level="Debug", show_level=True)
    api.mmds.put(latest={"hostname": NAME})
    config = api.vm_config.get().json()
    expect("the kernel", config["boot-source"]["kernel_image_path"], kernel)
    expect("the memory", config["machine-config"]["mem_size_mib"], 64)
    expect("the metadata", api.mmds.get().json(), {"latest": {"hostname": NAME}})
    print("configured and read back")

    try:
        api.machine_config.put(vcpu_count=64, mem_size_mib=64)
        raise SystemExit("64 processors were taken")
    except APIError as error:
        expect("the fault's place in the message", "API fault: " in str(error), True)

    api.actions.put(action_type="InstanceStart")
    expect("the state", api.describe.get().json()["state"], "Running")
    print("started")
    for _ in range(3):
        api.vm.patch(state="Paused")
        expect("the state", api.describe.get().json()["state"], "Paused")
        api.vm.patch(state="Resumed")
        expect("the state", api.describe.get().json()["state"], "Running")
    print("paused and resumed")

    api.close()
    # The package looks for the process by its number, which a child that nobody waits for would keep.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    expect("stopping", processes.stop(NAME), True)
    # The package has removed the socket itself; that the process is gone, only the process can bring about.
    expect("running", processes.is_running(NAME), False)
    print("stopped")
    print("all done")


main()

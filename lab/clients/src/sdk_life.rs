//! The crate firecracker-rs-sdk: HTTP/1.0 of its own, all requests on one connection.

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::models::{BootSource, MachineConfiguration};

use crate::{Failure, Given, done, expect};

pub(crate) async fn run(given: &Given) -> Result<(), Failure> {
    let mut instance = FirecrackerOption::new(&given.firecracker)
        .api_sock(&given.socket)
        .id("sdk-guest")
        .stdin("/dev/null")
        .build()?;
    instance.start_vmm().await?;
    let info = instance.describe_instance().await?;
    expect("the identifier", &&*info.id, &"sdk-guest")?;
    expect("the state", &&*format!("{:?}", info.state), &"NotStarted")?;
    let version = instance.get_firecracker_version().await?;
    done(&format!("started the launcher, {version:?}"));

    instance
        .put_machine_configuration(&MachineConfiguration {
            cpu_template: None,
            smt: None,
            mem_size_mib: 64,
            track_dirty_pages: None,
            vcpu_count: 1,
            huge_pages: None,
        })
        .await?;
    instance
        .put_guest_boot_source(&BootSource {
            boot_args: Some("console=ttyS0 reboot=k panic=1 pci=off".to_owned()),
            initrd_path: None,
            kernel_image_path: given.kernel.clone(),
        })
        .await?;
    let machine = instance.get_machine_configuration().await?;
    expect("vcpu_count", &machine.vcpu_count, &1)?;
    expect("mem_size_mib", &machine.mem_size_mib, &64)?;
    let whole = instance.get_export_vm_config().await?;
    let boot = whole.boot_source.ok_or("no boot source in /vm/config")?;
    expect("the kernel", &boot.kernel_image_path, &given.kernel)?;
    done("configured and read back");

    instance.start().await?;
    let state = instance.describe_instance().await?.state;
    expect("the state", &&*format!("{:?}", state), &"Running")?;
    done("started");
    for _ in 0..3 {
        instance.pause().await?;
        let state = instance.describe_instance().await?.state;
        expect("the state", &&*format!("{:?}", state), &"Paused")?;
        instance.resume().await?;
        let state = instance.describe_instance().await?.state;
        expect("the state", &&*format!("{:?}", state), &"Running")?;
    }
    done("paused and resumed");

    instance.stop().await?;
    // The launcher ends when the guest has seen the keys, and takes its socket with it.
    while given.socket.exists() {
        tokio::task::yield_now().await;
    }
    done("stopped");
    Ok(())
}

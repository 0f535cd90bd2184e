//! The crate fctools: hyper over the Unix socket, with its own process supervision, and its own use of the jailer.

use std::path::Path;
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, MachineConfiguration, UpdateBalloonDevice, UpdateBalloonStatistics,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::jailer::JailerArguments;
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::VmmExecutor;
use fctools::vmm::executor::jailed::{FlatVirtualPathResolver, JailedVmmExecutor};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, ResourceType};

use crate::{Failure, Given, done, expect};

/// How long the client waits for the socket, and for the end.
const LIMIT: Duration = Duration::from_secs(20);

/// The name of the microVM.
const ID: &str = "fctools-guest";

/// The user and group of the jailed one.
const USER: u32 = 10_001;

pub(crate) async fn run(given: &Given) -> Result<(), Failure> {
    let socket = VmmApiSocket::Enabled(given.socket.clone());
    let executor =
        UnrestrictedVmmExecutor::new(VmmArguments::new(socket)).id(ID.to_owned().try_into()?);
    // Neither the jailer nor the snapshot editor is used.
    let installation = VmmInstallation::new(
        given.firecracker.clone(),
        given.firecracker.clone(),
        given.firecracker.clone(),
    );
    live(given, executor, installation, VmmOwnershipModel::Shared).await
}

/// The same in a jail, where the launcher runs as another user.
pub(crate) async fn run_jailed(given: &Given) -> Result<(), Failure> {
    let jailer = given.jailer.clone().ok_or("no jailer is given")?;
    // The jailer takes a program of one name alone.
    let firecracker = std::path::absolute("jailed/firecracker")?;
    std::fs::create_dir("jailed")?;
    std::fs::copy(&given.firecracker, &firecracker)?;
    let base = std::path::absolute("jails")?;
    std::fs::create_dir(&base)?;
    let arguments = JailerArguments::new(ID.to_owned().try_into()?).chroot_base_dir(base.clone());
    let socket = VmmApiSocket::Enabled("/run/api.socket".into());
    let executor = JailedVmmExecutor::new(
        VmmArguments::new(socket),
        arguments,
        FlatVirtualPathResolver,
    );
    let installation = VmmInstallation::new(firecracker.clone(), jailer, firecracker);
    let owner = VmmOwnershipModel::Downgraded {
        uid: USER,
        gid: USER,
    };
    live(given, executor, installation, owner).await?;
    expect(
        "the jail",
        &holds_nothing(&base.join("firecracker"))?,
        &true,
    )
}

fn holds_nothing(folder: &Path) -> Result<bool, Failure> {
    Ok(std::fs::read_dir(folder)?.next().is_none())
}

async fn live(
    given: &Given,
    executor: impl VmmExecutor,
    installation: VmmInstallation,
    ownership: VmmOwnershipModel,
) -> Result<(), Failure> {
    let mut resources = ResourceSystem::new(DirectProcessSpawner, TokioRuntime, ownership);
    let kernel_image = resources.create_resource(
        &given.kernel,
        ResourceType::Moved(MovedResourceType::Copied),
    )?;
    let data = VmConfigurationData {
        boot_source: BootSource {
            kernel_image,
            boot_args: Some("console=ttyS0 reboot=k panic=1 pci=off".to_owned()),
            initrd: None,
        },
        drives: Vec::new(),
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 64,
            smt: Some(false),
            track_dirty_pages: Some(false),
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: Vec::new(),
        balloon_device: Some(BalloonDevice {
            amount_mib: 8,
            deflate_on_oom: true,
            stats_polling_interval_s: Some(1),
            free_page_reporting: Some(true),
        }),
        vsock_device: None,
        logger_system: None,
        metrics_system: None,
        memory_hotplug_configuration: None,
        mmds_configuration: None,
        entropy_device: None,
    };
    let configuration = VmConfiguration::New {
        init_method: InitMethod::ViaApiCalls,
        data,
    };
    let mut vm = Vm::prepare(executor, resources, installation, configuration).await?;
    vm.start(LIMIT).await?;
    done("configured and started");

    let info = vm.get_info().await?;
    expect("the identifier", &&*info.id, &ID)?;
    expect("paused", &info.is_paused, &false)?;
    let machine = vm.get_machine_configuration().await?;
    expect("vcpu_count", &machine.vcpu_count, &1)?;
    expect("mem_size_mib", &machine.mem_size_mib, &64)?;
    let version = vm.get_firecracker_version().await?;
    expect("the version", &version.is_empty(), &false)?;
    done("read back");

    vm.create_mmds(serde_json::json!({ "a": { "b": 1 } }))
        .await?;
    vm.update_mmds(serde_json::json!({ "c": "d" })).await?;
    let metadata: serde_json::Value = vm.get_mmds().await?;
    let merged = serde_json::json!({ "a": { "b": 1 }, "c": "d" });
    expect("the metadata", &metadata, &merged)?;
    done("kept metadata");

    // The guest has no driver for it.
    vm.update_balloon_device(UpdateBalloonDevice { amount_mib: 16 })
        .await?;
    vm.update_balloon_statistics(UpdateBalloonStatistics {
        stats_polling_interval_s: 2,
    })
    .await?;
    let balloon = vm.get_balloon_device().await?;
    expect("the balloon", &balloon.amount_mib, &16)?;
    expect("its interval", &balloon.stats_polling_interval_s, &Some(2))?;
    let statistics = vm.get_balloon_statistics().await?;
    expect("its target", &statistics.target_pages, &(16 * 256))?;
    expect("its size", &statistics.actual_mib, &0)?;
    done("changed the balloon");

    for _ in 0..3 {
        vm.pause().await?;
        expect("paused", &vm.get_info().await?.is_paused, &true)?;
        expect("the state", &vm.get_state(), &VmState::Paused)?;
        vm.resume().await?;
        expect("paused", &vm.get_info().await?.is_paused, &false)?;
    }
    done("paused and resumed");

    let outcome = vm
        .shutdown([VmShutdownAction {
            method: VmShutdownMethod::CtrlAltDel,
            timeout: Some(LIMIT),
            graceful: true,
        }])
        .await?;
    expect("the end", &outcome.is_fully_graceful(), &true)?;
    vm.cleanup().await?;
    done("stopped");
    Ok(())
}

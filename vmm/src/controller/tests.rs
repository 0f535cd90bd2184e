use std::cell::RefCell;
use std::io::Write;
use std::rc::Rc;

use serde_json::Value;

use super::*;
use crate::api::http::Method;
use crate::api::request;

/// A guest that notes what happens to it.
struct Noting(Rc<RefCell<Vec<&'static str>>>);

impl Instance for Noting {
    fn pause(&mut self, _policy: TimePolicy) {
        self.0.borrow_mut().push("pause");
    }

    fn resume(&mut self, policy: TimePolicy) -> Result<(), Fault> {
        if policy == TimePolicy::Freeze {
            return Err(Fault::new("too warm"));
        }
        self.0.borrow_mut().push("resume");
        Ok(())
    }

    fn change_drive(&mut self, patch: &DrivePatch) -> Result<(), Fault> {
        self.0.borrow_mut().push("drive");
        match &patch.path_on_host {
            Some(path) if !path.exists() => Err(Fault::new("not there")),
            _ => Ok(()),
        }
    }

    fn change_pmem(&self, _: &PmemPatch) -> Result<(), Fault> {
        self.0.borrow_mut().push("pmem");
        Ok(())
    }

    fn change_interface(&mut self, _: &NetworkInterfacePatch) -> Result<(), Fault> {
        self.0.borrow_mut().push("interface");
        Ok(())
    }

    fn change_balloon(&self, _: &Balloon) {
        self.0.borrow_mut().push("balloon");
    }

    fn hint(&self, command: Command) {
        self.0.borrow_mut().push(match command {
            Command::Start {
                acknowledge_on_stop: true,
            } => "hint",
            Command::Start { .. } => "hint and keep",
            Command::Stop => "no hint",
        });
    }

    fn balloon(&self) -> Option<BalloonState> {
        let mut statistics = [None; devices::virtio::balloon::STATISTICS];
        statistics[5] = Some(1 << 27);
        Some(BalloonState {
            hinting_command: 1,
            hinting_said: Some(0),
            actual: 600,
            statistics,
        })
    }

    fn kept(&self) -> Kept {
        Kept::default()
    }

    fn ctrl_alt_del(&self) -> Result<(), KeyboardError> {
        self.0.borrow_mut().push("keys");
        if self.0.borrow().len() > 4 {
            return Err(KeyboardError::NotListening);
        }
        Ok(())
    }

    fn tsc_rate(&self) -> (GuestRate, Option<Khz>) {
        (GuestRate::Host, Khz::new(1_000_000))
    }
}

struct Fixture {
    controller: Controller,
    notes: Rc<RefCell<Vec<&'static str>>>,
    kernel: tempfile::NamedTempFile,
}

impl Fixture {
    fn new() -> Self {
        let mut kernel = tempfile::NamedTempFile::new().expect("a file");
        kernel.write_all(b"kernel").expect("room");
        Self {
            controller: Controller::new("vm-1", Arc::new(Metadata::new(100)), Arc::default()),
            notes: Rc::default(),
            kernel,
        }
    }

    fn send(&mut self, method: Method, path: &str, body: &Value) -> Response {
        let text = match body {
            Value::Null => Vec::new(),
            other => other.to_string().into_bytes(),
        };
        let asked = request::parse(method, path, &text).expect("well-formed");
        let notes = self.notes.clone();
        self.controller.apply(asked, &mut |config| {
            if config.boot.cmdline == "bad" {
                return Err(Fault::new("it does not boot"));
            }
            Ok(Box::new(Noting(notes.clone())))
        })
    }

    fn done(&mut self, method: Method, path: &str, body: &Value) {
        let answer = self.send(method, path, body);
        assert_eq!(answer, Response::no_content(), "{path} {body}");
    }

    fn refused(&mut self, method: Method, path: &str, body: &Value) -> String {
        let answer = self.send(method, path, body);
        assert!(answer.is_fault(), "{path} {body}");
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        body["fault_message"].as_str().expect("a text").to_owned()
    }

    /// With a host that has every tap but those called "none".
    fn with_taps() -> Self {
        let mut fixture = Self::new();
        fixture.controller.check_tap = |interface| match &*interface.host_dev_name {
            "none" => Err(MachineError::Host {
                what: "have this tap",
                source: std::io::ErrorKind::NotFound.into(),
            }),
            _ => Ok(()),
        };
        fixture
    }

    fn get(&mut self, path: &str) -> Value {
        let answer = self.send(Method::Get, path, &Value::Null);
        assert_eq!(answer.status, Status::Ok, "{path}");
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    fn boot_source(&self) -> Value {
        json!({"kernel_image_path": self.kernel.path(), "boot_args": "quiet"})
    }

    fn start(&mut self) {
        let boot = self.boot_source();
        self.done(Method::Put, "/boot-source", &boot);
        self.done(
            Method::Put,
            "/actions",
            &json!({"action_type": "InstanceStart"}),
        );
    }
}

#[test]
fn states_follow_start_pause_and_resume() {
    let mut vm = Fixture::new();
    assert_eq!(vm.get("/")["state"], "Not started");
    vm.start();
    assert_eq!(vm.get("/")["state"], "Running");
    for (asked, state) in [
        ("Paused", "Paused"),
        ("Paused", "Paused"),
        ("Resumed", "Running"),
        ("Resumed", "Running"),
    ] {
        vm.done(Method::Patch, "/vm", &json!({"state": asked}));
        assert_eq!(vm.get("/")["state"], state);
    }
    assert_eq!(*vm.notes.borrow(), ["pause", "resume"]);
}

#[test]
fn before_the_start_what_needs_a_guest_is_refused() {
    let mut vm = Fixture::new();
    for (method, path, body) in [
        (Method::Patch, "/vm", json!({"state": "Paused"})),
        (
            Method::Put,
            "/actions",
            json!({"action_type": "SendCtrlAltDel"}),
        ),
        (
            Method::Put,
            "/actions",
            json!({"action_type": "FlushMetrics"}),
        ),
    ] {
        assert!(vm.refused(method, path, &body).contains("has not started"));
    }
    let start = json!({"action_type": "InstanceStart"});
    assert!(
        vm.refused(Method::Put, "/actions", &start)
            .contains("/boot-source")
    );
}

#[test]
fn after_the_start_the_configuration_stands() {
    let mut vm = Fixture::new();
    vm.start();
    let boot = vm.boot_source();
    for (method, path, body) in [
        (Method::Put, "/boot-source", boot),
        (
            Method::Put,
            "/machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 128}),
        ),
        (Method::Patch, "/machine-config", json!({"vcpu_count": 1})),
        (Method::Put, "/logger", json!({"level": "Info"})),
        (Method::Put, "/metrics", json!({"metrics_path": "m"})),
        (
            Method::Put,
            "/mmds/config",
            json!({"network_interfaces": ["a"]}),
        ),
        (
            Method::Put,
            "/actions",
            json!({"action_type": "InstanceStart"}),
        ),
    ] {
        let message = vm.refused(method, path, &body);
        assert!(message.contains("has started"), "{path}: {message}");
    }
}

#[test]
fn configuration_is_read_back_as_it_was_given() {
    let mut vm = Fixture::new();
    assert_eq!(
        vm.get("/machine-config"),
        json!({
            "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false,
            "huge_pages": "None",
        })
    );
    assert_eq!(vm.get("/vm/config")["boot-source"], Value::Null);
    let boot = vm.boot_source();
    vm.done(Method::Put, "/boot-source", &boot);
    vm.done(
        Method::Put,
        "/machine-config",
        &json!({"vcpu_count": 2, "mem_size_mib": 64}),
    );
    vm.done(
        Method::Patch,
        "/machine-config",
        &json!({"mem_size_mib": 32}),
    );
    let config = vm.get("/vm/config");
    assert_eq!(config["boot-source"], boot);
    assert_eq!(config["machine-config"]["vcpu_count"], 2);
    assert_eq!(config["machine-config"]["mem_size_mib"], 32);
    assert_eq!(config["drives"], json!([]));
}

#[test]
fn places_of_devices_are_for_the_command_line_when_it_or_the_boot_source_asks() {
    for (flag, field, told) in [
        (false, Value::Null, Value::Null),
        (false, json!(false), Value::Null),
        (false, json!(true), json!(true)),
        (true, Value::Null, json!(true)),
    ] {
        let mut vm = Fixture::new();
        vm.controller.set_virtio_mmio_args(flag);
        let mut boot = vm.boot_source();
        boot["virtio_mmio_args"] = field;
        vm.done(Method::Put, "/boot-source", &boot);
        let shown = &vm.get("/vm/config")["boot-source"]["virtio_mmio_args"];
        assert_eq!(*shown, told, "{flag} {boot}");
        let file = json!({"boot-source": boot}).to_string();
        let config = crate::config::parse(file.as_bytes()).expect("valid");
        vm.controller.configure(config).expect("nothing to fail");
        let shown = &vm.get("/vm/config")["boot-source"]["virtio_mmio_args"];
        assert_eq!(*shown, told, "{flag} {file}");
    }
}

#[test]
fn rate_of_the_tsc_is_shown_when_it_was_asked_for() {
    let rate = |config: &Value| {
        (
            config["tsc_khz"].clone(),
            config["allow_tsc_catchup"].clone(),
        )
    };
    let unsaid = (Value::Null, Value::Null);
    let mut vm = Fixture::new();
    let plain = json!({"vcpu_count": 1, "mem_size_mib": 128});
    let asked = json!({
        "vcpu_count": 1, "mem_size_mib": 128, "tsc_khz": 1_500_000, "allow_tsc_catchup": true,
    });
    vm.done(Method::Put, "/machine-config", &asked);
    assert_eq!(
        rate(&vm.get("/machine-config")),
        (json!(1_500_000), json!(true))
    );
    assert_eq!(vm.get("/vm/config")["machine-config"]["tsc_khz"], 1_500_000);
    assert_eq!(vm.get("/time")["guest"]["tsc_khz_asked"], 1_500_000);
    vm.done(Method::Patch, "/machine-config", &json!({"vcpu_count": 2}));
    assert_eq!(
        rate(&vm.get("/machine-config")),
        (json!(1_500_000), json!(true))
    );
    // A client that knows nothing of rates describes a whole machine: it has the host's.
    vm.done(Method::Put, "/machine-config", &plain);
    assert_eq!(rate(&vm.get("/machine-config")), unsaid);
    let patch = json!({"tsc_khz": 1_000_000});
    vm.done(Method::Patch, "/machine-config", &patch);
    assert_eq!(
        rate(&vm.get("/machine-config")),
        (json!(1_000_000), Value::Null)
    );
}

#[test]
fn rate_of_the_command_line_holds_where_nothing_else_is_said() {
    let mut vm = Fixture::new();
    let flags = TscRate {
        khz: Khz::new(2_000_000),
        allow_catch_up: true,
    };
    vm.controller.set_tsc_rate(flags);
    assert_eq!(vm.get("/machine-config")["tsc_khz"], 2_000_000);
    let plain = json!({"vcpu_count": 3, "mem_size_mib": 128});
    vm.done(Method::Put, "/machine-config", &plain);
    assert_eq!(vm.controller.machine.tsc, flags);
    let asked =
        json!({"vcpu_count": 3, "mem_size_mib": 128, "tsc_khz": 1, "allow_tsc_catchup": false});
    vm.done(Method::Put, "/machine-config", &asked);
    let (khz, allow_catch_up) = (Khz::new(1), false);
    assert_eq!(
        vm.controller.machine.tsc,
        TscRate {
            khz,
            allow_catch_up
        }
    );
    for (file, expected) in [("", 2_000_000), (r#","tsc_khz":7"#, 7)] {
        let text = format!(
            r#"{{"boot-source":{{"kernel_image_path":"k"}},
                "machine-config":{{"vcpu_count":1,"mem_size_mib":128{file}}}}}"#
        );
        let config = crate::config::parse(text.as_bytes()).expect("valid");
        vm.controller.configure(config).expect("nothing to fail");
        assert_eq!(vm.controller.machine.tsc.khz, Khz::new(expected));
        assert!(vm.controller.machine.tsc.allow_catch_up);
    }
}

#[test]
fn catch_up_that_is_allowed_for_no_rate_is_refused() {
    let mut vm = Fixture::new();
    let whole = json!({"vcpu_count": 1, "mem_size_mib": 128, "allow_tsc_catchup": true});
    let part = json!({"allow_tsc_catchup": true});
    for (method, body) in [(Method::Put, &whole), (Method::Patch, &part)] {
        let message = vm.refused(method, "/machine-config", body);
        assert!(
            message.contains("allow_tsc_catchup: there is no rate"),
            "{message}"
        );
    }
    vm.done(
        Method::Patch,
        "/machine-config",
        &json!({"allow_tsc_catchup": false}),
    );
    let config = |machine: &str| {
        let text = format!(
            r#"{{"boot-source":{{"kernel_image_path":"k"}},
                "machine-config":{{"vcpu_count":2,"mem_size_mib":128{machine}}}}}"#
        );
        crate::config::parse(text.as_bytes()).expect("valid")
    };
    let allowing = || config(r#","allow_tsc_catchup":true"#);
    let refused = vm.controller.configure(allowing()).expect_err("no rate");
    assert!(refused.to_string().contains("leave it out"), "{refused}");
    assert_eq!(vm.get("/machine-config")["vcpu_count"], 1);
    // The command line's permission is for the rates that others ask for,
    let permission = TscRate {
        khz: None,
        allow_catch_up: true,
    };
    vm.controller.set_tsc_rate(permission);
    vm.done(
        Method::Put,
        "/machine-config",
        &json!({"vcpu_count": 1, "mem_size_mib": 128}),
    );
    vm.done(Method::Patch, "/machine-config", &json!({"tsc_khz": 7}));
    assert!(vm.controller.machine.tsc.allow_catch_up);
    // and of no use with a file that asks for none.
    vm.controller.configure(config("")).expect_err("no rate");
    vm.controller.set_tsc_rate(TscRate {
        khz: Khz::new(7),
        allow_catch_up: false,
    });
    vm.controller
        .configure(allowing())
        .expect("a rate of the command line");
}

#[test]
fn refusal_changes_nothing() {
    let mut vm = Fixture::new();
    let wrong = json!({"kernel_image_path": "/nowhere/kernel"});
    let message = vm.refused(Method::Put, "/boot-source", &wrong);
    assert!(message.contains("/nowhere/kernel"), "{message}");
    let wrong = json!({"vcpu_count": 2, "mem_size_mib": 64, "smt": true});
    vm.refused(Method::Put, "/machine-config", &wrong);
    assert_eq!(vm.get("/machine-config")["vcpu_count"], 1);
    let mut boot = vm.boot_source();
    boot["boot_args"] = json!("bad");
    vm.done(Method::Put, "/boot-source", &boot);
    let start = json!({"action_type": "InstanceStart"});
    assert_eq!(
        vm.refused(Method::Put, "/actions", &start),
        "it does not boot"
    );
    assert_eq!(vm.get("/")["state"], "Not started");
    vm.start();
}

#[test]
fn what_does_not_exist_is_named() {
    let mut vm = Fixture::new();
    let message = vm.refused(Method::Delete, "/drives/a", &Value::Null);
    assert!(message.contains("no removal of drives yet"), "{message}");
}

#[test]
fn freeze_is_taken_where_offsets_were_seen_to_work() {
    let mut vm = Fixture::new();
    let freeze = json!({"policy": "freeze"});
    vm.controller.measure_offsets = || Err("they do nothing".to_owned());
    let message = vm.refused(Method::Put, "/time", &freeze);
    assert!(message.contains("they do nothing"), "{message}");
    assert_eq!(vm.get("/time")["policy"], "advance");
    let capped = json!({"policy": "advance", "cap_ns": 5_000});
    let message = vm.refused(Method::Put, "/time", &capped);
    assert!(message.contains("they do nothing"), "{message}");
    vm.done(Method::Put, "/time", &json!({"policy": "advance"}));
    vm.controller.measure_offsets = || Ok(());
    vm.done(Method::Put, "/time", &freeze);
    assert_eq!(vm.get("/time")["policy"], "freeze");
    assert_eq!(vm.get("/time")["cap_ns"], json!(null));
    // Seen to work already.
    vm.controller.measure_offsets = || Err("they do nothing".to_owned());
    vm.done(Method::Put, "/time", &capped);
    let report = vm.get("/time");
    assert_eq!(
        (&report["policy"], &report["cap_ns"]),
        (&json!("advance"), &json!(5_000))
    );
}

#[test]
fn a_guest_whose_clocks_cannot_be_kept_stays_paused_until_another_policy() {
    let mut vm = Fixture::new();
    vm.controller.measure_offsets = || Ok(());
    vm.start();
    vm.done(Method::Patch, "/vm", &json!({"state": "Paused"}));
    vm.done(Method::Put, "/time", &json!({"policy": "freeze"}));
    let message = vm.refused(Method::Patch, "/vm", &json!({"state": "Resumed"}));
    assert!(message.contains("too warm"), "{message}");
    assert_eq!(vm.get("/")["state"], "Paused");
    vm.done(Method::Put, "/time", &json!({"policy": "advance"}));
    vm.done(Method::Patch, "/vm", &json!({"state": "Resumed"}));
    assert_eq!(vm.get("/")["state"], "Running");
    assert_eq!(vm.notes.borrow()[..], ["pause", "resume"]);
}

#[test]
fn metadata_service_is_put_on_interfaces_that_are_there() {
    let mut vm = Fixture::new();
    vm.controller.check_tap = |_| Ok(());
    let config = |interfaces: Value| json!({"network_interfaces": interfaces});
    let message = vm.refused(Method::Put, "/mmds/config", &config(json!(["a"])));
    assert!(
        message.contains("no network interface \"a\": PUT it first"),
        "{message}"
    );
    let interface = json!({"iface_id": "a", "host_dev_name": "t"});
    vm.done(Method::Put, "/network-interfaces/a", &interface);
    for (body, part) in [
        (config(json!([])), "the list is empty"),
        (config(json!(["a", "b"])), "no network interface \"b\""),
    ] {
        let message = vm.refused(Method::Put, "/mmds/config", &body);
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(vm.get("/vm/config").get("mmds-config"), None);
    vm.done(Method::Put, "/mmds/config", &config(json!(["a"])));
    assert_eq!(
        vm.get("/vm/config")["mmds-config"],
        json!({
            "version": "V1", "network_interfaces": ["a"], "ipv4_address": "169.254.169.254",
            "imds_compat": false,
        })
    );
    let other = json!({
        "version": "V2", "network_interfaces": ["a"], "ipv4_address": "169.254.170.2",
        "imds_compat": true,
    });
    vm.done(Method::Put, "/mmds/config", &other);
    assert_eq!(vm.get("/vm/config")["mmds-config"], other);
    vm.start();
    let message = vm.refused(Method::Put, "/mmds/config", &other);
    assert!(message.contains("has started"), "{message}");
}

#[test]
fn metadata_are_kept_before_and_after_the_start() {
    let mut vm = Fixture::new();
    assert_eq!(vm.get("/mmds"), json!({}));
    vm.refused(Method::Patch, "/mmds", &json!({"a": 1}));
    vm.done(Method::Put, "/mmds", &json!({"a": {"b": 1}}));
    vm.start();
    vm.done(Method::Patch, "/mmds", &json!({"a": {"b": null, "c": 2}}));
    assert_eq!(vm.get("/mmds"), json!({"a": {"c": 2}}));
    let long = json!({"a": "x".repeat(100)});
    assert!(vm.refused(Method::Put, "/mmds", &long).contains("100"));
}

#[test]
fn keys_reach_the_guest_or_the_client_is_told() {
    let mut vm = Fixture::new();
    vm.start();
    let keys = json!({"action_type": "SendCtrlAltDel"});
    for _ in 0..4 {
        vm.done(Method::Put, "/actions", &keys);
    }
    let message = vm.refused(Method::Put, "/actions", &keys);
    assert!(message.contains("does not read its keyboard"), "{message}");
}

#[test]
fn metrics_and_time_are_told() {
    let mut vm = Fixture::new();
    let answer = vm.send(Method::Get, "/metrics", &Value::Null);
    assert!(answer.content_type.starts_with("text/plain"));
    assert!(answer.body.starts_with(b"# TYPE "));
    assert_eq!(vm.get("/time")["guest"]["tsc_khz_in_force"], Value::Null);
    vm.start();
    assert_eq!(vm.get("/time")["guest"]["tsc_khz_in_force"], 1_000_000);
    let flush = json!({"action_type": "FlushMetrics"});
    // Nobody wants them.
    vm.done(Method::Put, "/actions", &flush);
}

#[test]
fn drives_and_entropy_are_configured_before_the_start_and_shown() {
    let mut vm = Fixture::new();
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(512).expect("room");
    let drive = |id: &str, root: bool| json!({"drive_id": id, "is_root_device": root, "path_on_host": image.path()});
    assert_eq!(vm.get("/vm/config")["drives"], json!([]));
    vm.done(Method::Put, "/drives/a", &drive("a", false));
    vm.done(Method::Put, "/drives/b", &drive("b", true));
    let bucket = json!({"size": 1, "refill_time": 100});
    let limiter = json!({"rate_limiter": {"bandwidth": bucket}});
    vm.done(Method::Put, "/entropy", &limiter);
    let shown = |drive: serde_json::Value| {
        let mut drive = drive;
        drive["cache_type"] = json!("Unsafe");
        drive["is_read_only"] = json!(false);
        drive["io_engine"] = json!("Sync");
        drive
    };
    let config = vm.get("/vm/config");
    let drives = json!([shown(drive("b", true)), shown(drive("a", false))]);
    assert_eq!((&config["drives"], &config["entropy"]), (&drives, &limiter));
    // A path that leads nowhere is told at once, and changes nothing.
    let missing = json!({"drive_id": "b", "is_root_device": true, "path_on_host": "missing"});
    let message = vm.refused(Method::Put, "/drives/b", &missing);
    assert!(message.contains("\"missing\"; check its path"), "{message}");
    let message = vm.refused(Method::Put, "/drives/c", &drive("c", true));
    assert!(message.contains("\"b\" is the root device"), "{message}");
    let patch = json!({"drive_id": "a", "rate_limiter": {"ops": bucket}});
    let message = vm.refused(Method::Patch, "/drives/a", &patch);
    assert!(message.contains("has not started"), "{message}");

    let boot = vm.boot_source();
    vm.done(Method::Put, "/boot-source", &boot);
    vm.start();
    assert_eq!(vm.get("/vm/config")["drives"], drives);
    for (method, path, body) in [
        (Method::Put, "/drives/a", drive("a", false)),
        (Method::Put, "/entropy", limiter.clone()),
    ] {
        let message = vm.refused(method, path, &body);
        assert!(message.contains("before the start only"), "{message}");
    }
    vm.done(Method::Patch, "/drives/a", &patch);
    assert_eq!(
        vm.get("/vm/config")["drives"][1]["rate_limiter"],
        patch["rate_limiter"]
    );
    let other = json!({"drive_id": "a", "path_on_host": "missing"});
    assert_eq!(vm.refused(Method::Patch, "/drives/a", &other), "not there");
    let kept = &vm.get("/vm/config")["drives"][1]["path_on_host"];
    assert_eq!(kept, &json!(image.path()));
    let unknown = json!({"drive_id": "z", "path_on_host": "f"});
    let message = vm.refused(Method::Patch, "/drives/z", &unknown);
    assert!(message.contains("no drive \"z\""), "{message}");
}

#[test]
fn interfaces_are_configured_before_the_start_changed_after_it_and_shown() {
    let mut vm = Fixture::with_taps();
    let interface = |id: &str, tap: &str| json!({"iface_id": id, "host_dev_name": tap});
    assert_eq!(vm.get("/vm/config")["network-interfaces"], json!([]));
    let mut full = interface("a", "tap0");
    full["guest_mac"] = json!("aa:fc:00:00:00:01");
    full["mtu"] = json!(1_400);
    let bucket = |size: u64| json!({"size": size, "refill_time": 100});
    full["rx_rate_limiter"] = json!({"bandwidth": bucket(1)});
    vm.done(
        Method::Put,
        "/network-interfaces/a",
        &interface("a", "tap9"),
    );
    vm.done(
        Method::Put,
        "/network-interfaces/b",
        &interface("b", "tap1"),
    );
    vm.done(Method::Put, "/network-interfaces/a", &full);
    let shown = json!([full, interface("b", "tap1")]);
    assert_eq!(vm.get("/vm/config")["network-interfaces"], shown);
    for (tap, part) in [("tap1", "\"b\" has this tap"), ("none", "have this tap")] {
        let message = vm.refused(Method::Put, "/network-interfaces/c", &interface("c", tap));
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(vm.get("/vm/config")["network-interfaces"], shown);
    let patch = json!({
        "iface_id": "a",
        "rx_rate_limiter": {"ops": bucket(2)},
        "tx_rate_limiter": {"bandwidth": bucket(3)},
    });
    let message = vm.refused(Method::Patch, "/network-interfaces/a", &patch);
    assert!(message.contains("has not started"), "{message}");

    vm.start();
    let message = vm.refused(Method::Put, "/network-interfaces/a", &full);
    assert!(message.contains("before the start only"), "{message}");
    vm.done(Method::Patch, "/network-interfaces/a", &patch);
    assert_eq!(*vm.notes.borrow(), ["interface"]);
    full["rx_rate_limiter"]["ops"] = bucket(2);
    full["tx_rate_limiter"] = patch["tx_rate_limiter"].clone();
    assert_eq!(vm.get("/vm/config")["network-interfaces"][0], full);
    let unknown = json!({"iface_id": "z", "rx_rate_limiter": {}});
    let message = vm.refused(Method::Patch, "/network-interfaces/z", &unknown);
    assert!(message.contains("no network interface \"z\""), "{message}");
}

#[test]
fn balloon_is_configured_before_the_start_changed_after_it_and_shown() {
    let mut vm = Fixture::new();
    let balloon = |mib: u32, seconds: u16| {
        json!({
            "amount_mib": mib, "deflate_on_oom": true, "stats_polling_interval_s": seconds,
            "free_page_hinting": false, "free_page_reporting": false,
        })
    };
    let size = |mib: u32| json!({"amount_mib": mib});
    let every = |seconds: u16| json!({"stats_polling_interval_s": seconds});
    for path in ["/balloon", "/balloon/statistics"] {
        vm.refused(Method::Get, path, &Value::Null);
    }
    assert_eq!(vm.get("/vm/config")["balloon"], Value::Null);
    vm.done(Method::Put, "/balloon", &balloon(1, 9));
    vm.done(Method::Put, "/balloon", &balloon(128, 1));
    assert_eq!(vm.get("/balloon"), balloon(128, 1));
    // It is never more than the guest's memory, whichever of them is changed.
    let message = vm.refused(Method::Put, "/balloon", &balloon(129, 1));
    assert!(
        message.contains("129 MiB is more than the 128"),
        "{message}"
    );
    let memory = |mib: u32| json!({"mem_size_mib": mib});
    let message = vm.refused(Method::Patch, "/machine-config", &memory(127));
    assert!(message.contains("more than the 127 MiB"), "{message}");
    assert_eq!(vm.get("/machine-config")["mem_size_mib"], 128);
    vm.done(Method::Patch, "/machine-config", &memory(256));
    assert_eq!(vm.get("/vm/config")["balloon"], balloon(128, 1));
    for (path, body) in [("/balloon", size(1)), ("/balloon/statistics", every(1))] {
        let message = vm.refused(Method::Patch, path, &body);
        assert!(message.contains("has not started"), "{message}");
    }

    vm.start();
    let message = vm.refused(Method::Put, "/balloon", &balloon(1, 1));
    assert!(message.contains("before the start only"), "{message}");
    vm.done(Method::Patch, "/balloon", &size(200));
    vm.done(Method::Patch, "/balloon/statistics", &every(2));
    assert_eq!(*vm.notes.borrow(), ["balloon", "balloon"]);
    assert_eq!(vm.get("/balloon"), balloon(200, 2));
    let message = vm.refused(Method::Patch, "/balloon", &size(257));
    assert!(message.contains("more than the 256 MiB"), "{message}");
    let message = vm.refused(Method::Patch, "/balloon/statistics", &every(0));
    assert!(message.contains("and are on"), "{message}");
    let statistics = json!({
        "target_pages": 51_200, "target_mib": 200, "actual_pages": 600, "actual_mib": 2,
        "total_memory": 1 << 27,
    });
    assert_eq!(vm.get("/balloon/statistics"), statistics);
}

#[test]
fn balloon_without_statistics_has_none_later_either() {
    let mut vm = Fixture::new();
    let body = json!({"amount_mib": 1, "deflate_on_oom": false});
    vm.done(Method::Put, "/balloon", &body);
    vm.start();
    let message = vm.refused(Method::Get, "/balloon/statistics", &Value::Null);
    assert!(
        message.contains("stats_polling_interval_s with PUT"),
        "{message}"
    );
    let every = |seconds: u16| json!({"stats_polling_interval_s": seconds});
    let message = vm.refused(Method::Patch, "/balloon/statistics", &every(1));
    assert!(message.contains("and are off"), "{message}");
    vm.done(Method::Patch, "/balloon/statistics", &every(0));
    // And of a guest without one nothing can be asked.
    let mut vm = Fixture::new();
    vm.start();
    for (method, path, body) in [
        (Method::Get, "/balloon", Value::Null),
        (Method::Patch, "/balloon", json!({"amount_mib": 1})),
        (Method::Get, "/balloon/statistics", Value::Null),
        (Method::Patch, "/balloon/statistics", every(1)),
    ] {
        let message = vm.refused(method, path, &body);
        assert!(message.contains("there is no balloon: PUT"), "{message}");
    }
}

#[test]
fn hinting_is_for_a_started_guest_whose_balloon_has_it() {
    let mut vm = Fixture::new();
    let (start, stop) = ("/balloon/hinting/start", "/balloon/hinting/stop");
    let body = |hinting: bool| json!({"amount_mib": 1, "deflate_on_oom": false, "free_page_hinting": hinting});
    vm.done(Method::Put, "/balloon", &body(true));
    let message = vm.refused(Method::Patch, start, &Value::Null);
    assert!(message.contains("has not started"), "{message}");
    vm.start();
    for body in [
        Value::Null,
        json!({"acknowledge_on_stop": true}),
        json!({"acknowledge_on_stop": false}),
    ] {
        vm.done(Method::Patch, start, &body);
    }
    vm.done(Method::Patch, stop, &Value::Null);
    let told = ["hint", "hint", "hint and keep", "no hint"];
    assert_eq!(*vm.notes.borrow(), told);
    let status = vm.get("/balloon/hinting/status");
    assert_eq!(status, json!({"host_cmd": 1, "guest_cmd": 0}));

    let mut vm = Fixture::new();
    vm.done(Method::Put, "/balloon", &body(false));
    vm.start();
    for (method, path) in [
        (Method::Get, "/balloon/hinting/status"),
        (Method::Patch, start),
        (Method::Patch, stop),
    ] {
        let message = vm.refused(method, path, &Value::Null);
        assert!(message.contains("free_page_hinting with PUT"), "{message}");
    }
}

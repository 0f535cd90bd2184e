//! What a request asks for: from a method, a path and a body to an [`ApiRequest`], or to a [`Fault`]
//! that says what is wrong with it. Pure: nothing of the microVM is looked at here.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::absent::{self, Missing};
use super::balloon::{Balloon, BalloonHinting, BalloonPatch, BalloonStatisticsPatch};
use super::body::{
    Action, ActionBody, BootSource, LoggerBody, MachineBody, MachinePatch, MetricsBody, MmdsConfig,
    TimeBody, VmBody, VmState,
};
use super::drive::{Drive, DrivePatch, Entropy, same_id};
use super::http::Method;
use super::network::{NetworkInterface, NetworkInterfacePatch};
use super::pmem::{Pmem, PmemPatch};
use super::vsock::Vsock;

/// Why a request is refused: the `fault_message` that the client gets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    message: String,
    /// There is no room for what was sent.
    too_large: bool,
}

impl Fault {
    /// With its message.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            too_large: false,
        }
    }

    /// The same of a body that is larger than there is room for.
    #[must_use]
    pub fn too_large(message: impl Into<String>) -> Self {
        Self {
            too_large: true,
            ..Self::new(message)
        }
    }

    /// Whether it is for the body's size.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.too_large
    }
}

/// A well-formed request.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiRequest {
    /// `GET /`.
    GetInstance,
    /// `GET /version`.
    GetVersion,
    /// `GET /vm/config`.
    GetVmConfig,
    /// `GET /machine-config`.
    GetMachineConfig,
    /// `GET /mmds`.
    GetMmds,
    /// `GET /time`.
    GetTime,
    /// `GET /metrics`.
    GetMetrics,
    /// `GET /openapi.json`.
    GetDocument,
    /// `PUT /actions`.
    Act(Action),
    /// `PUT /boot-source`.
    PutBootSource(BootSource),
    /// `PUT /machine-config`.
    PutMachineConfig(MachineBody),
    /// `PATCH /machine-config`.
    PatchMachineConfig(MachinePatch),
    /// `PUT /logger`.
    PutLogger(LoggerBody),
    /// `PUT /metrics`.
    PutMetrics(MetricsBody),
    /// `PUT /mmds`.
    PutMmds(Value),
    /// `PATCH /mmds`.
    PatchMmds(Value),
    /// `PUT /mmds/config`.
    PutMmdsConfig(MmdsConfig),
    /// `PUT /drives/{id}`.
    PutDrive(Box<Drive>),
    /// `PATCH /drives/{id}`.
    PatchDrive(DrivePatch),
    /// `PUT /pmem/{id}`.
    PutPmem(Pmem),
    /// `PATCH /pmem/{id}`.
    PatchPmem(PmemPatch),
    /// `PUT /network-interfaces/{id}`.
    PutNetworkInterface(NetworkInterface),
    /// `PATCH /network-interfaces/{id}`.
    PatchNetworkInterface(NetworkInterfacePatch),
    /// `PUT /vsock`.
    PutVsock(Vsock),
    /// `GET /balloon`.
    GetBalloon,
    /// `PUT /balloon`.
    PutBalloon(Balloon),
    /// `PATCH /balloon`.
    PatchBalloon(BalloonPatch),
    /// `GET /balloon/statistics`.
    GetBalloonStatistics,
    /// `PATCH /balloon/statistics`.
    PatchBalloonStatistics(BalloonStatisticsPatch),
    /// `GET /balloon/hinting/status`.
    GetBalloonHinting,
    /// `PATCH /balloon/hinting/start`.
    StartBalloonHinting(BalloonHinting),
    /// `PATCH /balloon/hinting/stop`.
    StopBalloonHinting,
    /// `PUT /entropy`.
    PutEntropy(Entropy),
    /// `PUT /time`.
    PutTime(TimeBody),
    /// `PATCH /vm`.
    PatchVm(VmState),
    /// A request to something that this version does not have.
    Absent(Missing),
}

/// What a route takes as a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    None,
    Required,
    Optional,
}

/// What a route's parser gets.
#[derive(Clone, Copy, Debug)]
struct Input<'a> {
    /// What stands in the path in place of `{id}`.
    id: &'a str,
    body: &'a [u8],
}

impl Input<'_> {
    fn json<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        // An array is taken for a structure by its fields' order, which nobody means.
        if self.body.trim_ascii_start().starts_with(b"[") {
            return Err(Fault::new("the body is an array, not an object"));
        }
        serde_json::from_slice(self.body)
            .map_err(|error| Fault::new(format!("the body is not what this path takes: {error}")))
    }

    /// A body, or what an empty one stands for.
    fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Fault> {
        if self.body.is_empty() {
            return Ok(T::default());
        }
        self.json()
    }
}

type Parse = fn(Input<'_>) -> Result<ApiRequest, Fault>;

/// An endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, where `{id}` stands for any identifier.
    pub path: &'static str,
    /// What counts its requests: the field's stem in the metrics, where there is one.
    pub(crate) counter: Option<&'static str>,
    pub(crate) payload: Payload,
    parse: Parse,
}

const fn route(
    method: Method,
    path: &'static str,
    counter: Option<&'static str>,
    payload: Payload,
    parse: Parse,
) -> Route {
    Route {
        method,
        path,
        counter,
        payload,
        parse,
    }
}

const fn get(path: &'static str, counter: Option<&'static str>, parse: Parse) -> Route {
    route(Method::Get, path, counter, Payload::None, parse)
}

const fn put(path: &'static str, counter: Option<&'static str>, parse: Parse) -> Route {
    route(Method::Put, path, counter, Payload::Required, parse)
}

const fn patch(path: &'static str, counter: Option<&'static str>, parse: Parse) -> Route {
    route(Method::Patch, path, counter, Payload::Required, parse)
}

const fn delete(path: &'static str, parse: Parse) -> Route {
    route(Method::Delete, path, None, Payload::None, parse)
}

/// Every endpoint, the ones of devices that do not exist included.
pub const ROUTES: &[Route] = &[
    get("/", Some("instance_info"), |_| Ok(ApiRequest::GetInstance)),
    get("/version", Some("vmm_version"), |_| {
        Ok(ApiRequest::GetVersion)
    }),
    get("/vm/config", None, |_| Ok(ApiRequest::GetVmConfig)),
    get("/machine-config", Some("machine_cfg"), |_| {
        Ok(ApiRequest::GetMachineConfig)
    }),
    get("/mmds", Some("mmds"), |_| Ok(ApiRequest::GetMmds)),
    get("/time", None, |_| Ok(ApiRequest::GetTime)),
    get("/metrics", None, |_| Ok(ApiRequest::GetMetrics)),
    get("/openapi.json", None, |_| Ok(ApiRequest::GetDocument)),
    put("/actions", Some("actions"), |input| {
        let body: ActionBody = input.json()?;
        Ok(ApiRequest::Act(body.action_type))
    }),
    put("/boot-source", Some("boot_source"), |input| {
        Ok(ApiRequest::PutBootSource(input.json()?))
    }),
    put("/machine-config", Some("machine_cfg"), |input| {
        Ok(ApiRequest::PutMachineConfig(input.json()?))
    }),
    patch("/machine-config", Some("machine_cfg"), |input| {
        let body: MachinePatch = input.json()?;
        if body == MachinePatch::default() {
            return Err(Fault::new("the body changes nothing: give a field"));
        }
        Ok(ApiRequest::PatchMachineConfig(body))
    }),
    put("/logger", Some("logger"), |input| {
        Ok(ApiRequest::PutLogger(input.json()?))
    }),
    put("/metrics", Some("metrics"), |input| {
        Ok(ApiRequest::PutMetrics(input.json()?))
    }),
    put("/mmds", Some("mmds"), |input| {
        Ok(ApiRequest::PutMmds(object(&input)?))
    }),
    patch("/mmds", Some("mmds"), |input| {
        Ok(ApiRequest::PatchMmds(object(&input)?))
    }),
    put("/mmds/config", Some("mmds"), |input| {
        let body: MmdsConfig = input.json()?;
        body.check()?;
        Ok(ApiRequest::PutMmdsConfig(body))
    }),
    put("/time", None, |input| {
        Ok(ApiRequest::PutTime(input.json()?))
    }),
    patch("/vm", None, |input| {
        let body: VmBody = input.json()?;
        Ok(ApiRequest::PatchVm(body.state))
    }),
    put("/cpu-config", Some("cpu_cfg"), |input| {
        absent::<absent::CpuConfig>(input, Missing::CpuConfig)
    }),
    put("/drives/{id}", Some("drive"), |input| {
        let body: Drive = input.json()?;
        same_id("drive_id", &body.drive_id, input.id)?;
        Ok(ApiRequest::PutDrive(Box::new(body.check()?)))
    }),
    patch("/drives/{id}", Some("drive"), |input| {
        let body: DrivePatch = input.json()?;
        Ok(ApiRequest::PatchDrive(body.check(input.id)?))
    }),
    delete("/drives/{id}", |_| {
        Ok(ApiRequest::Absent(Missing::DriveRemoval))
    }),
    put("/pmem/{id}", Some("pmem"), |input| {
        let body: Pmem = input.json()?;
        Ok(ApiRequest::PutPmem(body.check_of(input.id)?))
    }),
    patch("/pmem/{id}", Some("pmem"), |input| {
        let body: PmemPatch = input.json()?;
        Ok(ApiRequest::PatchPmem(body.check(input.id)?))
    }),
    delete("/pmem/{id}", |_| {
        Ok(ApiRequest::Absent(Missing::PmemRemoval))
    }),
    put("/network-interfaces/{id}", Some("network"), |input| {
        let body: NetworkInterface = input.json()?;
        same_id("iface_id", &body.iface_id, input.id)?;
        Ok(ApiRequest::PutNetworkInterface(body.check()?))
    }),
    patch("/network-interfaces/{id}", Some("network"), |input| {
        let body: NetworkInterfacePatch = input.json()?;
        Ok(ApiRequest::PatchNetworkInterface(body.check(input.id)?))
    }),
    delete("/network-interfaces/{id}", |_| {
        Ok(ApiRequest::Absent(Missing::NetworkRemoval))
    }),
    put("/vsock", Some("vsock"), |input| {
        let body: Vsock = input.json()?;
        Ok(ApiRequest::PutVsock(body.check()?))
    }),
    get("/balloon", None, |_| Ok(ApiRequest::GetBalloon)),
    put("/balloon", None, |input| {
        let body: Balloon = input.json()?;
        Ok(ApiRequest::PutBalloon(body.complete()))
    }),
    patch("/balloon", None, |input| {
        Ok(ApiRequest::PatchBalloon(input.json()?))
    }),
    get("/balloon/statistics", None, |_| {
        Ok(ApiRequest::GetBalloonStatistics)
    }),
    patch("/balloon/statistics", None, |input| {
        Ok(ApiRequest::PatchBalloonStatistics(input.json()?))
    }),
    get("/balloon/hinting/status", None, |_| {
        Ok(ApiRequest::GetBalloonHinting)
    }),
    route(
        Method::Patch,
        "/balloon/hinting/start",
        None,
        Payload::Optional,
        |input| Ok(ApiRequest::StartBalloonHinting(input.json_or_default()?)),
    ),
    route(
        Method::Patch,
        "/balloon/hinting/stop",
        None,
        Payload::Optional,
        |input| {
            let _: absent::Empty = input.json_or_default()?;
            Ok(ApiRequest::StopBalloonHinting)
        },
    ),
    put("/entropy", None, |input| {
        let body: Entropy = input.json()?;
        Ok(ApiRequest::PutEntropy(body.check()?))
    }),
    put("/serial", Some("serial"), |input| {
        absent::<absent::Serial>(input, Missing::Serial)
    }),
    get("/hotplug/memory", Some("hotplug_memory"), |_| {
        Ok(ApiRequest::Absent(Missing::MemoryHotplug))
    }),
    put("/hotplug/memory", Some("hotplug_memory"), |input| {
        absent::<absent::MemoryHotplug>(input, Missing::MemoryHotplug)
    }),
    patch("/hotplug/memory", Some("hotplug_memory"), |input| {
        absent::<absent::MemoryHotplugPatch>(input, Missing::MemoryHotplug)
    }),
    put("/snapshot/create", None, |input| {
        absent::<absent::SnapshotCreate>(input, Missing::Snapshots)
    }),
    put("/snapshot/load", None, |input| {
        absent::<absent::SnapshotLoad>(input, Missing::Snapshots)
    }),
];

/// A body of a device that does not exist: checked all the same, so that its own faults come first.
fn absent<T: DeserializeOwned + absent::Check>(
    input: Input<'_>,
    missing: Missing,
) -> Result<ApiRequest, Fault> {
    let body: T = input.json()?;
    body.check()?;
    Ok(ApiRequest::Absent(missing))
}

fn object(input: &Input<'_>) -> Result<Value, Fault> {
    let value: Value = input.json()?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Fault::new("the metadata are not a JSON object"))
    }
}

/// Reads a request.
///
/// # Errors
/// What the client is to be told.
pub fn parse(method: Method, path: &str, body: &[u8]) -> Result<ApiRequest, Fault> {
    let found = find(method, path).ok_or_else(|| unknown(method, path))?;
    found.read(body)
}

/// An endpoint that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    /// Its place in [`ROUTES`].
    pub(crate) index: usize,
    route: &'static Route,
    /// What stands in the path for `{id}`.
    id: &'a str,
}

/// The endpoint of a method and a path.
pub(crate) fn find(method: Method, path: &str) -> Option<Found<'_>> {
    ROUTES.iter().enumerate().find_map(|(index, route)| {
        let id = matches(route.path, path).filter(|_| route.method == method)?;
        Some(Found { index, route, id })
    })
}

impl Found<'_> {
    /// Reads a request with `body` to it.
    pub(crate) fn read(&self, body: &[u8]) -> Result<ApiRequest, Fault> {
        let Self { route, id, .. } = *self;
        let name = route.method.name();
        match route.payload {
            Payload::None if !body.is_empty() => {
                return Err(Fault::new(format!("a {name} request has no body")));
            }
            Payload::Required if body.is_empty() => {
                return Err(Fault::new(format!("a {name} request needs a body")));
            }
            _ => {}
        }
        if route.path.contains("{id}") {
            check_id(id)?;
        }
        (route.parse)(Input { id, body })
    }
}

/// What a request to nothing is told.
pub(crate) fn unknown(method: Method, path: &str) -> Fault {
    let quoted: String = path.chars().take(64).collect();
    Fault::new(format!("there is no {} {quoted:?}", method.name()))
}

/// Whether `path` is that of `pattern`, and what stands for its `{id}`. A slash at the end means
/// nothing.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let path = match path.strip_suffix('/') {
        Some("") | None => path,
        Some(shorter) => shorter,
    };
    match pattern.strip_suffix("{id}") {
        None => (pattern == path).then_some(""),
        Some(prefix) => path.strip_prefix(prefix).filter(|id| !id.contains('/')),
    }
}

/// The longest identifier in a path.
const MAX_ID: usize = 64;

/// An identifier is made of letters, digits and `_`.
fn check_id(id: &str) -> Result<(), Fault> {
    let valid = !id.is_empty()
        && id.len() <= MAX_ID
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if valid {
        Ok(())
    } else {
        Err(Fault::new(format!(
            "the identifier in the path is not 1 to {MAX_ID} letters, digits or underscores"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_is_no_object() {
        for (path, body) in [
            ("/entropy", "[null]"),
            ("/machine-config", " [1, 128]"),
            ("/entropy", r#"{"rate_limiter": [null, null]}"#),
            (
                "/entropy",
                r#"{"rate_limiter": {"ops": [1, null, 100], "bandwidth": null}}"#,
            ),
        ] {
            let told = fault(Method::Put, path, body);
            assert!(told.contains("an object"), "{body}: {told}");
        }
        for body in ["{}", r#"{"rate_limiter": null}"#] {
            parse(Method::Put, "/entropy", body.as_bytes()).expect(body);
        }
    }

    fn fault(method: Method, path: &str, body: &str) -> String {
        parse(method, path, body.as_bytes())
            .expect_err(body)
            .to_string()
    }

    #[test]
    fn every_route_is_found_under_its_own_path() {
        for route in ROUTES {
            let path = route.path.replace("{id}", "a_1");
            let found = find(route.method, &path).expect(route.path);
            assert_eq!(found.route.path, route.path);
            assert_eq!(found.route.method, route.method);
            assert_eq!(found.id == "a_1", route.path.contains("{id}"));
        }
    }

    #[test]
    fn paths_are_matched_whole() {
        assert!(find(Method::Put, "/actions/").is_some());
        assert!(find(Method::Get, "/").is_some());
        for path in [
            "",
            "//",
            "/action",
            "/actionsx",
            "/actions//",
            "/actions/x",
            "actions",
            "/drives",
            "/drives/a/b",
            "/drives/a/b/",
        ] {
            assert!(find(Method::Put, path).is_none(), "{path}");
        }
        assert!(fault(Method::Get, "/nothing", "").contains("GET \"/nothing\""));
        assert!(fault(Method::Delete, "/version", "").contains("DELETE"));
    }

    #[test]
    fn bodies_are_where_they_belong() {
        assert!(fault(Method::Get, "/", "{}").contains("no body"));
        assert!(fault(Method::Put, "/actions", "").contains("needs a body"));
        assert!(fault(Method::Patch, "/vm", "").contains("needs a body"));
        assert!(fault(Method::Delete, "/drives/a", "{}").contains("no body"));
        parse(Method::Patch, "/balloon/hinting/start", b"").expect("optional");
        parse(Method::Patch, "/balloon/hinting/stop", b"{}").expect("optional");
    }

    #[test]
    fn identifiers_are_checked() {
        let long = "a".repeat(65);
        for id in ["a-b", "", "a%20b", "ä", long.as_str()] {
            let path = format!("/drives/{id}");
            if id.is_empty() {
                // a slash at the end means nothing, and there is no /drives
                assert!(find(Method::Put, &path).is_none());
                continue;
            }
            let body = format!(r#"{{"drive_id":"{id}","is_root_device":false}}"#);
            assert!(
                fault(Method::Put, &path, &body).contains("identifier"),
                "{id}"
            );
        }
    }

    #[test]
    fn well_formed_requests_are_what_they_ask_for() {
        let rows: [(Method, &str, &str, ApiRequest); 8] = [
            (Method::Get, "/", "", ApiRequest::GetInstance),
            (
                Method::Put,
                "/actions",
                r#"{"action_type":"InstanceStart"}"#,
                ApiRequest::Act(Action::InstanceStart),
            ),
            (
                Method::Patch,
                "/vm",
                r#"{"state":"Paused"}"#,
                ApiRequest::PatchVm(VmState::Paused),
            ),
            (
                Method::Patch,
                "/machine-config",
                r#"{"vcpu_count":2}"#,
                ApiRequest::PatchMachineConfig(MachinePatch {
                    vcpu_count: Some(2),
                    ..MachinePatch::default()
                }),
            ),
            (
                Method::Put,
                "/mmds",
                r#"{"a":1}"#,
                ApiRequest::PutMmds(serde_json::json!({"a": 1})),
            ),
            (
                Method::Delete,
                "/drives/rootfs",
                "",
                ApiRequest::Absent(Missing::DriveRemoval),
            ),
            (
                Method::Delete,
                "/pmem/a",
                "",
                ApiRequest::Absent(Missing::PmemRemoval),
            ),
            (
                Method::Put,
                "/snapshot/load",
                r#"{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"}}"#,
                ApiRequest::Absent(Missing::Snapshots),
            ),
        ];
        for (method, path, body, request) in rows {
            assert_eq!(parse(method, path, body.as_bytes()), Ok(request), "{path}");
        }
    }

    #[test]
    fn faults_name_the_culprit() {
        // (method, path, body, what the message must hold)
        let rows: [(Method, &str, &str, &str); 13] = [
            (Method::Put, "/actions", "{", "EOF"),
            (Method::Put, "/actions", "{}", "action_type"),
            (Method::Put, "/actions", r#"{"action_type":"Stop"}"#, "Stop"),
            (Method::Put, "/boot-source", "{}", "kernel_image_path"),
            (
                Method::Put,
                "/boot-source",
                r#"{"kernel_image_path":"k","x":1}"#,
                "`x`",
            ),
            (
                Method::Put,
                "/machine-config",
                r#"{"vcpu_count":-1,"mem_size_mib":1}"#,
                "-1",
            ),
            (Method::Patch, "/machine-config", "{}", "changes nothing"),
            (Method::Patch, "/vm", r#"{"state":"Stopped"}"#, "Stopped"),
            (Method::Put, "/mmds", "[]", "object"),
            (
                Method::Put,
                "/drives/a",
                r#"{"drive_id":"b","is_root_device":false,"path_on_host":"f"}"#,
                "\"b\"",
            ),
            (
                Method::Put,
                "/vsock",
                r#"{"guest_cid":2,"uds_path":"v"}"#,
                "guest_cid",
            ),
            (
                Method::Put,
                "/snapshot/load",
                r#"{"snapshot_path":"s"}"#,
                "mem_backend",
            ),
            (
                Method::Put,
                "/mmds/config",
                r#"{"network_interfaces":["a"],"ipv4_address":"10.0.0.1"}"#,
                "10.0.0.1",
            ),
        ];
        for (method, path, body, part) in rows {
            let message = fault(method, path, body);
            assert!(message.contains(part), "{path} {body}: {message}");
        }
    }
}

//! `keeptime ctl`: the API for people.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::flags::DEFAULT_SOCKET;
use crate::api::client::{self, Answer, ClientError};
use crate::api::http::Method;
use crate::output::{self, OutputError};
use crate::time_plot::{self, NothingToDraw};
use crate::whole_file;

/// Asks a running microVM, or tells it what to do.
#[derive(Debug, Args)]
pub(super) struct Ctl {
    /// The API's Unix socket
    #[arg(long = "api-sock", value_name = "SOCKET", default_value = DEFAULT_SOCKET, global = true)]
    socket: PathBuf,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Print the microVM's name, state and configuration
    Status,
    /// Bring all vCPUs to a halt
    Pause,
    /// Let them go on
    Resume,
    /// Print what is known of the guest's time
    Time {
        /// Draw how far its clock was off its line over its whole life, as SVG
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// Print the metrics in Prometheus's form
    Metrics,
    /// Send a GET request
    Get {
        /// Such as /vm/config
        path: String,
    },
    /// Send a PUT request
    Put {
        /// Such as /boot-source
        path: String,
        /// The body, in JSON
        body: String,
    },
    /// Send a PATCH request
    Patch {
        /// Such as /vm
        path: String,
        /// The body, in JSON
        body: String,
    },
}

/// The microVM did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// There is no answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The microVM refuses.
    #[error("{method} {path}: {message}")]
    Refused {
        /// The request's method.
        method: &'static str,
        /// Its path.
        path: String,
        /// The microVM's reason.
        message: String,
    },
    /// There is nothing to draw.
    #[error("--plot")]
    Draw(#[from] NothingToDraw),
    /// The plot could not be written.
    #[error("cannot write the plot {path:?}; check its folder and the room on its disk")]
    Plot {
        /// Where it was to be.
        path: PathBuf,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The answer could not be printed.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Ctl {
    /// Sends what is asked for and prints the answer.
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let text = match &self.command {
            CtlCommand::Status => self.status()?,
            CtlCommand::Pause => self.state("Paused")?,
            CtlCommand::Resume => self.state("Resumed")?,
            CtlCommand::Time { plot } => self.time(plot.as_deref())?,
            CtlCommand::Metrics => text_of(&self.get("/metrics")?),
            CtlCommand::Get { path } => text_of(&self.get(path)?),
            CtlCommand::Put { path, body } => {
                text_of(&self.send(Method::Put, path, body.as_bytes())?)
            }
            CtlCommand::Patch { path, body } => {
                text_of(&self.send(Method::Patch, path, body.as_bytes())?)
            }
        };
        Ok(output::print(&text)?)
    }

    fn send(&self, method: Method, path: &str, body: &[u8]) -> Result<Vec<u8>, CtlError> {
        let Answer { status, body } = client::ask(&self.socket, method, path, body)?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let told: Option<Value> = serde_json::from_slice(&body).ok();
        let message = told
            .as_ref()
            .and_then(|told| told["fault_message"].as_str())
            .map_or_else(|| format!("status {status}"), str::to_owned);
        Err(CtlError::Refused {
            method: method.name(),
            path: path.to_owned(),
            message,
        })
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, CtlError> {
        self.send(Method::Get, path, b"")
    }

    fn state(&self, state: &str) -> Result<String, CtlError> {
        let body = format!("{{\"state\":\"{state}\"}}");
        self.send(Method::Patch, "/vm", body.as_bytes())?;
        Ok(String::new())
    }

    fn time(&self, plot: Option<&Path>) -> Result<String, CtlError> {
        let body = self.get("/time")?;
        let Ok(mut report) = serde_json::from_slice::<Value>(&body) else {
            return Ok(text_of(&body));
        };
        if let Some(path) = plot {
            let picture = time_plot::svg(&report)?;
            whole_file::put(path, picture.as_bytes()).map_err(|source| CtlError::Plot {
                path: path.to_owned(),
                source,
            })?;
        }
        // Hundreds of numbers, which are for a picture.
        if let Some(members) = report.as_object_mut() {
            members.remove("error_history");
        }
        Ok(lines(&report))
    }

    fn status(&self) -> Result<String, CtlError> {
        let instance = self.get("/")?;
        let config = self.get("/vm/config")?;
        Ok(readable(&instance) + &readable(&config))
    }
}

/// As it is, with a newline at its end.
fn text_of(body: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// JSON as lines of names and values.
fn readable(body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return text_of(body);
    };
    lines(&value)
}

fn lines(value: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", value, &mut rows);
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = rows
        .iter()
        .map(|(name, value)| format!("{name:<width$}  {value}\n"));
    lines.collect()
}

fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let name = |key: &str| match prefix {
        "" => key.to_owned(),
        prefix => format!("{prefix}.{key}"),
    };
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                flatten(&name(key), value, rows);
            }
        }
        Value::Array(values) if values.is_empty() => rows.push((prefix.to_owned(), "none".into())),
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                flatten(&name(&index.to_string()), value, rows);
            }
        }
        Value::Null => rows.push((prefix.to_owned(), "unknown".to_owned())),
        Value::String(text) => rows.push((prefix.to_owned(), shown(text))),
        other => rows.push((prefix.to_owned(), other.to_string())),
    }
}

/// A text that commands no terminal.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_aligns_names_and_values() {
        let json = br#"{"id":"vm","host":{"tsc_khz":null,"n":2},"drives":[],"list":["a\u001b"]}"#;
        let lines = readable(json);
        assert_eq!(
            lines,
            "drives        none\nhost.n        2\nhost.tsc_khz  unknown\nid            vm\nlist.0        a \n"
        );
        assert_eq!(readable(b"no JSON"), "no JSON\n");
        assert_eq!(text_of(b""), "");
    }
}

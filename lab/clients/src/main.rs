//! Clients of Firecracker, unmodified from the registry, that drive keeptime through one life of a
//! microVM: `clients fctools|sdk FIRECRACKER KERNEL`, or `clients fctools-jailed FIRECRACKER KERNEL JAILER`.
//!
//! FIRECRACKER is the launcher under that name, and KERNEL a guest that resets when a key is typed. A
//! line is written for each step; the first that fails ends the program.

mod fctools_life;
mod sdk_life;

use std::path::PathBuf;
use std::process::ExitCode;

/// What a client is given.
struct Given {
    firecracker: PathBuf,
    kernel: PathBuf,
    /// Where the API's socket will be.
    socket: PathBuf,
    /// The jailer, for a client that uses it.
    jailer: Option<PathBuf>,
}

type Failure = Box<dyn std::error::Error>;

/// Says what has been done.
fn done(step: &str) {
    println!("{step}");
}

/// Fails unless `seen` is what it must be.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, seen: &T, wanted: &T) -> Result<(), Failure> {
    if seen == wanted {
        Ok(())
    } else {
        Err(format!("{what} is {seen:?}, not {wanted:?}").into())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let (client, firecracker, kernel, jailer) = match arguments.as_slice() {
        [_, client, firecracker, kernel] => (client, firecracker, kernel, None),
        [_, client, firecracker, kernel, jailer] => (client, firecracker, kernel, Some(jailer)),
        _ => {
            eprintln!("usage: clients fctools|fctools-jailed|sdk FIRECRACKER KERNEL [JAILER]");
            return ExitCode::FAILURE;
        }
    };
    let absolute = |path: &str| std::path::absolute(path).expect("a working folder");
    let given = Given {
        firecracker: absolute(firecracker),
        kernel: absolute(kernel),
        socket: absolute(&format!("{client}.socket")),
        jailer: jailer.map(|jailer| absolute(jailer)),
    };
    let result = match client.as_str() {
        "fctools" => fctools_life::run(&given).await,
        "fctools-jailed" => fctools_life::run_jailed(&given).await,
        "sdk" => sdk_life::run(&given).await,
        other => Err(format!("no client {other}").into()),
    };
    match result {
        Ok(()) => {
            done("all done");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{client}: {error}");
            ExitCode::FAILURE
        }
    }
}

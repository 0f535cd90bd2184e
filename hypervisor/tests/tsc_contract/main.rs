//! The contract suite of TSC control as a program: one line for each clause, exit status 0 or 1.
//!
//! It checks the model of both vendors, then KVM of this host if there is one. Built with
//! `cargo test -p hypervisor --test tsc_contract --no-run`, it is a static binary that runs inside
//! any host:
//!
//! ```text
//! cargo lab host vmx --file tsc_contract -- ./tsc_contract --require rate-half,offset-forward
//! ```
//!
//! A clause that the host does not keep is told as such and counted; only a clause that is
//! **violated**, or one that was required and does not hold, makes the status 1.

mod guest;
mod kvm;

use std::process::ExitCode;

use hypervisor::contract::{CLAUSES, Effort, Fixture, Kind, Line, ProbeError, check};
use hypervisor::kvm::Kvm;
use hypervisor::model::{Faults, ModelFixture, ModelHost};
use hypervisor::tsc_control::OffsetInterface;
use kvm::{Cpus, KvmFixture};
use tsc::{Khz, Svm, Vmx};

const USAGE: &str = "usage: tsc_contract [--kvm-only] [--only CLAUSE,…] [--require CLAUSE,…] [--offsets-by-register]

  --kvm-only             leave the model out, and fail if there is no usable /dev/kvm
  --only CLAUSE,…        check these alone
  --require CLAUSE,…     on KVM, these must hold; also: offset, register, rate, all
  --offsets-by-register  write offsets as an old kernel needs it, through the TSC's MSR";

/// The whole suite as one test, to a test runner that asks for a list.
const TEST: &str = "clauses_are_kept_or_told";

/// Answers `--list`, which nextest asks of every test binary: one test, and none that is ignored.
fn listed() -> bool {
    let asked = |word: &str| std::env::args().any(|argument| argument == word);
    if asked("--list") && !asked("--ignored") {
        println!("{TEST}: test");
    }
    asked("--list")
}

#[derive(Default)]
struct Arguments {
    kvm_only: bool,
    only: Vec<String>,
    require: Vec<String>,
    by_register: bool,
}

/// A word of a list stands for the clause of that name and for all that begin with it and a dash.
fn names(word: &str, clause: &str) -> bool {
    word == "all"
        || clause
            .strip_prefix(word)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        while let Some(argument) = arguments.next() {
            let mut list = |into: &mut Vec<String>| {
                let words = arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a list of clauses"))?;
                for word in words.split(',') {
                    if !CLAUSES.iter().any(|clause| names(word, clause)) {
                        return Err(format!("no clause is named {word}; there are {CLAUSES:?}"));
                    }
                    into.push(word.to_owned());
                }
                Ok(())
            };
            match argument.as_str() {
                "--kvm-only" => parsed.kvm_only = true,
                "--offsets-by-register" => parsed.by_register = true,
                "--only" => list(&mut parsed.only)?,
                "--require" => list(&mut parsed.require)?,
                // What `cargo test -- …` gives to every test binary.
                "--nocapture" | "--quiet" | "-q" | "--exact" | TEST => {}
                other if other.starts_with("--test-threads") => {}
                other => return Err(format!("unknown argument {other}\n{USAGE}")),
            }
        }
        Ok(parsed)
    }

    fn wants(&self, clause: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| names(word, clause))
    }

    fn requires(&self, clause: &str) -> bool {
        self.require.iter().any(|word| names(word, clause))
    }
}

/// Checks one subject; `true` when nothing is violated and what must hold does.
fn subject<F: Fixture>(
    name: &str,
    fixture: &F,
    arguments: &Arguments,
    must_hold: impl Fn(&str) -> bool,
) -> bool {
    println!("# {name}");
    let tell = |line: &Line| println!("{line}");
    let lines = check(fixture, Effort::FULL, |name| arguments.wants(name), tell);
    let count = |kind| {
        lines
            .iter()
            .filter(|line| line.finding.kind == kind)
            .count()
    };
    println!(
        "# {name}: {} clauses: {} hold, {} ignored, {} degraded, {} refused, {} undecided, {} not possible, {} violated",
        lines.len(),
        count(Kind::Holds),
        count(Kind::Ignored),
        count(Kind::Degraded),
        count(Kind::Refused),
        count(Kind::Undecided),
        count(Kind::NotPossible),
        count(Kind::Violated),
    );
    let mut good = true;
    for line in lines {
        let required = must_hold(line.clause);
        if line.finding.kind == Kind::Violated || required && line.finding.kind != Kind::Holds {
            let why = if required { "must hold" } else { "is violated" };
            println!("# {name}: FAILED: {} {why}", line.clause);
            good = false;
        }
    }
    good
}

fn kvm(arguments: &Arguments) -> Result<KvmFixture, ProbeError> {
    Ok(KvmFixture {
        kvm: Kvm::open().map_err(ProbeError::new)?,
        interface: arguments.by_register.then_some(OffsetInterface::Msr),
        cpus: Cpus::available()?,
    })
}

fn main() -> ExitCode {
    if listed() {
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
    };
    let mut good = true;
    if !arguments.kvm_only {
        let host = ModelHost::uniform(2, Khz::new(2_893_203).expect("not zero"), Faults::default());
        let all = |_: &str| true;
        good &= subject(
            "model-vmx",
            &ModelFixture::<Vmx>::new(host.clone()),
            &arguments,
            all,
        );
        good &= subject(
            "model-svm",
            &ModelFixture::<Svm>::new(host),
            &arguments,
            all,
        );
    }
    match kvm(&arguments) {
        Ok(fixture) => {
            good &= subject("kvm", &fixture, &arguments, |name| arguments.requires(name));
        }
        Err(error) => {
            println!("# kvm: skipped: {}", error.chain());
            good &= !arguments.kvm_only && arguments.require.is_empty();
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

//! Compiles the seccomp filters, so that a launch does not.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::Value;

const RULES: &str = "seccomp/x86_64.json";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={RULES}");
    println!("cargo::rerun-if-changed=build.rs");
    let rules: Value = serde_json::from_str(&fs::read_to_string(RULES)?)?;
    let mut source = String::new();
    for (name, action) in [("KILL", "kill_process"), ("TRAP", "trap")] {
        let programs = compile(&rules, action)?;
        write(&mut source, name, &programs)?;
    }
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("seccomp.rs"), source)?;
    Ok(())
}

/// The filters, with `action` for what they do not allow.
fn compile(rules: &Value, action: &str) -> Result<BTreeMap<String, BpfProgram>, Box<dyn Error>> {
    let mut rules = rules.clone();
    let filters = rules.as_object_mut().ok_or("filters are an object")?;
    for filter in filters.values_mut() {
        let mismatch = filter.get_mut("mismatch_action");
        let mismatch = mismatch.ok_or("a filter says what it does with the others")?;
        if mismatch == "kill_process" {
            *mismatch = action.into();
        }
    }
    let text = serde_json::to_vec(&rules)?;
    let compiled = compile_from_json(&text[..], TargetArch::x86_64)?;
    Ok(compiled.into_iter().collect())
}

fn write(
    source: &mut String,
    name: &str,
    programs: &BTreeMap<String, BpfProgram>,
) -> Result<(), std::fmt::Error> {
    writeln!(source, "static {name}: &[(&str, &[Instruction])] = &[")?;
    for (thread, program) in programs {
        write!(source, "({thread:?}, &[")?;
        for step in program {
            let (code, jt, jf, k) = (step.code, step.jt, step.jf, step.k);
            write!(source, "({code}, {jt}, {jf}, {k}),")?;
        }
        writeln!(source, "]),")?;
    }
    writeln!(source, "];")
}

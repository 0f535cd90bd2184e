//! Paths that run at every exit do not divide, as the compiler's assembly shows: what a policy does at
//! a load and at an entry, with everything that is inlined there (lines, rates, slews, offsets).
//!
//! A division of 64 bits takes tens of cycles, one of 128 bits is a call of a library function.

use std::process::Command;

/// The crate's optimised assembly, as `(function, instructions)`.
fn assembly() -> Vec<(String, Vec<String>)> {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let output = format!("{folder}/no_division.s");
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let done = Command::new(compiler)
        .args(["--crate-name=tsc", "--crate-type=lib", "--edition=2024"])
        .args(["--target=x86_64-unknown-linux-gnu", "--emit=asm"])
        .args(["-Copt-level=3", "-Ccodegen-units=1", "--cap-lints=allow"])
        .args(["-o", &output])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs"))
        .status()
        .expect("the compiler starts");
    assert!(done.success());
    let text = std::fs::read_to_string(&output).expect("its assembly");
    let mut functions: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line
            .strip_suffix(':')
            .filter(|name| name.starts_with("_ZN"))
        {
            functions.push((name.to_owned(), Vec::new()));
        } else if let (Some((_, body)), true) = (functions.last_mut(), line.starts_with('\t')) {
            body.push(line.trim().to_owned());
        }
    }
    functions
}

fn divides(instruction: &str) -> bool {
    let name = instruction.split_whitespace().next().unwrap_or("");
    let by_call = ["__udivti3", "__umodti3", "__divti3", "__modti3"];
    name.starts_with("div")
        || name.starts_with("idiv")
        || by_call.iter().any(|call| instruction.contains(call))
}

#[test]
fn policies_do_not_divide_at_loads_and_entries() {
    let functions = assembly();
    let dividing = |part: &str| {
        let of: Vec<_> = functions
            .iter()
            .filter(|(name, _)| name.contains(part))
            .collect();
        assert!(!of.is_empty(), "no function {part} in the assembly");
        of.iter()
            .any(|(_, body)| body.iter().any(|line| divides(line)))
    };
    for policy in [
        "Svm2010",
        "Vmx2010",
        "Unified2010",
        "UnifiedCatchup2010",
        "Targeted",
    ] {
        assert!(!dividing(&format!(
            "{policy}$u20$as$u20$tsc..policy..Policy$GT$4load"
        )));
    }
    for policy in ["UnifiedCatchup2010", "Targeted"] {
        assert!(!dividing(&format!(
            "{policy}$u20$as$u20$tsc..policy..Policy$GT$5entry"
        )));
    }
    // What divides is seen to: a policy is made, and a rate raised, once in a long while.
    assert!(dividing("targeted8Targeted3new") && dividing("Targeted10raise_rate"));
}

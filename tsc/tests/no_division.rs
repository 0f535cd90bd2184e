//! Paths that run at every exit do not divide, as the compiler's assembly shows: what a policy does at
//! a load and at an entry, what a vCPU's thread does with each exit's sample, and scaling, with everything
//! that is inlined there (lines, rates, slews, offsets). What is generic or only ever inlined is compiled
//! into a crate of its own, `no_division/hot.rs`.
//!
//! A division of 64 bits takes tens of cycles, one of 128 bits is a call of a library function.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A function's name and its instructions.
type Function = (String, Vec<String>);

/// Compiles `source`, optimised, to `what`, and says where that is.
fn compile(name: &str, source: &Path, what: &str, with: Option<&Path>) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (emit, ending) = match what {
        "asm" => ("asm", "s"),
        _ => ("link", "rlib"),
    };
    let output = folder.join(format!("lib{name}.{ending}"));
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(compiler);
    command
        .arg(format!("--crate-name={name}"))
        .args(["--crate-type=lib", "--edition=2024"])
        .args(["--target=x86_64-unknown-linux-gnu", "--cap-lints=allow"])
        .args(["-Copt-level=3", "-Ccodegen-units=1"])
        .arg(format!("--emit={emit}"))
        .arg("-o")
        .arg(&output)
        .arg(source);
    if let Some(library) = with {
        command
            .arg("--extern")
            .arg(format!("tsc={}", library.display()));
    }
    let done = command.status().expect("the compiler starts");
    assert!(done.success());
    output
}

/// The optimised assembly of the crate and of `hot.rs`, function by function.
fn assembly() -> [Vec<Function>; 2] {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (tsc, hot) = (
        here.join("src/lib.rs"),
        here.join("tests/no_division/hot.rs"),
    );
    let library = compile("tsc", &tsc, "rlib", None);
    let of_tsc = compile("tsc", &tsc, "asm", None);
    let of_hot = compile("hot", &hot, "asm", Some(&library));
    [functions(&of_tsc), functions(&of_hot)]
}

fn functions(assembly: &Path) -> Vec<Function> {
    let text = std::fs::read_to_string(assembly).expect("its assembly");
    let mut functions: Vec<Function> = Vec::new();
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

/// Whether a function with `part` in its name divides. There is one.
fn dividing(functions: &[Function], part: &str) -> bool {
    let of: Vec<_> = functions
        .iter()
        .filter(|(name, _)| name.contains(part))
        .collect();
    assert!(!of.is_empty(), "no function {part} in the assembly");
    of.iter()
        .any(|(_, body)| body.iter().any(|line| divides(line)))
}

#[test]
fn nothing_divides_at_loads_entries_and_exits() {
    let [of_tsc, of_hot] = assembly();
    for policy in [
        "Svm2010",
        "Vmx2010",
        "Unified2010",
        "UnifiedCatchup2010",
        "Targeted",
    ] {
        let load = format!("{policy}$u20$as$u20$tsc..policy..Policy$GT$4load");
        assert!(!dividing(&of_tsc, &load));
    }
    for policy in ["UnifiedCatchup2010", "Targeted"] {
        let entry = format!("{policy}$u20$as$u20$tsc..policy..Policy$GT$5entry");
        assert!(!dividing(&of_tsc, &entry));
    }
    // What divides is seen to: a policy is made, and a rate raised, once in a long while.
    assert!(dividing(&of_tsc, "targeted8Targeted3new"));
    assert!(dividing(&of_tsc, "Targeted10raise_rate"));

    for name in [
        "scale_floor_vmx",
        "scale_floor_svm",
        "guest_at_vmx",
        "guest_at_svm",
        "exit_sample",
    ] {
        assert!(!dividing(&of_hot, name), "{name}");
        // What they call is beside them, or is a function of the crate that is looked at here.
        let (_, body) = (of_hot.iter())
            .find(|(function, _)| function.contains(name))
            .expect("found before");
        for called in body.iter().filter_map(|line| called(line)) {
            let (function, body) = (of_hot.iter().chain(&of_tsc))
                .find(|(function, _)| called.contains(function.as_str()))
                .unwrap_or_else(|| panic!("{name} calls {called}"));
            assert!(
                !body.iter().any(|line| divides(line)),
                "{name} calls {function}"
            );
        }
    }
    // The division that is in there for comparison.
    assert!(dividing(&of_hot, "ratio_of_rates"));
}

/// What an instruction calls, or jumps to in another function's place.
fn called(instruction: &str) -> Option<&str> {
    let (name, operand) = instruction.split_once(char::is_whitespace)?;
    (name.starts_with("call") || name.starts_with("jmp"))
        .then_some(operand.trim())
        .filter(|operand| operand.contains("_ZN"))
}

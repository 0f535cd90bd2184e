//! The machine-checked proofs of `proofs/`, by z3 where it is installed.
//!
//! Each file states its theorem in words, then its premises (which must be satisfiable, or anything
//! would follow), then the theorem's negation (which must not be). What the solver is to answer stands
//! beside each `(check-sat)`. And each theorem is broken once, to see that the solver notices.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What one query may take; the slowest takes a few seconds.
const SECONDS: u32 = 120;

fn proofs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proofs");
    let entries = std::fs::read_dir(folder).expect("the folder of proofs");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "smt2")
    });
    files.sort();
    files
}

/// Whether z3 is there; without it the reason is printed, and counted by whoever counts.
fn z3_is_installed(proofs: usize) -> bool {
    let installed = Command::new("z3").arg("--version").output().is_ok();
    if !installed {
        assert!(
            std::env::var_os("KEEPTIME_REQUIRE_Z3").is_none(),
            "KEEPTIME_REQUIRE_Z3 is set and z3 is not installed"
        );
        println!("skipped: {proofs} proofs: z3 is not installed (apt-get install z3)");
    }
    installed
}

fn answers(script: &str) -> Vec<String> {
    use std::io::Write;
    let mut z3 = Command::new("z3")
        .args(["-in", &format!("-T:{SECONDS}")])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("z3 starts");
    let mut input = z3.stdin.take().expect("its input");
    input.write_all(script.as_bytes()).expect("z3 reads");
    drop(input);
    let output = z3.wait_with_output().expect("z3 ends");
    let text = String::from_utf8(output.stdout).expect("z3 writes text");
    text.lines().map(str::to_owned).collect()
}

fn expected(script: &str) -> Vec<String> {
    let lines = script
        .lines()
        .filter_map(|line| line.split_once("; expect "));
    lines
        .filter_map(|(_, answer)| {
            answer
                .split(|c: char| !c.is_alphabetic())
                .next()
                .map(str::to_owned)
        })
        .collect()
}

#[test]
fn every_theorem_is_proven() {
    let proofs = proofs();
    assert!(proofs.len() >= 10, "{} proofs", proofs.len());
    for file in &proofs {
        let script = std::fs::read_to_string(file).expect("a readable proof");
        let name = file.display();
        assert!(
            script.starts_with("; Theorem."),
            "{name} does not begin with its theorem"
        );
        let queries = script
            .lines()
            .filter(|line| line.starts_with("(check-sat)"))
            .count();
        let expected = expected(&script);
        assert_eq!(
            expected.len(),
            queries,
            "{name}: each query says what it expects"
        );
        assert!(
            expected.contains(&"sat".to_owned()),
            "{name}: premises are tried"
        );
        assert!(
            expected.contains(&"unsat".to_owned()),
            "{name}: something is proven"
        );
    }
    if !z3_is_installed(proofs.len()) {
        return;
    }
    for file in &proofs {
        let script = std::fs::read_to_string(file).expect("a readable proof");
        assert_eq!(answers(&script), expected(&script), "{}", file.display());
    }
}

/// A false theorem for each true one, and for each lemma: an "unsat" must become "sat".
#[test]
fn every_broken_theorem_is_refuted() {
    let broken = [
        // A product of 127 bits.
        (
            "scale_no_overflow",
            "(< (* host ratio) (* two64 two64))",
            "(< (* host ratio) (* two64 4))",
        ),
        // Strictly monotonic.
        (
            "scale_monotonic",
            "(<= early_scaled later_scaled)",
            "(< early_scaled later_scaled)",
        ),
        // Exact.
        (
            "scale_floor_error",
            "(bvule (bvshl q48 (_ bv48 128)) product)",
            "(= (bvshl q48 (_ bv48 128)) product)",
        ),
        // The lemma, with another factor.
        ("compose_error", "(* h d3)", "(* r2 d3)"),
        // Without the second step's own rounding.
        (
            "compose_error",
            "(assert (>= (* M (- o t)) (+ r2 M)))",
            "(assert (>= (* M (- o t)) 1))",
        ),
        (
            "compose_error_reduced",
            "(bvule one_step (bvadd two_steps (bvlshr (wide r2) (_ bv2 15)) (_ bv1 15)))",
            "(bvule one_step two_steps)",
        ),
        // A shift by one more than the fraction.
        (
            "nested_ratio_one",
            "(bvshl (_ bv1 128) n)) n)",
            "(bvshl (_ bv1 128) n)) (bvadd n (_ bv1 128)))",
        ),
        // The larger of the two, past the line.
        (
            "catch_up_forward",
            "(ite (bvult share behind) share behind)",
            "(ite (bvult share behind) behind share)",
        ),
        // A share rounded up.
        ("slew_bound", "(<= gives share)", "(<= gives (+ share 1))"),
        // The difference the other way around.
        (
            "plan_offset_exact",
            "(bvsub target scaled)",
            "(bvsub scaled target)",
        ),
        // Bounds that nobody sharpened.
        ("skew_middle_possible", "(<= ura (+ urb uba))", "true"),
    ];
    let proofs = proofs();
    for proof in &proofs {
        assert!(
            broken
                .iter()
                .any(|(name, ..)| proof.file_stem() == Some(name.as_ref())),
            "{}: no broken theorem",
            proof.display()
        );
    }
    if !z3_is_installed(proofs.len()) {
        return;
    }
    for (name, from, to) in broken {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("proofs/{name}.smt2"));
        let script = std::fs::read_to_string(file).expect("a readable proof");
        assert_eq!(script.matches(from).count(), 1, "{name}: {from}");
        let answers = answers(&script.replace(from, to));
        let mut pairs = answers.iter().zip(expected(&script));
        assert!(
            pairs.any(|(got, expected)| got == "sat" && expected == "unsat"),
            "{name}: {answers:?}"
        );
    }
}

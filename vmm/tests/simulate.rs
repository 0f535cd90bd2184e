//! What the documents show of the simulator, held against what it says.

use std::path::Path;
use std::process::Command;

/// The scenario `seed` as the README runs it: what is printed, and the picture.
fn seed() -> (String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let plot = folder.path().join("seed.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .args(["simulate", "seed", "--plot"])
        .arg(&plot)
        .output()
        .expect("the launcher starts");
    assert!(output.status.success(), "{output:?}");
    let picture = std::fs::read_to_string(plot).expect("a picture");
    (String::from_utf8(output.stdout).expect("text"), picture)
}

#[test]
fn documents_show_what_the_simulator_says_of_the_seeds_machine() {
    let (printed, picture) = seed();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kept = std::fs::read_to_string(here.join("../docs/seed.svg")).expect("a picture");
    // Not by assert_eq, which would print both.
    assert!(picture == kept, "docs/seed.svg is not what is drawn now");

    let readme = std::fs::read_to_string(here.join("../README.md")).expect("text");
    let table: Vec<&str> = readme
        .lines()
        .skip_while(|line| *line != "$ keeptime simulate seed --plot seed.svg")
        .skip(1)
        .take_while(|line| *line != "```")
        .collect();
    let of_the_printed: Vec<&str> = printed
        .lines()
        .skip_while(|line| !line.starts_with("policy "))
        .take_while(|line| !line.is_empty())
        .collect();
    assert_eq!(of_the_printed.len(), 6, "{printed}");
    assert_eq!(table, of_the_printed);
}

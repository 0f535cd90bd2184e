//! Kernel modules in the order in which `insmod` must load them.
//!
//! A Debian package carries no `modules.dep` (the postinst script makes it), so the order comes from
//! the modules themselves: the `depends=` entry of their `.modinfo` section.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

/// One module: its name and its file's contents.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    /// The name, with underscores, without `.ko`.
    pub(crate) name: String,
    /// The file.
    pub(crate) contents: Vec<u8>,
}

/// `wanted` and all that they need, each after what it depends on. `tree` is a folder
/// `lib/modules/RELEASE`.
pub(crate) fn in_load_order(tree: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(&tree.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in wanted {
        add(&files, &canonical(name), &mut seen, &mut order)?;
    }
    Ok(order)
}

fn add(
    files: &BTreeMap<String, PathBuf>,
    name: &str,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<Module>,
) -> Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let path = files
        .get(name)
        .with_context(|| format!("the kernel has no module {name}"))?;
    let contents = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    for needed in depends(&contents).with_context(|| path.display().to_string())? {
        add(files, &needed, seen, order)?;
    }
    order.push(Module {
        name: name.to_owned(),
        contents,
    });
    Ok(())
}

/// The modules that `module` depends on.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("not an ELF file")?;
    let section = file
        .section_by_name(".modinfo")
        .context("no .modinfo section")?;
    let data = section.data().context("a damaged .modinfo section")?;
    let Some(entry) = data
        .split(|&byte| byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
    else {
        bail!("no depends= in .modinfo");
    };
    let names = String::from_utf8_lossy(entry);
    Ok(names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect())
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", folder.display()))?
            .path();
        if path.is_dir() {
            index(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(stem) = path.file_stem()
        {
            files.insert(canonical(&stem.to_string_lossy()), path);
        }
    }
    Ok(())
}

/// Modules are named with `-` in files and `_` in the kernel.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

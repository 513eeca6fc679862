//! What the program is built from: the licences, the crates that stand twice, the one that nobody maintains.
//!
//! The list is cargo's own, of the default build on this machine. `docs/third-party.md` is written from it:
//! `COMPRESSOR_WRITE_THIRD_PARTY=1 cargo test --locked --release --test integration supply_chain`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::command::root;

/// Licences that ask for no more than their notice.
const PERMISSIVE: [&str; 8] =
    ["0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "MIT", "Unicode-3.0", "Zlib"];

/// Crates under another licence, judged one by one, with the judgement.
const JUDGED: [(&str, &str, &str); 1] = [(
    "colored",
    "MPL-2.0",
    "a dependency of burn-tensor, used unchanged; the licence is per file, so it asks for the source of this crate alone, which is on crates.io",
)];

/// Crates that nobody maintains any more, with the reason that they are here.
const UNMAINTAINED: [(&str, &str); 1] = [(
    "paste",
    "RUSTSEC-2024-0436: archived by its author as finished; a procedural macro of Burn and gemm that runs in the build alone",
)];

/// Crates that stand in the program in more than one version. All come from the versions that Burn, gemm or tokenizers ask for.
const TWICE: [&str; 11] = [
    "cpufeatures",
    "darling",
    "darling_core",
    "darling_macro",
    "getrandom",
    "hashbrown",
    "nom",
    "rand",
    "rand_chacha",
    "rand_core",
    "syn",
];

/// A crate that is compiled into the program, or runs in its build.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    licence: String,
    repository: String,
}

/// Every crate of the default build on this machine but the project's own.
fn packages() -> BTreeSet<Package> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["tree", "--locked", "--offline", "-p", "compressor-cli", "-e", "normal,build", "--prefix", "none"];
    let format = ["--no-dedupe", "--format", "{p}|{l}|{r}"];
    let output = Command::new(cargo).args(arguments).args(format).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let packages = text.lines().map(|line| {
        let fields: Vec<&str> = line.split('|').collect();
        let [package, licence, repository] = fields[..] else { panic!("three fields: {line}") };
        let mut words = package.split(' ');
        let (name, version) = (words.next().unwrap(), words.next().unwrap().trim_start_matches('v'));
        let [name, version, licence, repository] = [name, version, licence, repository].map(|field| field.trim().to_owned());
        Package { name, version, licence, repository }
    });
    packages.filter(|package| !package.name.starts_with("compressor-")).collect()
}

/// Whether an SPDX expression can be kept with permissive licences alone. `/` is how crates wrote `OR` once.
fn is_permissive(expression: &str) -> bool {
    let expression = expression.replace(" / ", " OR ").replace('/', " OR ");
    expression.split(" AND ").all(|all| {
        let all = all.trim_start_matches('(').trim_end_matches(')');
        all.split(" OR ").any(|one| PERMISSIVE.contains(&one))
    })
}

#[test]
fn a_licence_is_permissive_where_one_choice_of_every_part_is() {
    for kept in ["MIT", "MIT/Apache-2.0", "Apache-2.0 OR BSL-1.0", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
        assert!(is_permissive(kept), "{kept}");
    }
    for not in ["", "GPL-3.0", "MPL-2.0", "MIT AND GPL-2.0", "(GPL-2.0 OR LGPL-2.1) AND MIT"] {
        assert!(!is_permissive(not), "{not}");
    }
}

#[test]
fn every_licence_is_permissive_or_was_judged() {
    let packages = packages();
    assert!(packages.len() > 200, "the build has its crates: {}", packages.len());
    for package in &packages {
        let judged = JUDGED.iter().any(|(name, licence, _)| package.name == *name && package.licence == *licence);
        assert!(judged || is_permissive(&package.licence), "{} {}: {}", package.name, package.version, package.licence);
    }
    for (name, ..) in JUDGED {
        assert!(packages.iter().any(|package| package.name == name), "{name} is gone: take it off the list");
    }
}

#[test]
fn crates_that_nobody_maintains_are_named_here() {
    let packages = packages();
    for (name, _) in UNMAINTAINED {
        assert!(packages.iter().any(|package| package.name == name), "{name} is gone: take it off the list");
    }
}

#[test]
fn no_other_crate_stands_in_the_program_twice() {
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for package in packages() {
        *versions.entry(package.name).or_default() += 1;
    }
    let twice = versions.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name);
    let new: Vec<String> = twice.filter(|name| !TWICE.contains(&name.as_str())).collect();
    assert!(new.is_empty(), "{new:?} stand in the program twice: can the new version be the one that is there?");
}

#[test]
fn the_page_of_third_parties_lists_every_crate() {
    let path = root().join("docs/third-party.md");
    let page = page(&packages());
    if std::env::var_os("COMPRESSOR_WRITE_THIRD_PARTY").is_some() {
        fs_err::write(&path, &page).unwrap();
    }
    // Other platforms have other crates: what is compiled here must be listed.
    let written = fs_err::read_to_string(&path).unwrap();
    let missing: Vec<&str> = page.lines().filter(|line| !written.contains(line)).collect();
    assert!(
        missing.is_empty(),
        "docs/third-party.md does not list {missing:#?}; this file's head has the command that writes it"
    );
}

fn page(packages: &BTreeSet<Package>) -> String {
    let mut page = "# Third-party software\n\n\
        Crates that the `compressor` program is built from, on x86-64 Linux with default features: compiled in, or run while it is built.\n\
        The project's own licence is MIT or Apache-2.0. `tests/supply-chain/notices.sh` collects the licence texts of these crates into one file, which\n\
        whoever hands out the program hands out with it.\n\n"
        .to_owned();
    page += "Judged one by one:\n\n";
    for (name, licence, judgement) in JUDGED {
        page += &format!("- `{name}` ({licence}): {judgement}.\n");
    }
    for (name, reason) in UNMAINTAINED {
        page += &format!("- `{name}`: {reason}.\n");
    }
    page += "\n| crate | version | licence | source |\n|---|---|---|---|\n";
    for Package { name, version, licence, repository } in packages {
        page += &format!("| {name} | {version} | {licence} | {repository} |\n");
    }
    page
}

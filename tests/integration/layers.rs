//! Who may depend on whom: docs/architecture.md §1, read off cargo's own metadata.

use std::collections::BTreeMap;
use std::process::Command;

use crate::command::root;

#[test]
fn the_crates_depend_as_the_picture_says() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let mut ours: Vec<&str> = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str())
            .filter_map(|name| name.strip_prefix("compressor-").or((name == "burn").then_some("burn")))
            .collect();
        ours.sort_unstable();
        found.insert(package["name"].as_str().unwrap().trim_start_matches("compressor-").to_owned(), ours);
    }
    let expected: BTreeMap<String, Vec<&str>> = [
        ("cli", vec!["engine", "format", "pipeline", "train"]),
        ("engine", vec!["format"]),
        ("format", vec![]),
        ("pipeline", vec!["engine", "format"]),
        ("train", vec!["burn", "format"]),
    ]
    .into_iter()
    .map(|(name, ours)| (name.to_owned(), ours))
    .collect();
    assert_eq!(found, expected);
}

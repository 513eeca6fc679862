//! What the documents promise.

use std::collections::BTreeSet;

use compressor_format::Recipe;

use crate::command::root;

/// The keys that a struct of the recipe declares: its source is the list.
fn keys() -> BTreeSet<String> {
    let folder = root().join("compressor/format/src/recipe");
    let mut keys = BTreeSet::new();
    for (file, begins) in [("mod.rs", "    pub "), ("stages.rs", "    pub ")] {
        let text = fs_err::read_to_string(folder.join(file)).unwrap();
        let mut renamed = None;
        for line in text.lines() {
            // The key of the field in the next line.
            let rename = line.trim().strip_prefix("#[serde(rename = \"").and_then(|rest| rest.strip_suffix("\")]"));
            if rename.is_some() {
                renamed = rename;
                continue;
            }
            let renamed = renamed.take();
            let Some(rest) = line.trim_start().strip_prefix("pub ").or_else(|| line.strip_prefix("        ")) else { continue };
            let is_field = line.starts_with(begins) || line.starts_with("        ");
            let is_name =
                |name: &str| name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_' || letter.is_ascii_digit());
            let name =
                rest.split_once(": ").map(|(name, _)| name).filter(|name| is_field && is_name(name) && line.ends_with(','));
            keys.extend(name.map(|name| renamed.unwrap_or(name).to_owned()));
        }
    }
    keys
}

#[test]
fn every_recipe_key_is_in_the_document() {
    let text = fs_err::read_to_string(root().join("docs/recipes.md")).unwrap();
    let keys = keys();
    assert!(keys.len() > 50, "the recipe has its keys: {keys:?}");
    for key in
        ["kd_ratio", "head_ratio", "embedding_group_size", "match", "teacher_score", "token_milliseconds_p99", "rope_theta"]
    {
        assert!(keys.contains(key), "{key} was found in the source");
    }
    let missing: Vec<&String> = keys.iter().filter(|key| !text.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/recipes.md does not name {missing:?}");
}

#[test]
fn every_recipe_in_the_repository_reads() {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(root().join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        Recipe::load(&path).unwrap_or_else(|mistakes| panic!("{}: {mistakes:?}", path.display()));
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "quickstart.toml",
            "smollm2-135m-80mb.toml",
            "smollm2-135m-edge.toml",
            "smollm2-135m-gguf.toml",
            "smollm2-135m-int4.toml",
            "smollm2-135m-int8.toml"
        ],
        "new recipe? name it in recipes/README.md"
    );
    let readme = fs_err::read_to_string(root().join("recipes/README.md")).unwrap();
    for name in names {
        assert!(readme.contains(&name), "recipes/README.md names {name}");
    }
}

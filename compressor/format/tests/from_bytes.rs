//! Models whose bytes are at hand: with `std`, they are the models that their folders open as. Runs without `std` too.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use compressor_format::{Checkpoint, Model, TensorId};

/// The golden models that lie in one file.
fn golden() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("model.safetensors").is_file());
    folders.sort();
    assert_eq!(folders.len(), 7, "all but the sharded one");
    folders
}

/// A file as a program has it that carries its model inside.
fn program(path: PathBuf) -> &'static [u8] {
    std::fs::read(path).unwrap().leak()
}

#[test]
fn a_model_in_the_program_is_read_where_it_lies() {
    for folder in golden() {
        let weights = program(folder.join("model.safetensors"));
        let checkpoint = Checkpoint::from_bytes(program(folder.join("config.json")), weights).unwrap();
        let architecture = checkpoint.architecture();
        assert!(!architecture.layers.is_empty());
        for id in architecture.tensors() {
            let elements = architecture.shape(id).iter().product::<usize>();
            assert_eq!(checkpoint.tensor(id).unwrap().len(), elements, "{id}");
        }
        let embedding = checkpoint.mapped(TensorId::Embedding).unwrap();
        let (program, tensor) = (weights.as_ptr_range(), embedding.bytes.as_ptr_range());
        assert!(program.start < tensor.start && tensor.end <= program.end, "a copy");
    }
}

#[cfg(feature = "std")]
#[test]
fn a_golden_model_from_bytes_is_the_one_that_its_folder_opens_as() {
    for folder in golden() {
        let opened = Model::open(&folder).unwrap();
        let config = std::fs::read(folder.join("config.json")).unwrap();
        let weights: std::sync::Arc<[u8]> = std::fs::read(folder.join("model.safetensors")).unwrap().into();
        let read = Model::from_bytes(&config, weights).unwrap();
        let Model::Checkpoint(checkpoint) = &read else { panic!("dense weights") };
        assert!(checkpoint.files().is_empty());
        assert_eq!(read.architecture(), opened.architecture());
        assert_eq!(read.weight_bytes().unwrap(), opened.weight_bytes().unwrap());
        for id in opened.architecture().tensors() {
            assert_eq!(read.values(id).unwrap(), opened.values(id).unwrap(), "{id}");
        }
    }
}

#[test]
fn a_model_cut_short_is_refused_by_the_name_of_its_file() {
    let folder = golden().remove(0);
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let mut weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    weights.pop();
    let expected = format!(
        "model.safetensors: its {} bytes are not what the header says: the file is cut short or has a tail",
        weights.len()
    );
    assert_eq!(Model::from_bytes(&config, weights).unwrap_err().to_string(), expected);
}

#[test]
fn without_std_two_dependencies_are_left_with_none_of_their_default_features() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let output = std::process::Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let format = packages.iter().find(|package| package["name"] == env!("CARGO_PKG_NAME")).unwrap();
    let left: Vec<(&str, &serde_json::Value, &serde_json::Value)> = format["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|dependency| dependency["kind"].is_null() && dependency["optional"] == false)
        .map(|dependency| (dependency["name"].as_str().unwrap(), &dependency["uses_default_features"], &dependency["features"]))
        .collect();
    let alloc = serde_json::Value::from(vec!["alloc"]);
    assert_eq!(left, [("serde_core", &false.into(), &alloc), ("serde_json", &false.into(), &alloc)]);
}

#[cfg(feature = "std")]
#[test]
fn a_model_whose_weights_are_coded_is_the_same() {
    for folder in golden() {
        let coded = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(folder.join(name), coded.path().join(name)).unwrap();
        }
        let weights = coded.path().join("model.safetensors");
        compressor_format::write_entropy(&weights, &coded.path().join("model.entropy")).unwrap();
        std::fs::remove_file(weights).unwrap();
        let [decoded, opened] = [folder.as_path(), coded.path()].map(|folder| Model::open(folder).unwrap());
        assert_eq!(opened.content_hash(), decoded.content_hash());
        assert!(opened.weight_bytes().unwrap() < decoded.weight_bytes().unwrap());
    }
}

//! What a file is that is not what its name says: the accidents that happen to files on their way here.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use crate::{Error, Origin};

impl Error {
    /// `origin`, which holds `bytes`, is not what it should be: because it is something else altogether, which is then named with the
    /// way out, or because of `what`.
    pub fn unreadable<O: Origin + ?Sized>(origin: &O, bytes: &[u8], what: impl Into<String>) -> Self {
        Self::malformed(origin, mistaken(bytes).unwrap_or_else(|| what.into()))
    }

    /// Refuses a file that stands for another, where anything at all would be read: text, or what is only copied.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the way out.
    pub fn refuse_pointer<O: Origin + ?Sized>(origin: &O, bytes: &[u8]) -> crate::Result<()> {
        match pointer(bytes) {
            Some(what) => Err(Self::malformed(origin, what)),
            None => Ok(()),
        }
    }
}

/// What these bytes are, where they are something that people come by instead of a file.
pub(crate) fn mistaken(bytes: &[u8]) -> Option<String> {
    if let Some(pointer) = pointer(bytes) {
        return Some(pointer);
    }
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let what = match bytes {
        [] => "is empty: copy or download it again",
        _ if starts(b"PK\x03\x04") => {
            "is a zip archive, as PyTorch writes its pickles: what is read here is safetensors, into which Transformers converts them \
             (`save_pretrained`)"
        }
        [0x80, 2..=5, ..] => {
            "is a pickle of Python, which runs code when it is read: what is read here is safetensors, into which Transformers converts \
             it (`save_pretrained`)"
        }
        _ if starts(b"\x89HDF\r\n") => "is an HDF5 file, as TensorFlow and Keras write: what is read here is safetensors",
        _ if starts(b"\x1f\x8b")
            || starts(b"\xfd7zXZ")
            || starts(b"BZh")
            || starts(b"7z\xbc\xaf")
            || starts(b"\x28\xb5\x2f\xfd") =>
        {
            "is compressed as a whole: unpack it first"
        }
        _ if starts(b"GGUF") => "is a GGUF file: name the file itself as the model",
        _ if is_markup(bytes) => "is a web page, not the file itself: its download saved what a browser shows",
        _ => return answer(bytes),
    };
    Some(what.to_owned())
}

/// A small file that stands for a large one that was not fetched.
fn pointer(bytes: &[u8]) -> Option<String> {
    /// Larger files are no pointers.
    const MOST_BYTES: usize = 1024;
    let text = str::from_utf8(bytes.get(..MOST_BYTES).unwrap_or(bytes)).ok().filter(|_| bytes.len() <= MOST_BYTES)?;
    if text.starts_with("version https://git-lfs.github.com/spec/") || text.starts_with("version https://hawser.github.com/spec/")
    {
        let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
        let size = size.map(|size| format!(" of {size} bytes")).unwrap_or_default();
        return Some(format!("is a pointer of Git LFS, not the file{size} that it stands for: run `git lfs pull` in its folder"));
    }
    if text.starts_with("/annex/objects/") || text.contains(".git/annex/objects/") {
        return Some("is a pointer of git-annex, not the file that it stands for: run `git annex get` on it".to_owned());
    }
    None
}

fn is_markup(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let starts = |tag: &[u8]| bytes.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    starts(b"<!doctype") || starts(b"<html") || starts(b"<?xml")
}

/// What a hub says instead of a file.
fn answer(bytes: &[u8]) -> Option<String> {
    const STARTS: [&str; 6] = [
        "Entry not found",
        "Repository not found",
        "Access to model",
        "Invalid username or password",
        "Invalid credentials",
        "404: Not Found",
    ];
    let text = str::from_utf8(bytes.get(..200).unwrap_or(bytes)).ok()?;
    let said = STARTS.iter().find(|start| text.starts_with(**start))?;
    Some(format!("is not the file itself: it holds the hub's answer \"{said}\""))
}

#[cfg(all(test, feature = "std"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::{Checkpoint, GgufFile, Model, TensorFiles, Tokenizer, read_config};

    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n\
                           size 269060552\n";
    const SAID: &str =
        "is a pointer of Git LFS, not the file of 269060552 bytes that it stands for: run `git lfs pull` in its folder";

    #[test]
    fn a_pointer_of_git_lfs_is_named_whatever_file_of_a_model_it_stands_for() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llama");
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let refused = |name: &str, open: &dyn Fn() -> Option<crate::Error>| {
            for file in ["config.json", "model.safetensors"] {
                fs_err::copy(golden.join(file), at(file)).unwrap();
            }
            fs_err::write(at(name), POINTER).unwrap();
            assert_eq!(open().unwrap().to_string(), format!("{}: {SAID}", at(name).display()));
            fs_err::remove_file(at(name)).unwrap();
        };
        refused("config.json", &|| Model::open(folder.path()).err());
        refused("model.safetensors", &|| Model::open(folder.path()).err());
        refused("tokenizer.json", &|| Tokenizer::open(at("tokenizer.json")).err());
        refused("tokenizer_config.json", &|| crate::ChatTemplate::open(folder.path()).err());
        refused("chat_template.jinja", &|| crate::ChatTemplate::open(folder.path()).err());
        refused("model.gguf", &|| GgufFile::open(at("model.gguf")).err());
        refused("model.gguf", &|| Model::open(&at("model.gguf")).err());
        refused("manifest.json", &|| crate::Manifest::read(folder.path()).err());
        refused("report.json", &|| crate::Report::read(folder.path()).err());
        let other = tempfile::tempdir().unwrap();
        refused("merges.txt", &|| crate::copy_companions(folder.path(), other.path()).err());
        fs_err::remove_file(at("model.safetensors")).unwrap();
        fs_err::write(at("model.entropy"), POINTER).unwrap();
        assert_eq!(
            TensorFiles::open(folder.path()).unwrap_err().to_string(),
            format!("{}: {SAID}", at("model.entropy").display())
        );
        fs_err::remove_file(at("model.entropy")).unwrap();
        let index = at("model.safetensors.index.json");
        fs_err::write(&index, POINTER).unwrap();
        assert_eq!(TensorFiles::open(folder.path()).unwrap_err().to_string(), format!("{}: {SAID}", index.display()));
        fs_err::write(&index, r#"{"weight_map": {"a": "a.safetensors"}}"#).unwrap();
        fs_err::write(at("a.safetensors"), POINTER).unwrap();
        assert_eq!(
            TensorFiles::open(folder.path()).unwrap_err().to_string(),
            format!("{}: {SAID}", at("a.safetensors").display())
        );
    }

    #[test]
    fn other_accidents_are_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.json");
        for (bytes, said) in [
            (&b""[..], "is empty: copy or download it again"),
            (b"\n<!DOCTYPE html><html>", "is a web page, not the file itself: its download saved what a browser shows"),
            (b"<?xml version='1.0'?><Error/>", "is a web page, not the file itself: its download saved what a browser shows"),
            (b"Entry not found", "is not the file itself: it holds the hub's answer \"Entry not found\""),
            (b"\x1f\x8b\x08", "is compressed as a whole: unpack it first"),
            (b"GGUF\x03", "is a GGUF file: name the file itself as the model"),
            (
                b"/annex/objects/MD5E-s9--0",
                "is a pointer of git-annex, not the file that it stands for: run `git annex get` on it",
            ),
            (b"{", "is not valid JSON: EOF while parsing an object at line 1 column 1"),
        ] {
            fs_err::write(&config, bytes).unwrap();
            assert_eq!(read_config(folder.path()).unwrap_err().to_string(), format!("{}: {said}", config.display()));
        }
        let weights = |bytes: &[u8]| TensorFiles::from_bytes(bytes.to_vec(), "model.safetensors").unwrap_err().to_string();
        assert!(
            weights(b"PK\x03\x04\x00\x00\x00\x00\x00\x00").starts_with("model.safetensors: is a zip archive, as PyTorch writes")
        );
        assert!(weights(b"\x80\x02}q\x00").starts_with("model.safetensors: is a pickle of Python, which runs code"));
        assert_eq!(weights(b""), "model.safetensors: is empty: copy or download it again");
    }

    #[test]
    fn a_file_of_a_model_names_the_folder_that_is_the_model() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
        for name in ["llama/model.safetensors", "llama/config.json", "llama-sharded-bf16/model.safetensors.index.json"] {
            let path = golden.join(name);
            let expected = format!(
                "{}: is a file of a model: name its folder instead, {}",
                path.display(),
                path.parent().unwrap().display()
            );
            assert_eq!(Model::open(&path).unwrap_err().to_string(), expected);
            assert_eq!(Checkpoint::open(&path).unwrap_err().to_string(), expected);
            assert_eq!(crate::Artifact::open(&path).unwrap_err().to_string(), expected);
            assert_eq!(crate::Manifest::read(&path).unwrap_err().to_string(), expected);
        }
        let folder = tempfile::tempdir().unwrap();
        let alone = folder.path().join("weights.safetensors");
        fs_err::write(&alone, b"").unwrap();
        let expected = format!(
            "{}: is a file of a model, whose folder is named, and in {} there is no config.json",
            alone.display(),
            folder.path().display()
        );
        assert_eq!(Model::open(&alone).unwrap_err().to_string(), expected);
    }

    #[test]
    fn deep_and_absurd_json_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let refused = |name: &str, json: &str, open: &dyn Fn() -> Option<crate::Error>| {
            fs_err::write(folder.path().join(name), json).unwrap();
            let error = open().unwrap().to_string();
            assert!(error.starts_with(&format!("{}: ", folder.path().join(name).display())), "{error}");
            assert!(error.contains(" at line 1 column "), "{error}");
            assert!(error.len() < 500, "{}", error.len());
            fs_err::remove_file(folder.path().join(name)).unwrap();
        };
        refused("config.json", &deep, &|| read_config(folder.path()).err());
        refused("tokenizer.json", &deep, &|| Tokenizer::open(folder.path().join("tokenizer.json")).err());
        for json in [
            &deep[..],
            r#"{"format_version": 1, "files": [{"name": "a", "bytes": 1e30, "blake3": ""}]}"#,
            "{\"format_version\": -1}",
        ] {
            refused("manifest.json", json, &|| crate::Manifest::read(folder.path()).err());
        }
        for json in [&deep[..], r#"{"format_version": 1e99}"#, r#"{"format_version": 99999999999999999999999}"#] {
            refused("report.json", json, &|| crate::Report::read(folder.path()).err());
        }
        for json in [&deep[..], r#"{"weight_map": {"a": 7}}"#, r#"{"weight_map": []}"#, "{}"] {
            refused("model.safetensors.index.json", json, &|| TensorFiles::open(folder.path()).err());
        }
    }

    #[test]
    fn weights_in_another_format_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |names: &[&str]| {
            names.iter().for_each(|name| fs_err::write(folder.path().join(name), b"").unwrap());
            let error = TensorFiles::open(folder.path()).unwrap_err().to_string();
            names.iter().for_each(|name| fs_err::remove_file(folder.path().join(name)).unwrap());
            error.strip_prefix(&format!("{}: ", folder.path().display())).unwrap().to_owned()
        };
        const NONE: &str = "holds none of model.safetensors, model.entropy and model.safetensors.index.json";
        assert_eq!(refused(&[]), NONE);
        assert_eq!(
            refused(&["pytorch_model.bin"]),
            format!(
                "{NONE}; `pytorch_model.bin` holds pickles: convert them to safetensors with Transformers (`save_pretrained`)"
            )
        );
        assert_eq!(
            refused(&["adapter_model.safetensors"]),
            format!(
                "{NONE}; `adapter_model.safetensors` is an adapter: merge it into its model first (`merge_and_unload` of PEFT)"
            )
        );
        assert_eq!(
            refused(&["model-00001-of-00002.safetensors"]),
            format!("{NONE}; `model-00001-of-00002.safetensors` is one of several shards: their index is missing")
        );
        assert_eq!(refused(&["tiny.gguf"]), format!("{NONE}; name `tiny.gguf` itself, which is a model in one file"));
        assert_eq!(
            refused(&["weights.safetensors"]),
            format!("{NONE}; `weights.safetensors` is read where it is called model.safetensors")
        );
    }
}

//! `manifest.json`: what an artifact is made of and made from, so that anyone can check both.
//!
//! It carries no time and no path of the machine it was made on: the same recipe writes the same bytes.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::entropy::ENTROPY;
use crate::model::WEIGHTS;
use crate::write::clear_all_leftovers;
use crate::write::folder::RECORD;
use crate::{Dtype, EntropyFile, Error, Result, write_beside};

/// Everything known about an artifact beside its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`Manifest::FORMAT_VERSION`].
    pub format_version: u32,
    /// What wrote it.
    pub tool: Tool,
    /// Every file of the artifact's folder but the manifest, by name.
    pub files: Vec<FileHash>,
    /// Every file the artifact was made from.
    pub inputs: Vec<FileHash>,
    /// The recipe with every default filled in.
    pub recipe: serde_json::Value,
    /// Which programs open the artifact.
    pub opens_in: Vec<OpensIn>,
    /// What its size and its quality are compared with.
    pub reference: Reference,
    /// The tensors that were left dense.
    pub dense_tensors: Vec<DenseTensor>,
}

/// A program and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A file's size and contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileHash {
    /// Its name: plain for a file of the artifact, possibly `folder/name` for an input.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its contents, 64 hexadecimal digits.
    pub blake3: String,
}

/// Whether a program opens an artifact, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpensIn {
    /// The program.
    pub program: String,
    /// True where it does.
    pub opens: bool,
    /// Why, for people.
    pub reason: String,
}

/// What an artifact is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// The type its weights are stored in.
    pub dtype: Dtype,
    /// Bytes of its weight files.
    pub bytes: u64,
}

/// A tensor that was left dense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseTensor {
    /// Its name as stored.
    pub name: String,
    /// Its size in the artifact.
    pub bytes: u64,
    /// Why it was left dense.
    pub reason: String,
}

/// A file that is not what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Listed, and not there.
    Missing {
        /// The file.
        name: String,
        /// The size it should have.
        bytes: u64,
    },
    /// Of another size.
    Size {
        /// The file.
        name: String,
        /// The size in the manifest.
        expected: u64,
        /// The size on disk.
        found: u64,
    },
    /// Of the same size with other contents.
    Contents {
        /// The file.
        name: String,
        /// BLAKE3 in the manifest.
        expected: String,
        /// BLAKE3 of what is on disk.
        found: String,
    },
    /// `model.entropy` holds another `model.safetensors` than the one that is listed.
    Restores {
        /// BLAKE3 in the manifest.
        expected: String,
        /// BLAKE3 of what it holds.
        found: String,
    },
    /// There, and not listed.
    Added {
        /// The file.
        name: String,
        /// Its size.
        bytes: u64,
    },
}

const NAME: &str = Manifest::FILE;

impl Manifest {
    /// The version this program writes and reads.
    pub const FORMAT_VERSION: u32 = 1;
    /// Its name in an artifact's folder.
    pub const FILE: &str = "manifest.json";

    /// Hashes every file in `folder` but the manifest itself and the record of what made the folder into [`Self::files`] and writes `manifest.json`; returns what was written.
    ///
    /// # Errors
    /// [`Error::Io`] where a file can't be read or written, [`Error::Unsupported`] where the folder holds a folder or a name that is
    /// not UTF-8.
    pub fn write(mut self, folder: &Path) -> Result<Self> {
        self.format_version = Self::FORMAT_VERSION;
        // What killed writers left is no part of the artifact.
        clear_all_leftovers(folder);
        self.files =
            names_in(folder)?.into_iter().map(|name| FileHash::of(name.clone(), &folder.join(name))).collect::<Result<_>>()?;
        let path = folder.join(NAME);
        self.check_itself(&path)?;
        let text = serde_json::to_string_pretty(&self).map_err(|error| Error::malformed(&path, error.to_string()))?;
        write_beside(&path, |file| Ok(writeln!(file, "{text}")?))?;
        Ok(self)
    }

    /// Reads the `manifest.json` of `folder`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is none, with what is there instead, and for another format version; [`Error::Malformed`]
    /// where it is no manifest, lists a file twice, or lists one outside the folder; [`Error::Io`] where it can't be read.
    pub fn read(folder: &Path) -> Result<Self> {
        crate::checkpoint::refuse_part(folder)?;
        let path = folder.join(NAME);
        if !crate::read::is_there(&path) {
            return Err(without_manifest(folder));
        }
        let json = crate::read_file(&path, crate::LIST_BYTES)?;
        let malformed = |error: serde_json::Error| Error::unreadable(&path, &json, format!("is no manifest: {error}"));
        let value: serde_json::Value = serde_json::from_slice(&json).map_err(malformed)?;
        // Before the rest: another version may have other keys.
        if let Some(version) = value.get("format_version").and_then(serde_json::Value::as_u64)
            && version != u64::from(Self::FORMAT_VERSION)
        {
            let what = format!("has format version {version}, this program reads {}", Self::FORMAT_VERSION);
            return Err(Error::unsupported(&path, what));
        }
        // Out of the text: an error then has its line.
        let manifest: Self = serde_json::from_slice(&json).map_err(malformed)?;
        manifest.check_itself(&path)?;
        Ok(manifest)
    }

    /// Compares the files of `folder` with [`Self::files`]: empty where every one is there, unchanged, and nothing was added.
    ///
    /// Where `model.entropy` is listed, it and the `model.safetensors` that it holds may stand for each other, or beside each other.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder or a file can't be read.
    pub fn check(&self, folder: &Path) -> Result<Vec<Mismatch>> {
        let found = names_in(folder)?;
        let mut mismatches = Vec::new();
        let restored = self.restored(folder, &found)?;
        let weights = self.listed(WEIGHTS);
        if let (Some(weights), Some(restored)) = (weights, &restored)
            && weights != restored
        {
            mismatches.push(Mismatch::Restores { expected: weights.blake3.clone(), found: restored.blake3.clone() });
        }
        for file in &self.files {
            let name = file.name.clone();
            if !found.contains(&name) {
                let is_there_coded = restored.as_ref() == Some(file);
                let is_there_decoded = name == ENTROPY && weights.is_some() && found.contains(WEIGHTS);
                if is_there_coded || is_there_decoded {
                    continue;
                }
                mismatches.push(Mismatch::Missing { name, bytes: file.bytes });
                continue;
            }
            let path = folder.join(&name);
            let bytes = fs_err::metadata(&path)?.len();
            if bytes != file.bytes {
                mismatches.push(Mismatch::Size { name, expected: file.bytes, found: bytes });
                continue;
            }
            let found = hash_file(&path)?;
            if found != file.blake3 {
                mismatches.push(Mismatch::Contents { name, expected: file.blake3.clone(), found });
            }
        }
        for name in found {
            if self.listed(&name).is_none() {
                if name == WEIGHTS && restored == Some(FileHash::of(name.clone(), &folder.join(&name))?) {
                    continue;
                }
                let bytes = fs_err::metadata(folder.join(&name))?.len();
                mismatches.push(Mismatch::Added { name, bytes });
            }
        }
        Ok(mismatches)
    }

    fn listed(&self, name: &str) -> Option<&FileHash> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The `model.safetensors` that `model.entropy` holds, where that is listed, there and unchanged.
    fn restored(&self, folder: &Path, found: &BTreeSet<String>) -> Result<Option<FileHash>> {
        let Some(listed) = self.listed(ENTROPY).filter(|_| found.contains(ENTROPY)) else { return Ok(None) };
        let path = folder.join(ENTROPY);
        if FileHash::of(ENTROPY.to_owned(), &path)? != *listed {
            return Ok(None);
        }
        match EntropyFile::open(&path) {
            Ok(file) => {
                Ok(Some(FileHash { name: WEIGHTS.to_owned(), bytes: file.restored_bytes(), blake3: file.restored_blake3() }))
            }
            Err(Error::Io(error)) => Err(error.into()),
            // It stands for nothing; whoever opens the model reads why.
            Err(_) => Ok(None),
        }
    }

    /// Refuses names that leave the folder, names listed twice, and hashes that are none.
    fn check_itself(&self, path: &Path) -> Result<()> {
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !is_plain(&file.name) {
                return Err(Error::malformed(path, format!("`files` lists {:?}, which is not a plain file name", file.name)));
            }
            if !names.insert(&file.name) {
                return Err(Error::malformed(path, format!("`files` lists `{}` twice", file.name)));
            }
        }
        for input in &self.inputs {
            if !is_inside(&input.name) {
                return Err(Error::malformed(path, format!("`inputs` lists {:?}, which is not a relative name", input.name)));
            }
        }
        for file in self.files.iter().chain(&self.inputs) {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if file.blake3.len() != 2 * blake3::OUT_LEN || !file.blake3.bytes().all(is_digit) {
                let what = format!("the `blake3` of `{}` is not {} hexadecimal digits", file.name, 2 * blake3::OUT_LEN);
                return Err(Error::malformed(path, what));
            }
        }
        Ok(())
    }
}

impl FileHash {
    /// Hashes the file at `path` under the name `name`.
    ///
    /// # Errors
    /// [`Error::Io`] where it can't be read.
    pub fn of(name: String, path: &Path) -> Result<Self> {
        Ok(Self { name, bytes: fs_err::metadata(path)?.len(), blake3: hash_file(path)? })
    }
}

/// BLAKE3 of a file's contents, in hexadecimal digits. They are read part by part: a mapped file would count as this program's memory.
///
/// # Errors
/// [`Error::Io`] where it can't be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = crate::open_file(path)?;
    let mut part = Vec::with_capacity(HASHED_AT_ONCE);
    while (&mut file).take(HASHED_AT_ONCE as u64).read_to_end(&mut part)? > 0 {
        hasher.update_rayon(&part);
        part.clear();
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Bytes; enough to keep all threads busy.
const HASHED_AT_ONCE: usize = 8 << 20;

/// What lies where an artifact was looked for, and what can be done with it.
fn without_manifest(path: &Path) -> Error {
    const ONLY: &str = "and only an artifact has a manifest.json to be verified by";
    const WAYS: &str = "`compressor inspect` shows what it is, `compressor eval` measures it";
    let what = if path.is_file() {
        let begins_as_gguf = || {
            let mut magic = [0; 4];
            std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
        };
        match begins_as_gguf() {
            true => format!("is a GGUF file, {ONLY}; {WAYS}"),
            false => format!("is a file, {ONLY}; name an artifact's folder"),
        }
    } else if !path.is_dir() {
        "is not there; name an artifact's folder".to_owned()
    } else {
        let config = crate::read_file(&path.join("config.json"), crate::LIST_BYTES).ok();
        let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match config {
            Some(config) if config.get("quantization_config").is_some_and(|value| !value.is_null()) => {
                format!("holds quantized weights without a manifest.json, so there is nothing to compare its files with; {WAYS}")
            }
            Some(_) => {
                format!("is a checkpoint with dense weights, {ONLY}; {WAYS}, `compressor quantize` makes an artifact of it")
            }
            None => "holds neither a manifest.json nor a config.json: it is no model; name an artifact's folder".to_owned(),
        }
    };
    Error::unsupported(path, what)
}

/// The names of the files in a folder, sorted, without the manifest.
fn names_in(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = file_names(folder, "a manifest can't list it", "a manifest lists files only")?;
    names.remove(NAME);
    Ok(names)
}

/// The names of the files in a folder, sorted, without the record of what made it; what is said of a name that is no text, and of what
/// is no file.
pub(crate) fn file_names(folder: &Path, no_text: &str, no_file: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| Error::unsupported(folder, format!("holds {name:?}, whose name is not UTF-8: {no_text}")))?;
        if !fs_err::metadata(entry.path())?.is_file() {
            return Err(Error::unsupported(folder, format!("holds `{name}`, which is not a file: {no_file}")));
        }
        names.insert(name);
    }
    names.remove(RECORD);
    Ok(names)
}

/// A name that stays in its folder on every system.
fn is_plain(name: &str) -> bool {
    is_inside(name) && !name.contains('/') && name != NAME
}

fn is_inside(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
        && !name.contains(['\\', ':', '\0'])
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, bytes } => write!(f, "{name}: is missing, the manifest lists it with {bytes} bytes"),
            Self::Size { name, expected, found } => write!(f, "{name}: has {found} bytes, the manifest says {expected}"),
            Self::Contents { name, expected, found } => write!(f, "{name}: its BLAKE3 is {found}, the manifest says {expected}"),
            Self::Restores { expected, found } => {
                write!(f, "{ENTROPY}: the {WEIGHTS} that it holds has the BLAKE3 {found}, the manifest says {expected}")
            }
            Self::Added { name, bytes } => write!(f, "{name}: is not in the manifest ({bytes} bytes)"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::damage::Damage;

    /// BLAKE3 of nothing and of "abc", from the test vectors of its specification and b3sum.
    const HASH_OF_NOTHING: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    const HASH_OF_ABC: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";

    fn manifest() -> Manifest {
        Manifest {
            format_version: 1,
            tool: Tool { name: "compressor".to_owned(), version: "0.1.0".to_owned() },
            files: Vec::new(),
            inputs: vec![FileHash { name: "teacher/config.json".to_owned(), bytes: 3, blake3: HASH_OF_ABC.to_owned() }],
            recipe: json!({"name": "small", "seed": 7}),
            opens_in: vec![OpensIn { program: "compressor".to_owned(), opens: true, reason: "wrote it".to_owned() }],
            reference: Reference { name: "student".to_owned(), dtype: Dtype::F32, bytes: 1000 },
            dense_tensors: vec![DenseTensor { name: "model.norm.weight".to_owned(), bytes: 32, reason: "a vector".to_owned() }],
        }
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("model.safetensors"), "abc").unwrap();
        fs_err::write(folder.path().join("config.json"), "").unwrap();
        folder
    }

    fn shown(mismatches: &[Mismatch]) -> Vec<String> {
        mismatches.iter().map(Mismatch::to_string).collect()
    }

    #[test]
    fn every_file_is_listed_by_name_with_its_size_and_hash() {
        let folder = folder();
        let written = manifest().write(folder.path()).unwrap();
        let listed: Vec<_> = written.files.iter().map(|file| (file.name.as_str(), file.bytes, file.blake3.as_str())).collect();
        assert_eq!(listed, [("config.json", 0, HASH_OF_NOTHING), ("model.safetensors", 3, HASH_OF_ABC)]);
        assert_eq!(Manifest::read(folder.path()).unwrap(), written);
        assert!(written.check(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn writing_again_writes_the_same_bytes() {
        let folder = folder();
        let path = folder.path().join(NAME);
        manifest().write(folder.path()).unwrap();
        let first = fs_err::read(&path).unwrap();
        // What a killed write leaves is not part of the artifact, and the record of what made the folder neither.
        fs_err::write(folder.path().join(".manifest.json.0123abcd.tmp"), "half").unwrap();
        fs_err::write(folder.path().join(RECORD), "{}").unwrap();
        let again = manifest().write(folder.path()).unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), first);
        assert!(again.check(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn what_changed_is_named_with_both_values() {
        let folder = folder();
        let written = manifest().write(folder.path()).unwrap();
        let file = |name: &str| folder.path().join(name);

        fs_err::write(file("model.safetensors"), "abd").unwrap();
        let found = blake3::hash(b"abd").to_hex();
        let expected = format!("model.safetensors: its BLAKE3 is {found}, the manifest says {HASH_OF_ABC}");
        assert_eq!(shown(&written.check(folder.path()).unwrap()), [expected]);

        fs_err::write(file("model.safetensors"), "abcd").unwrap();
        let expected = "model.safetensors: has 4 bytes, the manifest says 3";
        assert_eq!(shown(&written.check(folder.path()).unwrap()), [expected]);

        fs_err::remove_file(file("model.safetensors")).unwrap();
        fs_err::write(file("notes.txt"), "later").unwrap();
        let expected =
            ["model.safetensors: is missing, the manifest lists it with 3 bytes", "notes.txt: is not in the manifest (5 bytes)"];
        assert_eq!(shown(&written.check(folder.path()).unwrap()), expected);
    }

    #[test]
    fn a_file_with_a_temporary_name_is_an_added_one() {
        let folder = folder();
        let written = manifest().write(folder.path()).unwrap();
        let names = [".manifest.json.0123abcd.tmp", "manifest.json.tmp"];
        for name in names {
            fs_err::write(folder.path().join(name), "half").unwrap();
        }
        let expected = names.map(|name| format!("{name}: is not in the manifest (4 bytes)"));
        assert_eq!(shown(&written.check(folder.path()).unwrap()), expected);
    }

    #[test]
    fn coded_and_decoded_weights_stand_for_each_other() {
        let empty = [&2u64.to_le_bytes()[..], b"{}"].concat();
        let other = [&3u64.to_le_bytes()[..], b"{ }"].concat();
        let folder = tempfile::tempdir().unwrap();
        let [weights, coded] = [WEIGHTS, ENTROPY].map(|name| folder.path().join(name));
        fs_err::write(&weights, &empty).unwrap();
        crate::write_entropy(&weights, &coded).unwrap();
        let both = manifest().write(folder.path()).unwrap();
        let check = |manifest: &Manifest| shown(&manifest.check(folder.path()).unwrap());
        assert!(check(&both).is_empty());
        fs_err::remove_file(&weights).unwrap();
        assert!(check(&both).is_empty(), "decoded where it is needed");
        let alone = manifest().write(folder.path()).unwrap();
        fs_err::write(&weights, &empty).unwrap();
        assert!(check(&alone).is_empty(), "decoded beside it");
        fs_err::write(&weights, &other).unwrap();
        assert_eq!(check(&alone), ["model.safetensors: is not in the manifest (11 bytes)"]);
        let [of_empty, of_other] = [&empty, &other].map(|file| blake3::hash(file).to_hex());
        let sizes = "model.safetensors: has 11 bytes, the manifest says 10";
        assert_eq!(check(&both), [sizes]);

        let unlike = manifest().write(folder.path()).unwrap();
        let expected =
            format!("model.entropy: the model.safetensors that it holds has the BLAKE3 {of_empty}, the manifest says {of_other}");
        assert_eq!(check(&unlike), [expected]);

        fs_err::remove_file(&coded).unwrap();
        assert_eq!(check(&both), [sizes], "the decoded one must be right");
        fs_err::write(&weights, &empty).unwrap();
        assert!(check(&both).is_empty(), "kept decoded");
        fs_err::remove_file(&weights).unwrap();
        let missing = ["model.entropy: is missing", "model.safetensors: is missing, the manifest lists it with 10 bytes"];
        for (found, expected) in check(&both).iter().zip(missing) {
            assert!(found.starts_with(expected), "{found}");
        }
        assert_eq!(check(&both).len(), 2);
    }

    fn refused(folder: &Path, change: impl FnOnce(&mut serde_json::Value)) -> String {
        manifest().write(folder).unwrap();
        let path = folder.join(NAME);
        let mut value: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs_err::write(&path, value.to_string()).unwrap();
        let text = Manifest::read(folder).unwrap_err().to_string();
        text.strip_prefix(&format!("{}: ", path.display())).map(str::to_owned).unwrap_or(text)
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let folder = folder();
        for name in ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "C:x", "manifest.json", "a\0b"] {
            let text = refused(folder.path(), |value| value["files"][0]["name"] = json!(name));
            assert_eq!(text, format!("`files` lists {name:?}, which is not a plain file name"));
        }
        let text = refused(folder.path(), |value| value["inputs"][0]["name"] = json!("../teacher/config.json"));
        assert_eq!(text, "`inputs` lists \"../teacher/config.json\", which is not a relative name");
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let folder = folder();
        let text = refused(folder.path(), |value| value["files"][1]["name"] = json!("config.json"));
        assert_eq!(text, "`files` lists `config.json` twice");
        let text = refused(folder.path(), |value| value["files"][0]["blake3"] = json!("AF"));
        assert_eq!(text, "the `blake3` of `config.json` is not 64 hexadecimal digits");
        let text = refused(folder.path(), |value| {
            *value = json!({"format_version": 2, "signed_by": "someone"});
        });
        assert_eq!(text, "has format version 2, this program reads 1");
        let text = refused(folder.path(), |value| value["files"][0]["size"] = json!(1));
        assert!(text.starts_with("is no manifest: unknown field `size`"), "{text}");
    }

    #[test]
    fn what_is_no_artifact_is_told_with_what_it_is_and_what_can_be_done() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, config) in [("dense", "{}"), ("quantized", r#"{"quantization_config": {}}"#), ("empty", "")] {
            fs_err::create_dir(at(name)).unwrap();
            fs_err::write(at(name).join("config.json"), config).unwrap();
        }
        fs_err::write(at("model.gguf"), "GGUF and more").unwrap();
        fs_err::write(at("text"), "abc").unwrap();
        let refused = |name: &str| {
            let text = Manifest::read(&at(name)).unwrap_err().to_string();
            text.strip_prefix(&format!("{}: ", at(name).display())).unwrap().to_owned()
        };
        let ways = "`compressor inspect` shows what it is, `compressor eval` measures it";
        let only = "and only an artifact has a manifest.json to be verified by";
        let dense = format!("is a checkpoint with dense weights, {only}; {ways}, `compressor quantize` makes an artifact of it");
        assert_eq!(refused("dense"), dense);
        let expected =
            format!("holds quantized weights without a manifest.json, so there is nothing to compare its files with; {ways}");
        assert_eq!(refused("quantized"), expected);
        let expected = "holds neither a manifest.json nor a config.json: it is no model; name an artifact's folder";
        assert_eq!(refused("empty"), expected);
        assert_eq!(refused("model.gguf"), format!("is a GGUF file, {only}; {ways}"));
        assert_eq!(refused("text"), format!("is a file, {only}; name an artifact's folder"));
        assert_eq!(refused("nowhere"), "is not there; name an artifact's folder");
    }

    #[test]
    fn a_folder_inside_the_artifact_is_refused() {
        let folder = folder();
        fs_err::create_dir(folder.path().join("onnx")).unwrap();
        let expected = format!("{}: holds `onnx`, which is not a file: a manifest lists files only", folder.path().display());
        assert_eq!(manifest().write(folder.path()).unwrap_err().to_string(), expected);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let folder = tempfile::tempdir().unwrap();
            fs_err::write(folder.path().join(NAME), text).unwrap();
            prop_assert!(Manifest::read(folder.path()).is_err());
        }

        #[test]
        fn a_changed_manifest_is_sound_or_refused_by_path(
            damage in Damage::any(1..4, 0.2),
        ) {
            let folder = folder();
            manifest().write(folder.path()).unwrap();
            let path = folder.path().join(NAME);
            damage.strike(&path);
            match Manifest::read(folder.path()) {
                Ok(manifest) => {
                    prop_assert!(manifest.files.iter().all(|file| is_plain(&file.name)));
                    prop_assert!(manifest.check(folder.path()).is_ok());
                }
                Err(error) => prop_assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{}", error),
            }
        }
    }
}

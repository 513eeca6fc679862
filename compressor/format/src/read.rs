//! Opening files to read: files alone, and those that are read whole up to a size.
//!
//! A named pipe or a device under a file's name would be read for ever, and a file of another kind would take all memory.

use std::fs::Metadata;
use std::io::Read;
use std::path::{Component, Path};

use fs_err::File;

use crate::encoding::decode_text;
use crate::{Error, Result};

/// Most bytes of a description: `config.json`, recipes, datasets, templates. Real ones have some kilobytes.
pub const DESCRIPTION_BYTES: u64 = 16 << 20;
/// Most bytes of a list: tokenizers, manifests, indices of shards, reports. Real ones have up to 40 MB.
pub const LIST_BYTES: u64 = 256 << 20;

/// Whether anything has this name, a link that leads nowhere too: what stands in a place is read or refused, and never taken for absent.
pub(crate) fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Opens a file to read it.
///
/// # Errors
/// [`Error::Io`] where it can't be opened, [`Error::Malformed`] where something else than a file stands there, or a link that leads
/// nowhere.
pub fn open_file(path: &Path) -> Result<File> {
    check_leads_somewhere(path)?;
    // Before opening: that waits for a writer where it is a named pipe.
    if let Ok(metadata) = std::fs::metadata(path) {
        check_is_file(path, &metadata)?;
    }
    let file = File::open(path)?;
    check_is_file(path, &file.metadata()?)?;
    Ok(file)
}

/// Reads a whole file of at most `most` bytes.
///
/// # Errors
/// As [`open_file`], and [`Error::Malformed`] where it is larger.
pub fn read_file(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open_file(path)?;
    let bytes = file.metadata()?.len();
    let too_large = |bytes: u64| Error::malformed(path, format!("has {bytes} bytes, and such a file has at most {most}"));
    if bytes > most {
        return Err(too_large(bytes));
    }
    let mut contents = Vec::new();
    contents.try_reserve_exact(bytes as usize).map_err(|error| Error::malformed(path, format!("has {bytes} bytes: {error}")))?;
    // It may have grown since.
    file.take(most.saturating_add(1)).read_to_end(&mut contents)?;
    match contents.len() as u64 {
        bytes if bytes > most => Err(too_large(bytes)),
        // Whatever the file should be: what stands for one that was not fetched would be taken for text.
        _ => Error::refuse_pointer(path, &contents).map(|()| contents),
    }
}

/// Reads a description that is a text.
///
/// # Errors
/// As [`read_file`] and [`decode_text`].
pub fn read_text(path: &Path) -> Result<String> {
    decode_text(path, read_file(path, DESCRIPTION_BYTES)?)
}

/// Whether a model is a folder; otherwise it is a GGUF file.
///
/// # Errors
/// [`Error::Malformed`] where it is neither, [`Error::Unsupported`] where it is not there and has the form of a name on Hugging Face.
pub fn is_model_folder(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(metadata) => check_is_file(path, &metadata).map(|()| false),
        Err(error) => match hub_name(path).filter(|_| error.kind() == std::io::ErrorKind::NotFound) {
            Some(name) => Err(Error::unsupported(path, format!("there is no such folder, and {}", not_downloaded(name)))),
            // What is missing is named where it is read.
            None => Ok(true),
        },
    }
}

/// What is said of a model's name on Hugging Face, such as `org/name`.
pub(crate) fn not_downloaded(name: &str) -> String {
    let folder = name.rsplit('/').next().unwrap_or(name);
    format!("nothing is downloaded: get it with `hf download {name} --local-dir {folder}` and give that folder")
}

/// The model's name on Hugging Face that a path has the form of: `org/name` where there is no folder `org`.
pub(crate) fn hub_name(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let of_hub = ["hf:", "https://huggingface.co/", "https://hf.co/"].iter().find_map(|prefix| text.strip_prefix(prefix));
    let name = of_hub.map_or(text, |name| name.trim_matches('/'));
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
    };
    let (organization, model) = name.split_once('/')?;
    let is_there = of_hub.is_none() && Path::new(organization).exists();
    let is_name = allowed(organization) && allowed(model) && !model.ends_with(".gguf") && !is_there;
    is_name.then_some(name)
}

/// Caches keep files behind links, and can lose them.
fn check_leads_somewhere(path: &Path) -> Result<()> {
    let is_missing = std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    match std::fs::read_link(path).ok().filter(|_| is_missing) {
        None => Ok(()),
        Some(target) => {
            let what = format!("is a link to {}, which is not there: get the model again, or remove the link", target.display());
            Err(Error::malformed(path, what))
        }
    }
}

fn check_is_file(path: &Path, metadata: &Metadata) -> Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(Error::malformed(path, format!("is {}, not a file", kind(metadata)))),
    }
}

#[cfg(unix)]
fn kind(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match metadata.file_type() {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "something else",
    }
}

#[cfg(not(unix))]
fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() { "a folder" } else { "something else" }
}

/// Refuses a file that is a link out of its model's folder: what it names would be copied into what is made of the model, whoever it
/// belongs to. The links of Hugging Face's cache, from `snapshots/<revision>/` into the `blobs/` of the same model, are right.
///
/// # Errors
/// [`Error::Unsupported`]; [`Error::Io`] where it can't be followed.
pub(crate) fn check_link(folder: &Path, file: &Path) -> Result<()> {
    if !fs_err::symlink_metadata(file)?.is_symlink() {
        return Ok(());
    }
    check_leads_somewhere(file)?;
    let (folder, target) = (fs_err::canonicalize(folder)?, fs_err::canonicalize(file)?);
    let in_cache = || {
        let revisions = folder.parent().filter(|revisions| revisions.ends_with("snapshots"))?;
        let blobs = revisions.parent()?.join("blobs");
        let inside = target.strip_prefix(blobs).ok()?;
        Some(matches!(inside.components().collect::<Vec<_>>()[..], [Component::Normal(_)]))
    };
    match target.starts_with(&folder) || in_cache() == Some(true) {
        true => Ok(()),
        false => {
            let what = format!(
                "is a link to {}, outside of the model's folder: put the file itself here, or remove it",
                target.display()
            );
            Err(Error::unsupported(file, what))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs_err::write(&path, "abcd").unwrap();
        assert_eq!(read_file(&path, 4).unwrap(), b"abcd");
        let error = read_file(&path, 3).unwrap_err().to_string();
        assert_eq!(error, format!("{}: has 4 bytes, and such a file has at most 3", path.display()));
        let missing = read_file(&folder.path().join("b"), 3).unwrap_err();
        assert!(matches!(&missing, Error::Io(error) if error.kind() == std::io::ErrorKind::NotFound), "{missing}");
        fs_err::write(&path, b"ab\xffd").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert_eq!(error, format!("{}:1: byte 2 (0xff) is not UTF-8; convert the file to UTF-8", path.display()));
    }

    #[test]
    fn what_is_no_file_is_refused_by_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| open_file(path).unwrap_err().to_string().replace(&path.display().to_string(), "a");
        assert_eq!(refused(folder.path()), "a: is a folder, not a file");
        #[cfg(unix)]
        {
            let socket = folder.path().join("socket");
            let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            assert_eq!(refused(&socket), "a: is a socket, not a file");
            assert_eq!(refused(Path::new("/dev/zero")), "a: is a device, not a file");
            let pipe = folder.path().join("pipe");
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            assert_eq!(refused(&pipe), "a: is a named pipe, not a file");
        }
    }

    #[test]
    fn names_of_models_on_hugging_face_are_known_by_their_form() {
        let found = |text: &str| hub_name(Path::new(text)).map(str::to_owned);
        for name in
            ["HuggingFaceTB/SmolLM2-135M", "hf:HuggingFaceTB/SmolLM2-135M", "https://huggingface.co/HuggingFaceTB/SmolLM2-135M/"]
        {
            assert_eq!(found(name).as_deref(), Some("HuggingFaceTB/SmolLM2-135M"), "{name}");
        }
        // The tests run in the crate's folder: `src` is there, so `src/model` is a path with a mistake in it.
        for path in
            ["model", "./org/name", "/org/name", "../org/name", "a/b/c", "org/name.gguf", "src/model", "org name/model", "org/"]
        {
            assert_eq!(found(path), None, "{path}");
        }
        let error = is_model_folder(Path::new("org/name-1.5b")).unwrap_err().to_string();
        let expected = "org/name-1.5b: there is no such folder, and nothing is downloaded: get it with `hf download org/name-1.5b \
                        --local-dir name-1.5b` and give that folder";
        assert_eq!(error, expected);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_in_the_model_or_lead_into_its_blobs() {
        use std::os::unix::fs::symlink;
        let cache = tempfile::tempdir().unwrap();
        let root = cache.path().canonicalize().unwrap();
        let snapshot = root.join("models--org--name/snapshots/0a1b");
        let other = root.join("models--org--other/blobs");
        for folder in [&snapshot, &root.join("models--org--name/blobs"), &other] {
            fs_err::create_dir_all(folder).unwrap();
        }
        for file in [root.join("models--org--name/blobs/77"), other.join("77"), root.join("secret"), snapshot.join("vocab.json")]
        {
            fs_err::write(file, "x").unwrap();
        }
        let link = |target: &str| {
            let path = snapshot.join("merges.txt");
            let _ = fs_err::remove_file(&path);
            symlink(target, &path).unwrap();
            check_link(&snapshot, &path).map_err(|error| error.to_string())
        };
        for inside in ["../../blobs/77", "vocab.json", "../0a1b/vocab.json"] {
            assert_eq!(link(inside), Ok(()), "{inside}");
        }
        for outside in ["../../../secret", "../../../models--org--other/blobs/77"] {
            let target = snapshot.join(outside).canonicalize().unwrap();
            let expected = format!(
                "{}: is a link to {}, outside of the model's folder: put the file itself here, or remove it",
                snapshot.join("merges.txt").display(),
                target.display()
            );
            assert_eq!(link(outside), Err(expected));
        }
        assert!(link("nowhere").is_err(), "a link to nothing");
        assert_eq!(
            check_link(&snapshot, &snapshot.join("vocab.json")).map_err(|error| error.to_string()),
            Ok(()),
            "no link at all"
        );
    }
}

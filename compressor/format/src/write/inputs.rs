//! Where a command may not write: onto what it reads.

use std::path::{Path, PathBuf};

use super::folder_of;
use super::lock::is_same_file;
use crate::{Error, Result};

/// Refuses to write the file or folder `out` where that would change one of `inputs`: where it is one, lies in one, or holds one. The
/// files of an input folder are looked at where links lead: Hugging Face's cache keeps them in another folder.
///
/// # Errors
/// [`Error::Refused`] with both.
pub fn check_apart<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    // The place itself, and where a link in this place leads.
    let mut places = vec![place_of(out)];
    places.extend(out.canonicalize());
    for input in inputs {
        // What can't be opened is told by whoever reads it.
        let Ok(read) = input.canonicalize() else { continue };
        let is_same = |path: &Path| match (std::fs::metadata(out), std::fs::metadata(path)) {
            (Ok(out), Ok(found)) => cfg!(unix) && is_same_file(&out, &found),
            _ => false,
        };
        let leads_to_out = |path: &Path| {
            is_same(path)
                || path.canonicalize().is_ok_and(|read| places.iter().any(|place| *place == read || read.starts_with(place)))
        };
        let mut links = std::fs::read_dir(input).into_iter().flatten().flatten();
        let what = if is_same(input) || places.contains(&read) {
            "is read by this command, and would be lost"
        } else if places.iter().any(|place| place.starts_with(&read)) {
            "lies in a folder that this command reads, and would change it"
        } else if places.iter().any(|place| read.starts_with(place)) {
            "holds what this command reads, and would replace it"
        } else if links.any(|entry| leads_to_out(&entry.path())) {
            "is or holds a file that this command reads through a link, and that would be lost"
        } else {
            continue;
        };
        return Err(Error::refused(out, format!("{what} ({}): name another place", input.display())));
    }
    Ok(())
}

/// The path of a file or folder that may not be there yet, without links in the part before its name.
fn place_of(path: &Path) -> PathBuf {
    let Some(name) = path.file_name() else { return path.to_owned() };
    let folder = folder_of(path);
    folder.canonicalize().unwrap_or_else(|_| place_of(folder)).join(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn nothing_is_written_onto_into_or_around_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::create_dir_all(at("all/model")).unwrap();
        fs_err::write(at("all/model/weights"), "").unwrap();
        let model = at("all/model");
        let checked = |out: PathBuf| check_apart(&out, [model.as_path()]).map_err(|error| error.to_string());
        let refused =
            |out: &Path, what: &str| Err(format!("{}: {what} ({}): name another place", out.display(), model.display()));
        for same in ["all/model", "all/./model", "all/model/../model"] {
            assert_eq!(checked(at(same)), refused(&at(same), "is read by this command, and would be lost"));
        }
        for inside in ["all/model/weights", "all/model/new", "all/model/a/b"] {
            let what = "lies in a folder that this command reads, and would change it";
            assert_eq!(checked(at(inside)), refused(&at(inside), what));
        }
        assert_eq!(checked(at("all")), refused(&at("all"), "holds what this command reads, and would replace it"));
        for apart in ["all/model2", "all/mode", "other", "all/new/folder"] {
            assert_eq!(checked(at(apart)), Ok(()));
        }
        assert!(check_apart(&at("new"), [at("nowhere").as_path()]).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn links_of_both_kinds_are_seen_through() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::create_dir(at("model")).unwrap();
        fs_err::write(at("model/weights"), "").unwrap();
        std::os::unix::fs::symlink(at("model"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("model/weights"), at("soft")).unwrap();
        fs_err::hard_link(at("model/weights"), at("hard")).unwrap();
        let is_refused = |out: &str, input: &str| check_apart(&at(out), [at(input).as_path()]).is_err();
        for (out, input) in [
            ("link", "model"),
            ("link/new", "model"),
            ("model", "link"),
            ("model/new", "link"),
            ("soft", "model"),
            ("soft", "model/weights"),
            ("model/weights", "soft"),
            ("hard", "model/weights"),
        ] {
            assert!(is_refused(out, input), "{out} onto {input}");
        }
        assert!(!is_refused("new", "link"));
    }

    /// As Hugging Face's cache has them.
    #[cfg(unix)]
    #[test]
    fn a_file_that_a_link_in_the_model_leads_to_is_not_written_onto() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for made in ["blobs", "snapshot"] {
            fs_err::create_dir(at(made)).unwrap();
        }
        for name in ["weights", "other"] {
            fs_err::write(at("blobs").join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("../blobs/weights", at("snapshot/model.safetensors")).unwrap();
        let model = at("snapshot");
        for out in ["blobs/weights", "blobs"] {
            let expected = format!(
                "{}: is or holds a file that this command reads through a link, and that would be lost ({}): name another place",
                at(out).display(),
                model.display()
            );
            assert_eq!(check_apart(&at(out), [model.as_path()]).unwrap_err().to_string(), expected);
        }
        assert!(check_apart(&at("blobs/other"), [model.as_path()]).is_ok());
    }
}

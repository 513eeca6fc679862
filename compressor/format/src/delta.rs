//! Deltas: one file with what changed between two folders, and the second folder from the first.
//!
//! Safetensors files are compared tensor by tensor, other files as wholes. What is equal is named, what changed is coded as the
//! difference of its bytes or anew, whichever is smaller. Layout: docs/artifact-format.md §11.

mod apply;
mod make;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::make::write_delta;
use crate::coded::{Coding, PIECE_BYTES, u32_at};
use crate::manifest::file_names;
use crate::write::folder::RECORD;
use crate::{Error, FileHash, MappedBytes, Result, map_file};

const MAGIC: &[u8; 8] = b"delta\n\0\0";
const VERSION: u32 = 1;
/// Magic, version, bytes of the head's JSON.
const HEAD_BYTES: usize = 8 + 4 + 4;
/// Source, coding, file of the old folder, where in it, bytes that come back, bytes here.
const RECORD_BYTES: usize = 1 + 6 + 4 + 8 + 8 + 4;
/// How much of an old file a new one of texts is compared with.
const PREFIX_BYTES: u64 = 8 << 20;

/// A delta whose every length was checked, and nothing of which is decoded yet.
#[derive(Debug)]
pub struct Delta {
    path: PathBuf,
    file: MappedBytes,
    head: Head,
    records: Vec<Record>,
}

/// What is to be there, and what will be.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    old: Vec<FileHash>,
    new: Vec<FileHash>,
}

/// What a part of a new file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Nothing but what was coded.
    Fresh(Coding),
    /// The bytes of an old file.
    Copy { file: u32, start: u64 },
    /// What was coded is added to the bytes of an old file, each modulo 256.
    Difference { file: u32, start: u64, coding: Coding },
    /// A frame of zstd whose dictionary is the start of an old file.
    Patch { file: u32 },
}

/// A part of a new file; the parts of one follow each other.
#[derive(Debug)]
struct Record {
    /// Where in the delta it begins.
    at: usize,
    source: Source,
    /// Bytes of the new file.
    raw: u64,
    coded: Range<usize>,
}

impl Source {
    /// As it stands in a record.
    fn write(self, record: &mut Vec<u8>) {
        let none = (0, 0, 0);
        let (kind, (coding, parameter, row_bytes), file, start) = match self {
            Self::Fresh(coding) => (0, coding.numbers(), 0, 0),
            Self::Copy { file, start } => (1, none, file, start),
            Self::Difference { file, start, coding } => (2, coding.numbers(), file, start),
            Self::Patch { file } => (3, none, file, 0),
        };
        record.extend([kind, coding, parameter]);
        record.extend(row_bytes.to_le_bytes());
        record.extend(file.to_le_bytes());
        record.extend(start.to_le_bytes());
    }

    fn read(record: &[u8; RECORD_BYTES], raw: u64) -> Option<Self> {
        let numbers = (record[1], record[2], u32_at(record, 3));
        let (file, start) = (u32_at(record, 7), u64_at(record, 11));
        let coding = || Coding::of(numbers, usize::try_from(raw).ok().filter(|raw| *raw <= PIECE_BYTES)?);
        match (record[0], numbers, file, start) {
            (0, _, 0, 0) => Some(Self::Fresh(coding()?)),
            (1, (0, 0, 0), ..) => Some(Self::Copy { file, start }),
            (2, ..) => Some(Self::Difference { file, start, coding: coding()? }),
            (3, (0, 0, 0), _, 0) => coding().map(|_| Self::Patch { file }),
            _ => None,
        }
    }
}

impl Delta {
    /// Opens the file at `path` and checks every length and name in it.
    ///
    /// # Errors
    /// [`Error::Io`] where it can't be read, [`Error::Malformed`] with the place where it contradicts itself, [`Error::Unsupported`]
    /// for another version.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedBytes::from(map_file(path)?);
        let malformed = |what: String| Error::malformed(path, what);
        let Some((start, rest)) = file.split_first_chunk::<HEAD_BYTES>() else {
            let what = format!("is cut short: its {} bytes are less than a head", file.len());
            return Err(Error::unreadable(path, &file, what));
        };
        if start[..MAGIC.len()] != *MAGIC {
            return Err(Error::unreadable(path, &file, "is no delta"));
        }
        let version = u32_at(start, 8);
        if version != VERSION {
            return Err(Error::unsupported(path, format!("has version {version}, this program reads {VERSION}")));
        }
        let Some((head, _)) = rest.split_at_checked(u32_at(start, 12) as usize) else {
            return Err(malformed("is cut short: its head reaches past its end".to_owned()));
        };
        let mut at = HEAD_BYTES + head.len();
        let head: Head = serde_json::from_slice(head).map_err(|error| malformed(format!("its head is damaged: {error}")))?;
        head.check().map_err(malformed)?;

        let mut records = Vec::new();
        let mut new = head.new.iter().map(|file| file.bytes).filter(|bytes| *bytes > 0);
        let mut left = new.next();
        while at < file.len() {
            let wrong = |what: &str| malformed(format!("record {} at byte {at} {what}", records.len()));
            let Some(record) = file[at..].first_chunk::<RECORD_BYTES>() else { return Err(wrong("is cut short")) };
            let (raw, coded) = (u64_at(record, 19), u32_at(record, 27) as usize);
            let start = at + RECORD_BYTES;
            if file.len() - start < coded {
                return Err(wrong("is cut short"));
            }
            let source = Source::read(record, raw).ok_or_else(|| wrong("has an unknown source or coding"))?;
            let inside = |index: u32, start: u64, bytes: u64| {
                head.old.get(index as usize).is_some_and(|old| start.checked_add(bytes).is_some_and(|end| end <= old.bytes))
            };
            let fits = match source {
                Source::Fresh(_) => true,
                Source::Copy { file, start } => coded == 0 && inside(file, start, raw),
                Source::Difference { file, start, .. } => inside(file, start, raw),
                Source::Patch { file } => inside(file, 0, 0),
            };
            if !fits {
                return Err(wrong("reaches past the end of an old file"));
            }
            left = match left.and_then(|left| left.checked_sub(raw)) {
                Some(_) if raw == 0 => return Err(wrong("is of no bytes")),
                Some(0) => new.next(),
                Some(left) => Some(left),
                None => return Err(wrong("reaches past the end of a new file")),
            };
            records.push(Record { at, source, raw, coded: start..start + coded });
            at = start + coded;
        }
        match left {
            None => Ok(Self { path: path.to_owned(), file, head, records }),
            Some(left) => Err(malformed(format!("is cut short: {left} bytes of a new file are not in it"))),
        }
    }

    /// The files of the folder that comes out, with their sizes and hashes.
    pub fn files(&self) -> &[FileHash] {
        &self.head.new
    }
}

impl Head {
    /// Refuses names that leave a folder, names listed twice, and hashes that are none.
    fn check(&self) -> Result<(), String> {
        for files in [&self.old, &self.new] {
            let mut names = BTreeSet::new();
            for FileHash { name, blake3, .. } in files {
                let is_plain = Path::new(name).file_name() == Some(name.as_ref()) && !name.contains(['/', '\\', ':', '\0']);
                if !is_plain {
                    return Err(format!("its head lists {name:?}, which is not a plain file name"));
                }
                if name == RECORD {
                    return Err(format!("its head lists `{name}`, which belongs to one place and is in no delta"));
                }
                if !names.insert(name) {
                    return Err(format!("its head lists `{name}` twice"));
                }
                if blake3::Hash::from_hex(blake3).is_err() {
                    return Err(format!("the `blake3` of `{name}` is not 64 hexadecimal digits"));
                }
            }
        }
        Ok(())
    }
}

/// Hashes every file of a folder, in the order of their names.
fn files_of(folder: &Path) -> Result<Vec<FileHash>> {
    let names = file_names(folder, "a delta can't name it", "a delta is of files only")?;
    names.into_iter().map(|name| FileHash::of(name.clone(), &folder.join(name))).collect()
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().expect("inside a record of known length"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;
    use crate::coded::tests::skewed;
    use crate::damage::Damage;
    use crate::{Dtype, NewTensor, write_safetensors};

    type Tensor = (&'static str, Dtype, Vec<u8>);

    fn write_tensors(folder: &Path, tensors: &[Tensor]) {
        let new = tensors.iter().map(|(name, dtype, bytes)| {
            let tensor = NewTensor {
                dtype: *dtype,
                shape: vec![bytes.len() / dtype.bytes()],
                bytes: Box::new(|| Cow::Borrowed(bytes.as_slice())),
            };
            ((*name).to_owned(), tensor)
        });
        write_safetensors(&folder.join("model.safetensors"), new).unwrap();
    }

    fn bytes(count: usize, below: u32) -> Vec<u8> {
        skewed(count, below).into_iter().map(|value| value as u8).collect()
    }

    /// A folder, and another where one tensor is the same, one little changed, one of another shape, and one new.
    fn folders(elements: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        let same = bytes(elements, 100);
        let mut changed = bytes(elements * 2, 90);
        let words = "a low lower lowest new newer newest word ".repeat(40);
        for (folder, note) in [(&old, "first"), (&new, "second")] {
            fs_err::create_dir(folder).unwrap();
            fs_err::write(folder.join("same.txt"), &words).unwrap();
            fs_err::write(folder.join("note.json"), format!("{words}{note}")).unwrap();
        }
        fs_err::write(old.join("gone.txt"), "gone").unwrap();
        fs_err::write(new.join("empty"), "").unwrap();
        write_tensors(
            &old,
            &[("same", Dtype::I8, same.clone()), ("other", Dtype::F32, vec![7; 40]), ("changed", Dtype::I8, changed.clone())],
        );
        changed.iter_mut().step_by(9).for_each(|byte| *byte += 1);
        write_tensors(
            &new,
            &[
                ("same", Dtype::I8, same),
                ("other", Dtype::F32, vec![7; 44]),
                ("changed", Dtype::I8, changed),
                ("new", Dtype::Bf16, bytes(elements, 9)),
            ],
        );
        folder
    }

    fn in_folder<const N: usize>(folder: &tempfile::TempDir, names: [&str; N]) -> [PathBuf; N] {
        names.map(|name| folder.path().join(name))
    }

    fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
        files_of(folder)
            .unwrap()
            .into_iter()
            .map(|file| (file.name.clone(), fs_err::read(folder.join(file.name)).unwrap()))
            .collect()
    }

    fn sources_of(delta: &Delta) -> Vec<&'static str> {
        let name = |record: &Record| match record.source {
            Source::Fresh(_) => "fresh",
            Source::Copy { .. } => "copy",
            Source::Difference { .. } => "difference",
            Source::Patch { .. } => "patch",
        };
        delta.records.iter().map(name).collect()
    }

    #[test]
    fn the_new_folder_comes_out_bit_for_bit() {
        let folder = folders(700_000);
        let [old, new, delta, out] = in_folder(&folder, ["old", "new", "delta", "out"]);
        let before = contents(&old);
        let written = write_delta(&old, &new, &delta).unwrap();
        assert_eq!(written, fs_err::metadata(&delta).unwrap().len());
        let opened = Delta::open(&delta).unwrap();
        // Files are in the order of their names: nothing for `empty`, the tensors, `note.json`, `same.txt`.
        let sources = sources_of(&opened);
        assert_eq!(sources[sources.len() - 2..], ["patch", "copy"], "{sources:?}");
        assert_eq!(sources.iter().filter(|source| **source == "copy").count(), 2, "{sources:?}");
        assert_eq!(sources.iter().filter(|source| **source == "difference").count(), 2, "1.4 MB: {sources:?}");
        assert!(opened.apply(&old, &out, false).unwrap());
        assert_eq!(contents(&out), contents(&new));
        assert_eq!(opened.files(), files_of(&new).unwrap());
        assert_eq!(contents(&old), before);
        assert!(!folder.path().join(".out.compressor").exists());
    }

    #[test]
    fn equal_folders_differ_by_their_names_alone() {
        let folder = folders(70_000);
        let [old, delta, out] = in_folder(&folder, ["old", "delta", "out"]);
        write_delta(&old, &old, &delta).unwrap();
        let opened = Delta::open(&delta).unwrap();
        assert_eq!(sources_of(&opened), ["copy"; 4]);
        assert!(opened.apply(&old, &out, false).unwrap());
        assert_eq!(contents(&out), contents(&old));
    }

    #[test]
    fn another_old_folder_is_refused_with_what_was_expected_and_found() {
        let folder = folders(100);
        let [old, new, delta, out] = in_folder(&folder, ["old", "new", "delta", "out"]);
        write_delta(&old, &new, &delta).unwrap();
        let opened = Delta::open(&delta).unwrap();
        let gone = old.join("gone.txt");
        let refused = || opened.apply(&old, &out, false).unwrap_err().to_string();
        let [was, is] = ["gone", "here"].map(|text| blake3::hash(text.as_bytes()).to_hex());
        fs_err::write(&gone, "here").unwrap();
        let expected = format!(
            "{}: is not what the delta was made from: expected are 4 bytes with the BLAKE3 {was}, found 4 with {is}",
            gone.display()
        );
        assert_eq!(refused(), expected);
        fs_err::remove_file(&gone).unwrap();
        let expected = format!("{}: is missing: the delta was made from one of 4 bytes, BLAKE3 {was}", gone.display());
        assert_eq!(refused(), expected);
        assert!(!out.exists() && !folder.path().join(".out.compressor").exists());
    }

    #[test]
    fn what_is_there_is_not_lost() {
        let folder = folders(100);
        let [old, new, delta, out, mine] = in_folder(&folder, ["old", "new", "delta", "out", "out.tmp"]);
        write_delta(&old, &new, &delta).unwrap();
        let opened = Delta::open(&delta).unwrap();
        fs_err::create_dir(&mine).unwrap();
        fs_err::write(mine.join("config.json"), "my only copy").unwrap();
        fs_err::create_dir(&out).unwrap();
        assert!(opened.apply(&old, &out, false).unwrap(), "an empty folder is filled");
        assert_eq!(contents(&out), contents(&new));
        assert_eq!(fs_err::read(mine.join("config.json")).unwrap(), b"my only copy");

        // The same once more, whatever has become of the old folder; and where something else is in the place.
        assert!(!opened.apply(&folder.path().join("nowhere"), &out, false).unwrap());
        fs_err::write(out.join("mine.txt"), "mine").unwrap();
        let expected = format!(
            "{}: is not empty, and no record or manifest says that this program made it; move it away or name another folder",
            out.display()
        );
        for replace in [false, true] {
            assert_eq!(opened.apply(&old, &out, replace).unwrap_err().to_string(), expected);
        }
        assert_eq!(fs_err::read(out.join("mine.txt")).unwrap(), b"mine");
        assert!(opened.apply(&old, Path::new("/"), false).is_err());
    }

    #[test]
    fn a_delta_is_not_written_into_what_it_is_made_of() {
        let folder = folders(100);
        let [old, new, delta] = in_folder(&folder, ["old", "new", "delta"]);
        let before = [&old, &new].map(|folder| contents(folder));
        for out in [old.join("model.safetensors"), new.join("update"), new.clone()] {
            let refused = write_delta(&old, &new, &out).unwrap_err();
            assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        }
        write_delta(&old, &new, &delta).unwrap();
        let opened = Delta::open(&delta).unwrap();
        for out in [&old, &old.join("inside"), &delta, &folder.path().to_owned()] {
            let refused = opened.apply(&old, out, true).unwrap_err();
            assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        }
        assert_eq!([&old, &new].map(|folder| contents(folder)), before);
    }

    #[test]
    fn names_like_those_of_temporary_files_are_files_as_any_others() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new, delta, out] = in_folder(&folder, ["old", "new", "delta", "out"]);
        for (folder, text) in [(&old, "first"), (&new, "second")] {
            fs_err::create_dir(folder).unwrap();
            for name in ["a", "a.tmp", ".a.0123abcd.tmp"] {
                fs_err::write(folder.join(name), format!("{text} {name}")).unwrap();
            }
        }
        write_delta(&old, &new, &delta).unwrap();
        let opened = Delta::open(&delta).unwrap();
        assert!(opened.apply(&old, &out, false).unwrap());
        assert_eq!(opened.files().len(), 3);
        assert_eq!(contents(&out), contents(&new));
    }

    #[test]
    fn a_folder_inside_is_refused() {
        let folder = folders(10);
        let [old, new, delta] = in_folder(&folder, ["old", "new", "delta"]);
        fs_err::create_dir(new.join("onnx")).unwrap();
        let expected = format!("{}: holds `onnx`, which is not a file: a delta is of files only", new.display());
        assert_eq!(write_delta(&old, &new, &delta).unwrap_err().to_string(), expected);
        assert!(!delta.exists());
    }

    /// What a delta with this change is refused for.
    fn refused(folder: &tempfile::TempDir, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let [old, new, delta, out] = in_folder(folder, ["old", "new", "delta", "out"]);
        write_delta(&old, &new, &delta).unwrap();
        let mut file = fs_err::read(&delta).unwrap();
        change(&mut file);
        fs_err::write(&delta, file).unwrap();
        let error = Delta::open(&delta).and_then(|opened| opened.apply(&old, &out, false)).unwrap_err().to_string();
        error.strip_prefix(&format!("{}: ", delta.display())).unwrap_or_else(|| panic!("{error}")).to_owned()
    }

    fn with_head(file: &mut Vec<u8>, change: impl Fn(&str) -> String) {
        let length = u32_at(file, 12) as usize;
        let head = change(str::from_utf8(&file[HEAD_BYTES..][..length]).unwrap());
        let rest = file.split_off(HEAD_BYTES + length);
        *file = [&file[..12], &(head.len() as u32).to_le_bytes(), head.as_bytes(), &rest].concat();
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let folder = folders(100);
        let first = |file: &[u8]| HEAD_BYTES + u32_at(file, 12) as usize;
        assert_eq!(refused(&folder, |file| file.truncate(15)), "is cut short: its 15 bytes are less than a head");
        assert_eq!(refused(&folder, |file| file[0] = b'D'), "is no delta");
        assert_eq!(refused(&folder, |file| file[8] = 2), "has version 2, this program reads 1");
        assert_eq!(refused(&folder, |file| file[15] = 0x7f), "is cut short: its head reaches past its end");
        let text = refused(&folder, |file| file[HEAD_BYTES] = b'[');
        assert!(text.starts_with("its head is damaged: "), "{text}");
        for (name, shown) in [("../same.txt", "\"../same.txt\""), ("..", "\"..\""), ("", "\"\"")] {
            let text = refused(&folder, |file| with_head(file, |head| head.replace("same.txt", name)));
            assert_eq!(text, format!("its head lists {shown}, which is not a plain file name"));
        }
        let text = refused(&folder, |file| with_head(file, |head| head.replace("note.json", RECORD)));
        assert_eq!(text, "its head lists `.compressor.json`, which belongs to one place and is in no delta");
        let text = refused(&folder, |file| with_head(file, |head| head.replace("note.json", "same.txt")));
        assert_eq!(text, "its head lists `same.txt` twice");
        let hash = blake3::hash(b"gone").to_hex().to_string();
        let text = refused(&folder, |file| with_head(file, |head| head.replace(&hash, "00")));
        assert_eq!(text, "the `blake3` of `gone.txt` is not 64 hexadecimal digits");
        let mut at = 0;
        let mut at_first = |change: &dyn Fn(&mut [u8])| {
            refused(&folder, |file| {
                at = first(file);
                change(&mut file[at..]);
            })
        };
        let texts = [
            at_first(&|record| record[0] = 4),
            at_first(&|record| record[0] = 1),
            at_first(&|record| record[25] = 1),
            at_first(&|record| record[30] = 0x7f),
            at_first(&|record| record[19..27].copy_from_slice(&0u64.to_le_bytes())),
        ];
        let expected = [
            "has an unknown source or coding",
            "has an unknown source or coding",
            "has an unknown source or coding",
            "is cut short",
            "is of no bytes",
        ];
        for (text, expected) in texts.iter().zip(expected) {
            assert_eq!(*text, format!("record 0 at byte {at} {expected}"));
        }
        // The whole of `same.txt` is copied last; from elsewhere, and once more.
        let last = |file: &[u8]| file.len() - RECORD_BYTES;
        let mut place = 0;
        let text = refused(&folder, |file| {
            place = last(file);
            file[place + 11] = 1;
        });
        assert!(text.ends_with(&format!(" at byte {place} reaches past the end of an old file")), "{text}");
        let text = refused(&folder, |file| {
            place = file.len();
            file.extend_from_within(last(file)..);
        });
        assert!(text.ends_with(&format!(" at byte {place} reaches past the end of a new file")), "{text}");
        let words = 41 * 40;
        let text = refused(&folder, |file| file.truncate(last(file)));
        assert_eq!(text, format!("is cut short: {words} bytes of a new file are not in it"));
        // The hash of an empty file, of which there is nothing to damage.
        let empty = blake3::hash(b"").to_hex().to_string();
        let text = refused(&folder, |file| with_head(file, |head| head.replace(&empty, &hash)));
        assert_eq!(text, format!("is damaged: the empty that it gives has the BLAKE3 {empty}, its head says {hash}"));
        assert!(!folder.path().join("out").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_delta_gives_the_new_folder_or_is_refused_with_a_path(damage in Damage::any(1..4, 0.2)) {
            let folder = folders(60);
            let [old, new, delta, out] = in_folder(&folder, ["old", "new", "delta", "out"]);
            write_delta(&old, &new, &delta).unwrap();
            damage.strike(&delta);
            match Delta::open(&delta).and_then(|opened| Ok((opened.apply(&old, &out, false)?, opened))) {
                // Names may have changed, contents not.
                Ok((_, opened)) => prop_assert_eq!(opened.files(), &files_of(&out).unwrap()[..]),
                Err(error) => {
                    prop_assert!(error.to_string().starts_with(&folder.path().display().to_string()), "{}", error);
                    prop_assert!(!out.exists());
                }
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), has_head in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("delta");
            let head = br#"{"old":[],"new":[]}"#;
            let start = [&MAGIC[..], &VERSION.to_le_bytes(), &(head.len() as u32).to_le_bytes(), head].concat();
            let is_empty = has_head && bytes.is_empty();
            fs_err::write(&path, if has_head { [start, bytes].concat() } else { bytes }).unwrap();
            prop_assert_eq!(Delta::open(&path).is_ok(), is_empty);
        }

        #[test]
        fn any_two_files_make_a_delta(
            old in prop::collection::vec(any::<u8>(), 0..300),
            new in prop::collection::vec(any::<u8>(), 0..300),
            name in prop::sample::select(vec!["model.safetensors", "tokenizer.json"]),
            continues in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let [from, to, delta, out] = in_folder(&folder, ["old", "new", "delta", "out"]);
            let new = if continues { [&old[..], &new].concat() } else { new };
            for (folder, bytes) in [(&from, &old), (&to, &new)] {
                fs_err::create_dir(folder).unwrap();
                fs_err::write(folder.join(name), bytes).unwrap();
            }
            write_delta(&from, &to, &delta).unwrap();
            Delta::open(&delta).unwrap().apply(&from, &out, false).unwrap();
            prop_assert_eq!(fs_err::read(out.join(name)).unwrap(), new);
        }
    }
}

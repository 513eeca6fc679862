//! Makes the new folder of a delta from the old one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Delta, PREFIX_BYTES, Record, Source};
use crate::{Error, FileHash, MappedBytes, Result, map_file, write_beside};

impl Delta {
    /// Writes the new folder to `out`, which must not be there, from the folder `old`. It is made as `OUT.tmp` and renamed when every
    /// file in it is right; what a killed run left there is written again.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what was expected and what was found where `old` is not what the delta was made from, and with the
    /// place where the delta is damaged; [`Error::Io`] and [`Error::NoRoom`] as [`write_beside`].
    pub fn apply(&self, old: &Path, out: &Path) -> Result<()> {
        if out.exists() {
            return Err(Error::malformed(out, "is there already; name a new folder"));
        }
        let old = self.head.old.iter().map(|file| expected(file, &old.join(&file.name))).collect::<Result<Vec<_>>>()?;
        let beside = folder_beside(out)?;
        fs_err::create_dir_all(&beside)?;
        self.clear(&beside)?;
        let mut records = self.records.iter();
        for file in &self.head.new {
            self.write_file(file, &mut records, &old, &beside.join(&file.name))?;
        }
        Ok(fs_err::rename(&beside, out)?)
    }

    /// Removes what a killed run left; other files are somebody's.
    fn clear(&self, beside: &Path) -> Result<()> {
        let own: BTreeSet<OsString> =
            self.head.new.iter().flat_map(|file| [file.name.clone().into(), format!("{}.tmp", file.name).into()]).collect();
        let entries = fs_err::read_dir(beside)?.collect::<std::io::Result<Vec<_>>>()?;
        if let Some(other) = entries.iter().find(|entry| !own.contains(&entry.file_name())) {
            let name = other.file_name();
            return Err(Error::malformed(beside, format!("holds {name:?}, which this delta does not write; move it away")));
        }
        entries.iter().try_for_each(|entry| Ok(fs_err::remove_file(entry.path())?))
    }

    fn write_file<'a>(
        &self,
        file: &FileHash,
        records: &mut impl Iterator<Item = &'a Record>,
        old: &[MappedBytes],
        path: &Path,
    ) -> Result<()> {
        write_beside(path, |out| {
            let mut hasher = blake3::Hasher::new();
            let mut left = file.bytes;
            while left > 0 {
                let record = records.next().expect("`open` held the records to the bytes of the new files");
                left -= record.raw;
                if let Source::Copy { file, start } = record.source {
                    let copied = &old[file as usize][start as usize..(start + record.raw) as usize];
                    hasher.update_rayon(copied);
                    out.write_all(copied)?;
                } else {
                    let raw = self.decode(record, old)?;
                    hasher.update(&raw);
                    out.write_all(&raw)?;
                }
            }
            let found = hasher.finalize().to_hex();
            match found.as_str() == file.blake3 {
                true => Ok(()),
                false => {
                    let FileHash { name, blake3, .. } = file;
                    let what = format!("is damaged: the {name} that it gives has the BLAKE3 {found}, its head says {blake3}");
                    Err(Error::malformed(&self.path, what))
                }
            }
        })
    }

    /// A part that is coded, which is a piece at most.
    fn decode(&self, record: &Record, old: &[MappedBytes]) -> Result<Vec<u8>> {
        let wrong = |what: String| Error::malformed(&self.path, format!("record at byte {} {what}", record.at));
        let coded = &self.file[record.coded.clone()];
        let mut raw = vec![0; record.raw as usize];
        match record.source {
            Source::Fresh(coding) => coding.decode(coded, &mut raw).map_err(wrong)?,
            Source::Difference { file, start, coding } => {
                coding.decode(coded, &mut raw).map_err(wrong)?;
                let old = &old[file as usize][start as usize..];
                raw.iter_mut().zip(old).for_each(|(new, old)| *new = new.wrapping_add(*old));
            }
            Source::Patch { file } => {
                let old = &old[file as usize];
                let dictionary = &old[..old.len().min(PREFIX_BYTES as usize)];
                let found = zstd::bulk::Decompressor::with_dictionary(dictionary)
                    .and_then(|mut decoder| decoder.decompress_to_buffer(coded, &mut raw[..]))
                    .map_err(|error| wrong(format!("is damaged ({error})")))?;
                if found != raw.len() {
                    return Err(wrong(format!("holds {found} bytes where {} are needed", raw.len())));
                }
            }
            Source::Copy { .. } => unreachable!("copied by `write_file`"),
        }
        Ok(raw)
    }
}

/// The old file at `path`, if it is the one that the delta was made from.
fn expected(file: &FileHash, path: &Path) -> Result<MappedBytes> {
    let FileHash { name, bytes, blake3 } = file;
    if !path.is_file() {
        return Err(Error::malformed(path, format!("is missing: the delta was made from one of {bytes} bytes, BLAKE3 {blake3}")));
    }
    let found = FileHash::of(name.clone(), path)?;
    if found != *file {
        let what = format!(
            "is not what the delta was made from: expected are {bytes} bytes with the BLAKE3 {blake3}, found {} with {}",
            found.bytes, found.blake3
        );
        return Err(Error::malformed(path, what));
    }
    Ok(MappedBytes::from(map_file(path)?))
}

fn folder_beside(out: &Path) -> Result<PathBuf> {
    let Some(name) = out.file_name() else { return Err(Error::malformed(out, "this names no folder to write")) };
    let mut name = OsString::from(name);
    name.push(".tmp");
    Ok(out.with_file_name(name))
}

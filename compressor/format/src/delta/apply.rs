//! Makes the new folder of a delta from the old one.

use std::io::Write;
use std::path::Path;

use super::{Delta, PREFIX_BYTES, Record, Source};
use crate::write::write_new;
use crate::{Begun, Error, FileHash, Made, MappedBytes, NewFolder, Result, check_apart, map_file};

impl Delta {
    /// Writes the new folder to `out` from the folder `old`; returns whether there was anything to do: a folder that holds exactly these
    /// files is left as it is. The folder appears as a whole, when every file in it is right. With `replace`, one that this program
    /// made takes its place.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what was expected and what was found where `old` is not what the delta was made from, and with the
    /// place where the delta is damaged; [`Error::Refused`] where `out` is read here, and as [`NewFolder::begin`]; [`Error::Io`] and
    /// [`Error::NoRoom`] as [`crate::write_beside`].
    pub fn apply(&self, old: &Path, out: &Path, replace: bool) -> Result<bool> {
        check_apart(out, [old, self.path.as_path()])?;
        let Begun::Now(folder) = NewFolder::begin(out, Made::Of(self.head.new.clone()), replace)? else { return Ok(false) };
        folder.fill(|folder| {
            let old = self.head.old.iter().map(|file| expected(file, &old.join(&file.name))).collect::<Result<Vec<_>>>()?;
            let mut records = self.records.iter();
            self.head.new.iter().try_for_each(|file| self.write_file(file, &mut records, &old, &folder.join(&file.name)))
        })?;
        Ok(true)
    }

    fn write_file<'a>(
        &self,
        file: &FileHash,
        records: &mut impl Iterator<Item = &'a Record>,
        old: &[MappedBytes],
        path: &Path,
    ) -> Result<()> {
        write_new(path, |out| {
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

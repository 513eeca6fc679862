//! Writes deltas.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::{HEAD_BYTES, Head, MAGIC, PREFIX_BYTES, Source, VERSION, files_of};
use crate::coded::{Coding, FAST, PIECE_BYTES, THOROUGH, encode};
use crate::safetensors::header::{self, Element};
use crate::{Dtype, Error, MappedBytes, Result, check_apart, map_file, write_beside};

/// A part of a new file and what it is compared with.
struct Part {
    range: Range<usize>,
    /// The old file and where in it as many bytes begin.
    old: Option<(u32, usize)>,
    ways: Vec<Coding>,
    level: i32,
    /// The old file that may be a dictionary.
    dictionary: Option<u32>,
}

/// An old tensor: its file, type, shape, and first byte.
type OldTensors = BTreeMap<String, (u32, Element, Vec<usize>, usize)>;

/// Pieces that are in memory at once, for each thread.
const PIECES_AT_ONCE: usize = 4;
/// What zstd takes for a dictionary of its own kind.
const DICTIONARY_MAGIC: [u8; 4] = 0xEC30_A437_u32.to_le_bytes();

/// Writes into the file `out` what changed from the folder `old` to the folder `new`; returns its bytes.
///
/// # Errors
/// [`Error::Io`] where a folder or file can't be read, [`Error::Unsupported`] where one holds a folder, [`Error::Refused`] where `out`
/// lies in one; as [`write_beside`] for `out`.
pub fn write_delta(old: &Path, new: &Path, out: &Path) -> Result<u64> {
    check_apart(out, [old, new])?;
    let head = Head { old: files_of(old)?, new: files_of(new)? };
    let open = |folder: &Path, name: &str| Ok(MappedBytes::from(map_file(folder.join(name))?));
    let old_files: Vec<MappedBytes> = head.old.iter().map(|file| open(old, &file.name)).collect::<Result<_>>()?;
    let mut tensors = OldTensors::new();
    for ((file, bytes), index) in head.old.iter().zip(&old_files).zip(0..) {
        let Some(contents) = safetensors(&file.name, bytes) else { continue };
        for entry in contents.entries {
            tensors.insert(entry.name, (index, entry.element, entry.shape, contents.data + entry.bytes.start));
        }
    }
    let json = serde_json::to_vec(&head).map_err(|error| Error::malformed(out, error.to_string()))?;
    let mut written = HEAD_BYTES + json.len();
    write_beside(out, |out| {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&(json.len() as u32).to_le_bytes())?;
        out.write_all(&json)?;
        for file in &head.new {
            let bytes = open(new, &file.name)?;
            let namesake = head.old.iter().zip(0..).find(|(old, _)| old.name == file.name).map(|(_, index)| index);
            let parts = match safetensors(&file.name, &bytes) {
                Some(contents) => parts_of_tensors(contents, namesake, &tensors),
                None => vec![whole(0..bytes.len(), namesake, true)],
            };
            for record in records(&bytes, &parts, &old_files)? {
                out.write_all(&record)?;
                written += record.len();
            }
        }
        Ok(())
    })?;
    Ok(written as u64)
}

/// The header of a safetensors file; one that can't be read is a file as any other.
fn safetensors(name: &str, bytes: &[u8]) -> Option<header::Contents> {
    name.ends_with(".safetensors").then(|| header::read(bytes, name).ok())?
}

/// A file, or the header of one, as a whole.
fn whole(range: Range<usize>, namesake: Option<u32>, is_file: bool) -> Part {
    let old = namesake.map(|file| (file, range.start));
    Part { range, old, ways: vec![Coding::Bytes], level: THOROUGH, dictionary: namesake.filter(|_| is_file) }
}

fn parts_of_tensors(contents: header::Contents, namesake: Option<u32>, tensors: &OldTensors) -> Vec<Part> {
    let mut parts = vec![whole(0..contents.data, namesake, false)];
    for entry in contents.entries {
        let range = contents.data + entry.bytes.start..contents.data + entry.bytes.end;
        let old = tensors.get(&entry.name).filter(|(_, element, shape, _)| (element, shape) == (&entry.element, &entry.shape));
        let (ways, level) = match entry.element {
            Element::Known(dtype @ (Dtype::F32 | Dtype::F16 | Dtype::Bf16)) => {
                let width = dtype.bytes() as u8;
                (vec![Coding::Bytes, Coding::Planes(width), Coding::Distinct(width)], THOROUGH)
            }
            Element::Known(Dtype::F64 | Dtype::I8 | Dtype::I32 | Dtype::I64) | Element::Other(_) => (vec![Coding::Bytes], FAST),
        };
        parts.push(Part { range, old: old.map(|(file, _, _, start)| (*file, *start)), ways, level, dictionary: None });
    }
    parts
}

/// The records of a new file.
fn records(new: &[u8], parts: &[Part], old: &[MappedBytes]) -> Result<Vec<Vec<u8>>> {
    let same = |part: &Part| {
        let (file, start) = part.old?;
        let found = old[file as usize].get(start..start + part.range.len())?;
        (found == &new[part.range.clone()]).then_some((file, start))
    };
    let mut records = Vec::new();
    let mut pieces: Vec<(Range<usize>, &Part)> = Vec::new();
    let mut copied: Option<(u32, usize, usize)> = None;
    let end_copy = |copied: &mut Option<(u32, usize, usize)>, records: &mut Vec<Vec<u8>>| {
        if let Some((file, start, bytes)) = copied.take() {
            records.push(record(Source::Copy { file, start: start as u64 }, bytes, &[]));
        }
    };
    for part in parts.iter().filter(|part| !part.range.is_empty()) {
        match same(part) {
            Some((file, start)) => {
                flush(&mut pieces, new, old, &mut records)?;
                match &mut copied {
                    Some((last, first, bytes)) if *last == file && *first + *bytes == start => *bytes += part.range.len(),
                    _ => {
                        end_copy(&mut copied, &mut records);
                        copied = Some((file, start, part.range.len()));
                    }
                }
            }
            None => {
                end_copy(&mut copied, &mut records);
                let cuts = part.range.clone().step_by(PIECE_BYTES);
                pieces.extend(cuts.map(|start| (start..part.range.end.min(start + PIECE_BYTES), part)));
            }
        }
    }
    end_copy(&mut copied, &mut records);
    flush(&mut pieces, new, old, &mut records)?;
    Ok(records)
}

/// Codes what has gathered.
fn flush(pieces: &mut Vec<(Range<usize>, &Part)>, new: &[u8], old: &[MappedBytes], records: &mut Vec<Vec<u8>>) -> Result<()> {
    for batch in pieces.chunks(PIECES_AT_ONCE * rayon::current_num_threads()) {
        let coded = batch.par_iter().map(|(range, part)| piece(&new[range.clone()], range.start - part.range.start, part, old));
        records.extend(coded.collect::<io::Result<Vec<_>>>()?);
    }
    pieces.clear();
    Ok(())
}

/// Codes a piece that begins so far inside its part, in the smallest way.
fn piece(raw: &[u8], inside: usize, part: &Part, old: &[MappedBytes]) -> io::Result<Vec<u8>> {
    let (coding, coded) = encode(raw, &part.ways, part.level)?;
    let mut best = (Source::Fresh(coding), coded);
    if let Some((file, start)) = part.old
        && let Some(old) = old[file as usize].get(start + inside..start + inside + raw.len())
    {
        let difference: Vec<u8> = raw.iter().zip(old).map(|(new, old)| new.wrapping_sub(*old)).collect();
        let (coding, coded) = encode(&difference, &part.ways, part.level)?;
        if coded.len() < best.1.len() {
            best = (Source::Difference { file, start: (start + inside) as u64, coding }, coded);
        }
    }
    if let Some(file) = part.dictionary {
        let old = &old[file as usize];
        let dictionary = &old[..old.len().min(PREFIX_BYTES as usize)];
        if !dictionary.starts_with(&DICTIONARY_MAGIC) {
            let coded = zstd::bulk::Compressor::with_dictionary(part.level, dictionary)?.compress(raw)?;
            if coded.len() < best.1.len() {
                best = (Source::Patch { file }, coded);
            }
        }
    }
    Ok(record(best.0, raw.len(), &best.1))
}

fn record(source: Source, raw: usize, coded: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    source.write(&mut record);
    record.extend((raw as u64).to_le_bytes());
    record.extend((coded.len() as u32).to_le_bytes());
    record.extend(coded);
    record
}

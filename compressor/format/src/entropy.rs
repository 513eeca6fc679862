//! `model.entropy`: what `model.safetensors` holds, coded to the bytes that it takes to say it.
//!
//! The file is cut into pieces at its tensors; each is coded in the way that makes it smallest, so both directions use every core, and
//! what comes back is the same file bit for bit. Layout: docs/artifact-format.md §10.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::coded::{Coding, FAST, PIECE_BYTES, encode, likely_bits, u32_at};
use crate::safetensors::header::{self, Element, Entry};
use crate::{Dtype, Error, MappedBytes, Result, check_apart, map_file, write_beside};

/// The file's name in a folder.
pub(crate) const ENTROPY: &str = "model.entropy";

const MAGIC: &[u8; 8] = b"entropy\n";
const VERSION: u32 = 1;
/// Magic, version, bytes and BLAKE3 of what comes back.
const HEAD_BYTES: usize = 8 + 4 + 8 + blake3::OUT_LEN;
/// Coding, bytes before and after, the start of the BLAKE3 of what comes back.
const RECORD_BYTES: usize = 1 + 1 + 4 + 4 + 4 + HASH_BYTES;
/// Enough to find the damaged piece; the whole is checked with all of its hash.
const HASH_BYTES: usize = 8;
/// What a byte of the file may stand for at most, so that a small file can't ask for all memory. Smaller pieces are filled up with zeros.
const MOST_RATIO: usize = 32;
/// Pieces that are in memory at once, for each thread.
const PIECES_AT_ONCE: usize = 4;

/// A `model.entropy` whose every length was checked, and nothing of which is decoded yet.
#[derive(Debug)]
pub struct EntropyFile {
    path: PathBuf,
    file: MappedBytes,
    bytes: usize,
    blake3: blake3::Hash,
    pieces: Vec<Piece>,
}

/// A piece, with where it lies in the file and where in what comes back.
#[derive(Debug)]
struct Piece {
    coding: Coding,
    coded: Range<usize>,
    raw: Range<usize>,
    hash: [u8; HASH_BYTES],
}

/// Codes the file `safetensors` into the file `out`, without loss; returns the bytes of `out`.
///
/// # Errors
/// As [`crate::TensorFiles::open`] for `safetensors`, as [`write_beside`] for `out`; [`Error::Refused`] where they are one file.
pub fn write_entropy(safetensors: &Path, out: &Path) -> Result<u64> {
    check_apart(out, [safetensors])?;
    let map = map_file(safetensors)?;
    let file: &[u8] = &map;
    let cuts = cut(file, &safetensors.display().to_string())?;
    let mut written = HEAD_BYTES;
    write_beside(out, |out| {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&(file.len() as u64).to_le_bytes())?;
        out.write_all(blake3::Hasher::new().update_rayon(file).finalize().as_bytes())?;
        for cuts in cuts.chunks(at_once()) {
            let coded: Vec<_> = cuts.par_iter().map(|(range, ways)| code(&file[range.clone()], ways)).collect::<Result<_>>()?;
            for record in &coded {
                out.write_all(record)?;
                written += record.len();
            }
        }
        Ok(())
    })?;
    Ok(written as u64)
}

fn at_once() -> usize {
    PIECES_AT_ONCE * rayon::current_num_threads()
}

/// A piece as it stands in the file, its record first.
fn code(raw: &[u8], ways: &[Coding]) -> Result<Vec<u8>> {
    let (coding, mut coded) = encode(raw, ways, FAST)?;
    coded.resize(coded.len().max(raw.len().div_ceil(MOST_RATIO)), 0);
    let (kind, parameter, row_bytes) = coding.numbers();
    let mut record = vec![kind, parameter];
    [row_bytes, raw.len() as u32, coded.len() as u32].iter().for_each(|number| record.extend(number.to_le_bytes()));
    record.extend(start_of_hash(raw));
    record.extend(coded);
    Ok(record)
}

fn start_of_hash(raw: &[u8]) -> [u8; HASH_BYTES] {
    *blake3::hash(raw).as_bytes().first_chunk().expect("a hash is longer")
}

/// Where a file is cut, with the codings to try: its header, then tensors; neighbours of one type are one, words are not, because
/// their rows differ.
fn cut(file: &[u8], origin: &str) -> Result<Vec<(Range<usize>, Vec<Coding>)>> {
    let contents = header::read(file, origin)?;
    let mut cuts = pieces(0..contents.data, vec![Coding::Bytes], 1);
    let entries: Vec<Entry> = contents.entries.into_iter().filter(|entry| !entry.bytes.is_empty()).collect();
    for run in entries.chunk_by(|left, right| left.element == right.element && left.element != Element::Known(Dtype::I32)) {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let range = contents.data + first.bytes.start..contents.data + last.bytes.end;
        let (ways, whole) = match &first.element {
            Element::Known(dtype) => match (dtype, dtype.bytes()) {
                (Dtype::F32 | Dtype::F16 | Dtype::Bf16, width) => {
                    (vec![Coding::Planes(width as u8), Coding::Distinct(width as u8)], width)
                }
                (Dtype::F64 | Dtype::I64 | Dtype::I8, width) => (vec![Coding::Bytes], width),
                (Dtype::I32, _) => words(&file[range.clone()], &first.shape),
            },
            Element::Other(_) => (vec![Coding::Bytes], 1),
        };
        cuts.extend(pieces(range, ways, whole));
    }
    Ok(cuts)
}

/// Ways for packed integers, which some numbers of bits leave across bytes, and what a piece is to be whole in.
fn words(bytes: &[u8], shape: &[usize]) -> (Vec<Coding>, usize) {
    let row_bytes = shape.last().map_or(1, |words| words * Dtype::I32.bytes());
    match likely_bits(bytes, row_bytes) {
        bits if bits < 8 && row_bytes <= PIECE_BYTES => {
            (vec![Coding::Bytes, Coding::Integers { bits, row_bytes: row_bytes as u32 }], row_bytes)
        }
        _ => (vec![Coding::Bytes], 1),
    }
}

/// Cuts a range into pieces that are multiples of `whole` bytes.
fn pieces(range: Range<usize>, ways: Vec<Coding>, whole: usize) -> Vec<(Range<usize>, Vec<Coding>)> {
    let most = PIECE_BYTES / whole * whole;
    range.clone().step_by(most).map(|start| (start..range.end.min(start + most), ways.clone())).collect()
}

impl EntropyFile {
    /// Opens the file at `path` and checks every length in it.
    ///
    /// # Errors
    /// [`Error::Io`] where it can't be read, [`Error::Malformed`] with the place where it contradicts itself, [`Error::Unsupported`]
    /// for another version.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedBytes::from(map_file(path)?);
        let malformed = |what: String| Error::malformed(path, what);
        let unreadable = |what: String| Error::unreadable(path, &file, what);
        let Some((head, _)) = file.split_first_chunk::<HEAD_BYTES>() else {
            return Err(unreadable(format!("is cut short: its {} bytes are less than a head", file.len())));
        };
        let (magic, head) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(unreadable("is no entropy-coded file".to_owned()));
        }
        let version = u32_at(head, 0);
        if version != VERSION {
            return Err(Error::unsupported(path, format!("has version {version}, this program reads {VERSION}")));
        }
        let bytes = u64::from_le_bytes(*head[4..].first_chunk().expect("inside the head"));
        let blake3 = blake3::Hash::from_bytes(*head[12..].first_chunk().expect("inside the head"));

        let (mut pieces, mut at, mut restored) = (Vec::new(), HEAD_BYTES, 0);
        while at < file.len() {
            let number = pieces.len();
            let wrong = |what: String| malformed(format!("piece {number} at byte {at} {what}"));
            let Some(record) = file[at..].first_chunk::<RECORD_BYTES>() else { return Err(wrong("is cut short".to_owned())) };
            let [row_bytes, raw, coded] = [2, 6, 10].map(|offset| u32_at(record, offset) as usize);
            let start = at + RECORD_BYTES;
            if file.len() - start < coded {
                return Err(wrong("is cut short".to_owned()));
            }
            if raw == 0 || raw > PIECE_BYTES || raw.div_ceil(MOST_RATIO) > coded {
                return Err(wrong(format!("is said to hold {raw} bytes in {coded}, which is impossible")));
            }
            let numbers = (record[0], record[1], row_bytes as u32);
            let coding = Coding::of(numbers, raw).ok_or_else(|| wrong(format!("has the unknown coding {numbers:?}")))?;
            let hash = *record[14..].first_chunk().expect("inside the record");
            pieces.push(Piece { coding, coded: start..start + coded, raw: restored..restored + raw, hash });
            (at, restored) = (start + coded, restored + raw);
        }
        if bytes != restored as u64 {
            return Err(malformed(format!("is cut short or damaged: its pieces hold {restored} bytes, its head says {bytes}")));
        }
        Ok(Self { path: path.to_owned(), file, bytes: restored, blake3, pieces })
    }

    /// Bytes of the file that comes back.
    pub fn restored_bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// BLAKE3 of the file that comes back, 64 hexadecimal digits.
    pub fn restored_blake3(&self) -> String {
        self.blake3.to_hex().to_string()
    }

    /// Bytes of the coded file.
    pub(crate) fn coded_bytes(&self) -> u64 {
        self.file.len() as u64
    }

    /// The file that was coded, in memory.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the place where a piece, or the whole, is not what was coded.
    pub fn restore(&self) -> Result<Arc<[u8]>> {
        // Lengths were held to the file's own by `open`.
        let mut restored: Arc<[u8]> = std::iter::repeat_n(0, self.bytes).collect();
        let mut rest = Arc::get_mut(&mut restored).expect("nobody else has it yet");
        let mut parts = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let (part, after) = rest.split_at_mut(piece.raw.len());
            parts.push((piece, part));
            rest = after;
        }
        parts.into_par_iter().enumerate().try_for_each(|(number, (piece, part))| self.decode(number, piece, part))?;
        let found = blake3::Hasher::new().update_rayon(&restored).finalize();
        self.check(found)?;
        self.file.release();
        Ok(restored)
    }

    /// Writes the file that was coded to `path`, a few pieces at a time; nothing is written where one is damaged.
    ///
    /// # Errors
    /// As [`Self::restore`] and [`write_beside`]; [`Error::Refused`] where `path` is this file.
    pub fn write(&self, path: &Path) -> Result<()> {
        check_apart(path, [self.path.as_path()])?;
        write_beside(path, |out| {
            let mut hasher = blake3::Hasher::new();
            for (batch, pieces) in self.pieces.chunks(at_once()).enumerate() {
                let first = batch * at_once();
                let decoded = |(number, piece): (usize, &Piece)| {
                    let mut raw = vec![0; piece.raw.len()];
                    self.decode(first + number, piece, &mut raw).map(|()| raw)
                };
                for raw in pieces.par_iter().enumerate().map(decoded).collect::<Result<Vec<_>>>()? {
                    hasher.update(&raw);
                    out.write_all(&raw)?;
                }
            }
            self.check(hasher.finalize())
        })
    }

    fn decode(&self, number: usize, piece: &Piece, raw: &mut [u8]) -> Result<()> {
        let wrong = |what: String| {
            let Range { start, end } = piece.coded;
            Error::malformed(&self.path, format!("piece {number} at bytes {start}..{end} {what}"))
        };
        piece.coding.decode(&self.file[piece.coded.clone()], raw).map_err(wrong)?;
        match start_of_hash(raw) == piece.hash {
            true => Ok(()),
            false => Err(wrong("is damaged (its BLAKE3 is another)".to_owned())),
        }
    }

    fn check(&self, found: blake3::Hash) -> Result<()> {
        match found == self.blake3 {
            true => Ok(()),
            false => {
                let what = format!("is damaged: the BLAKE3 of what it holds is {found}, its head says {}", self.blake3);
                Err(Error::malformed(&self.path, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;
    use crate::coded::tests::skewed;
    use crate::damage::Damage;
    use crate::{NewTensor, TensorFiles, pack, write_safetensors};

    type Tensor = (Dtype, Vec<usize>, Vec<u8>);

    /// One tensor for each way to code.
    fn tensors() -> Vec<(&'static str, Tensor)> {
        let packed = |rows: usize, columns: usize, bits: u8| {
            let below = 1 << (bits - 1);
            let bytes: Vec<u8> = skewed(rows * columns, below).chunks(columns).flat_map(|row| pack(row, bits)).collect();
            (Dtype::I32, vec![rows, bytes.len() / rows / 4], bytes)
        };
        let floats: Vec<f32> =
            skewed(3000, 100).iter().zip(1..).map(|(value, at)| f32::from(*value) + at as f32 / 4096.0).collect();
        let scales: Vec<f32> = skewed(3000, 60).iter().map(|value| 0.013 * f32::from(*value)).collect();
        let of_f32 = |values: &[f32], dtype: Dtype| (dtype, vec![values.len()], dtype.from_f32(values).unwrap());
        let signed: Vec<u8> = skewed(600_000 * 2, 90).into_iter().map(|value| value as u8).collect();
        vec![
            ("four", packed(300, 100, 4)),
            ("three", packed(300, 100, 3)),
            ("floats", of_f32(&floats, Dtype::Bf16)),
            ("scales", of_f32(&scales, Dtype::F32)),
            ("signed", (Dtype::I8, vec![600_000, 2], signed)),
            ("shape", (Dtype::I64, vec![2], vec![3; 16])),
            ("noise", (Dtype::F16, vec![4], vec![1, 9, 77, 3, 200, 5, 8, 13])),
            ("empty", (Dtype::F32, vec![0, 4], vec![])),
        ]
    }

    fn write(folder: &Path, tensors: &[(&'static str, Tensor)]) -> (PathBuf, PathBuf) {
        let [file, coded] = ["model.safetensors", ENTROPY].map(|name| folder.join(name));
        let new = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            let bytes = Box::new(|| Cow::Borrowed(bytes.as_slice()));
            ((*name).to_owned(), NewTensor { dtype: *dtype, shape: shape.clone(), bytes })
        });
        write_safetensors(&file, new).unwrap();
        let bytes = write_entropy(&file, &coded).unwrap();
        assert_eq!(bytes, fs_err::metadata(&coded).unwrap().len());
        (file, coded)
    }

    #[test]
    fn every_kind_of_tensor_comes_back_bit_for_bit_and_smaller() {
        let folder = tempfile::tempdir().unwrap();
        let (file, coded) = write(folder.path(), &tensors());
        let whole = fs_err::read(&file).unwrap();
        let opened = EntropyFile::open(&coded).unwrap();
        assert_eq!(opened.restored_bytes(), whole.len() as u64);
        assert_eq!(opened.restored_blake3(), blake3::hash(&whole).to_hex().as_str());
        assert_eq!(opened.restore().unwrap()[..], whole);
        let again = folder.path().join("again");
        opened.write(&again).unwrap();
        assert_eq!(fs_err::read(again).unwrap(), whole);
        assert!(opened.coded_bytes() < whole.len() as u64 * 9 / 10, "{} of {}", opened.coded_bytes(), whole.len());

        let codings: Vec<Coding> = opened.pieces.iter().map(|piece| piece.coding).collect();
        let expected = [
            // Header, shape, scales, the words of "four" and "three", the floats of two bytes, and 1.2 MB of signed bytes.
            Coding::Bytes,
            Coding::Stored,
            Coding::Distinct(4),
            Coding::Bytes,
            Coding::Integers { bits: 6, row_bytes: 40 },
            Coding::Planes(2),
            Coding::Stored,
            Coding::Bytes,
            Coding::Bytes,
        ];
        for coding in expected {
            assert!(codings.contains(&coding), "{coding:?} is not among {codings:?}");
        }
        assert_eq!(codings.len(), expected.len(), "{codings:?}");
    }

    #[test]
    fn a_folder_without_decoded_weights_is_opened_from_coded_ones() {
        let folder = tempfile::tempdir().unwrap();
        let (file, coded) = write(folder.path(), &tensors());
        let decoded = TensorFiles::open(folder.path()).unwrap();
        assert_eq!(decoded.files(), std::slice::from_ref(&file));
        fs_err::remove_file(&file).unwrap();
        let opened = TensorFiles::open(folder.path()).unwrap();
        assert_eq!(opened.files(), std::slice::from_ref(&coded));
        assert_eq!(opened.bytes(), fs_err::metadata(&coded).unwrap().len());
        let tensors = |files: &TensorFiles| -> Vec<_> {
            files
                .iter()
                .map(|(name, tensor)| (name.to_owned(), tensor.dtype, tensor.shape.clone(), tensor.bytes.to_vec()))
                .collect()
        };
        assert_eq!(tensors(&opened), tensors(&decoded));

        fs_err::remove_file(&coded).unwrap();
        let expected = format!(
            "{}: holds none of model.safetensors, model.entropy and model.safetensors.index.json",
            folder.path().display()
        );
        assert_eq!(TensorFiles::open(folder.path()).unwrap_err().to_string(), expected);
    }

    #[test]
    fn zeros_are_filled_up_to_what_a_reader_believes() {
        let folder = tempfile::tempdir().unwrap();
        let (_, coded) = write(folder.path(), &[("zeros", (Dtype::I8, vec![1 << 20], vec![0; 1 << 20]))]);
        let bytes = fs_err::metadata(&coded).unwrap().len() as usize;
        assert!((1 << 20) / MOST_RATIO < bytes && bytes < (1 << 20) / MOST_RATIO + 500, "{bytes}");
        assert!(EntropyFile::open(&coded).unwrap().restore().is_ok());
    }

    fn small() -> Vec<(&'static str, Tensor)> {
        let few: Vec<u8> = skewed(64, 3).iter().flat_map(|value| (0.5 * f32::from(*value)).to_le_bytes()).collect();
        vec![("few", (Dtype::F32, vec![64], few)), ("bytes", (Dtype::I8, vec![64], vec![5; 64]))]
    }

    fn refused(path: &Path) -> String {
        let error = EntropyFile::open(path).and_then(|file| file.restore()).unwrap_err().to_string();
        error.strip_prefix(&format!("{}: ", path.display())).unwrap_or_else(|| panic!("{error}")).to_owned()
    }

    #[test]
    fn every_bit_of_a_file_can_flip_and_every_end_be_cut() {
        let folder = tempfile::tempdir().unwrap();
        let (file, coded) = write(folder.path(), &small());
        let (whole, safetensors) = (fs_err::read(&coded).unwrap(), fs_err::read(&file).unwrap());
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs_err::write(&coded, flipped).unwrap();
            match EntropyFile::open(&coded).and_then(|file| file.restore()) {
                Ok(restored) => assert_eq!(restored[..], safetensors, "bit {bit}"),
                Err(_) => assert!(!refused(&coded).is_empty()),
            }
        }
        for length in 0..whole.len() {
            fs_err::write(&coded, &whole[..length]).unwrap();
            assert!(!refused(&coded).is_empty(), "cut to {length}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (_, coded) = write(folder.path(), &small());
        let whole = fs_err::read(&coded).unwrap();
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            fs_err::write(&coded, bytes).unwrap();
            refused(&coded)
        };
        let first = HEAD_BYTES;
        assert_eq!(with(&|file| file.truncate(9)), "is cut short: its 9 bytes are less than a head");
        assert_eq!(with(&|file| file[0] = b'E'), "is no entropy-coded file");
        assert_eq!(with(&|file| file[8] = 2), "has version 2, this program reads 1");
        assert_eq!(with(&|file| file.truncate(first + 3)), "piece 0 at byte 52 is cut short");
        assert_eq!(with(&|file| file[first] = 9), "piece 0 at byte 52 has the unknown coding (9, 0, 0)");
        let (raw, packed) = (u32_at(&whole, first + 6), u32_at(&whole, first + 10));
        assert_eq!(
            with(&|file| file[first + 8] = 0x10),
            format!("piece 0 at byte 52 is said to hold {} bytes in {packed}, which is impossible", raw + (0x10 << 16))
        );
        assert_eq!(with(&|file| file[first + 13] = 0xff), "piece 0 at byte 52 is cut short");
        let end = first + RECORD_BYTES + packed as usize;
        assert_eq!(
            with(&|file| file[first + 14] ^= 1),
            format!("piece 0 at bytes {}..{end} is damaged (its BLAKE3 is another)", first + RECORD_BYTES)
        );
        let bytes = u64::from_le_bytes(*whole[12..].first_chunk().unwrap());
        assert_eq!(
            with(&|file| file[19] = 0x7f),
            format!("is cut short or damaged: its pieces hold {bytes} bytes, its head says {}", bytes + (0x7f << 56))
        );
        let hash = blake3::Hash::from_bytes(*whole[20..].first_chunk().unwrap());
        let text = with(&|file| file[20] ^= 0xff);
        assert!(text.starts_with(&format!("is damaged: the BLAKE3 of what it holds is {hash}, its head says ")), "{text}");
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_refused_by_its_path_or_restores_the_same(
            damage in Damage::any(1..4, 0.2),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (file, coded) = write(folder.path(), &small());
            damage.strike(&coded);
            match EntropyFile::open(&coded).and_then(|file| file.restore()) {
                Ok(restored) => prop_assert_eq!(&restored[..], &fs_err::read(file).unwrap()[..]),
                Err(_) => prop_assert!(!refused(&coded).is_empty()),
            }
        }

        #[test]
        fn any_bytes_are_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            has_head in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(ENTROPY);
            let head = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
            let bytes = if has_head { [head, bytes].concat() } else { bytes };
            fs_err::write(&path, bytes).unwrap();
            prop_assert!(!refused(&path).is_empty());
        }
    }
}

//! Pieces of bytes, made smaller without loss: rearranged so that bytes of one kind lie together, then coded by zstd.
//!
//! zstd finds few repetitions in weights; what it gains there is its Huffman codes. Layout: docs/artifact-format.md §10.

use std::collections::HashMap;
use std::io;

/// The most bytes of a piece before it is coded, so that whole files are never in memory twice.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// For weights: higher levels look longer for repetitions that are not there.
pub(crate) const FAST: i32 = 3;
/// For texts and differences of scales.
pub(crate) const THOROUGH: i32 = 19;

/// How a piece was rearranged before zstd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Nothing was done to it, not by zstd either.
    Stored,
    /// Not rearranged.
    Bytes,
    /// Elements of so many bytes: all first bytes, then all second ones, …
    Planes(u8),
    /// Elements of so many bytes, of which few differ: those, the most frequent first, and for each element which one it is.
    Distinct(u8),
    /// Packed integers of so many bits in rows of so many bytes: one in a byte.
    Integers { bits: u8, row_bytes: u32 },
}

/// Bytes of a frame's length.
const LENGTH_BYTES: usize = size_of::<u32>();
/// What two bytes can tell apart.
const MOST_DISTINCT: usize = 1 << 16;

impl Coding {
    /// As three numbers of a file.
    pub(crate) fn numbers(self) -> (u8, u8, u32) {
        match self {
            Self::Stored => (0, 0, 0),
            Self::Bytes => (1, 0, 0),
            Self::Planes(width) => (2, width, 0),
            Self::Distinct(width) => (3, width, 0),
            Self::Integers { bits, row_bytes } => (4, bits, row_bytes),
        }
    }

    /// The coding with these numbers; `None` where there is none, or it fits no piece of `raw` bytes.
    pub(crate) fn of(numbers: (u8, u8, u32), raw: usize) -> Option<Self> {
        let whole = |width: u8| matches!(width, 2 | 4 | 8) && raw.is_multiple_of(width.into());
        match numbers {
            (0, 0, 0) => Some(Self::Stored),
            (1, 0, 0) => Some(Self::Bytes),
            (2, width, 0) if whole(width) => Some(Self::Planes(width)),
            (3, width, 0) if whole(width) => Some(Self::Distinct(width)),
            (4, bits @ 1..=8, row_bytes) if row_bytes > 0 && raw.is_multiple_of(row_bytes as usize) => {
                Some(Self::Integers { bits, row_bytes })
            }
            _ => None,
        }
    }

    /// Codes a piece; `None` where it does not fit the coding.
    fn encode(self, raw: &[u8], level: i32) -> io::Result<Option<Vec<u8>>> {
        let mut coded = Vec::new();
        match self {
            Self::Stored => coded.extend_from_slice(raw),
            Self::Bytes => add_frame(&mut coded, raw, level)?,
            Self::Planes(width) => add_planes(&mut coded, raw, width.into(), level)?,
            Self::Distinct(width) => {
                let width = usize::from(width);
                let elements = || raw.chunks_exact(width);
                let mut counts: HashMap<&[u8], usize> = HashMap::new();
                elements().for_each(|element| *counts.entry(element).or_default() += 1);
                if counts.len() > MOST_DISTINCT {
                    return Ok(None);
                }
                let mut distinct: Vec<(&[u8], usize)> = counts.into_iter().collect();
                distinct.sort_by(|(left, left_count), (right, right_count)| (right_count, left).cmp(&(left_count, right)));
                let table: Vec<u8> = distinct.iter().flat_map(|(element, _)| *element).copied().collect();
                let places: HashMap<&[u8], u16> =
                    distinct.iter().zip(0..).map(|((element, _), place)| (*element, place)).collect();
                let places: Vec<u8> = elements().flat_map(|element| places[element].to_le_bytes()).collect();
                coded.extend((distinct.len() as u32).to_le_bytes());
                add_planes(&mut coded, &table, width, level)?;
                add_planes(&mut coded, &places, 2, level)?;
            }
            Self::Integers { bits, row_bytes } => {
                let rows = raw.chunks_exact(row_bytes as usize);
                let integers: Vec<u8> = rows.flat_map(|row| Unpacked { row, bits: bits.into(), at: 0 }).collect();
                add_frame(&mut coded, &integers, level)?;
            }
        }
        Ok(Some(coded))
    }

    /// Fills `raw` with what was coded; says what is wrong with bytes that are not what a piece of this length was coded as.
    pub(crate) fn decode(self, coded: &[u8], raw: &mut [u8]) -> Result<(), String> {
        let mut frames = Frames { rest: coded };
        match self {
            Self::Stored => {
                let (stored, rest) = coded.split_at_checked(raw.len()).ok_or_else(cut_short)?;
                raw.copy_from_slice(stored);
                frames.rest = rest;
            }
            Self::Bytes => frames.read(raw)?,
            Self::Planes(width) => frames.read_planes(raw, width.into())?,
            Self::Distinct(width) => {
                let width = usize::from(width);
                let elements = raw.len() / width;
                let count = frames.number()?;
                if count == 0 || count > elements.min(MOST_DISTINCT) {
                    return Err(format!("{count} distinct elements among {elements} are impossible"));
                }
                let mut table = vec![0; count * width];
                frames.read_planes(&mut table, width)?;
                let mut places = vec![0; elements * 2];
                frames.read_planes(&mut places, 2)?;
                for (element, place) in raw.chunks_exact_mut(width).zip(places.as_chunks().0) {
                    let place = usize::from(u16::from_le_bytes(*place));
                    let known = table.chunks_exact(width).nth(place);
                    element
                        .copy_from_slice(known.ok_or_else(|| format!("element {place} of {count} distinct ones is asked for"))?);
                }
            }
            Self::Integers { bits, row_bytes } => {
                let (bits, row_bytes) = (usize::from(bits), row_bytes as usize);
                let in_row = (row_bytes * 8).div_ceil(bits);
                let mut integers = vec![0; raw.len() / row_bytes * in_row];
                frames.read(&mut integers)?;
                raw.chunks_exact_mut(row_bytes)
                    .zip(integers.chunks_exact(in_row))
                    .for_each(|(row, integers)| pack(integers, bits, row));
            }
        }
        // The writer fills up what is smaller than a reader believes.
        match frames.rest.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(format!("{} bytes follow its end", frames.rest.len())),
        }
    }
}

/// Codes a piece in the way that makes it smallest.
pub(crate) fn encode(raw: &[u8], ways: &[Coding], level: i32) -> io::Result<(Coding, Vec<u8>)> {
    let mut best = (Coding::Stored, raw.to_vec());
    for way in ways.iter().filter(|way| Coding::of(way.numbers(), raw.len()) == Some(**way)) {
        if let Some(coded) = way.encode(raw, level)?.filter(|coded| coded.len() < best.1.len()) {
            best = (*way, coded);
        }
    }
    Ok(best)
}

/// The number of bits of which packed words seem to be made: that which leaves least to code.
pub(crate) fn likely_bits(words: &[u8], row_bytes: usize) -> u8 {
    /// Enough to count on.
    const SAMPLE_BYTES: usize = 1 << 18;
    let sample = &words[..words.len().min(SAMPLE_BYTES.next_multiple_of(row_bytes.max(1)))];
    let cost = |bits: u8| {
        let mut counts = [0u32; 256];
        for row in sample.chunks(row_bytes.max(1)) {
            Unpacked { row, bits: bits.into(), at: 0 }.for_each(|integer| counts[usize::from(integer)] += 1);
        }
        let total = f64::from(counts.iter().sum::<u32>());
        counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) * (total / f64::from(*count)).log2()).sum::<f64>()
    };
    // Where integers do not cross bytes, several in a byte are the better symbol, as two of three bits are.
    [8, 5, 6, 7].into_iter().min_by(|left, right| cost(*left).total_cmp(&cost(*right))).unwrap_or(8)
}

/// The integers of a row's little-endian bit stream; the last has the bits that are left.
struct Unpacked<'a> {
    row: &'a [u8],
    bits: usize,
    /// In bits.
    at: usize,
}

impl Iterator for Unpacked<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let low = *self.row.get(self.at / 8)?;
        let high = self.row.get(self.at / 8 + 1).copied().unwrap_or(0);
        let integer = u16::from_le_bytes([low, high]) >> (self.at % 8) & ((1 << self.bits) - 1);
        self.at += self.bits;
        Some(integer as u8)
    }
}

/// The inverse of [`Unpacked`]; bits that an integer has too many are dropped.
fn pack(integers: &[u8], bits: usize, row: &mut [u8]) {
    row.fill(0);
    for (index, integer) in integers.iter().enumerate() {
        let at = index * bits;
        let [low, high] = ((u16::from(*integer) & ((1 << bits) - 1)) << (at % 8)).to_le_bytes();
        row[at / 8] |= low;
        if let Some(byte) = row.get_mut(at / 8 + 1) {
            *byte |= high;
        }
    }
}

/// Appends a frame of zstd, its length first.
fn add_frame(coded: &mut Vec<u8>, raw: &[u8], level: i32) -> io::Result<()> {
    let frame = zstd::bulk::compress(raw, level)?;
    coded.extend((frame.len() as u32).to_le_bytes());
    coded.extend(frame);
    Ok(())
}

/// Appends a frame for each byte of the elements.
fn add_planes(coded: &mut Vec<u8>, raw: &[u8], width: usize, level: i32) -> io::Result<()> {
    (0..width).try_for_each(|byte| {
        let plane: Vec<u8> = raw.iter().skip(byte).step_by(width).copied().collect();
        add_frame(coded, &plane, level)
    })
}

/// A number of a head or a record, whose length the caller has made sure of.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*bytes[offset..].first_chunk().expect("inside a head or record of known length"))
}

/// Frames that are still to be read.
struct Frames<'a> {
    rest: &'a [u8],
}

fn cut_short() -> String {
    "is cut short".to_owned()
}

impl Frames<'_> {
    fn number(&mut self) -> Result<usize, String> {
        let (number, rest) = self.rest.split_first_chunk::<LENGTH_BYTES>().ok_or_else(cut_short)?;
        self.rest = rest;
        Ok(u32::from_le_bytes(*number) as usize)
    }

    fn read(&mut self, raw: &mut [u8]) -> Result<(), String> {
        let length = self.number()?;
        let (frame, rest) = self.rest.split_at_checked(length).ok_or_else(cut_short)?;
        self.rest = rest;
        let expected = raw.len();
        match zstd::bulk::decompress_to_buffer(frame, raw) {
            Ok(found) if found == expected => Ok(()),
            Ok(found) => Err(format!("holds {found} bytes where {expected} are needed")),
            Err(error) => Err(format!("is damaged ({error})")),
        }
    }

    fn read_planes(&mut self, raw: &mut [u8], width: usize) -> Result<(), String> {
        let mut plane = vec![0; raw.len() / width];
        (0..width).try_for_each(|byte| {
            self.read(&mut plane)?;
            raw.iter_mut().skip(byte).step_by(width).zip(&plane).for_each(|(to, from)| *to = *from);
            Ok(())
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// Numbers from 0 to below `below`, small more often than large, without an order.
    pub(crate) fn skewed(count: usize, below: u32) -> Vec<i8> {
        let mut state = 9u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 20
        };
        (0..count).map(|_| ((next() % 256) * (next() % 256) / 256 * below / 256) as i8).collect()
    }

    fn codings(raw: usize) -> Vec<Coding> {
        let planes = [2, 4, 8].into_iter().flat_map(|width| [Coding::Planes(width), Coding::Distinct(width)]);
        let integers = (1..=8).flat_map(|bits| [4, 12].map(|row_bytes| Coding::Integers { bits, row_bytes }));
        let all = [Coding::Stored, Coding::Bytes].into_iter().chain(planes).chain(integers);
        all.filter(|coding| Coding::of(coding.numbers(), raw).is_some()).collect()
    }

    #[test]
    fn words_are_unpacked_as_they_are_packed() {
        for bits in 2..=8u8 {
            let smallest = -(1i16 << (bits - 1));
            let row: Vec<i8> = (0..40).map(|index| (smallest + (index * 5) % (1 << bits)) as i8).collect();
            let packed = crate::pack(&row, bits);
            let unpacked: Vec<i16> = Unpacked { row: &packed, bits: bits.into(), at: 0 }.map(i16::from).collect();
            let expected: Vec<i16> = row.iter().map(|integer| i16::from(*integer) - smallest).collect();
            assert_eq!(unpacked[..40], expected, "{bits} bits");
        }
    }

    #[test]
    fn bits_that_cross_bytes_are_found_in_the_words() {
        for (bits, expected) in [(2, 8), (3, 6), (4, 8), (5, 5), (6, 6), (7, 7), (8, 8)] {
            let packed: Vec<u8> = skewed(100_000, 1 << (bits - 1)).chunks(100).flat_map(|row| crate::pack(row, bits)).collect();
            assert_eq!(likely_bits(&packed, packed.len() / 1000), expected, "{bits} bits");
        }
    }

    #[test]
    fn elements_of_which_few_differ_take_the_bytes_of_their_numbers() {
        let [a, b] = [1.5f32, -0.3].map(f32::to_le_bytes);
        let raw: Vec<u8> = skewed(4096, 8).into_iter().flat_map(|value| if value == 0 { a } else { b }).collect();
        let (coding, coded) = encode(&raw, &[Coding::Planes(4), Coding::Distinct(4)], FAST).unwrap();
        assert_eq!(coding, Coding::Distinct(4));
        assert_eq!(coded[..4], 2u32.to_le_bytes());
        let mut table = [0; 8];
        Frames { rest: &coded[4..] }.read_planes(&mut table, 4).unwrap();
        assert_eq!(table, [b, a].concat()[..], "the more frequent first");
    }

    #[test]
    fn what_a_piece_can_not_be_is_refused() {
        let refused = |coding: Coding, coded: &[u8]| coding.decode(coded, &mut [0; 8]).unwrap_err();
        assert_eq!(refused(Coding::Stored, &[7; 7]), "is cut short");
        assert_eq!(refused(Coding::Stored, &[7; 9]), "1 bytes follow its end");
        assert_eq!(refused(Coding::Bytes, &[9, 0, 0, 0, 1]), "is cut short");
        assert!(refused(Coding::Bytes, &[1, 0, 0, 0, 1]).starts_with("is damaged ("));
        let short = Coding::Bytes.encode(&[7; 5], FAST).unwrap().unwrap();
        assert_eq!(refused(Coding::Bytes, &short), "holds 5 bytes where 8 are needed");
        let many = 5u32.to_le_bytes();
        assert_eq!(refused(Coding::Distinct(2), &many), "5 distinct elements among 4 are impossible");
        let mut one = 1u32.to_le_bytes().to_vec();
        add_planes(&mut one, &[3, 4], 2, FAST).unwrap();
        add_planes(&mut one, &[0, 0, 1, 0, 0, 0, 0, 0], 2, FAST).unwrap();
        assert_eq!(refused(Coding::Distinct(2), &one), "element 1 of 1 distinct ones is asked for");
    }

    proptest! {
        #[test]
        fn every_coding_gives_back_what_it_was_given(
            raw in prop::collection::vec(prop_oneof![Just(0u8), Just(7), any::<u8>()], 1..400),
            repeats in 1usize..20,
            garbage in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let raw = raw.repeat(repeats);
            for coding in codings(raw.len()) {
                let coded = coding.encode(&raw, FAST).unwrap().unwrap();
                let mut decoded = vec![0xff; raw.len()];
                prop_assert_eq!(coding.decode(&[&coded[..], &[0; 3]].concat(), &mut decoded), Ok(()));
                prop_assert_eq!(&decoded, &raw, "{:?}", coding);
                // Anything is decoded or refused.
                let _ = coding.decode(&garbage, &mut decoded);
            }
            let (coding, coded) = encode(&raw, &codings(raw.len()), FAST).unwrap();
            prop_assert!(coded.len() <= raw.len());
            let mut decoded = vec![0xff; raw.len()];
            prop_assert_eq!(coding.decode(&coded, &mut decoded), Ok(()));
            prop_assert_eq!(&decoded, &raw);
        }
    }
}

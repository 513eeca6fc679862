//! Models in several files, as `llama-gguf-split` makes them: `NAME-00001-of-00003.gguf` and so on, side by side.
//!
//! The first part holds the metadata and is the one that is named; the others hold tensors.

use std::path::{Path, PathBuf};

use super::GgufFile;
use crate::{Error, Result, map_file};

/// llama.cpp counts parts in sixteen bits.
const MOST_PARTS: u64 = u16::MAX as u64;
/// How many missing parts are named.
const NAMED: usize = 4;

/// Which part of a split model a file is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    /// From 0.
    number: u64,
    count: u64,
}

impl GgufFile {
    /// The file with the tensors of its other parts, where it is the first of several.
    pub(super) fn with_other_parts(mut self) -> Result<Self> {
        let Some(part) = self.part()? else { return Ok(self) };
        let Some(paths) = part.all(&self.path) else {
            let ending = part.ending();
            return Err(self.unsupported(format!(
                "is {part} of a split model, and its name does not end in {ending}, by which the other parts would be found"
            )));
        };
        if part.number > 0 {
            let first = name(&paths[0]);
            return Err(self.unsupported(format!("is {part} of a split model: name the first one, {first}, which opens all")));
        }
        let missing: Vec<String> = paths.iter().filter(|path| !path.is_file()).map(|path| name(path)).collect();
        if !missing.is_empty() {
            let named = missing[..missing.len().min(NAMED)].join(", ");
            let more = if missing.len() > NAMED { format!(" and {} more", missing.len() - NAMED) } else { String::new() };
            return Err(self.malformed(format!("is {part} of a split model, and these are not beside it: {named}{more}")));
        }
        for (number, path) in (1..).zip(&paths[1..]) {
            let other = Self::read(path, &map_file(path)?.into())?;
            self.add(other, Part { number, ..part })?;
        }
        let found = self.tensors.len() as u64;
        if let Some(expected) = self.unsigned("split.tensors.count")?.filter(|&expected| expected != found) {
            return Err(self.malformed(format!("`split.tensors.count` is {expected}, and the {} parts have {found}", part.count)));
        }
        self.files = paths;
        Ok(self)
    }

    /// Which part it is; `None` where the file is whole.
    fn part(&self) -> Result<Option<Part>> {
        let number = self.unsigned("split.no")?.unwrap_or(0);
        let count = self.unsigned("split.count")?.unwrap_or(0);
        match count {
            0 | 1 if number == 0 => Ok(None),
            _ if number >= count => {
                Err(self.malformed(format!("`split.no` is {number}, counted from 0, and `split.count` is {count}")))
            }
            _ if count > MOST_PARTS => {
                Err(self.malformed(format!("`split.count` is {count}, at most {MOST_PARTS} are possible")))
            }
            _ => Ok(Some(Part { number, count })),
        }
    }

    /// Takes over the tensors of `other`, which lies where `expected` does.
    fn add(&mut self, other: Self, expected: Part) -> Result<()> {
        match other.part()? {
            Some(found) if found == expected => {}
            Some(found) => return Err(other.malformed(format!("is {found} of a split model, expected {expected}"))),
            None => return Err(other.malformed(format!("is no part of a split model, expected {expected}"))),
        }
        let own = |key: &str| key.starts_with("split.") || key == "general.alignment";
        let mut keys = other.metadata.iter().filter(|(key, _)| !own(key));
        if let Some((key, _)) = keys.find(|(key, value)| self.metadata.get(*key) != Some(value)) {
            return Err(other.malformed(format!("`{key}` is not as in the first part, so it belongs to another model")));
        }
        for (name, tensor) in other.tensors {
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(Error::malformed(&other.path, format!("the tensor `{name}` stands in another part too")));
            }
        }
        Ok(())
    }
}

impl Part {
    /// What the name of its file ends with.
    fn ending(self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.number + 1, self.count)
    }

    /// Every part's file, by the path of this one; `None` where its name does not say which part it is.
    fn all(self, path: &Path) -> Option<Vec<PathBuf>> {
        let stem = path.file_name()?.to_str()?.strip_suffix(&self.ending())?;
        Some((0..self.count).map(|number| path.with_file_name(format!("{stem}{}", Self { number, ..self }.ending()))).collect())
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "part {} of {}", self.number + 1, self.count)
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().display().to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tempfile::TempDir;

    use super::super::sample::Sample;
    use super::*;

    fn part(number: u16, count: u16) -> Sample {
        let sample = Sample::default().value("split.no", 2, &number.to_le_bytes()).value("split.count", 2, &count.to_le_bytes());
        sample.value("split.tensors.count", 5, &3i32.to_le_bytes())
    }

    /// A model of three tensors in as many parts.
    fn parts() -> [Sample; 3] {
        let first = part(0, 3).text("general.architecture", "llama").text("general.name", "a").counting("a", &[2]);
        [first, part(1, 3).counting("b", &[3]), part(2, 3).text("general.architecture", "llama").counting("c", &[4])]
    }

    fn written(parts: &[Sample]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (number, part) in (1..).zip(parts) {
            fs_err::write(folder.path().join(format!("m-{number:05}-of-00003.gguf")), part.bytes()).unwrap();
        }
        folder
    }

    /// What opening a part is refused with, without the folder.
    fn refused(folder: &TempDir, name: &str) -> String {
        let path = folder.path().display().to_string() + "/";
        GgufFile::open(folder.path().join(name)).unwrap_err().to_string().replace(&path, "")
    }

    #[test]
    fn the_first_part_opens_all() {
        let folder = written(&parts());
        let file = GgufFile::open(folder.path().join("m-00001-of-00003.gguf")).unwrap();
        assert_eq!(file.tensors().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(file.tensor_f32("c").unwrap(), [0.0, 1.0, 2.0, 3.0]);
        let names: Vec<String> = file.files().iter().map(|path| name(path)).collect();
        assert_eq!(names, ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]);
        assert_eq!(file.files()[0], file.path());
        assert_eq!(
            refused(&folder, "m-00003-of-00003.gguf"),
            "m-00003-of-00003.gguf: is part 3 of 3 of a split model: name the first one, m-00001-of-00003.gguf, which opens all"
        );
    }

    #[test]
    fn a_folder_of_parts_names_the_first() {
        let folder = written(&parts());
        let refused = crate::Model::open(folder.path()).unwrap_err().to_string();
        let expected = "holds no config.json, but GGUF files: name one of them, such as m-00001-of-00003.gguf";
        assert_eq!(refused, format!("{}: {expected}", folder.path().display()));
    }

    #[test]
    fn a_split_of_one_part_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any name");
        fs_err::write(&path, part(0, 1).counting("a", &[2]).bytes()).unwrap();
        assert_eq!(GgufFile::open(&path).unwrap().files(), [path]);
    }

    #[test]
    fn parts_that_are_not_there_are_named() {
        let folder = written(&parts()[..1]);
        assert_eq!(
            refused(&folder, "m-00001-of-00003.gguf"),
            "m-00001-of-00003.gguf: is part 1 of 3 of a split model, and these are not beside it: m-00002-of-00003.gguf, \
             m-00003-of-00003.gguf"
        );
        fs_err::rename(folder.path().join("m-00001-of-00003.gguf"), folder.path().join("m.gguf")).unwrap();
        assert_eq!(
            refused(&folder, "m.gguf"),
            "m.gguf: is part 1 of 3 of a split model, and its name does not end in -00001-of-00003.gguf, by which the other parts \
             would be found"
        );
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let with = |place: usize, part: Sample| {
            let mut parts = parts();
            parts[place] = part;
            refused(&written(&parts), "m-00001-of-00003.gguf")
        };
        assert_eq!(
            with(1, part(2, 3).counting("b", &[3])),
            "m-00002-of-00003.gguf: is part 3 of 3 of a split model, expected part 2 of 3"
        );
        assert_eq!(
            with(1, part(1, 4).counting("b", &[3])),
            "m-00002-of-00003.gguf: is part 2 of 4 of a split model, expected part 2 of 3"
        );
        assert_eq!(
            with(1, Sample::default().counting("b", &[3])),
            "m-00002-of-00003.gguf: is no part of a split model, expected part 2 of 3"
        );
        assert_eq!(with(2, part(2, 3).counting("a", &[3])), "m-00003-of-00003.gguf: the tensor `a` stands in another part too");
        assert_eq!(
            with(2, part(2, 3).text("general.architecture", "qwen2").counting("c", &[3])),
            "m-00003-of-00003.gguf: `general.architecture` is not as in the first part, so it belongs to another model"
        );
        assert_eq!(
            with(2, part(2, 3).counting("c", &[3]).counting("d", &[3])),
            "m-00001-of-00003.gguf: `split.tensors.count` is 3, and the 3 parts have 4"
        );
        assert_eq!(
            with(0, part(3, 3).counting("a", &[3])),
            "m-00001-of-00003.gguf: `split.no` is 3, counted from 0, and `split.count` is 3"
        );
    }
}

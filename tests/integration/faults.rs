//! A command that is killed at any of its operations on files, or is told that one failed, is finished by the same command: with the same
//! bytes, with nothing left beside them, and without training again what was trained.
//!
//! `COMPRESSOR_FAULTS=all` tries every operation in every way. Otherwise each twentieth is tried in one way, and
//! `COMPRESSOR_FAULT_SEED`, any text, says which these are. `COMPRESSOR_FAULT_KIND` is the name of the only command to try.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use compressor_format::StepLosses;
use serde_json::Value;

use crate::command::{Ran, root};

/// A command, after others that are left alone.
struct Kind {
    name: &'static str,
    /// Operations that it has at least: fewer can't be all.
    at_least: usize,
    before: &'static [&'static str],
    command: &'static str,
    /// What comes after it and has to succeed, where it is another one.
    then: Option<&'static str>,
}

const fn kind(name: &'static str, at_least: usize, before: &'static [&'static str], command: &'static str) -> Kind {
    Kind { name, at_least, before, command, then: None }
}

impl Kind {
    const fn then(self, command: &'static str) -> Self {
        Self { then: Some(command), ..self }
    }
}

const KINDS: [Kind; 29] = [
    kind("run", 450, &[], "run chain.toml"),
    kind("run, distilled anew", 350, &["run chain.toml"], "run chain.toml --set stage.2.distill.steps=3"),
    kind("run, quantized anew", 200, &["run chain.toml"], "run chain.toml --set stage.4.quantize.bits=3"),
    kind("run, set back", 200, &["run chain.toml"], "run chain.toml --set stage.4.quantize.bits=3").then("run chain.toml"),
    kind("run, finished", 40, &["run chain.toml"], "run chain.toml"),
    kind("run, quantization-aware", 200, &[], "run aware.toml"),
    kind("run, to a size", 150, &[], "run size.toml"),
    kind("run, to another size", 90, &["run size.toml"], "run size.toml --set stage.1.quantize.target_bytes=18500"),
    kind("train", 80, &[], "train model out TRAINING"),
    kind("train --force", 80, &["train model out TRAINING"], "train model out TRAINING --force --seed 9"),
    kind("distill", 80, &[], "distill model out --student-layers 1 TRAINING"),
    kind("distill --force", 80, &["quantize model out --bits 8"], "distill model out TRAINING --force"),
    kind("prune", 80, &[], "prune model out --head-ratio 0.5 --text train.txt"),
    kind("prune --force", 80, &["prune model out --layers 0"], "prune model out --layers 1 --force"),
    kind("quantize", 80, &[], "quantize model out --bits 4 --group-size 16"),
    kind("quantize, calibrated", 80, &[], "quantize model out --bits 4 --group-size 16 CALIBRATION"),
    kind("quantize, changed", 80, &[], "quantize model out --bits 4").then("quantize model out --bits 8 --force"),
    kind("quantize --force", 80, &["quantize model out --bits 4"], "quantize model out --bits 8 --storage entropy --force"),
    kind("import", 40, &[], "import model out"),
    kind("import --force", 40, &["import model out"], "import model out --dtype bf16 --force"),
    kind("import, GGUF", 40, &["export int8 model.gguf"], "import model.gguf out"),
    kind("export", 5, &[], "export int8 model.gguf"),
    kind("export over a file", 5, &["export int8 model.gguf"], "export int4 model.gguf"),
    kind("delta", 5, &[], "delta int8 int4 update"),
    kind("delta over a file", 5, &["delta int4 int8 update"], "delta int8 int4 update"),
    kind("apply", 15, &["delta int8 int4 update"], "apply int8 update out"),
    kind("apply --force", 20, &["delta int8 int4 update", "import model out"], "apply int8 update out --force"),
    kind("generate", 8, &[], "generate model -p lamp CACHED"),
    kind("generate more", 8, &["generate model -p lamp CACHED"], "generate model -p lamps CACHED"),
];

/// Words of a command that stand for several.
const SHORT: [(&str, &str); 3] = [
    ("TRAINING", "--steps 2 --batch-size 2 --sequence-length 32 --text train.txt"),
    ("CACHED", "-n 2 --prompt-cache cache"),
    ("CALIBRATION", "--method gptq --calibration-tokens 64 --text train.txt"),
];

const RECIPES: [(&str, &str); 3] = [
    ("chain.toml", include_str!("../faults/chain.toml")),
    ("aware.toml", include_str!("../faults/aware.toml")),
    ("size.toml", include_str!("../faults/size.toml")),
];

const DATASET: &str = r#"[text]
train = "train.txt"
valid = "valid.txt"
test = "test.txt"
"#;

/// Ways of disturbing an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// The program is killed before it.
    Kill,
    /// The program is killed when half of the bytes are written.
    Torn,
    /// The call fails: the disk is full.
    NoRoom,
    /// The call fails: the disk is broken.
    Broken,
}

impl Mode {
    /// What can happen to an operation.
    fn of(operation: &str) -> &'static [Self] {
        match operation {
            "write" => &[Self::Kill, Self::Torn, Self::NoRoom, Self::Broken],
            "unlink" | "rmdir" => &[Self::Kill, Self::Broken],
            _ => &[Self::Kill, Self::NoRoom, Self::Broken],
        }
    }

    /// Its name in `inject.c`.
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Torn => "torn",
            Self::NoRoom => "ENOSPC",
            Self::Broken => "EIO",
        }
    }
}

/// One line of the log of `inject.c`; paths are below the folder and begin with a slash.
#[derive(Clone, Debug)]
struct Operation {
    what: String,
    path: String,
    /// Where it is renamed to.
    to: String,
}

impl Operation {
    fn read(line: &str) -> Self {
        let mut columns = line.split('\t').skip(1).map(str::to_owned);
        let mut next = || columns.next().unwrap_or_default();
        Self { what: next(), path: next(), to: next() }
    }
}

/// The operation that is disturbed, counted from 1, and how.
#[derive(Clone, Copy, Debug)]
struct Point {
    at: usize,
    mode: Mode,
}

/// Runs the program with the library before it.
struct Injector {
    library: PathBuf,
    /// With a folder for the library and one for each run's log.
    folder: tempfile::TempDir,
    runs: AtomicUsize,
}

impl Injector {
    fn new() -> Self {
        let folder = scratch();
        let library = folder.path().join("inject.so");
        let source = root().join("tests/faults/inject.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(compiler.status().unwrap().success(), "the library compiles");
        Self { library, folder, runs: AtomicUsize::new(0) }
    }

    /// What the command left, with its operations.
    fn run(&self, folder: &Path, command: &str, point: Option<Point>) -> (Ran, Vec<Operation>) {
        let command = SHORT.iter().fold(command.to_owned(), |command, (short, long)| command.replace(short, long));
        let log = self.folder.path().join(self.runs.fetch_add(1, Ordering::Relaxed).to_string());
        let mut program = Command::new(env!("CARGO_BIN_EXE_compressor"));
        program.args(command.split_whitespace()).args(["--threads", "1"]).current_dir(folder);
        program.env_remove("RUST_BACKTRACE").env_remove("RUST_LOG");
        program.env("LD_PRELOAD", &self.library).env("FAULT_LOG", &log).env("FAULT_FOLDER", folder.canonicalize().unwrap());
        if let Some(point) = point {
            program.env("FAULT_AT", point.at.to_string()).env("FAULT_MODE", point.mode.name());
        }
        let ran = Ran(program.output().unwrap());
        let operations = fs_err::read_to_string(&log).unwrap().lines().map(Operation::read).collect();
        fs_err::remove_file(log).unwrap();
        (ran, operations)
    }
}

/// Everything in a folder: the bytes of files, `None` for folders.
type Tree = BTreeMap<String, Option<Vec<u8>>>;

fn tree(folder: &Path) -> Tree {
    let mut found = Tree::new();
    collect(folder, "", &mut found);
    found
}

fn collect(folder: &Path, name: &str, to: &mut Tree) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
        let kind = entry.file_type().unwrap();
        assert!(kind.is_dir() || kind.is_file(), "{name}");
        to.insert(name.clone(), kind.is_file().then(|| fs_err::read(entry.path()).unwrap()));
        if kind.is_dir() {
            collect(&entry.path(), &name, to);
        }
    }
}

/// An empty folder, in memory where there is such a file system: nothing here has to reach a disk.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Makes a folder with what a tree holds.
fn plant(tree: &Tree) -> tempfile::TempDir {
    let folder = scratch();
    for (name, bytes) in tree {
        let path = folder.path().join(&name[1..]);
        match bytes {
            Some(bytes) => fs_err::write(path, bytes).unwrap(),
            None => fs_err::create_dir(path).unwrap(),
        }
    }
    folder
}

/// What differs between what is wanted and what is found.
fn differences(wanted: &Tree, found: &Tree) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, wanted) in wanted {
        match found.get(name) {
            None => differences.push(format!("{name} is missing")),
            Some(found) if found == wanted => {}
            Some(found) if without_measures(name, found).is_some_and(|found| Some(found) == without_measures(name, wanted)) => {}
            Some(_) => differences.push(format!("{name} differs")),
        }
    }
    differences.extend(found.keys().filter(|name| !wanted.contains_key(*name)).map(|name| format!("{name} is left over")));
    differences
}

/// Keys of JSON whose values are of the machine.
const MEASURED: [&str; 2] = ["seconds", "peak_memory_bytes"];
/// The checks whose values are.
const CHECKS: [&str; 4] = ["peak memory", "token time, p50", "token time, p95", "token time, p99"];

/// A file without what time and memory leave in it, where it is one of those in which they do.
fn without_measures(name: &str, bytes: &Option<Vec<u8>>) -> Option<String> {
    let text = std::str::from_utf8(bytes.as_ref()?).ok()?;
    match name.rsplit('/').next()? {
        "report.json" | "step.json" => Some(json_without_measures(serde_json::from_str(text).ok()?).to_string()),
        "report.html" => Some(page_without_measures(text)),
        "metrics.jsonl" => losses_without_measures(text),
        _ => None,
    }
}

fn json_without_measures(json: Value) -> Value {
    match json {
        Value::Object(mut object) => {
            let is_check = object.get("name").and_then(Value::as_str).is_some_and(|name| CHECKS.contains(&name));
            let left_out = if is_check { &["value", "interval"] } else { &MEASURED };
            object.retain(|key, _| !left_out.contains(&key.as_str()));
            Value::Object(object.into_iter().map(|(key, value)| (key, json_without_measures(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(json_without_measures).collect()),
        other => other,
    }
}

/// The later of two lines with the same step, which is what counts; `None` where a line is torn.
fn losses_without_measures(text: &str) -> Option<String> {
    let lines = text.lines().map(|line| serde_json::from_str::<StepLosses>(line).ok());
    let steps = lines.map(|losses| losses.map(|losses| (losses.step, StepLosses { seconds: 0.0, ..losses })));
    steps.collect::<Option<BTreeMap<_, _>>>().map(|steps| format!("{steps:?}"))
}

/// The page without the charts of speed, the last two columns of the table of steps, and the rows of the checks that are of the machine.
fn page_without_measures(page: &str) -> String {
    let mut left = String::new();
    for (index, part) in page.split("<figure>").enumerate() {
        let (figure, rest) = if index == 0 { ("", part) } else { part.split_once("</figure>").unwrap_or((part, "")) };
        if !figure.contains("<b>Tokens per second</b>") {
            left.push_str(figure);
        }
        left.push_str(rest);
    }
    let is_measured = |line: &str| CHECKS.iter().any(|check| line.contains(&format!(">{check}</th>")));
    let lines = left.lines().filter(|line| !is_measured(line)).map(|line| match line.starts_with("<tr><th scope=\"row\">") {
        true => line.rsplitn(3, "<td>").last().unwrap_or_default(),
        false => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What a command does undisturbed.
struct Reference {
    kind: &'static Kind,
    before: Tree,
    after: Tree,
    operations: Vec<Operation>,
    /// Losses that are written, each with the operation after which nothing writes them again.
    trained: Vec<(String, usize)>,
}

impl Reference {
    fn new(injector: &Injector, kind: &'static Kind, inputs: &Tree) -> Self {
        let folder = plant(inputs);
        for command in kind.before {
            injector.run(folder.path(), command, None).0.expect(0);
        }
        let before = tree(folder.path());
        let (ran, operations) = injector.run(folder.path(), kind.command, None);
        ran.expect(0);
        injector.run(folder.path(), kind.then.unwrap_or(kind.command), None).0.expect(0);
        assert!(operations.len() >= kind.at_least, "{}: there are only {} operations", kind.name, operations.len());
        let trained = if kind.then.is_none() { trained(&operations) } else { Vec::new() };
        Self { kind, before, after: tree(folder.path()), operations, trained }
    }

    /// The operations to try.
    fn points(&self, selection: &Selection) -> Vec<Point> {
        let of = |at: usize| Mode::of(&self.operations[at - 1].what).iter().map(move |&mode| Point { at, mode });
        match *selection {
            Selection::All => (1..=self.operations.len()).flat_map(of).collect(),
            Selection::Some(seed) => {
                let first = seed % EVERY.min(self.operations.len());
                let chosen = (first + 1..=self.operations.len()).step_by(EVERY).enumerate();
                let one = |(index, at): (usize, usize)| {
                    let modes: Vec<Point> = of(at).collect();
                    modes[(seed / EVERY + index) % modes.len()]
                };
                chosen.map(one).collect()
            }
        }
    }

    /// Disturbs the command and runs it again; what is wrong then.
    fn try_point(&self, injector: &Injector, point: Point) -> Vec<String> {
        let folder = plant(&self.before);
        let (disturbed, operations) = injector.run(folder.path(), self.kind.command, Some(point));
        let Some(hit) = operations.get(point.at - 1) else {
            return vec![format!("ended before its operation {}: {}", point.at, disturbed.stderr())];
        };
        let mut wrong = wrong_end(&disturbed, hit, point.mode);
        let (then, operations) = injector.run(folder.path(), self.kind.then.unwrap_or(self.kind.command), None);
        if then.code() != Some(0) {
            wrong.push(format!("what comes then ends with {:?}: {}", then.code(), then.stderr()));
        }
        let is_trained = |path: &str| self.trained.iter().any(|(losses, made)| losses == path && point.at > *made);
        if let Some(losses) = operations.iter().find(|operation| operation.what == "write" && is_trained(&operation.path)) {
            wrong.push(format!("trains again: {}", losses.path));
        }
        wrong.extend(differences(&self.after, &tree(folder.path())));
        let Operation { what, path, to } = hit;
        wrong.iter().map(|wrong| format!("{} {}, {what} {path} {to}: {wrong}", point.at, point.mode.name())).collect()
    }
}

/// Files of losses, each with the operation that records the model which was trained, counted from 1.
fn trained(operations: &[Operation]) -> Vec<(String, usize)> {
    let mut last = BTreeMap::new();
    for (index, operation) in operations.iter().enumerate() {
        if operation.what == "write" && operation.path.ends_with("/metrics.jsonl") {
            last.insert(operation.path.clone(), index);
        }
    }
    let made_after = |written: usize| {
        let mut after = operations.iter().enumerate().skip(written);
        let made = after.find(|(_, operation)| operation.what == "rename" && operation.to.ends_with("/made.json"));
        made.expect("what is trained is recorded").0 + 1
    };
    last.into_iter().map(|(path, written)| (path, made_after(written))).collect()
}

/// What is wrong with the way in which a disturbed command ended.
fn wrong_end(disturbed: &Ran, hit: &Operation, mode: Mode) -> Vec<String> {
    let said = disturbed.stderr();
    match (mode, disturbed.code()) {
        (Mode::Kill | Mode::Torn, None) if disturbed.0.status.signal() == Some(9) => Vec::new(),
        (Mode::Kill | Mode::Torn, _) => vec![format!("is not killed: {}, {said}", disturbed.0.status)],
        (Mode::NoRoom | Mode::Broken, Some(0)) if is_clean_up(hit) => Vec::new(),
        (Mode::NoRoom | Mode::Broken, Some(2)) if names(&said, hit) => Vec::new(),
        (Mode::NoRoom | Mode::Broken, _) => vec![format!("ends with {}: {said}", disturbed.0.status)],
    }
}

/// Operations without which a command has done what it should: the next one does what they were there for.
fn is_clean_up(hit: &Operation) -> bool {
    ["unlink", "rmdir", "sync folder"].contains(&hit.what.as_str())
}

/// Whether an error names what an operation was on, or a folder around it that was made or removed as a whole.
fn names(said: &str, hit: &Operation) -> bool {
    let path = Path::new(hit.path.trim_start_matches('/'));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // `.NAME.<8 random digits>.tmp`
    let asked = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")).and_then(|name| name.get(..name.len() - 9));
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    let names = |folder: &Path| match folder.to_str().unwrap() {
        "" => error.contains(" .: "),
        folder => error.match_indices(folder).any(|(at, _)| !error[at + folder.len()..].starts_with('/')),
    };
    error.contains(asked.unwrap_or(&name)) || path.ancestors().skip(1).any(names)
}

/// Of so many operations one is tried, where not all are.
const EVERY: usize = 20;

enum Selection {
    All,
    /// Those that a number says.
    Some(usize),
}

impl Selection {
    fn of_environment() -> Self {
        match std::env::var("COMPRESSOR_FAULTS").as_deref() {
            Ok("all") => Self::All,
            Ok(other) => panic!("COMPRESSOR_FAULTS is {other:?}; it may be all, or not set"),
            Err(_) => {
                let mut hasher = DefaultHasher::new();
                std::env::var("COMPRESSOR_FAULT_SEED").unwrap_or_default().hash(&mut hasher);
                Self::Some(hasher.finish() as usize >> 1)
            }
        }
    }
}

/// What all commands start from: recipes, texts, and models that the program made.
fn inputs(injector: &Injector) -> Tree {
    let folder = scratch();
    let lines =
        |count: usize, end: &str| (0..count).map(|line| format!("The lamp by door {line} is on{end}\n")).collect::<String>();
    let texts = [
        ("dataset.toml", DATASET.to_owned()),
        ("train.txt", lines(8, ".")),
        ("valid.txt", lines(4, ", too.")),
        ("test.txt", lines(4, "!")),
    ];
    let recipes = RECIPES.map(|(name, text)| (name, text.to_owned()));
    for (name, text) in recipes.into_iter().chain(texts) {
        fs_err::write(folder.path().join(name), text).unwrap();
    }
    injector.run(folder.path(), "run chain.toml", None).0.expect(0);
    fs_err::rename(folder.path().join("runs/chain/1-train"), folder.path().join("model")).unwrap();
    fs_err::remove_dir_all(folder.path().join("runs")).unwrap();
    for (name, bits) in [("int8", 8), ("int4", 4)] {
        let quantize = format!("quantize model {name} --bits {bits} --group-size 32 --scale-dtype f16");
        injector.run(folder.path(), &quantize, None).0.expect(0);
    }
    tree(folder.path())
}

/// Tries points on every core.
fn try_all(injector: &Injector, reference: &Reference, points: &[Point]) -> Vec<String> {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = reference.try_point(injector, *point);
            wrong.lock().unwrap().extend(found.into_iter().map(|found| format!("{}, operation {found}", reference.kind.name)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    wrong.into_inner().unwrap()
}

#[test]
fn a_command_that_is_ended_at_any_operation_is_finished_by_the_same_command() {
    let (injector, selection) = (Injector::new(), Selection::of_environment());
    let inputs = inputs(&injector);
    let only = std::env::var("COMPRESSOR_FAULT_KIND").ok();
    assert!(only.iter().all(|only| KINDS.iter().any(|kind| kind.name == only)), "no kind has the name {only:?}");
    let mut wrong = Vec::new();
    for kind in KINDS.iter().filter(|kind| only.as_ref().is_none_or(|only| only == kind.name)) {
        let started = Instant::now();
        let reference = Reference::new(&injector, kind, &inputs);
        let points = reference.points(&selection);
        let found = try_all(&injector, &reference, &points);
        let (operations, bad, seconds) = (reference.operations.len(), found.len(), started.elapsed().as_secs_f64());
        println!("{}: {operations} operations, {} tried, {bad} bad, {seconds:.1} s", kind.name, points.len());
        found.iter().for_each(|found| println!("{found}"));
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "{} bad:\n{}", wrong.len(), wrong.join("\n"));
}

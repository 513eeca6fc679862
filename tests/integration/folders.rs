//! Folders that commands make: whole, once, and never over something else.

use std::process::Stdio;

use crate::command::Bench;
use crate::export::dense;
use crate::measurements;

/// The names in a folder, sorted.
fn names(bench: &Bench, folder: &str) -> Vec<String> {
    let entries = fs_err::read_dir(bench.path(folder)).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_command_that_finished_says_so_and_another_result_needs_force() {
    let bench = Bench::new();
    dense(&bench);
    let commands: [(&[&str], &[&str], &str); 3] = [
        (&["import", "dense", "out"], &["import", "dense", "out", "--dtype", "bf16"], "from the same files in the same type"),
        (
            &["prune", "dense", "out", "--head-ratio", "0.5", "--importance", "magnitude"],
            &["prune", "dense", "out", "--channel-ratio", "0.5", "--importance", "magnitude"],
            "from the same inputs with the same settings",
        ),
        (
            &["quantize", "dense", "out", "--bits", "8"],
            &["quantize", "dense", "out", "--bits", "4"],
            "from the same inputs with the same settings",
        ),
    ];
    for (first, other, what) in commands {
        bench.run(first).expect(0);
        let made = names(&bench, "out");
        let weights = fs_err::read(bench.path("out/model.safetensors")).unwrap();
        assert_eq!(bench.run(first).expect(0).stderr(), format!("out: finished before, {what}\n"));
        let expected = format!(
            "error: out: is not empty: `{}` made it from other inputs or with other settings; name another folder, or replace it with \
             --force\n",
            first[0]
        );
        assert_eq!(bench.run(other).expect(2).stderr(), expected);
        assert_eq!(fs_err::read(bench.path("out/model.safetensors")).unwrap(), weights);
        bench.run(&[other, &["--force"]].concat()).expect(0);
        assert_ne!(fs_err::read(bench.path("out/model.safetensors")).unwrap(), weights);
        assert_eq!(names(&bench, "out"), made);
        bench.run(other).expect(0);
        assert!(names(&bench, ".").iter().all(|name| !name.starts_with('.')), "nothing is left beside it");
        fs_err::remove_dir_all(bench.path("out")).unwrap();
    }
}

#[test]
fn an_artifact_is_the_same_bytes_wherever_it_is_made_and_its_record_is_no_part_of_it() {
    let bench = Bench::new();
    dense(&bench);
    fs_err::create_dir_all(bench.path("else/where")).unwrap();
    fs_err::rename(bench.path("dense"), bench.path("else/dense")).unwrap();
    bench.run(&["quantize", "else/dense", "one", "--bits", "8"]).expect(0);
    fs_err::rename(bench.path("else/dense"), bench.path("else/where/dense")).unwrap();
    let from = bench.path("else/where/dense");
    bench.run(&["quantize", from.to_str().unwrap(), "else/two", "--bits", "8"]).expect(0);
    assert_eq!(names(&bench, "one"), names(&bench, "else/two"));
    for name in names(&bench, "one") {
        let [one, two] = ["one", "else/two"].map(|folder| fs_err::read(bench.path(folder).join(&name)).unwrap());
        assert_eq!(one, two, "{name}");
    }
    bench.run(&["verify", "one"]).expect(0);
    let bytes: u64 = names(&bench, "one")
        .iter()
        .filter(|name| *name != ".compressor.json")
        .map(|name| fs_err::metadata(bench.path("one").join(name)).unwrap().len())
        .sum();
    bench.run(&["verify", "one", "--artifact-bytes", &bytes.to_string()]).expect(0);
    bench.run(&["delta", "one", "else/two", "delta"]).expect(0);
    bench.run(&["apply", "one", "delta", "out"]).expect(0);
    assert!(!bench.path("out/.compressor.json").exists());
    bench.run(&["verify", "out"]).expect(0);
    bench.write("one/manifest.json.tmp", "anything");
    let text = bench.run(&["verify", "one"]).expect(1).stdout();
    assert!(text.contains("manifest.json.tmp: is not in the manifest (8 bytes)"), "{text}");
}

#[test]
fn a_model_is_not_written_onto_into_or_around() {
    let bench = Bench::new();
    dense(&bench);
    for out in ["dense", "dense/new", "."] {
        for command in [&["import", "dense", out][..], &["quantize", "dense", out, "--bits", "8", "--force"]] {
            bench.run(command).expect(2);
        }
    }
    assert_eq!(names(&bench, "dense"), ["config.json", "model.safetensors", "tokenizer.json"]);
    let text = bench.run(&["generate", "dense", "-p", "abc", "--prompt-cache", "dense/cache"]).expect(2).stderr();
    assert!(text.starts_with("error: dense/cache: lies in a folder that this command reads"), "{text}");
}

/// A cache that lost a file leaves a link to nothing; nothing of a model is left out because of it.
#[cfg(unix)]
#[test]
fn a_file_of_a_model_that_cannot_be_read_is_refused_and_not_left_out() {
    let bench = Bench::new();
    dense(&bench);
    let names = ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"];
    for name in names {
        let path = bench.path("dense").join(name);
        let kept = fs_err::read(&path).ok();
        let _ = fs_err::remove_file(&path);
        std::os::unix::fs::symlink("../blobs/lost", &path).unwrap();
        let dangling =
            format!("dense/{name}: is a link to ../blobs/lost, which is not there: get the model again, or remove the link");
        let folder = format!("dense/{name}: is a folder, not a file");
        for expected in [dangling, folder] {
            let refused = bench.run(&["quantize", "dense", "out", "--bits", "8"]).expect(2).stderr();
            assert!(refused.contains(&expected), "{name}: {refused}");
            assert!(!bench.path("out").exists());
            let _ = fs_err::remove_file(&path);
            let _ = fs_err::create_dir(&path);
        }
        fs_err::remove_dir(&path).unwrap();
        if let Some(kept) = kept {
            fs_err::write(&path, kept).unwrap();
        }
    }
    bench.run(&["quantize", "dense", "out", "--bits", "8"]).expect(0);
}

#[test]
fn two_imports_at_once_do_not_mix() {
    let bench = Bench::new();
    dense(&bench);
    for _ in 0..6 {
        let children = ["f32", "bf16"].map(|dtype| {
            let mut command = bench.command(&["import", "dense", "out", "--dtype", dtype]);
            (dtype, command.stderr(Stdio::piped()).spawn().unwrap())
        });
        let mut winners = Vec::new();
        for (dtype, child) in children {
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8(ended.stderr).unwrap();
            match ended.status.code() {
                Some(0) => winners.push(dtype),
                Some(2) => assert!(said.contains("another process is writing") || said.contains("--force"), "{said}"),
                code => panic!("{code:?}: {said}"),
            }
        }
        let [winner] = winners[..] else { panic!("{winners:?}") };
        bench.run(&["import", "dense", "out", "--dtype", winner]).expect(0);
        bench.run(&["import", "dense", "again", "--dtype", winner]).expect(0);
        for name in names(&bench, "again") {
            let [one, two] = ["out", "again"].map(|folder| fs_err::read(bench.path(folder).join(&name)).unwrap());
            assert_eq!(one, two, "{name}");
        }
        for folder in ["out", "again"] {
            fs_err::remove_dir_all(bench.path(folder)).unwrap();
        }
    }
}

#[test]
fn answers_at_once_share_a_prompt_cache() {
    let bench = Bench::new();
    dense(&bench);
    let ask = |prompt: &str| {
        let asked = ["generate", "dense", "-p", prompt, "-n", "2", "--prompt-cache", "cache", "--threads", "1"];
        bench.command(&asked).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for _ in 0..6 {
        let children = ["abcd", "abcdef", "abcdefgh", "abcdefghij"].map(ask);
        for child in children {
            let ended = child.wait_with_output().unwrap();
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        }
        assert!(ask("abcdefghijk").wait_with_output().unwrap().status.success());
        assert_eq!(names(&bench, "."), ["cache", "datasets", "dense"]);
        fs_err::remove_file(bench.path("cache")).unwrap();
    }
}

/// Without anybody ignoring the signal that the limit sends.
#[cfg(unix)]
#[test]
fn a_file_beyond_the_limit_is_told_with_the_way_out() {
    let bench = Bench::new();
    dense(&bench);
    let limited = "ulimit -f 20; exec \"$0\" \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_compressor"), "import", "dense", "out"]).current_dir(bench.path("."));
    let ended = command.output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    let expected = ".out.compressor/new/model.safetensors: it would be larger than a file may be here; raise the limit (`ulimit -f`) or \
                    write to another disk\n";
    assert_eq!(said, format!("error: {expected}"));
    assert!(!bench.path("out").exists());
    bench.run(&["import", "dense", "out"]).expect(0);
}

#[test]
fn a_checkpoint_and_a_gguf_file_are_told_to_be_no_artifacts() {
    let bench = Bench::new();
    dense(&bench);
    let text = bench.run(&["verify", "dense"]).expect(2).stderr();
    assert!(
        text.starts_with("error: dense: is a checkpoint with dense weights, and only an artifact has a manifest.json"),
        "{text}"
    );
    bench.write("model.gguf", "GGUF and more");
    let text = bench.run(&["verify", "model.gguf"]).expect(2).stderr();
    assert!(text.starts_with("error: model.gguf: is a GGUF file, and only an artifact has a manifest.json"), "{text}");
}

#[test]
fn a_run_writes_over_nothing_that_it_reads_and_nothing_of_others() {
    let bench = measurements::bench();
    bench.write("short.toml", &measurements::recipe(2, ""));
    bench.run(&["quantize", "dense", "other", "--bits", "8"]).expect(0);
    for name in ["report.json", "report.html"] {
        fs_err::create_dir(bench.path(name)).unwrap();
        bench.write(&format!("{name}/{name}"), "mine");
        let refused = bench.run(&["run", "short.toml", "--out", name]).expect(2).stderr();
        assert!(refused.contains(&format!("{name}/{name} is there, and no run of this program wrote it")), "{refused}");
        assert_eq!(names(&bench, name), [name]);
    }
    for out in ["dense", "dense/new"] {
        let refused = bench.run(&["run", "short.toml", "--out", out]).expect(2).stderr();
        assert!(refused.contains("lies in a folder that this command reads, and would change it (dense)"), "{refused}");
    }
    assert_eq!(names(&bench, "dense"), ["config.json", "model.safetensors", "tokenizer.json"]);
    // A text for a report.
    fs_err::create_dir(bench.path("texts")).unwrap();
    fs_err::rename(bench.path("test.txt"), bench.path("texts/report.json")).unwrap();
    bench.write("set.toml", "[text]\ntrain = \"texts/report.json\"\ntest = \"texts/report.json\"\n");
    let refused = bench.run(&["run", "short.toml", "--out", "texts"]).expect(2).stderr();
    assert!(refused.contains("report.json: is read by this command, and would be lost"), "{refused}");
    assert_eq!(names(&bench, "texts"), ["report.json"]);
    // Beside it there is room.
    bench.run(&["run", "short.toml", "--out", "texts/run"]).expect(0);
    bench.run(&["run", "short.toml", "--out", "texts/run"]).expect(0);
}

/// Of every step: the one that measures what is there already, one that makes files, one that only checks.
#[cfg(unix)]
#[test]
fn records_that_are_damaged_cost_their_step_and_never_all_memory_or_a_hang() {
    let bench = measurements::bench();
    bench.write("short.toml", &measurements::recipe(2, ""));
    bench.run(&["run", "short.toml"]).expect(0);
    let of_steps = || -> Vec<serde_json::Value> {
        let stages: serde_json::Value =
            serde_json::from_slice(&fs_err::read(bench.path("runs/short/report.json")).unwrap()).unwrap();
        let figures = |row: &serde_json::Value| serde_json::json!([row["name"], row["bytes"], row["perplexity"]["value"]]);
        stages["stages"].as_array().unwrap().iter().map(figures).collect()
    };
    let before = of_steps();
    let damage = |what: &str, path: &std::path::Path| match what {
        "a pipe" => assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success()),
        "huge" => fs_err::File::create(path).unwrap().set_len(1 << 40).unwrap(),
        "a folder" => fs_err::create_dir(path).unwrap(),
        "endless" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        text => fs_err::write(path, text).unwrap(),
    };
    for name in
        ["0-original/step.json", "1-prune/step.json", "2-quantize/fingerprint", "2-quantize/made.json", "3-verify/step.json"]
    {
        let path = bench.path("runs/short/.steps").join(name);
        let sound = fs_err::read(&path).ok();
        for what in ["a pipe", "huge", "[1, 2", "", "a folder", "endless"] {
            let _ = fs_err::remove_dir(&path).or_else(|_| fs_err::remove_file(&path));
            damage(what, &path);
            bench.run(&["run", "short.toml"]).expect(0);
            assert_eq!(of_steps(), before, "{name}: {what}");
            // What a finished step was begun for isn't asked, and nothing is left to be made of it.
            if name.ends_with("step.json") {
                serde_json::from_slice::<serde_json::Value>(&fs_err::read(&path).unwrap()).expect("it is written anew");
            }
            bench.run(&["run", "short.toml"]).expect(0);
        }
        let _ = fs_err::remove_dir(&path).or_else(|_| fs_err::remove_file(&path));
        if let Some(sound) = sound {
            fs_err::write(&path, sound).unwrap();
        }
    }
}

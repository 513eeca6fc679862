//! `delta` and `apply`, as they are typed.

use crate::command::Bench;

/// Two folders that differ in one file of two.
fn bench() -> Bench {
    let bench = Bench::new();
    for (folder, text) in [("old", "first"), ("new", "second")] {
        fs_err::create_dir(bench.path(folder)).unwrap();
        bench.write(&format!("{folder}/config.json"), text);
        bench.write(&format!("{folder}/tokenizer.json"), "words");
    }
    bench
}

#[test]
fn the_new_folder_comes_from_the_old_one_and_a_delta() {
    let bench = bench();
    let made = bench.run(&["delta", "old", "new", "update", "--json"]).expect(0);
    let bytes = fs_err::metadata(bench.path("update")).unwrap().len();
    let json: serde_json::Value = serde_json::from_str(&made.stdout()).unwrap();
    assert_eq!(json, serde_json::json!({ "output": "update", "bytes": bytes, "new_bytes": 11 }));
    let part = 100.0 * bytes as f64 / 11.0;
    assert_eq!(made.stderr(), format!("written to update: {bytes} bytes, {part:.1} % of the 11 of new\n"));

    let applied = bench.run(&["apply", "old", "update", "out"]).expect(0);
    assert_eq!(applied.stderr(), "written to out: 2 files, each with the BLAKE3 that the delta names\n");
    for (name, text) in [("config.json", "second"), ("tokenizer.json", "words")] {
        assert_eq!(fs_err::read_to_string(bench.path("out").join(name)).unwrap(), text);
    }
    let again = bench.run(&["apply", "old", "update", "out"]).expect(0);
    assert_eq!(again.stderr(), "out: finished before: 2 files, each with the BLAKE3 that the delta names\n");
    bench.write("out/mine.txt", "mine");
    let refused = bench.run(&["apply", "old", "update", "out", "--force"]).expect(2).stderr();
    let expected = "error: out: is not empty, and no record or manifest says that this program made it; move it away or name another folder\n";
    assert_eq!(refused, expected);
}

#[test]
fn what_is_no_folder_and_what_is_no_delta_is_said_so() {
    let bench = bench();
    let refused = bench.run(&["delta", "old", "nowhere", "update"]).expect(2);
    assert_eq!(refused.stderr(), "error: nowhere: is no folder\n");
    let refused = bench.run(&["apply", "old", "new/config.json", "out"]).expect(2);
    assert_eq!(refused.stderr(), "error: new/config.json: is cut short: its 6 bytes are less than a head\n");
    assert!(!bench.path("out").exists() && !bench.path("update").exists());
}

#[test]
fn nothing_that_is_read_is_written_onto() {
    let bench = bench();
    let refused = |arguments: &[&str]| bench.run(arguments).expect(2).stderr();
    let inside = "lies in a folder that this command reads, and would change it";
    let expected = format!("error: old/config.json: {inside} (old): name another place\n");
    assert_eq!(refused(&["delta", "old", "new", "old/config.json"]), expected);
    assert_eq!(refused(&["delta", "old", "new", "new/x"]), format!("error: new/x: {inside} (new): name another place\n"));
    bench.run(&["delta", "old", "new", "update"]).expect(0);
    let lost = "is read by this command, and would be lost";
    assert_eq!(refused(&["apply", "old", "update", "update"]), format!("error: update: {lost} (update): name another place\n"));
    assert_eq!(refused(&["apply", "old", "update", "old"]), format!("error: old: {lost} (old): name another place\n"));
    for (file, text) in [("old/config.json", "first"), ("new/config.json", "second")] {
        assert_eq!(fs_err::read_to_string(bench.path(file)).unwrap(), text);
    }
    assert_eq!(fs_err::read_dir(bench.path("new")).unwrap().count(), 2);
}

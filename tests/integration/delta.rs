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
    let again = bench.run(&["apply", "old", "update", "out"]).expect(2);
    assert_eq!(again.stderr(), "error: out: is there already; name a new folder\n");
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

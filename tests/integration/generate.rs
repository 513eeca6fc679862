//! `generate` as a person and a script see it.

use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::command::{Bench, root};

/// The golden Llama of 96 tokens, with a tokenizer of as many words: `w0` to `w95`.
fn with_words(bench: &Bench) {
    let golden = root().join("tests/golden/models/llama");
    fs_err::create_dir(bench.path("words")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(golden.join(name), bench.path("words").join(name)).unwrap();
    }
    let vocab: serde_json::Map<String, Value> = (0..96).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null, "decoder": null, "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" }
    });
    bench.write("words/tokenizer.json", &tokenizer.to_string());
}

/// The result as JSON.
#[track_caller]
fn json_of(bench: &Bench, arguments: &[&str]) -> Value {
    let ran = bench.run(&[&["generate", "words", "--json"], arguments].concat()).expect(0);
    serde_json::from_str(&ran.stdout()).unwrap()
}

#[track_caller]
fn text_of(bench: &Bench, arguments: &[&str]) -> String {
    let ran = bench.run(&[&["generate", "words"], arguments].concat()).expect(0);
    assert_eq!(ran.stderr(), "");
    ran.stdout()
}

/// The whole of stderr; exit code 2, nothing on stdout.
#[track_caller]
fn refused(bench: &Bench, arguments: &[&str]) -> String {
    let ran = bench.run(&[&["generate"], arguments].concat()).expect(2);
    assert_eq!(ran.stdout(), "");
    ran.stderr()
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let bench = Bench::new();
    with_words(&bench);
    let sampled =
        |seed: &str| text_of(&bench, &["-p", "w3 w4", "-n", "12", "--temperature", "1.5", "--top-p", "0.9", "--seed", seed]);
    assert_eq!(sampled("4"), sampled("4"));
    assert_ne!(sampled("4"), sampled("5"));
    // What only one token passes is the most likely one.
    let likely = text_of(&bench, &["-p", "w3 w4", "-n", "12"]);
    assert_eq!(text_of(&bench, &["-p", "w3 w4", "-n", "12", "--temperature", "9", "--top-k", "1"]), likely);
    assert_eq!(text_of(&bench, &["-p", "w3 w4", "-n", "12", "--temperature", "9", "--min-p", "1"]), likely);
    assert_ne!(text_of(&bench, &["-p", "w3 w4", "-n", "12", "--repetition-penalty", "9"]), likely);
}

#[test]
fn text_numbers_and_json_are_the_same_answer() {
    let bench = Bench::new();
    with_words(&bench);
    let asked = ["-n", "12", "--temperature", "1.5", "--seed", "1", "--ignore-end"];
    let found = json_of(&bench, &[["-p", "w3 w4"].as_slice(), &asked].concat());
    assert_eq!(found["prompt_ids"], json!([3, 4]));
    assert_eq!(found["finish_reason"], "length");
    let ids: Vec<String> = found["generated_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert_eq!(ids.len(), 12);
    let words: String = ids.iter().map(|id| format!(" w{id}")).collect();
    assert_eq!(found["text"], words.as_str());
    assert_eq!(text_of(&bench, &[["-p", "w3 w4"].as_slice(), &asked].concat()), format!("w3 w4{words}\n"));
    let numbers = text_of(&bench, &[["--prompt-ids", "3 4", "--ids"].as_slice(), &asked].concat());
    assert_eq!(numbers, format!("{}\n", ids.join(" ")));
}

#[test]
fn a_prompt_can_come_from_standard_input() {
    let bench = Bench::new();
    with_words(&bench);
    let answer = |text: &[u8]| {
        let mut command = bench.command(&["generate", "words", "-p", "-", "-n", "5"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let expected = (Some(0), text_of(&bench, &["-p", "w3 w4", "-n", "5"]), String::new());
    assert_eq!(answer(b"w3 w4\n"), expected);
    assert_eq!(answer(b"w3 w4\r\n"), expected);
    assert_eq!(answer(b"w3 w4"), expected);
    let refused = "error: standard input:1: byte 2 (0xff) is not UTF-8; convert the file to UTF-8\n".to_owned();
    assert_eq!(answer(b"w3\xff"), (Some(2), String::new(), refused));
}

#[test]
fn a_text_begins_with_bos_where_the_tokenizer_begins_it_so_and_a_chat_writes_it_itself() {
    let bench = Bench::new();
    with_words(&bench);
    let path = bench.path("words/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    tokenizer["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "w7", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"w7": {"id": "w7", "ids": [7], "tokens": ["w7"]}}
    });
    fs_err::write(&path, tokenizer.to_string()).unwrap();
    bench.write("words/chat_template.jinja", "w7 {{ messages[0].content }}");
    let prompt = |arguments: &[&str]| json_of(&bench, &[&["-n", "1", "-p", "w3 w4"], arguments].concat())["prompt_ids"].clone();
    assert_eq!(prompt(&[]), serde_json::json!([7, 3, 4]));
    assert_eq!(prompt(&["--answer"]), serde_json::json!([7, 3, 4]));
    assert_eq!(prompt(&["--chat"]), serde_json::json!([7, 3, 4]));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let bench = Bench::new();
    with_words(&bench);
    let asked = ["-p", "w3", "-n", "30", "--temperature", "2", "--seed", "6", "--ignore-end"];
    let whole = json_of(&bench, &asked)["text"].as_str().unwrap().to_owned();
    // The last letters of one word and the first of the next: across the border of tokens.
    let word = whole.match_indices(" w").nth(9).unwrap().0;
    let stop = &whole[word - 1..word + 3];
    let expected = &whole[..whole.find(stop).unwrap()];
    let found = json_of(&bench, &[asked.as_slice(), &["--stop", "never", "--stop", stop]].concat());
    assert_eq!((found["text"].as_str(), found["finish_reason"].as_str()), (Some(expected), Some("stop_string")));
    assert!(found["generated_ids"].as_array().unwrap().len() < 30);
    assert_eq!(text_of(&bench, &[asked.as_slice(), &["--stop", stop]].concat()), format!("w3{expected}\n"));
}

#[test]
fn tokens_that_end_an_answer_come_from_generation_config_too() {
    let bench = Bench::new();
    with_words(&bench);
    let found = json_of(&bench, &["-p", "w3 w4", "-n", "8", "--ignore-end"]);
    let ids = found["generated_ids"].as_array().unwrap();
    let end = &ids[ids.len() - 1];
    let before = ids.iter().position(|id| id == end).unwrap();
    bench.write("words/generation_config.json", &json!({ "eos_token_id": [end] }).to_string());
    let ended = json_of(&bench, &["-p", "w3 w4", "-n", "8"]);
    assert_eq!(ended["generated_ids"].as_array().unwrap()[..], ids[..before]);
    assert_eq!(ended["finish_reason"], "stop");
}

#[test]
fn a_message_is_written_as_the_models_template_says() {
    let bench = Bench::new();
    with_words(&bench);
    let template = "{% for message in messages %}\n{{ {'system': 'w7', 'user': 'w8'}[message.role] }} {{ message.content }} {% endfor \
                    %}\n{% if add_generation_prompt %}{{ bos_token }}{% endif %}\n";
    bench.write("words/chat_template.jinja", template);
    bench.write("words/tokenizer_config.json", "{\"bos_token\": \"w9\"}");
    let asked = ["--chat", "-p", "w3 w4", "-n", "4", "--ignore-end"];
    let found = json_of(&bench, &asked);
    assert_eq!(found["prompt_ids"], json!([8, 3, 4, 9]));
    let answer = found["text"].as_str().unwrap();
    assert_eq!(text_of(&bench, &asked), format!("{answer}\n"), "the answer alone");
    assert!(!answer.starts_with(' '), "an answer begins a text: {answer:?}");
    let found = json_of(&bench, &[asked.as_slice(), &["--system", "w5"]].concat());
    assert_eq!(found["prompt_ids"], json!([7, 5, 8, 3, 4, 9]));

    bench.run(&["quantize", "words", "small", "--bits", "8"]).expect(0);
    for name in ["chat_template.jinja", "tokenizer_config.json"] {
        let (before, after) = (bench.path("words").join(name), bench.path("small").join(name));
        assert_eq!(fs_err::read(before).unwrap(), fs_err::read(after).unwrap(), "{name} comes along");
    }
    let ran = bench.run(&["generate", "small", "--json", "--chat", "-p", "w3 w4", "-n", "4"]).expect(0);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout()).unwrap()["prompt_ids"], json!([8, 3, 4, 9]));

    bench.write("words/chat_template.jinja", "{{ raise_exception('only stories here') }}");
    let expected = "error: words/chat_template.jinja: the chat template refuses this conversation: only stories here\n";
    assert_eq!(refused(&bench, &["words", "--chat", "-p", "w3"]), expected);
}

#[test]
fn settings_that_cannot_be_are_refused_before_the_model_is_looked_for() {
    let bench = Bench::new();
    let refused = |arguments: &[&str]| refused(&bench, &[&["nowhere", "-p", "w3"], arguments].concat());
    assert_eq!(refused(&["--temperature", "-1"]), "error: temperature is -1; it must be a number of 0 or more\n");
    assert_eq!(refused(&["--temperature", "nan"]), "error: temperature is NaN; it must be a number of 0 or more\n");
    assert_eq!(refused(&["--temperature", "1", "--top-k", "0"]), "error: top-k is 0; it must be at least 1\n");
    assert_eq!(refused(&["--temperature", "1", "--top-p", "0"]), "error: top-p is 0; it must be above 0 and at most 1\n");
    assert_eq!(refused(&["--temperature", "1", "--min-p", "1.5"]), "error: min-p is 1.5; it must lie from 0 to 1\n");
    assert_eq!(refused(&["--repetition-penalty", "0"]), "error: repetition penalty is 0; it must be a number above 0\n");
    for flag in [["--top-k", "5"], ["--top-p", "0.9"], ["--min-p", "0.1"]] {
        let expected = format!("error: {} needs --temperature above 0: at 0 the most likely token is always taken\n", flag[0]);
        assert_eq!(refused(&flag), expected);
    }
    let usage = |arguments: &[&str]| refused(arguments).lines().next().unwrap().to_owned();
    assert_eq!(usage(&["--system", "w5"]), "error: the following required arguments were not provided:");
    assert_eq!(usage(&["--stop", ""]), "error: a value is required for '--stop <TEXT>' but none was supplied");
    assert_eq!(usage(&["--stop", "w5", "--ids"]), "error: the argument '--stop <TEXT>' cannot be used with '--ids'");
    assert_eq!(usage(&["--chat", "--answer"]), "error: the argument '--chat' cannot be used with '--answer'");
}

#[test]
fn a_template_that_takes_all_there_is_is_refused() {
    let bench = Bench::new();
    with_words(&bench);
    let memory = "takes more than 512 MiB of memory";
    let depth = "nests more deeply than the stack of the process that renders it";
    let time = "takes more than 5 seconds of processor time";
    let in_parentheses = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let cases = [
        ("{% set n = namespace() %}{% set n.a = n %}{{ n }}", depth),
        ("{% set n = namespace() %}{% set n.a = n %}{{ n | tojson }}", depth),
        ("{% set n = namespace(x=[]) %}{% for i in range(90000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}", depth),
        ("{{ '%5000000000d' | format(1) }}", memory),
        ("{% set n = namespace(x='a' * 1000) %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}", memory),
        (
            "{% set n = namespace(x='a' * 1000) %}{% for i in range(15) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
            "writes more than 16 MiB",
        ),
        ("{% set n = namespace(x=[1]) %}{% for i in range(45) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}", time),
        (&in_parentheses, "can't be rendered"),
    ];
    for (template, limit) in cases {
        bench.write("words/chat_template.jinja", template);
        let refused = refused(&bench, &["words", "--chat", "-p", "w3"]);
        assert!(refused.starts_with("error: words/chat_template.jinja: the chat template "), "{refused}");
        assert!(refused.contains(limit), "{limit}: {refused}");
    }
}

#[test]
fn a_model_that_cannot_chat_is_refused() {
    let bench = Bench::new();
    with_words(&bench);
    let expected = "error: words: has no chat template, neither chat_template.jinja nor `chat_template` in tokenizer_config.json: it \
                    can only continue a text\n";
    assert_eq!(refused(&bench, &["words", "-p", "w3", "--chat"]), expected);
}

#[test]
fn the_end_of_the_context_is_said() {
    let bench = Bench::new();
    with_words(&bench);
    let prompt = ["w3"; 60].join(" ");
    let ran = bench.run(&["generate", "words", "-p", &prompt, "-n", "9", "--ignore-end"]).expect(0);
    assert_eq!(ran.stderr(), "ended after 4 tokens: the model's context of 64 is full\n");
    assert_eq!(ran.stdout().split_whitespace().count(), 64);
    let prompt = ["w3"; 64].join(" ");
    let expected = "error: the prompt has 64 tokens, and the model's context of 64 leaves no room\n";
    assert_eq!(refused(&bench, &["words", "-p", &prompt]), expected);
}

/// A context so long that the answer does not end by itself within a test.
#[cfg(unix)]
fn with_a_long_context(bench: &Bench) {
    with_words(bench);
    let path = bench.path("words/config.json");
    let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = 1_000_000.into();
    fs_err::write(path, config.to_string()).unwrap();
}

#[test]
fn a_prompt_in_a_file_is_not_computed_again_and_changes_no_text() {
    let bench = Bench::new();
    with_words(&bench);
    bench.run(&["quantize", "words", "small", "--bits", "8"]).expect(0);
    let answer = |model: &str, prompt: &str, cache: &[&str]| {
        let asked = ["-n", "9", "--temperature", "1.5", "--seed", "3", "--ignore-end", "--json"];
        let ran = bench.run(&[&["generate", model, "-p", prompt], &asked[..], cache].concat()).expect(0);
        assert_eq!(ran.stderr(), "");
        let found: Value = serde_json::from_str(&ran.stdout()).unwrap();
        (found["cached_tokens"].as_u64().unwrap(), found["generated_ids"].clone())
    };
    for model in ["words", "small"] {
        let file = format!("{model}.cache");
        let cache = ["--prompt-cache", &file];
        let prompts = [
            ("w3 w4 w5", 0, "the first prompt"),
            ("w3 w4 w5", 2, "the same: its last token is computed"),
            ("w3 w4 w5 w6 w7 w8", 3, "a longer one"),
            ("w3 w4 w9", 2, "another that begins alike, and is shorter: the file stays"),
            ("w3 w4 w5 w6 w7 w8 w1", 6, "a longer one again"),
            ("w9", 0, "nothing in common"),
        ];
        for (prompt, cached, what) in prompts {
            let (none, expected) = answer(model, prompt, &[]);
            assert_eq!((none, answer(model, prompt, &cache)), (0, (cached, expected)), "{model}, {what}");
        }
        let files = fs_err::read_dir(bench.path(".")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(files.into_iter().all(|name| !name.ends_with(".tmp")), "nothing is left beside it");
    }
    // Without an answer, only the prompt is kept.
    let asked = ["generate", "words", "-p", "w1 w2 w3", "-n", "0", "--prompt-cache", "ahead.cache", "-v"];
    assert_eq!(bench.run(&asked).expect(0).stderr(), " INFO prompt cache: 0 of 3 tokens were computed before\n");
    assert_eq!(bench.run(&asked).expect(0).stderr(), " INFO prompt cache: 2 of 3 tokens were computed before\n");
}

#[test]
fn a_message_goes_on_from_the_one_in_the_file() {
    let bench = Bench::new();
    with_words(&bench);
    let template =
        "{% for message in messages %}{{ {'system': 'w7', 'user': 'w8'}[message.role] }} {{ message.content }} {% endfor %}";
    bench.write("words/chat_template.jinja", template);
    let cached = |message: &str| {
        let asked = ["--chat", "--system", "w5 w6", "-p", message, "-n", "2", "--prompt-cache", "chat.cache"];
        json_of(&bench, &asked)["cached_tokens"].clone()
    };
    assert_eq!(cached("w3"), 0);
    assert_eq!(cached("w4"), 4, "w7 w5 w6 w8");
}

#[test]
fn a_prompt_cache_that_cannot_be_used_is_refused() {
    let bench = Bench::new();
    with_words(&bench);
    bench.run(&["quantize", "words", "small", "--bits", "8"]).expect(0);
    let asked = |model: &str, cache: &str| {
        let stderr = refused(&bench, &[model, "-p", "w3 w4", "-n", "2", "--prompt-cache", cache]);
        stderr.strip_prefix("error: ").unwrap().to_owned()
    };
    bench.run(&["generate", "words", "-p", "w3 w4", "--prompt-cache", "it"]).expect(0);
    let way_out = "; delete it or name another\n";
    assert_eq!(asked("small", "it"), format!("it: belongs to another model{way_out}"));
    let mut bytes = fs_err::read(bench.path("it")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs_err::write(bench.path("it"), &bytes).unwrap();
    assert_eq!(
        asked("words", "it"),
        format!("it: is damaged: its contents do not have the hash that they were written with{way_out}")
    );
    assert_eq!(fs_err::read(bench.path("it")).unwrap(), bytes, "a file that is refused is not written");
    // A slip of the hand does not cost the model.
    assert_eq!(asked("words", "words/model.safetensors"), "words/model.safetensors: is no prompt cache; name another file\n");
    assert_eq!(asked("words", "words"), "words: is a folder, not a file\n");
    assert_eq!(asked("words", "no/it"), "no/it: there is no folder no to keep the prompt cache in\n");
}

#[cfg(unix)]
#[test]
fn an_interruption_ends_the_answer_with_what_there_is() {
    let bench = Bench::new();
    with_a_long_context(&bench);
    for reason in [None, Some("interrupted")] {
        let arguments = ["generate", "words", "-p", "w3", "-n", "999999", "--ignore-end", "--threads", "1"];
        let mut command = bench.command(&arguments);
        command.args(reason.map(|_| "--json"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut said = Vec::new();
        match reason {
            // Five words are there as soon as they are generated, while the program goes on.
            None => {
                let mut first = [0; 15];
                out.read_exact(&mut first).unwrap();
                said.extend(first);
            }
            Some(_) => std::thread::sleep(std::time::Duration::from_secs(2)),
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        out.read_to_end(&mut said).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(130));
        assert_eq!(String::from_utf8(ended.stderr).unwrap(), "");
        let said = String::from_utf8(said).unwrap();
        match reason {
            None => assert!(said.starts_with("w3 w") && said.ends_with('\n'), "{said}"),
            Some(reason) => assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["finish_reason"], reason),
        }
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let bench = Bench::new();
    with_a_long_context(&bench);
    let arguments = ["generate", "words", "-p", "w3", "-n", "999999", "--ignore-end"];
    let mut child = bench.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 2];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!((&first, ended.status.code(), ended.stderr.as_slice()), (b"w3", Some(0), b"".as_slice()));
}

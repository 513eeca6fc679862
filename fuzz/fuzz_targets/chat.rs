//! A chat template, a zero byte, and a message.
//!
//! Each is rendered in a process of its own, which is this program again: a template may take all that a process has, so what is
//! looked for is what comes of that here. The sanitizer's own tables are larger than the limit of memory, so it holds the child instead.
#![no_main]

use std::io::{Read, Write};
use std::process::Command;

use compressor_format::{ChatTemplate, Message, Role, answer_rendering};
use compressor_fuzz::{check_refusal, folder, parts};
use libfuzzer_sys::fuzz_target;

const CHILD: &str = "COMPRESSOR_FUZZ_RENDER";
const LIMITS: &str = "hard_rss_limit_mb=600:max_allocation_size_mb=512:detect_leaks=0";

fuzz_target!(
    init: {
        if std::env::var_os(CHILD).is_some() {
            let mut request = Vec::new();
            std::io::stdin().read_to_end(&mut request).expect("the parent writes it");
            let answer = answer_rendering(&request).expect("the parent asks as the library does");
            std::io::stdout().write_all(&answer).expect("the parent reads it");
            std::process::exit(0);
        }
    },
    |input: &[u8]| {
        let Some([template, message]) = parts(input) else { return };
        let folder = folder(&[("chat_template.jinja", template)]);
        let content = String::from_utf8_lossy(message).into_owned();
        let messages = [Message { role: Role::System, content: "Be brief.".to_owned() }, Message { role: Role::User, content }];
        let mut child = Command::new(std::env::current_exe().expect("this program has a file"));
        child.env(CHILD, "1").env("ASAN_OPTIONS", LIMITS);
        match ChatTemplate::open(folder.path()).and_then(|template| template.render(&messages, child)) {
            Ok(written) => assert!(written.len() <= 16 << 20),
            Err(error) => check_refusal(&error, folder.path()),
        }
    }
);

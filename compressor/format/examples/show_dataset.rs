//! Shows what a dataset holds: a few rows of a split, and with a vocabulary size how many tokens they take.
//!
//!     cargo run --locked --release -p compressor-format --example show_dataset -- datasets/home-commands.toml --rows 20
//!
//! `--split train|valid|test` (default train), `--seed N` (default 7), `--vocab-size N`, `--jsonl` for `prompt` and
//! `completion` as JSON lines, `--tokenizer FILE` to keep the tokenizer that was trained.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::Path;

use compressor_format::{Dataset, Examples, Samples, Split, Tokenizer};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a dataset, such as datasets/home-commands.toml")?;
    let (mut rows, mut split, mut seed, mut vocab_size, mut jsonl, mut keep) = (10, Split::Train, 7, None, false, None);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{flag} needs a value"));
        match flag.as_str() {
            "--rows" => rows = value()?.parse()?,
            "--seed" => seed = value()?.parse()?,
            "--vocab-size" => vocab_size = Some(value()?.parse()?),
            "--jsonl" => jsonl = true,
            "--tokenizer" => keep = Some(value()?),
            "--split" => {
                let name = value()?;
                split = Split::ALL.into_iter().find(|split| split.name() == name).ok_or(format!("{name} is no split"))?;
            }
            other => return Err(format!("{other} is not known").into()),
        }
    }

    let dataset = Dataset::load(Path::new(&path))?;
    let examples = dataset.split(split, seed)?;
    match &examples {
        Examples::Text(text) => text.lines().take(rows).for_each(|line| println!("{line}")),
        Examples::Pairs(pairs) => {
            for pair in pairs.iter().take(rows) {
                if jsonl {
                    println!("{}", serde_json::json!({ "prompt": pair.prompt, "completion": pair.completion }));
                } else {
                    println!("{}\n    → {}", pair.prompt, pair.completion);
                }
            }
        }
    }
    if let Some(vocab_size) = vocab_size {
        let tokenizer = Tokenizer::train_bpe(dataset.split(Split::Train, seed)?.texts().into_iter(), vocab_size)?;
        if let Some(keep) = keep {
            tokenizer.save(keep)?;
        }
        if let Examples::Pairs(pairs) = &examples {
            let samples = Samples::new(&examples, &tokenizer, usize::from(u16::MAX))?;
            let mut lengths = Vec::with_capacity(pairs.len());
            let mut completions = Vec::with_capacity(pairs.len());
            for pair in pairs {
                lengths.push(pair.tokens(&tokenizer)?.ids.len());
                completions.push(tokenizer.encode(&pair.completion)?.len());
            }
            let mean = |lengths: &[usize]| lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
            eprintln!("{} rows, vocabulary of {}", samples.len(), tokenizer.vocab_size());
            eprintln!("tokens in a row: mean {:.1}, longest {}", mean(&lengths), samples.longest() + 1);
            eprintln!(
                "tokens in a completion: mean {:.1}, longest {}",
                mean(&completions),
                completions.iter().max().unwrap_or(&0)
            );
        }
    }
    Ok(())
}

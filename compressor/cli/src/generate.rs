//! The command that continues a text or answers a message, shown as it comes.

use std::io::Read;
use std::ops::ControlFlow;

use compressor_engine::{Engine, Finish, Piece, Sampler, Sampling, StopStrings, generate_on};
use compressor_format::{ChatTemplate, Message, Model, Role, TextStream, Tokenizer, decode_text, end_tokens};
use compressor_pipeline::open_tokenizer;
use serde_json::json;

use crate::Output;
use crate::arguments::Generate;
use crate::failure::{Ending, Failure};
use crate::interrupt::Asked;
use crate::out::{self, errln};
use crate::prompt_cache::PromptFile;
use crate::render;

pub(crate) fn generate(arguments: &Generate, output: Output) -> Result<Ending, Failure> {
    let mut sampler = sampler(arguments)?;
    let text = arguments.prompt.as_deref().map(prompt_text).transpose()?;
    // Token numbers in, token numbers out: a model without a tokenizer can be run too.
    let needs_tokenizer = text.is_some() || !arguments.ids;
    let tokenizer = needs_tokenizer.then(|| open_tokenizer(&arguments.model)).transpose()?;
    let prompt = match (text, &tokenizer) {
        (Some(text), Some(tokenizer)) => encode(arguments, text, tokenizer)?,
        _ => parse_ids(arguments.prompt_ids.as_deref().unwrap_or_default())?,
    };
    let model = Model::open(&arguments.model)?;
    let engine = Engine::load(&model, output.options(arguments.engine))?;
    let context = engine.architecture().max_position_embeddings;
    let room = context.saturating_sub(prompt.len());
    if room == 0 && arguments.tokens > 0 {
        let tokens = prompt.len();
        return Err(anyhow::anyhow!("the prompt has {tokens} tokens, and the model's context of {context} leaves no room").into());
    }
    let mut ends = Vec::new();
    if !arguments.ignore_end {
        ends.extend_from_slice(&engine.architecture().eos_token_ids);
        if let Some(tokenizer) = &tokenizer {
            ends.extend(tokenizer.eos());
            ends.extend(end_tokens(&arguments.model, tokenizer)?);
        }
    }

    let tokens = arguments.tokens.min(room);
    let capacity = prompt.len().saturating_add(tokens);
    let (prompt_file, mut cache) = match &arguments.prompt_cache {
        Some(path) => {
            let (file, cache) = PromptFile::open(path, &model, output.options(arguments.engine), &engine, &prompt, capacity)?;
            (Some(file), cache)
        }
        None => (None, engine.cache(capacity)),
    };
    let cached_tokens = cache.tokens();

    let mut answer = Answer::begin(arguments, output, tokenizer.as_ref(), &prompt)?;
    let mut failed = None;
    let finish = generate_on(&engine, &mut cache, &prompt, tokens, &ends, &mut sampler, |token| {
        answer.take(token).unwrap_or_else(|failure| {
            failed = Some(failure);
            ControlFlow::Break(())
        })
    })?;
    let kept = prompt_file.map_or(Ok(()), |file| file.keep(&cache, &prompt));
    if let Some(failure) = failed {
        return Err(failure);
    }
    let reason = answer.end(finish)?;
    if output.json {
        out::json(&json!({
            "prompt_ids": prompt, "cached_tokens": cached_tokens, "generated_ids": answer.tokens, "text": answer.text,
            "finish_reason": reason.name(),
        }))?;
    }
    if reason == Reason::Length && room < arguments.tokens {
        errln!("ended after {room} tokens: the model's context of {context} is full");
    }
    // Only now: an answer that could be given is given.
    kept?;
    Ok(if reason == Reason::Interrupted { Ending::Interrupted } else { Ending::Passed })
}

/// Checks everything about sampling that can be checked without the model.
fn sampler(arguments: &Generate) -> Result<Sampler, Failure> {
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
        seed: arguments.seed,
    };
    let sampler = Sampler::new(sampling)?;
    let filters =
        [("--top-k", sampling.top_k.is_some()), ("--top-p", sampling.top_p.is_some()), ("--min-p", sampling.min_p.is_some())];
    match filters.into_iter().find(|(_, given)| *given && sampling.temperature == 0.0) {
        Some((flag, _)) => {
            Err(anyhow::anyhow!("{flag} needs --temperature above 0: at 0 the most likely token is always taken").into())
        }
        None => Ok(sampler),
    }
}

/// The prompt as it was given, or standard input for `-`, without the line break that ends it.
fn prompt_text(given: &str) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    let text = decode_text("standard input", bytes)?;
    let line = text.strip_suffix("\r\n").or(text.strip_suffix('\n'));
    Ok(line.unwrap_or(&text).to_owned())
}

fn encode(arguments: &Generate, text: String, tokenizer: &Tokenizer) -> Result<Vec<u32>, Failure> {
    if arguments.chat {
        let system = arguments.system.clone().map(|content| Message { role: Role::System, content });
        let messages: Vec<Message> = system.into_iter().chain([Message { role: Role::User, content: text }]).collect();
        let written = ChatTemplate::open(&arguments.model)?.render(&messages, render::child()?)?;
        return Ok(tokenizer.encode(&written)?);
    }
    Ok(if arguments.answer { tokenizer.encode_prompt(&text)? } else { tokenizer.encode_text(&text)? })
}

fn parse_ids(text: &str) -> Result<Vec<u32>, Failure> {
    let id = |word: &str| word.parse().map_err(|_| anyhow::anyhow!("--prompt-ids: \"{word}\" is not a token number").into());
    text.split_whitespace().map(id).collect()
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Stop,
    StopString,
    Length,
    Interrupted,
    /// Nobody reads what is shown.
    Unread,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopString => "stop_string",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
            Self::Unread => "unread",
        }
    }
}

/// What is generated, shown as it comes.
struct Answer<'a> {
    shown: Shown,
    tokens: Vec<u32>,
    /// Where there is a tokenizer: what the tokens say, without a stop string.
    text: Option<String>,
    stream: Option<TextStream<'a>>,
    stops: StopStrings,
    /// An interruption ends the answer from the first token on; before, it ends the program.
    asked: Option<Asked>,
    ended: Option<Reason>,
}

/// What appears on standard output while tokens come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// JSON follows at the end.
    Nothing,
    Numbers,
    Text,
}

impl<'a> Answer<'a> {
    fn begin(arguments: &Generate, output: Output, tokenizer: Option<&'a Tokenizer>, prompt: &[u32]) -> Result<Self, Failure> {
        let shown = match (output.json, arguments.ids) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Numbers,
            (false, false) => Shown::Text,
        };
        let mut stream = tokenizer.map(Tokenizer::stream);
        // A continuation goes on in the middle of a text; an answer begins one.
        if let Some(stream) = stream.as_mut().filter(|_| !arguments.chat && !arguments.answer) {
            let text = stream.push(prompt)?;
            if shown == Shown::Text {
                out::piece(&text);
            }
        }
        Ok(Self {
            shown,
            tokens: Vec::new(),
            text: tokenizer.map(|_| String::new()),
            stream,
            stops: StopStrings::new(arguments.stop.iter().cloned()),
            asked: None,
            ended: None,
        })
    }

    fn take(&mut self, token: u32) -> Result<ControlFlow<()>, Failure> {
        let asked = self.asked.get_or_insert_with(Asked::while_generating);
        if asked.should_stop() {
            self.ended = Some(Reason::Interrupted);
            return Ok(ControlFlow::Break(()));
        }
        if self.shown == Shown::Numbers {
            out::piece(&format!("{}{token}", if self.tokens.is_empty() { "" } else { " " }));
        }
        self.tokens.push(token);
        if let Some(stream) = &mut self.stream {
            let piece = stream.push(&[token])?;
            self.say(&piece)?;
        }
        if self.shown != Shown::Nothing && out::is_closed() {
            self.ended.get_or_insert(Reason::Unread);
        }
        Ok(if self.ended.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Adds to the text what no stop string takes away.
    fn say(&mut self, piece: &str) -> Result<(), Failure> {
        let said = match self.stops.push(piece) {
            Piece::Text(said) => said,
            Piece::Last(said) => {
                self.ended = Some(Reason::StopString);
                said
            }
        };
        self.add(&said)
    }

    fn add(&mut self, said: &str) -> Result<(), Failure> {
        self.text.get_or_insert_default().push_str(said);
        if self.shown == Shown::Text && !said.is_empty() {
            out::piece(said);
        }
        Ok(())
    }

    /// Says what was held back, and why the answer ended.
    fn end(&mut self, finish: Finish) -> Result<Reason, Failure> {
        if let Some(stream) = self.stream.take()
            && self.ended != Some(Reason::StopString)
        {
            let rest = stream.finish()?;
            self.say(&rest)?;
            let held = self.stops.finish();
            self.add(&held)?;
        }
        if self.shown != Shown::Nothing {
            out::piece("\n");
        }
        Ok(match (self.ended, finish) {
            (Some(reason), _) => reason,
            (None, Finish::Stop) => Reason::Stop,
            (None, Finish::Length) => Reason::Length,
            (None, Finish::Broken) => unreachable!("`take` breaks where it sets `ended` or fails"),
        })
    }
}
